"""A pool as numbered addresses, and its division into cells of nearly equal size. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise

from unmoor.errors import InvalidInputError, Problem
from unmoor.model import Prefix
from unmoor.probe.clients.dnswire import QueryType
from unmoor.probe.results.statistics import ChiSquare, chi_square

#: A chi-square test requires at least this many expected draws per cell.
DRAWS_PER_CELL = 5
#: More cells would add no information, and a chart could not show them.
MAX_BUCKETS = 4096


@dataclass(frozen=True, slots=True)
class NumberedPool:
    """The addresses of disjoint prefixes of one family, numbered from 0 in ascending order."""

    prefixes: tuple[Prefix, ...]

    @property
    def size(self) -> int:
        """The number of addresses."""
        return sum(prefix.num_addresses for prefix in self.prefixes)

    def offset(self, address: str) -> int | None:
        """Return the number of `address`, or None if it is outside of the pool."""
        number = int(ip_address(address))
        firsts = [int(prefix.network_address) for prefix in self.prefixes]
        place = bisect_right(firsts, number) - 1
        if place < 0 or number > int(self.prefixes[place].broadcast_address):
            return None
        before = sum(prefix.num_addresses for prefix in self.prefixes[:place])
        return before + number - firsts[place]


def read_pool(prefixes: Sequence[Prefix], kind: QueryType) -> NumberedPool | None:
    """Return the pool of `prefixes`, or None without any. Raises InvalidInputError: wrong family, overlap."""
    if not prefixes:
        return None
    version = 4 if kind == "A" else 6
    problems = [
        Problem("", "--pool", str(prefix), f"is no answer of type {kind}", f"name IPv{version} prefixes")
        for prefix in prefixes
        if prefix.version != version
    ]
    ordered = sorted((p for p in prefixes if p.version == version), key=lambda p: int(p.network_address))
    problems += [
        Problem("", "--pool", f"{one} {other}", "overlap", "name each address once")
        for one, other in pairwise(ordered)
        if int(other.network_address) <= int(one.broadcast_address)
    ]
    if problems:
        raise InvalidInputError(problems)
    return NumberedPool(tuple(ordered))


@dataclass(frozen=True, slots=True)
class Cells:
    """Draws counted by cell: an address of the pool or, for a large pool, a bucket of addresses."""

    over: str
    counts: tuple[int, ...]
    shares: tuple[float, ...]

    def test(self) -> ChiSquare:
        """Test that the counts fit the shares."""
        return chi_square(self.over, self.counts, self.shares)


def divide(offsets: dict[int, int], size: int, draws: int) -> tuple[Cells, ...]:
    """Count draws by cell; `offsets` has the number of draws of each address.

    Cells are addresses while at least DRAWS_PER_CELL draws are expected of each. A larger pool is divided
    into buckets twice, by the first and by the last bits of an address, because a generator may be poor at
    either end.
    """
    if size * DRAWS_PER_CELL <= max(draws, DRAWS_PER_CELL):
        counts = tuple(offsets.get(number, 0) for number in range(size))
        return (Cells("addresses", counts, (1 / size,) * size),)
    buckets = 1
    while buckets * 2 * DRAWS_PER_CELL <= draws and buckets < MAX_BUCKETS:
        buckets *= 2
    bounds = [-(-number * size // buckets) for number in range(buckets + 1)]
    first, last = [0] * buckets, [0] * buckets
    for offset, count in offsets.items():
        first[offset * buckets // size] += count
        last[offset % buckets] += count
    return (
        Cells(
            "equal buckets by first bits",
            tuple(first),
            tuple((high - low) / size for low, high in pairwise(bounds)),
        ),
        Cells(
            "equal buckets by last bits",
            tuple(last),
            tuple(_having(size, buckets, number) / size for number in range(buckets)),
        ),
    )


def _having(size: int, modulus: int, residue: int) -> int:
    """Return how many numbers below `size` are `residue` modulo `modulus`."""
    return (size - residue + modulus - 1) // modulus
