"""The server's counters in Prometheus' text format (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def exposition(status: Mapping[str, Any]) -> str:
    """Write what `status` of the control socket says, for a scraper or the textfile collector."""
    return "\n".join(_lines(status)) + "\n"


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    counters = (
        ("answers", "policy", "policies", "Answers with addresses that the policy chose."),
        ("replies", "rcode", "rcodes", "Replies by response code, answers included."),
        ("events", "event", "events", "What is counted beside replies."),
    )
    for name, label, key, text in counters:
        yield from _head(f"unmoor_dns_{name}_total", text, "counter")
        for value, count in status[key].items():
            yield f'unmoor_dns_{name}_total{{{label}="{value}"}} {count}'
    singles = (
        ("worker_restarts_total", status["restarts"], "counter", "Workers that died and were replaced."),
        ("generation", status["generation"], "gauge", "The configuration in force; each reload adds one."),
        ("workers", len(status["workers"]), "gauge", "Worker processes that serve."),
        ("hostnames", status["hostnames"], "gauge", "Registered hostnames."),
        ("uptime_seconds", status["uptime"], "gauge", "Since the server began."),
        ("reload_refused", int(status["refused"] is not None), "gauge", "Whether the last reload was."),
    )
    for name, number, kind, text in singles:
        yield from _head(f"unmoor_dns_{name}", text, kind)
        yield f"unmoor_dns_{name} {number}"


def _head(name: str, text: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
