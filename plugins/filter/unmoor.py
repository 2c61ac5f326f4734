"""Filters of the playbooks: what differs between documents, and how a host is proved from outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unmoor import proof
from unmoor.model import DnsDocument, EdgeDocument, validate
from unmoor.model.change import compare
from unmoor.model.inventory import Documents


def unmoor_change(desired: dict[str, str], current: dict[str, str]) -> dict[str, list[str]]:
    """The difference from `current` to `desired`, each with the texts `edge` and `dns` (empty: none yet)."""
    change = compare(_documents(current) if all(current.values()) else None, _documents(desired))
    return {
        "lines": list(change.lines),
        "not_dns_alone": list(change.not_dns_alone),
        "takes_away": list(change.takes_away),
    }


def unmoor_proofs(
    texts: dict[str, str], via: list[str] | None = None, ca: str | None = None
) -> list[dict[str, Any]]:
    """Runs of the probe that prove an edge alone, sent straight to its addresses `via`, or the whole PoP."""
    documents = _documents(texts)
    proofs = proof.of_pop(documents, ca) if via is None else proof.of_edge(documents, via, ca)
    return [{"title": each.title, "argv": ["unmoor", "probe", *each.arguments, "--json"]} for each in proofs]


def unmoor_summary(results: list[dict[str, Any]]) -> list[str]:
    """What the runs of unmoor_proofs printed, in a few lines each."""
    return [
        line for done in results for line in proof.summary(done["item"]["title"], json.loads(done["stdout"]))
    ]


def unmoor_failures(results: list[dict[str, Any]]) -> list[str]:
    """Why runs of unmoor_proofs failed, and where to look; empty when none did."""
    return [
        line
        for done in results
        for line in proof.failure(
            done["item"]["title"],
            done["rc"],
            json.loads(done["stdout"]) if done["stdout"].startswith("{") else None,
            done["stderr"] or done.get("msg", ""),
        )
    ]


def unmoor_ran_before(started: dict[str, Any]) -> bool:
    """Whether a unit ran already when a task of systemd_service was to start it.

    If not, the task started it with all that had landed by then: to tell it anew would only cost time. The
    module's C(status) is what systemd said before. Without one, the task was skipped, and the unit may run.
    """
    return started.get("status", {}).get("ActiveState") not in ("inactive", "failed")


def _documents(texts: dict[str, str]) -> Documents:
    return Documents(
        validate(EdgeDocument, json.loads(texts["edge"]), "edge.json"),
        validate(DnsDocument, json.loads(texts["dns"]), "dns.json"),
        Path(texts["registry"]) if texts.get("registry") else None,
    )


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "unmoor_change": unmoor_change,
            "unmoor_failures": unmoor_failures,
            "unmoor_proofs": unmoor_proofs,
            "unmoor_ran_before": unmoor_ran_before,
            "unmoor_summary": unmoor_summary,
        }
