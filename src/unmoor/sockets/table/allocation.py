"""Allocation of service ids and address counters, stable from one generation to the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from unmoor.bpf.layout import COUNTED_ADDRESSES, COUNTERS_OF_ADDRESSES, MAX_SERVICES
from unmoor.errors import UnmoorError
from unmoor.sockets.table.rules import LENGTH_BITS, LENGTH_MASK, Rule

#: A range of counted IPv4 addresses: the first address, the number of addresses, the first counter's index.
Counted = tuple[int, int, int]
#: (first, count) of addresses or of counters.
Span = tuple[int, int]


class Allocation(NamedTuple):
    """Counters in order of addresses; `fresh` holds those of addresses that had none before."""

    spans: tuple[Counted, ...]
    fresh: tuple[Span, ...]


def allocate_ids(labels: Iterable[str], *kept: dict[str, int]) -> dict[str, int]:
    """Give each label an id: its id in `kept` (newest first), else one that no label has there.

    Raises UnmoorError when all ids are in use.
    """
    taken = {number for ids in kept for number in ids.values()}
    free = (number for number in range(MAX_SERVICES) if number not in taken)
    allocated: dict[str, int] = {}
    for label in labels:
        known = next((ids[label] for ids in kept if label in ids), None)
        number = next(free, None) if known is None else known
        if number is None:
            raise UnmoorError(
                f"more than {MAX_SERVICES} services, including those of the previous generation"
            )
        allocated[label] = number
    return allocated


def allocate_counters(rules: Iterable[Rule], *kept: Sequence[Counted]) -> Allocation:
    """Give the IPv4 addresses of these rules a counter each, smaller prefixes first, up to a /16 in total.

    An address that has a counter in `kept` (newest first) keeps it, even if its prefix changes; no other
    address gets a counter that the newest uses. The counters of a prefix may therefore be in several pieces.
    """
    newest, *older = kept or ((),)
    allocated, wanted = _intersect(_affordable(_outermost(rules)), newest)
    taken = bytearray(COUNTERS_OF_ADDRESSES)
    _mark(taken, newest)
    for counted in older:
        found, wanted = _intersect(wanted, counted)
        for address, count, number in found:
            if taken.find(1, number, number + count) >= 0:  # the newest gave one to another address
                wanted.append((address, count))
            else:
                allocated.append((address, count, number))
                taken[number : number + count] = b"\1" * count
        wanted.sort()
    reserved = bytearray(taken)
    for counted in older:  # a rollback may need these, so they are allocated last
        _mark(reserved, counted)
    new = list(_allocate(wanted, _gaps(reserved, taken)))
    return Allocation(_joined(allocated + new), tuple((number, count) for _, count, number in new))


def _mark(marks: bytearray, counted: Iterable[Counted]) -> None:
    for _, count, number in counted:
        marks[number : number + count] = b"\1" * count


def _outermost(rules: Iterable[Rule]) -> list[Span]:
    """Return the ranges of the IPv4 prefixes that are inside no other, in order."""
    lists = {id(rule.keys): rule.keys for rule in rules if rule.family == 4}.values()
    found = []
    reached = 0
    for key in sorted(chain.from_iterable(lists)):  # the lists are sorted, so this is a merge
        start, count = key >> LENGTH_BITS + 96, 1 << 32 - (key & LENGTH_MASK)
        if start + count > reached:
            found.append((start, count))
            reached = start + count
    return found


def _affordable(spans: list[Span]) -> list[Span]:
    """Select the ranges to count: the smaller first, while there is room."""
    if sum(count for _, count in spans) <= COUNTED_ADDRESSES:
        return spans
    chosen, room = [], COUNTED_ADDRESSES
    for count, start in sorted((count, start) for start, count in spans):
        if count > room:
            break
        chosen.append((start, count))
        room -= count
    return sorted(chosen)


def _intersect(spans: Sequence[Span], counted: Sequence[Counted]) -> tuple[list[Counted], list[Span]]:
    """Split `spans` into ranges with counters in `counted` and the rest; both arguments are sorted."""
    found: list[Counted] = []
    rest: list[Span] = []
    index, last = 0, len(counted)
    for begin, size in spans:
        at, end = begin, begin + size
        while index < last:
            start, count, number = counted[index]
            behind = start + count
            if start >= end:
                break
            if behind > at:
                if start > at:
                    rest.append((at, start - at))
                    at = start
                upto = min(end, behind)
                found.append((at, upto - at, number + at - start))
                at = upto
            if behind > end:  # the next span may overlap it too
                break
            index += 1
        if at < end:
            rest.append((at, end - at))
    return found, rest


def _gaps(reserved: bytearray, taken: bytearray) -> Iterator[Span]:
    """Yield the gaps of unused counters, the largest first; then those that only older generations use."""
    yield from sorted(_runs(reserved), key=lambda gap: -gap[1])
    older = bytearray(1 - (kept - used) for kept, used in zip(reserved, taken, strict=True))
    yield from sorted(_runs(older), key=lambda gap: -gap[1])


def _runs(marks: bytearray) -> Iterator[Span]:
    """Yield the runs of zeros in `marks` as (first, count)."""
    first = marks.find(0)
    while first >= 0:
        end = marks.find(1, first)
        end = len(marks) if end < 0 else end
        yield first, end - first
        first = marks.find(0, end)


def _allocate(wanted: Sequence[Span], gaps: Iterator[Span]) -> Iterator[Counted]:
    """Allocate counters from gaps, for large ranges first, in as few pieces as possible."""
    first = room = 0
    for address, count in sorted(wanted, key=lambda span: -span[1]):
        done = 0
        while done < count:
            if not room:
                first, room = next(gaps)  # there are twice as many counters as addresses
            size = min(room, count - done)
            yield address + done, size, first
            first, room, done = first + size, room - size, done + size


def _joined(allocated: list[Counted]) -> tuple[Counted, ...]:
    """Sort by address, and join adjacent ranges whose counters are adjacent too."""
    joined: list[Counted] = []
    for address, count, number in sorted(allocated):
        if joined:
            start, size, first = joined[-1]
            if start + size == address and first + size == number:
                joined[-1] = start, size + count, first
                continue
        joined.append((address, count, number))
    return tuple(joined)
