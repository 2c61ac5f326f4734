"""Counters in memory that the parent shares with its workers: they outlive a worker, and cost an addition.

Each worker writes rows of its own, so nothing is locked. While a reload replaces a worker, the old and the
new one of a place are both alive: they take turns between the two rows of the place.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from unmoor.dns import wire
from unmoor.errors import UnmoorError

#: Policies that can be counted at once.
MAX_POLICIES = 16384
_RCODES = 32


class Event(IntEnum):
    """What is counted beside answers by policy and replies by code."""

    TCP_QUERIES = 0
    TRUNCATED = 1
    #: Packets that get no reply: responses, and what is shorter than a header.
    IGNORED = 2
    #: Replies that the kernel refused to send.
    UNSENT = 3
    TCP_CONNECTIONS = 4
    #: Queries over the rate limit: silence, or a truncated reply.
    RATE_LIMITED = 5


_ROW = _RCODES + len(Event) + MAX_POLICIES


class Counts:
    """One row, as a worker sees it.

    `policies` counts answers with an address drawn, by the policy's counter. Those replies are not counted
    by code again (all are NOERROR), so that the hot path makes one addition only.
    """

    def __init__(self, row: memoryview) -> None:
        self._rcodes = row[:_RCODES]
        self._events = row[_RCODES : _RCODES + len(Event)]
        self.policies = row[_RCODES + len(Event) :]

    @classmethod
    def private(cls) -> Counts:
        """Make a row that nobody shares."""
        return cls(memoryview(bytearray(_ROW * 8)).cast("Q"))

    def add(self, event: Event, times: int = 1) -> None:
        """Count an event."""
        self._events[event] += times

    def add_rcode(self, rcode: int, times: int = 1) -> None:
        """Count a reply without a drawn address."""
        self._rcodes[rcode] += times

    def event(self, event: Event) -> int:
        """How often an event was counted."""
        return self._events[event]

    def rcode(self, rcode: int) -> int:
        """How many replies without a drawn address had this code."""
        return self._rcodes[rcode]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all workers since the start."""

    policies: dict[str, int]
    rcodes: dict[str, int]
    events: dict[str, int] = field(default_factory=dict)


class Table:
    """All rows. Made by the parent before its first worker."""

    def __init__(self, places: int) -> None:
        # The last row is nobody's: it holds what was counted before the table was made.
        rows = places * 2 + 1
        self._memory = memoryview(mmap.mmap(-1, rows * _ROW * 8)).cast("Q")
        self._rows = [Counts(self._memory[at * _ROW : (at + 1) * _ROW]) for at in range(rows)]
        self._slots: dict[str, int] = {}

    def row(self, place: int, generation: int) -> Counts:
        """The row of the worker that serves `generation` at `place`."""
        return self._rows[place * 2 + generation % 2]

    def slots(self, policies: Iterable[str], current: Iterable[str] = ()) -> dict[str, int]:
        """Give every policy a counter; one that is known keeps its own.

        When all are taken, those of policies that are neither new nor `current` start again from zero.
        Raises UnmoorError for more policies than there are counters.
        """
        wanted = list(dict.fromkeys(policies))
        keep = {*wanted, *current}
        if len(keep) > MAX_POLICIES:
            raise UnmoorError(f"more than {MAX_POLICIES} policies, old and new together; merge some")
        free = iter(sorted(set(range(MAX_POLICIES)) - set(self._slots.values())))
        stale = (name for name in list(self._slots) if name not in keep)
        for name in wanted:
            if name in self._slots:
                continue
            slot = next(free, None)
            if slot is None:
                slot = self._slots.pop(next(stale))
                for row in self._rows:
                    row.policies[slot] = 0
            self._slots[name] = slot
        return {name: self._slots[name] for name in wanted}

    def carry(self, totals: Totals) -> None:
        """Go on from what another server counted; its policies that we do not have add to NOERROR."""
        row = self._rows[-1]
        unnamed = dict(totals.rcodes)
        for name, count in totals.policies.items():
            if name in self._slots:
                row.policies[self._slots[name]] = count
                unnamed["NOERROR"] -= count
        for code, name in wire.RCODE_NAMES.items():
            row.add_rcode(code, unnamed.get(name, 0))
        for event in Event:
            row.add(event, totals.events.get(event.name.lower(), 0))

    def all_totals(self) -> Totals:
        """Add up all rows, for every policy that has a counter."""
        return self.totals(self._slots)

    def totals(self, policies: Iterable[str]) -> Totals:
        """Add up all rows: answers of the given policies, replies by code, events."""
        named = {
            name: sum(row.policies[self._slots[name]] for row in self._rows)
            for name in policies
            if name in self._slots
        }
        rcodes = {name: sum(row.rcode(code) for row in self._rows) for code, name in wire.RCODE_NAMES.items()}
        rcodes["NOERROR"] += sum(
            sum(row.policies[slot] for row in self._rows) for slot in self._slots.values()
        )
        events = {event.name.lower(): sum(row.event(event) for row in self._rows) for event in Event}
        return Totals(named, rcodes, events)
