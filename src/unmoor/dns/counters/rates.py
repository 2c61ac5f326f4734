"""Rates of policies and addresses: the difference of two readings, or the totals so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unmoor.dns.counters.address_counters import names
from unmoor.dns.policy.pools import Range, Span


@dataclass(frozen=True, slots=True)
class Evenness:
    """Evenness of a pool's addresses of one family, by address or by equal parts of its ranges."""

    pool: str
    family: str
    counted_by: str
    cells: int
    least: int
    mean: float
    most: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Counts of `seconds`: answers by policy, answers by address, and evenness."""

    seconds: float
    policies: dict[str, int]
    addresses: dict[str, int]
    evenness: tuple[Evenness, ...]

    def policy_cells(self) -> list[tuple[str, ...]]:
        """Return rows of a table, the busiest policy first."""
        busiest = sorted(self.policies.items(), key=lambda item: (-item[1], item[0]))
        return [(name, *self._shown(count)) for name, count in busiest]

    def address_cells(self, rows: int) -> list[tuple[str, ...]]:
        """Return rows of a table, the address given most often first."""
        busiest = sorted(self.addresses.items(), key=lambda item: -item[1])[:rows]
        return [(name, *self._shown(count)) for name, count in busiest]

    def evenness_cells(self) -> list[tuple[str, ...]]:
        """Return rows of a table, in the document's order."""
        return [
            (
                *(each.pool, each.family, f"{each.cells} {each.counted_by}"),
                *(str(each.least), f"{each.mean:.1f}", str(each.most)),
            )
            for each in self.evenness
        ]

    def _shown(self, count: int) -> tuple[str, str]:
        return str(count), f"{count / self.seconds:.1f}"

    def as_json(self) -> dict[str, Any]:
        """Return a representation for JSON."""
        return {
            "seconds": round(self.seconds, 3),
            "policies": self.policies,
            "addresses": self.addresses,
            "evenness": [asdict(each) for each in self.evenness],
        }


def total(reading: Mapping[str, Any]) -> Rates:
    """Return the rates from the start of the server to `reading`, which is data of the control socket."""
    return _rates(reading["uptime"], reading["policies"], _spans(reading), reading["pools"])


def rates(read: Callable[[], Mapping[str, Any]], interval: float) -> Iterator[Rates]:
    """Yield the rates of successive intervals (seconds); `read` returns a reading."""
    before = read()
    while True:
        time.sleep(interval)
        after = read()
        yield difference(before, after)
        before = after


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Rates:
    """Return the difference of two readings. Counters that are new in the second one count from zero."""
    earlier = dict(_spans(before))
    spans = []
    for span, counts in _spans(after):
        old = earlier.get(span, [0] * len(counts))
        # A server that was restarted counts from zero.
        spans.append((span, [max(0, new - then) for new, then in zip(counts, old, strict=True)]))
    policies = {
        name: max(0, count - before["policies"].get(name, 0)) for name, count in after["policies"].items()
    }
    return _rates(max(0.001, after["time"] - before["time"]), policies, spans, after["pools"])


def _spans(reading: Mapping[str, Any]) -> list[tuple[Span, list[int]]]:
    return [(Span(*span), counts) for span, counts in reading["spans"]]


def _rates(
    seconds: float,
    policies: dict[str, int],
    spans: list[tuple[Span, list[int]]],
    pools: Mapping[str, list[tuple[int, int, int]]],
) -> Rates:
    addresses = {
        name: count
        for span, counts in spans
        if any(counts)
        for name, count in zip(names(span), counts, strict=True)
        if count
    }
    evenness = tuple(
        found
        for pool, ranges in pools.items()
        for version in (4, 6)
        if (
            found := _evenness(
                pool, version, [Range(*rest) for each, *rest in ranges if each == version], spans
            )
        )
    )
    return Rates(seconds, dict(policies), addresses, evenness)


def _evenness(
    pool: str, version: int, ranges: list[Range], spans: list[tuple[Span, list[int]]]
) -> Evenness | None:
    """Return the evenness of the cells of a pool's addresses; None if there are none."""
    found: list[int] = []
    exact = True
    for span, counts in spans:
        for each in ranges:
            first, last = max(span.first, each.first), min(span.first + span.size, each.first + each.size) - 1
            if span.version == version and first <= last:
                found += counts[span.cell(first) - span.start : span.cell(last) - span.start + 1]
                exact &= span.cells == span.size
    if not found:
        return None
    by = "addresses" if exact else "parts"
    return Evenness(pool, f"ipv{version}", by, len(found), min(found), sum(found) / len(found), max(found))
