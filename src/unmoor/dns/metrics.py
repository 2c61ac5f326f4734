"""The server's counters for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


def exposition(status: Mapping[str, Any]) -> str:
    """Write what `status` of the control socket says, for a scraper or the textfile collector."""
    registry = CollectorRegistry()
    registry.register(_Status(status))
    return generate_latest(registry).decode()


class _Status(Collector):
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        counters = (
            ("answers", "policy", "policies", "Answers with addresses that the policy chose."),
            ("replies", "rcode", "rcodes", "Replies by response code, answers included."),
            ("events", "event", "events", "What is counted beside replies."),
        )
        for name, label, key, text in counters:
            family = CounterMetricFamily(f"unmoor_dns_{name}", text, labels=[label])
            for value, count in status[key].items():
                family.add_metric([value], count)
            yield family
        yield CounterMetricFamily(
            "unmoor_dns_worker_restarts", "Workers that died and were replaced.", value=status["restarts"]
        )
        gauges = (
            ("generation", status["generation"], "The configuration in force; each reload adds one."),
            ("workers", len(status["workers"]), "Worker processes that serve."),
            ("hostnames", status["hostnames"], "Registered hostnames."),
            ("uptime_seconds", status["uptime"], "Since the server began."),
            ("reload_refused", int(status["refused"] is not None), "Whether the last reload was."),
        )
        for name, number, text in gauges:
            yield GaugeMetricFamily(f"unmoor_dns_{name}", text, value=number)
        yield from _transfers(status["transfers"])


def _transfers(states: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    """Zones and catalogs that are transferred; what has no copy yet has neither serial nor age."""
    now = time.time()
    serial = GaugeMetricFamily("unmoor_dns_zone_serial", "Serial of the copy.", labels=["zone"])
    age = GaugeMetricFamily(
        "unmoor_dns_zone_refresh_age_seconds", "Since a primary last confirmed the copy.", labels=["zone"]
    )
    usable = GaugeMetricFamily(
        "unmoor_dns_zone_usable", "Whether there is a copy, and not expired.", labels=["zone"]
    )
    failures = CounterMetricFamily(
        "unmoor_dns_zone_refresh_failures", "Refreshes and transfers that failed.", labels=["zone"]
    )
    for name, state in states.items():
        if state["serial"] is not None:
            serial.add_metric([name], state["serial"])
            age.add_metric([name], max(0.0, now - state["refreshed"]))
        usable.add_metric([name], int(state["serial"] is not None and not state["expired"]))
        failures.add_metric([name], state["failures"])
    yield from (serial, age, usable, failures)
