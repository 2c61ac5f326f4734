"""The addresses of pools, and how one is drawn at random for every query."""

from __future__ import annotations

import os
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from unmoor.dns.protocol.randomness import numbers_below
from unmoor.model import Pool
from unmoor.model.common import Prefix


class Range(NamedTuple):
    """Consecutive addresses: the first as a number, and how many."""

    first: int
    size: int


class Span(NamedTuple):
    """A range of addresses and its counters: `cells` counters from the index `start` on.

    `first` is the first address as a number. If there are fewer counters than addresses, each counts an
    equal part of the range.
    """

    version: int
    first: int
    size: int
    start: int
    cells: int

    def cell(self, number: int) -> int:
        """Return the index of the counter of an address in the span."""
        return self.start + (number - self.first) * self.cells // self.size


class Counters(Protocol):
    """Counters of the addresses that are answered, in `cells`."""

    cells: memoryview

    def locate(self, version: int, first: int) -> Span | None:
        """Return the span that contains a pool's range which begins at `first`; None if it is not counted."""

    def add(self, address: bytes) -> None:
        """Count an address, given in network byte order."""


def ranges_of(prefixes: Iterable[Prefix]) -> tuple[Range, ...]:
    """Return each prefix as a range, its first and last address included."""
    return tuple(Range(int(prefix.network_address), prefix.num_addresses) for prefix in prefixes)


def overlaps(prefixes: Iterable[Prefix]) -> list[tuple[Prefix, Prefix]]:
    """Return pairs of overlapping prefixes, all of one family; shared addresses would be drawn more often."""
    found: list[tuple[Prefix, Prefix]] = []
    widest: Prefix | None = None
    for prefix in sorted(prefixes, key=lambda each: (int(each.network_address), each.prefixlen)):
        if widest and int(prefix.network_address) <= int(widest.broadcast_address):
            found.append((widest, prefix))
        else:
            widest = prefix
    return found


def without(ranges: Iterable[Range], excluded: Iterable[Range]) -> tuple[Range, ...]:
    """Return the ranges without the excluded addresses."""
    left = list(ranges)
    for cut in excluded:
        parts = []
        for each in left:
            below = min(cut.first, each.first + each.size) - each.first
            above = each.first + each.size - max(cut.first + cut.size, each.first)
            if below > 0:
                parts.append(Range(each.first, below))
            if above > 0:
                parts.append(Range(each.first + each.size - above, above))
        left = parts
    return tuple(left)


def ranges_in_use(pool: Pool, version: int) -> tuple[Range, ...]:
    """Return a pool's addresses of one IP version, without those that it excludes."""
    excluded = ranges_of(each for each in pool.exclude if each.version == version)
    return without(ranges_of(pool.ipv4 if version == 4 else pool.ipv6), excluded)


class AddressBuffer:
    """Addresses drawn in advance, and the counters of those that were used.

    `ready` holds addresses in network byte order, used from its end; the fast path pops from it directly.
    `cells` holds the counter indices of the addresses that `ready` held when it was filled; those beyond
    the length of `ready` belong to addresses that were used and are not counted yet.
    """

    def __init__(self) -> None:
        self.ready: list[bytes] = []
        self.cells: list[int] = []
        self._counts: memoryview | None = None
        _buffers.add(self)

    def settle(self) -> None:
        """Count the addresses that were used since the last call."""
        counts, taken = self._counts, self.cells[len(self.ready) :]
        if counts is not None:
            for cell in taken:
                counts[cell] += 1
        del self.cells[len(self.ready) :]

    def discard(self) -> None:
        """Discard the addresses drawn in advance, without counting any."""
        self.ready.clear()
        self.cells.clear()


