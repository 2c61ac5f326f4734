"""Counters in memory shared by the parent and its workers: they outlive workers and cost one addition.

Each worker writes a row of its own, without locks. Each place has two rows, used in turn, since during a
reload the old and the new worker of a place are both alive.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

from unmoor.dns.protocol import message
from unmoor.errors import UnmoorError

#: Policies that can be counted at once.
MAX_POLICIES = 16384
_RCODES = 32


class Event(IntEnum):
    """Events counted besides answers by policy and replies by code."""

    TCP_QUERIES = 0
    TRUNCATED = 1
    #: Packets that get no reply: responses, and what is shorter than a header.
    IGNORED = 2
    #: Replies that the kernel refused to send.
    UNSENT = 3
    TCP_CONNECTIONS = 4
    #: Queries over the rate limit: silence, or a truncated reply.
    RATE_LIMITED = 5
    #: Queries sent to the query log, and those that its receiver dropped.
    LOGGED = 6
    UNLOGGED = 7


class Transport(IntEnum):
    """Transport of queries; answers are counted for each separately."""

    UDP = 0
    TCP = 1


_TRANSPORTS = {transport.name.lower(): transport for transport in Transport}
#: Types that policies answer. Each has its own counters, so that any answer costs one addition.
TYPES = {message.A: "A", message.AAAA: "AAAA", message.HTTPS: "HTTPS", message.SVCB: "SVCB"}
#: Upper bounds of the latency histogram's buckets, nanoseconds; one more bucket is for slower queries.
LATENCY_BOUNDS = tuple(
    step * unit for unit in (10**3, 10**4, 10**5, 10**6, 10**7, 10**8) for step in (1, 2, 5)
)


_BASES = {rtype: MAX_POLICIES * index for index, rtype in enumerate(TYPES)}
# The latency histogram: its buckets, and the sum.
_LATENCY = len(LATENCY_BOUNDS) + 2
_PART = _RCODES + _LATENCY + len(TYPES) * MAX_POLICIES
_ROW = len(Event) + len(Transport) * _PART


def counter_of(slot: int, rtype: int) -> int:
    """Return the number of the counter of a policy's answers of one type; `slot` is the policy's."""
    return slot + _BASES[rtype]


class Cells(Protocol):
    """Counters by number."""

    def __getitem__(self, at: int, /) -> int: ...

    def __setitem__(self, at: int, count: int, /) -> None: ...


class Counts:
    """The part of a row that belongs to one transport.

    `policies` counts answers with a drawn address, by the counter of policy and type. Those replies are not
    counted by code (all are NOERROR), so that the hot path makes only one addition.
    """

    def __init__(self, row: memoryview, transport: Transport = Transport.UDP) -> None:
        self.transport = transport
        self._row = row
        self._events = row[: len(Event)]
        start = len(Event) + transport * _PART
        self._rcodes = row[start : start + _RCODES]
        self.latency = row[start + _RCODES : start + _RCODES + _LATENCY]
        self.policies: Cells = row[start + _RCODES + _LATENCY : start + _PART]

    @classmethod
    def private(cls) -> Counts:
        """Return a row that is not shared."""
        return cls(memoryview(bytearray(_ROW * 8)).cast("Q"))

    def over(self, transport: Transport) -> Counts:
        """Return the part of the same row for another transport."""
        return Counts(self._row, transport)

    def add(self, event: Event, times: int = 1) -> None:
        """Count an event."""
        self._events[event] += times

    def add_rcode(self, rcode: int, times: int = 1) -> None:
        """Count a reply without a drawn address."""
        self._rcodes[rcode] += times

    def add_latency(self, took: int) -> None:
        """Count a query that took `took` nanoseconds."""
        self.latency[bisect_left(LATENCY_BOUNDS, took)] += 1
        self.latency[-1] += took

    def event(self, event: Event) -> int:
        """Return the count of an event."""
        return self._events[event]

    def rcode(self, rcode: int) -> int:
        """Return the count of replies without a drawn address that had this code."""
        return self._rcodes[rcode]

    def answers(self, slot: int) -> int:
        """Return the count of answers of any type by the policy with this slot."""
        return sum(self.policies[counter_of(slot, rtype)] for rtype in TYPES)

    def forget(self, slot: int) -> None:
        """Reset the counters of a policy's slot."""
        for rtype in TYPES:
            self.policies[counter_of(slot, rtype)] = 0


class Recorder:
    """Counters that remember which one was written last: `last` is its number, None if there is none."""

    def __init__(self, cells: Cells) -> None:
        self.last: int | None = None
        self._cells = cells

    def __getitem__(self, at: int, /) -> int:
        return self._cells[at]

    def __setitem__(self, at: int, count: int, /) -> None:
        self.last = at
        self._cells[at] = count


