"""The addresses of a pool, and drawing one of them anew for every query."""

from __future__ import annotations

import os
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from unmoor.dns.randomness import numbers_below
from unmoor.model import Pool
from unmoor.model.common import Prefix


class Range(NamedTuple):
    """Addresses in a row: the first, as a number, and how many."""

    first: int
    size: int


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


class Drawer:
    """Draws addresses, in network byte order, uniform over all ranges.

    Call it for one address. `ready` holds addresses drawn in advance; the hot path takes from it directly
    and calls the drawer when it is empty.
    """

    def __init__(self, ranges: Iterable[Range], octets: int) -> None:
        self.ranges = tuple(ranges)
        self.size = sum(each.size for each in self.ranges)
        if not self.size:
            raise ValueError("cannot draw from no addresses")
        self._octets = octets
        self._starts = [0, *accumulate(each.size for each in self.ranges)][:-1]
        self.ready: list[bytes] = []
        _in_advance.add(self)

    def __call__(self) -> bytes:
        """Draw one address."""
        if not self.ready:
            # In place: the hot path holds on to this list.
            self.ready += [self.at(number) for number in numbers_below(self.size)]
        return self.ready.pop()

    def at(self, number: int) -> bytes:
        """Give the address that stands at `number` when all ranges are written one after the other."""
        which = bisect_right(self._starts, number) - 1
        address = self.ranges[which].first + number - self._starts[which]
        return address.to_bytes(self._octets, "big")


class Mix:
    """Draws from one of several pools, each as often as its weight says; used as a drawer is."""

    def __init__(self, weighted: Sequence[tuple[Drawer, int]]) -> None:
        self.weighted = tuple(weighted)
        self.size = sum(drawer.size for drawer, _ in self.weighted)
        self._ends = list(accumulate(weight for _, weight in self.weighted))
        self.ready: list[bytes] = []
        _in_advance.add(self)

    def __call__(self) -> bytes:
        """Draw one address."""
        if not self.ready:
            self.ready += [self.pick(number)() for number in numbers_below(self._ends[-1])]
        return self.ready.pop()

    def pick(self, number: int) -> Drawer:
        """Give the pool that `number`, below the sum of all weights, falls to."""
        return self.weighted[bisect_right(self._ends, number)][0]

    @property
    def total(self) -> int:
        """The sum of all weights."""
        return self._ends[-1]


# A child process that inherited drawn addresses would give the same ones as its parent.
_in_advance: weakref.WeakSet[Drawer | Mix] = weakref.WeakSet()


def _forget_all() -> None:
    for each in _in_advance:
        each.ready.clear()


os.register_at_fork(after_in_child=_forget_all)
