"""Filters of the playbooks: differences between documents, and runs of the probe with their results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unmoor import proof
from unmoor.in_use import not_bound, taken_away
from unmoor.model import DnsDocument, EdgeDocument, validate
from unmoor.model.change import compare
from unmoor.model.documents import Documents
from unmoor.model.removals import parse_expected, unexpected


def document_changes(
    desired: dict[str, str],
    current: dict[str, str],
    expected: str = "",
    unasked: dict[str, int] | None = None,
) -> dict[str, list[str]]:
    """The difference from `current` to `desired`, each with the texts `edge` and `dns` (empty: none yet).

    `lines` describe the differences, `not_dns_alone` the reasons why pool.yml refuses them, `takes_away` the
    reasons why site.yml does. Removals that are neither `expected` (see unmoor.model.removals) nor within the
    limits of `unasked` are in both.
    """
    before, after = _documents(current) if all(current.values()) else None, _documents(desired)
    change = compare(before, after)
    removals = list(unexpected(before, after, parse_expected(expected), unasked or {})) if before else []
    return {
        "lines": list(change.lines),
        "not_dns_alone": [*change.not_dns_alone, *removals],
        "takes_away": [*(taken_away(before, after) if before else ()), *removals],
    }


def probe_runs(
    texts: dict[str, str], via: list[str] | None = None, ca: str | None = None
) -> list[dict[str, Any]]:
    """Return runs of the probe: for one edge alone, sent to its own addresses `via`, or for the whole PoP."""
    documents = _documents(texts)
    proofs = proof.of_pop(documents, ca) if via is None else proof.of_edge(documents, via, ca)
    return [{"title": each.title, "argv": ["unmoor", "probe", *each.arguments, "--json"]} for each in proofs]


def probe_summary(results: list[dict[str, Any]]) -> list[str]:
    """Summarize the output of the runs of probe_runs, in a few lines each."""
    return [
        line for done in results for line in proof.summary(done["item"]["title"], json.loads(done["stdout"]))
    ]


def probe_failures(results: list[dict[str, Any]]) -> list[str]:
    """Return why runs of probe_runs failed, and how to find out more; empty when none failed."""
    return [
        line
        for done in results
        for line in (
            [f"{done['item']['title']}: the vantage host is unreachable: {done['msg']}"]
            if done.get("unreachable")
            else proof.failure(
                done["item"]["title"],
                done["rc"],
                json.loads(done["stdout"]) if done["stdout"].startswith("{") else None,
                done["stderr"] or done.get("msg", ""),
            )
        )
    ]


def was_running(started: dict[str, Any]) -> bool:
    """Whether a unit was running before a task of systemd_service started it.

    If not, it started with all files that were installed by then and needs no reload. The module's `status`
    is the unit's state before the task. Without one, the task was skipped, and the unit may be running.
    """
    return started.get("status", {}).get("ActiveState") not in ("inactive", "failed")


def failure_report(
    edge: str,
    restored: dict[str, Any],
    gate: list[dict[str, Any]],
    task: str,
    why: str,
    others: dict[str, Any],
) -> str:
    """Report how an edge's turn failed, at `task`, and the edge's state after it was put back.

    `restored` is what the module checkpoint returned, `gate` the runs of the probe after it. `others` has, of
    all edges of the run, those whose turn has `begun` and those whose turn has `ended` well.
    """
    failed = f"failed at '{task}': {why}" if task else "another edge of its batch failed"
    lines = [f"{edge}: {failed}"]
    failures = probe_failures(gate)
    if restored.get("skipped"):
        lines.append("Nothing was changed: this was a check.")
        return "\n".join(lines)
    if restored.get("fresh"):
        lines.append(
            "It was never rolled out before, so it stays as it is now: run playbooks/site.yml again, or"
        )
        lines[-1] += " playbooks/teardown.yml to make it as it was."
    elif "msg" in restored:
        lines.append(f"It could not be put back: {restored['msg']}")
        lines.append("The next run of playbooks/site.yml reloads everything.")
    else:
        lines.append(
            f"It was put back: what was in force before is in force again. Files: {len(restored['paths'])}."
        )
        if failures:
            lines += ["But the gate fails with that, too:", *failures]
        else:
            lines.append("The gate proved it.")
    ended = [name for name in others["all"] if name in others["ended"]]
    untouched = [name for name in others["all"] if name not in others["begun"]]
    lines.append(f"Edges that have the new state: {', '.join(ended) or 'none'}.")
    lines.append(f"Edges that were not touched: {', '.join(untouched) or 'none'}.")
    return "\n".join(lines)


def rollback_plan(edges: dict[str, dict[str, Any]], going: list[str]) -> dict[str, Any]:
    """Plan a rollback of the edges `going`, from what the module checkpoint read on all edges.

    Only the newest run among those of `going` is rolled back: `edges` of the result are those that it
    changed. `plan` describes the differences on each; `refused` has the reasons against it, with what to do
    first.
    """
    runs = {name: edges[name]["before"].get("run", "") for name in going}
    newest = max(runs.values(), default="")
    back = [name for name in going if newest and runs[name] == newest]
    plan: dict[str, list[str]] = {}
    for name in going:
        if name in back:
            old = edges[name]["before"]["documents"]
            lines = document_changes(old, edges[name]["documents"])["lines"]
            plan[name] = [f"to before the run of {newest}", *(lines or ["the documents are the same"])]
        else:
            plan[name] = [
                "no checkpoint to restore" if not runs[name] else f"stays: changed last by {runs[name]}"
            ]
    olds = {name: _documents(edges[name]["before"]["documents"]) for name in back}
    news = {
        name: _documents(found["documents"])
        for name, found in edges.items()
        if all(found["documents"].values())
    }
    refused = [edges[name]["before"]["broken"] for name in going if "broken" in edges[name]["before"]]
    for name, old in olds.items():
        for peer, new in news.items():
            if new.edge.pop != old.edge.pop:
                continue
            refused += _unbound(new.dns, peer, old.edge, name)
            if peer not in back:
                refused += _unbound(old.dns, name, new.edge, peer)
    return {"edges": back, "run": newest, "plan": plan, "refused": refused}


def _unbound(dns: DnsDocument, answers: str, edge: EdgeDocument, takes: str) -> list[str]:
    """Addresses that DNS on one edge answers with and that are not bound on another."""
    why = f"is in use by DNS on {answers} and would not be bound on {takes}: run playbooks/pool.yml first"
    return [f"{part} {why}" for part in not_bound(dns, edge)]


def _documents(texts: dict[str, str]) -> Documents:
    return Documents(
        validate(EdgeDocument, json.loads(texts["edge"]), "edge.json"),
        validate(DnsDocument, json.loads(texts["dns"]), "dns.json"),
        Path(texts["registry"]) if texts.get("registry") else None,
    )


class FilterModule:
    """The filters of this file. Each is documented in the YAML file of its name."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            "rollback_plan": rollback_plan,
            "document_changes": document_changes,
            "probe_failures": probe_failures,
            "probe_runs": probe_runs,
            "was_running": was_running,
            "failure_report": failure_report,
            "probe_summary": probe_summary,
        }