class RecordingCounts(Counts):
    """A view of the row of `counts` for logged queries, whose `recorder` knows the counter of the answer."""

    def __init__(self, counts: Counts) -> None:
        super().__init__(counts._row, counts.transport)
        self.recorder = Recorder(self.policies)
        self.policies = self.recorder


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all workers since the start.

    `answers` is by policy, type and transport, `replies` by code and transport, `latency` by transport: the
    counts of the buckets, then the sum in nanoseconds.
    """

    policies: dict[str, int]
    rcodes: dict[str, int]
    events: dict[str, int] = field(default_factory=dict)
    answers: tuple[tuple[str, str, str, int], ...] = ()
    replies: tuple[tuple[str, str, int], ...] = ()
    latency: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Totals:
        """Read the totals of another release; unknown fields are left out."""
        return cls(**{name: found[name] for name in cls.__slots__ if name in found})


class Table:
    """All rows. The parent makes the rows of a place before it forks the first worker there."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], tuple[Counts, ...]] = {}
        # The row of no worker: it holds the counts of earlier servers.
        self._before = self._part(-1, 0)
        self._slots: dict[str, int] = {}

    def row(self, place: int, generation: int) -> Counts:
        """Return the UDP part of the row of the worker that serves `generation` at `place`."""
        return self._part(place, generation % 2)[Transport.UDP]

    def _part(self, place: int, parity: int) -> tuple[Counts, ...]:
        if (place, parity) not in self._rows:
            row = memoryview(mmap.mmap(-1, _ROW * 8)).cast("Q")
            self._rows[place, parity] = tuple(Counts(row, transport) for transport in Transport)
        return self._rows[place, parity]

    def _by(self, transport: Transport) -> Iterator[Counts]:
        return (row[transport] for row in self._rows.values())

    def slots(self, policies: Iterable[str], current: Iterable[str] = ()) -> dict[str, int]:
        """Return a slot for every policy; known ones keep theirs.

        When all are taken, slots of policies that are neither new nor `current` are reset and reused.
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
                for each in (each for row in self._rows.values() for each in row):
                    each.forget(slot)
            self._slots[name] = slot
        return {name: self._slots[name] for name in wanted}

    def carry(self, totals: Totals) -> None:
        """Continue from another server's totals; policies that this one lacks add to NOERROR."""
        unnamed: Counter[tuple[str, str]] = Counter()
        for rcode, transport, count in totals.replies:
            unnamed[rcode, transport] += count
        for name, shown, transport, count in totals.answers:
            rtype = next((each for each, text in TYPES.items() if text == shown), None)
            part = _TRANSPORTS.get(transport)
            if name in self._slots and rtype is not None and part is not None:
                self._before[part].policies[counter_of(self._slots[name], rtype)] += count
                unnamed["NOERROR", transport] -= count
        for transport, part in _TRANSPORTS.items():
            for code, name in message.RCODE_NAMES.items():
                self._before[part].add_rcode(code, unnamed[name, transport])
            latency = totals.latency.get(transport, ())
            for at, count in enumerate(latency if len(latency) == _LATENCY else ()):
                self._before[part].latency[at] += count
        for event in Event:
            self._before[0].add(event, totals.events.get(event.name.lower(), 0))

    def all_totals(self) -> Totals:
        """Add up all rows, for every policy that has a counter."""
        return self.totals(self._slots)

    def totals(self, policies: Iterable[str]) -> Totals:
        """Add up all rows: answers of the given policies, replies by code, events, latency."""
        current = {name: self._slots[name] for name in policies if name in self._slots}
        answers = tuple(
            (name, shown, transport.name.lower(), self._sum_of(transport, counter_of(slot, rtype)))
            for name, slot in current.items()
            for rtype, shown in TYPES.items()
            for transport in Transport
        )
        replies = tuple(self._replies())
        named = dict.fromkeys(current, 0)
        for name, _, _, count in answers:
            named[name] += count
        rcodes = dict.fromkeys(message.RCODE_NAMES.values(), 0)
        for name, _, count in replies:
            rcodes[name] += count
        events = {
            event.name.lower(): sum(row.event(event) for row in self._by(Transport.UDP)) for event in Event
        }
        latency = {
            transport.name.lower(): [
                sum(cells) for cells in zip(*(row.latency for row in self._by(transport)), strict=True)
            ]
            for transport in Transport
        }
        return Totals(named, rcodes, events, answers, replies, latency)

    def _sum_of(self, transport: Transport, counter: int) -> int:
        return sum(row.policies[counter] for row in self._by(transport))

    def _replies(self) -> Iterator[tuple[str, str, int]]:
        for transport in Transport:
            drawn = sum(row.answers(slot) for row in self._by(transport) for slot in self._slots.values())
            for code, name in message.RCODE_NAMES.items():
                count = sum(row.rcode(code) for row in self._by(transport))
                yield name, transport.name.lower(), count + drawn * (code == message.NOERROR)
