"""Metrics of the sockets half for Prometheus, read from the pins."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from unmoor.bpf.layout import ERRORS
from unmoor.bpf.pins import Pins
from unmoor.sockets.dispatch.generation import Live
from unmoor.sockets.observe.counts import address_counts
from unmoor.sockets.observe.status import Status, read_status

_PREFIX = "unmoor_sockets_"
_SERVICE = ("service", "protocol", "family")


def collector_registry(pins: Pins, addresses: bool = False) -> CollectorRegistry:
    """Return the metrics of the live generation; with `addresses`, a sample for each address too.

    Collecting raises UnmoorError when nothing is loaded.
    """
    # With auto_describe, registering reads the pins, but a server may start before anything is loaded.
    found = CollectorRegistry(auto_describe=False)
    found.register(_State(pins, addresses))
    return found


class _State(Collector):
    """Reads the counters at each scrape, and the record of a generation once."""

    def __init__(self, pins: Pins, addresses: bool) -> None:
        self._pins = pins
        self._addresses = addresses
        self._live: Live | None = None

    def collect(self) -> Iterator[Metric]:
        status = read_status(self._pins, self._live)
        self._live = status.live
        yield from _services(status)
        yield _bindings(status)
        yield GaugeMetricFamily(
            f"{_PREFIX}generation", "Number of the live generation.", value=status.record.generation
        )
        if status.foreign is not None:  # unknown is not 0
            yield GaugeMetricFamily(
                f"{_PREFIX}foreign_programs",
                "sk_lookup programs in the namespace that are not Unmoor's.",
                value=len(status.foreign),
            )
        if self._addresses:
            family = CounterMetricFamily(
                f"{_PREFIX}address_lookups", "Look-ups by address.", labels=["address"]
            )
            for address, count in address_counts(self._pins, status.record).items():
                family.add_metric([str(address)], count)
            yield family


def _services(status: Status) -> Iterator[Metric]:
    labelled = [((each.service, each.protocol, f"ipv{each.family}"), each) for each in status.destinations]
    for name, text in (
        ("lookups", "Look-ups that matched a binding."),
        ("misses", "Look-ups refused because no socket was registered."),
        ("replaced", "Look-ups that replaced the socket chosen by another sk_lookup program before."),
    ):
        counter = CounterMetricFamily(f"{_PREFIX}{name}", text, labels=_SERVICE)
        for labels, each in labelled:
            counter.add_metric(labels, each.counters[name])
        yield counter
    errors = CounterMetricFamily(
        f"{_PREFIX}errors",
        "Look-ups refused because the socket cannot take them.",
        labels=(*_SERVICE, "error"),
    )
    for labels, each in labelled:
        for name in ERRORS:
            errors.add_metric((*labels, name), each.counters[name])
    yield errors
    sockets = GaugeMetricFamily(f"{_PREFIX}registered", "Sockets registered.", labels=_SERVICE)
    for labels, each in labelled:
        sockets.add_metric(labels, len(each.sockets))
    yield sockets


def _bindings(status: Status) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}bindings", "Lines of the dispatch table.", labels=_SERVICE)
    for (service, protocol, version), count in sorted(status.record.sizes.items()):
        family.add_metric((service, protocol, f"ipv{version}"), count)
    return family
