"""Rates of services and addresses: differences of counters over an interval."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from unmoor.bpf.pins import Pins
from unmoor.sockets.dispatch.generation import Live
from unmoor.sockets.observe.counts import address_counts
from unmoor.sockets.observe.status import read_status

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates per second: look-ups, misses and errors of each service; look-ups of each address."""

    services: dict[str, tuple[float, float, float]]
    addresses: dict[Address, float]

    def service_cells(self) -> list[tuple[str, ...]]:
        """Return the services as rows of a table, the busiest first."""
        busiest = sorted(self.services.items(), key=lambda item: (-item[1][0], item[0]))
        return [(label, *(f"{rate:.1f}" for rate in found)) for label, found in busiest]

    def address_cells(self, rows: int) -> list[tuple[str, ...]]:
        """Return at most `rows` addresses as rows of a table, the busiest first."""
        busiest = sorted(self.addresses.items(), key=lambda item: -item[1])[:rows]
        return [(str(address), f"{rate:.1f}") for address, rate in busiest]

    def as_json(self) -> dict[str, Any]:
        """The rates for JSON."""
        names = ("lookups", "misses", "errors")
        return {
            "services": {
                label: dict(zip(names, found, strict=True)) for label, found in self.services.items()
            },
            "addresses": {str(address): rate for address, rate in self.addresses.items()},
        }


@dataclass(frozen=True, slots=True)
class _Snapshot:
    live: Live
    time: float
    services: dict[str, tuple[int, int, int]]
    addresses: dict[Address, int]


def measure_rates(pins: Pins, interval: float) -> Iterator[Rates]:
    """Yield the rates of each interval (seconds), without end. Raises UnmoorError when nothing is loaded."""
    before = _snapshot(pins, None)
    while True:
        time.sleep(interval)
        after = _snapshot(pins, before.live)
        yield _difference(before, after)
        before = after


def _snapshot(pins: Pins, known: Live | None) -> _Snapshot:
    status = read_status(pins, known)
    services: dict[str, tuple[int, int, int]] = defaultdict(lambda: (0, 0, 0))
    for each in status.destinations:
        lookups, misses, errors = services[each.service]
        services[each.service] = (
            lookups + each.counters["lookups"],
            misses + each.counters["misses"],
            errors + each.errors,
        )
    return _Snapshot(status.live, time.monotonic(), dict(services), address_counts(pins, status.record))


def _difference(before: _Snapshot, after: _Snapshot) -> Rates:
    seconds = after.time - before.time
    services = {}
    for label, counts in after.services.items():
        earlier = before.services.get(label, (0, 0, 0))
        lookups, misses, errors = (
            max(0, now - then) / seconds for now, then in zip(counts, earlier, strict=True)
        )
        services[label] = (lookups, misses, errors)
    addresses = {
        address: (count - before.addresses.get(address, 0)) / seconds
        for address, count in after.addresses.items()
        if count > before.addresses.get(address, 0)
    }
    return Rates(services, addresses)
