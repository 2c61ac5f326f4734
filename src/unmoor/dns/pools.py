"""The addresses of a pool, and drawing one of them anew for every query."""

from __future__ import annotations

import os
import weakref
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import ClassVar, NamedTuple

from unmoor.dns.randomness import numbers_below
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


class Drawer:
    """Draws addresses, in network byte order, uniform over all ranges.

    Call it for one address. `ready` holds addresses drawn in advance; the hot path takes from it directly
    and calls the drawer when it is empty.
    """

    # A child process that inherited drawn addresses would give the same ones as its parent.
    _all: ClassVar[weakref.WeakSet[Drawer]] = weakref.WeakSet()

    def __init__(self, ranges: Iterable[Range], octets: int) -> None:
        self.ranges = tuple(ranges)
        self.size = sum(each.size for each in self.ranges)
        if not self.size:
            raise ValueError("cannot draw from no addresses")
        self._octets = octets
        self._starts = [0, *accumulate(each.size for each in self.ranges)][:-1]
        self.ready: list[bytes] = []
        Drawer._all.add(self)

    def __call__(self) -> bytes:
        """Draw one address."""
        if not self.ready:
            # In place: the hot path holds on to this list.
            self.ready += [self._address(number) for number in numbers_below(self.size)]
        return self.ready.pop()

    def _address(self, number: int) -> bytes:
        """The address that stands at `number` when all ranges are written one after the other."""
        which = bisect_right(self._starts, number) - 1
        address = self.ranges[which].first + number - self._starts[which]
        return address.to_bytes(self._octets, "big")

    @classmethod
    def forget_all(cls) -> None:
        """Throw away what was drawn in advance."""
        for drawer in cls._all:
            drawer.ready.clear()


os.register_at_fork(after_in_child=Drawer.forget_all)
