"""The addresses of a pool, and drawing one of them anew for every query."""

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
    """Addresses in a row: the first, as a number, and how many."""

    first: int
    size: int


class Span(NamedTuple):
    """A range of addresses, the first as a number, and the counters of them: `cells`, from `start` on.

    With fewer cells than addresses, each counts a part of the range, all equally large.
    """

    version: int
    first: int
    size: int
    start: int
    cells: int

    def cell(self, number: int) -> int:
        """The counter of an address in it."""
        return self.start + (number - self.first) * self.cells // self.size


class Tally(Protocol):
    """Counters of addresses."""

    cells: memoryview

    def locate(self, version: int, first: int) -> Span | None:
        """The span that a range of a pool is in; None if it is not counted."""

    def add(self, address: bytes) -> None:
        """Count an address, in network byte order."""


def ranges_of(prefixes: Iterable[Prefix]) -> tuple[Range, ...]:
    """Give each prefix whole: its network and broadcast addresses are addresses like any other."""
    return tuple(Range(int(prefix.network_address), prefix.num_addresses) for prefix in prefixes)


def overlaps(prefixes: Iterable[Prefix]) -> list[tuple[Prefix, Prefix]]:
    """Pairs of prefixes of one family that share addresses; drawing from both would favour those."""
    found: list[tuple[Prefix, Prefix]] = []
    widest: Prefix | None = None
    for prefix in sorted(prefixes, key=lambda each: (int(each.network_address), each.prefixlen)):
        if widest and int(prefix.network_address) <= int(widest.broadcast_address):
            found.append((widest, prefix))
        else:
            widest = prefix
    return found


def without(ranges: Iterable[Range], excluded: Iterable[Range]) -> tuple[Range, ...]:
    """Cut addresses out of ranges."""
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
    """Give a pool's addresses of one IP version, without those that it excludes."""
    excluded = ranges_of(each for each in pool.exclude if each.version == version)
    return without(ranges_of(pool.ipv4 if version == 4 else pool.ipv6), excluded)


class Stock:
    """Addresses drawn in advance, `ready` to be taken from the end, and the counters of those taken.

    The hot path takes from `ready` directly. `cells` are the counters of all that were ready when it was
    filled last and have not been counted: those beyond the length of `ready` are taken.
    """

    def __init__(self) -> None:
        self.ready: list[bytes] = []
        self.cells: list[int] = []
        self._counts: memoryview | None = None
        _in_advance.add(self)

    def settle(self) -> None:
        """Count what was taken."""
        counts, taken = self._counts, self.cells[len(self.ready) :]
        if counts is not None:
            for cell in taken:
                counts[cell] += 1
        del self.cells[len(self.ready) :]

    def forget(self) -> None:
        """Throw away what was drawn in advance, uncounted."""
        self.ready.clear()
        self.cells.clear()


class Drawer(Stock):
    """Draws addresses, in network byte order, uniform over all ranges.

    Call it for one address. `ready` holds addresses drawn in advance; the hot path takes from it directly
    and calls the drawer when it is empty.
    """

    def __init__(self, ranges: Iterable[Range], octets: int) -> None:
        super().__init__()
        self.ranges = tuple(ranges)
        self.size = sum(each.size for each in self.ranges)
        if not self.size:
            raise ValueError("cannot draw from no addresses")
        self._octets = octets
        self._starts = [0, *accumulate(each.size for each in self.ranges)][:-1]
        # For each range, where its addresses are counted; nothing if they are not.
        self._spans: list[Span] = []
        #: What is to be added to `cells`: a single range that is counted by address then has the very numbers
        #: that were drawn as its cells.
        self.base = 0

    def __call__(self) -> bytes:
        """Draw one address."""
        if not self.ready:
            numbers = numbers_below(self.size)
            if self._spans:
                self.settle()
                self.cells = self._cells_of(numbers)
            # In place: the hot path holds on to this list.
            self.ready += [self.at(number) for number in numbers]
        return self.ready.pop()

    def count_into(self, tally: Tally) -> None:
        """Count in `tally` what is drawn from now on, if it has room."""
        if self.locate(tally):
            self._counts = tally.cells[self.base :]

    def locate(self, tally: Tally) -> bool:
        """Find the counters, for whoever draws and counts; says whether all addresses have one."""
        version = 4 if self._octets == 4 else 6
        found = [tally.locate(version, each.first) for each in self.ranges]
        self._spans = [each for each in found if each] if all(found) else []
        self.base = 0
        if len(self._spans) == 1 and self._spans[0].cells == self._spans[0].size:
            self.base = self._spans[0].cell(self.ranges[0].first)
        self.forget()
        return bool(self._spans)

    def _cells_of(self, numbers: list[int]) -> list[int]:
        """The counters of the addresses that `at` gives for `numbers`, without `base`."""
        if len(self._spans) == 1 and self._spans[0].cells == self._spans[0].size:
            return numbers
        found = []
        for number in numbers:
            which = bisect_right(self._starts, number) - 1
            address = self.ranges[which].first + number - self._starts[which]
            found.append(self._spans[which].cell(address))
        return found

    def at(self, number: int) -> bytes:
        """Give the address that stands at `number` when all ranges are written one after the other."""
        which = bisect_right(self._starts, number) - 1
        address = self.ranges[which].first + number - self._starts[which]
        return address.to_bytes(self._octets, "big")


class Mix(Stock):
    """Draws from one of several pools, each as often as its weight says; used as a drawer is."""

    def __init__(self, weighted: Sequence[tuple[Drawer, int]]) -> None:
        super().__init__()
        self.weighted = tuple(weighted)
        self.size = sum(drawer.size for drawer, _ in self.weighted)
        self._ends = list(accumulate(weight for _, weight in self.weighted))

    def __call__(self) -> bytes:
        """Draw one address."""
        if not self.ready:
            drawers = [self.pick(number) for number in numbers_below(self._ends[-1])]
            if self._counts is not None:
                self.settle()
            for drawer in drawers:
                self.ready.append(drawer())
                if self._counts is not None:
                    self.cells.append(drawer.base + drawer.cells[len(drawer.ready)])
        return self.ready.pop()

    def count_into(self, tally: Tally) -> None:
        """Count in `tally` what is drawn from now on, if it has room for every pool."""
        found = [drawer.locate(tally) for drawer, _ in self.weighted]
        if all(found):
            self._counts = tally.cells
        self.forget()

    def pick(self, number: int) -> Drawer:
        """Give the pool that `number`, below the sum of all weights, falls to."""
        return self.weighted[bisect_right(self._ends, number)][0]

    @property
    def total(self) -> int:
        """The sum of all weights."""
        return self._ends[-1]


# A child process that inherited drawn addresses would give the same ones as its parent.
_in_advance: weakref.WeakSet[Stock] = weakref.WeakSet()


def _forget_all() -> None:
    for each in _in_advance:
        each.forget()


os.register_at_fork(after_in_child=_forget_all)