class Drawer(AddressBuffer):
    """Draws addresses, uniform over all ranges; a call returns one address in network byte order.

    `octets` is the length of an address: 4 or 16; `pool` is the name of the ranges. The fast path calls the
    drawer only when `ready` is empty. Raises ValueError if the ranges hold no address.
    """

    def __init__(self, ranges: Iterable[Range], octets: int, pool: str = "") -> None:
        super().__init__()
        self.ranges = tuple(ranges)
        self.pool = pool
        self.size = sum(each.size for each in self.ranges)
        if not self.size:
            raise ValueError("cannot draw from no addresses")
        self.octets = octets
        self._starts = [0, *accumulate(each.size for each in self.ranges)][:-1]
        # The counters of each range; empty if addresses are not counted.
        self._spans: list[Span] = []
        #: Offset of `cells` in the counters. With it, a single range that is counted by address can use the
        #: drawn numbers as `cells` without conversion.
        self.base = 0

    def __call__(self) -> bytes:
        """Return an address in network byte order."""
        if not self.ready:
            numbers = numbers_below(self.size)
            if self._spans:
                self.settle()
                self.cells = self._cells_of(numbers)
            # In place: the fast path holds a reference to this list.
            self.ready += [self.at(number) for number in numbers]
        return self.ready.pop()

    def count_into(self, counters: Counters) -> None:
        """Count in `counters` the addresses drawn from now on, if it has counters for all of them."""
        if self.locate(counters):
            self._counts = counters.cells[self.base :]

    def locate(self, counters: Counters) -> bool:
        """Find the addresses' counters; report whether all addresses have one. Discards what was drawn."""
        version = 4 if self.octets == 4 else 6
        found = [counters.locate(version, each.first) for each in self.ranges]
        self._spans = [each for each in found if each] if all(found) else []
        self.base = 0
        if len(self._spans) == 1 and self._spans[0].cells == self._spans[0].size:
            self.base = self._spans[0].cell(self.ranges[0].first)
        self.discard()
        return bool(self._spans)

    def _cells_of(self, numbers: list[int]) -> list[int]:
        """Return the counter indices, less `base`, of the addresses that `at` returns for `numbers`."""
        if len(self._spans) == 1 and self._spans[0].cells == self._spans[0].size:
            return numbers
        found = []
        for number in numbers:
            which = bisect_right(self._starts, number) - 1
            address = self.ranges[which].first + number - self._starts[which]
            found.append(self._spans[which].cell(address))
        return found

    def at(self, number: int) -> bytes:
        """Return the address at index `number` of all ranges in sequence."""
        which = bisect_right(self._starts, number) - 1
        address = self.ranges[which].first + number - self._starts[which]
        return address.to_bytes(self.octets, "big")


class Mix(AddressBuffer):
    """Draws from several pools in proportion to their weights, with the interface of a drawer."""

    def __init__(self, weighted: Sequence[tuple[Drawer, int]]) -> None:
        super().__init__()
        self.weighted = tuple(weighted)
        self.size = sum(drawer.size for drawer, _ in self.weighted)
        self._ends = list(accumulate(weight for _, weight in self.weighted))

    def __call__(self) -> bytes:
        """Return an address in network byte order."""
        if not self.ready:
            drawers = [self._pick(number) for number in numbers_below(self._ends[-1])]
            if self._counts is not None:
                self.settle()
            for drawer in drawers:
                self.ready.append(drawer())
                if self._counts is not None:
                    self.cells.append(drawer.base + drawer.cells[len(drawer.ready)])
        return self.ready.pop()

    def count_into(self, counters: Counters) -> None:
        """Count in `counters` the addresses drawn from now on, if it has counters for those of every pool."""
        found = [drawer.locate(counters) for drawer, _ in self.weighted]
        if all(found):
            self._counts = counters.cells
        self.discard()

    def _pick(self, number: int) -> Drawer:
        """Return the pool that owns `number`, which is below the sum of all weights."""
        return self.weighted[bisect_right(self._ends, number)][0]


# A forked process must not answer with the addresses that its parent has drawn in advance.
_buffers: weakref.WeakSet[AddressBuffer] = weakref.WeakSet()


def _discard_all() -> None:
    for each in _buffers:
        each.discard()


os.register_at_fork(after_in_child=_discard_all)
