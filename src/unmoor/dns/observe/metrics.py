"""The server's counters for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from unmoor.dns.counters.counters import LATENCY_BOUNDS
from unmoor.dns.counters.rates import total

_PREFIX = "unmoor_dns_"


Reader = Callable[[], Mapping[str, Any]]


def exposition(status: Mapping[str, Any]) -> str:
    """Format the status reported by the control socket, for a scraper or the textfile collector."""
    return generate_latest(registry(lambda: status)).decode()


def registry(status: Reader, addresses: Reader | None = None) -> CollectorRegistry:
    """Return a registry that calls `status`, and `addresses` for a sample of each address, at each scrape.

    Both return the data of the control socket's reply.
    """
    # Describing itself would call `status` now: the server may start later.
    found = CollectorRegistry(auto_describe=False)
    found.register(_Status(status, addresses))
    return found


class _Status(Collector):
    def __init__(self, status: Reader, addresses: Reader | None) -> None:
        self._status = status
        self._addresses = addresses

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield from _counters(status)
        yield _latency(status)
        gauges = (
            ("generation", status["generation"], "The configuration in force; each reload adds one."),
            ("workers", len(status["workers"]), "Worker processes that serve."),
            ("hostnames", status["hostnames"], "Registered hostnames."),
            ("uptime_seconds", status["uptime"], "Since the server began."),
            ("reload_refused", int(status["refused"] is not None), "Whether the last reload was."),
            (
                "journal_failing",
                int(status["journal"]["failure"] is not None),
                "Whether the journal cannot be written.",
            ),
        )
        for name, number, text in gauges:
            yield GaugeMetricFamily(_PREFIX + name, text, value=number)
        yield _buffers(status.get("buffers", {}))  # a server of an older release has none
        yield from _transfers(status["transfers"])
        if self._addresses:
            yield _given(total(self._addresses()).addresses)


def _counters(status: Mapping[str, Any]) -> Iterator[Metric]:
    for name, labels, rows, text in (
        (
            "answers",
            ("policy", "type", "transport"),
            status["answers"],
            "Answers with addresses that the policy chose.",
        ),
        (
            "replies",
            ("rcode", "transport"),
            status["replies"],
            "Replies by response code, answers included.",
        ),
        ("events", ("event",), status["events"].items(), "What is counted beside replies."),
        ("worker_restarts", (), [(status["restarts"],)], "Workers that died and were replaced."),
    ):
        family = CounterMetricFamily(_PREFIX + name, text, labels=labels)
        for *values, count in rows:
            family.add_metric(values, count)
        yield family


def _latency(status: Mapping[str, Any]) -> Metric:
    family = HistogramMetricFamily(
        f"{_PREFIX}latency_seconds",
        "From reading a query to sending its reply, of a random sample of all queries.",
        labels=("transport",),
    )
    bounds = [*(str(bound / 10**9) for bound in LATENCY_BOUNDS), "+Inf"]
    for transport, (*counts, nanoseconds) in status["latency"].items():
        buckets = list(zip(bounds, accumulate(counts), strict=True))
        family.add_metric([transport], buckets, nanoseconds / 10**9)
    return family


def _buffers(sizes: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(
        f"{_PREFIX}socket_buffer_bytes",
        "Smallest buffer of any UDP socket; 4194304 is asked for.",
        labels=["direction"],
    )
    for direction, size in sizes.items():
        family.add_metric([direction], size)
    return family


def _given(addresses: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(
        f"{_PREFIX}address_answers",
        "Answers by address, or by part of a range that is too large for it.",
        labels=["address"],
    )
    for address, count in addresses.items():
        family.add_metric([address], count)
    return family


def _transfers(states: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    """Yield metrics of transferred zones and catalogs; without a copy there is no serial and no age."""
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
