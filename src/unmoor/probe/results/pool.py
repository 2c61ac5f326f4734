"""A pool as numbered addresses, and its division into cells of (nearly) equal size. Pure."""

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

#: A chi-square test wants at least this many draws expected for each cell.
DRAWS_PER_CELL = 5
#: More cells say nothing more about a range, and a chart has no room for them.
MAX_BUCKETS = 4096


@dataclass(frozen=True, slots=True)
class NumberedPool:
    """The addresses of disjoint prefixes of one family, numbered from 0 in their order."""

    prefixes: tuple[Prefix, ...]

    @property
    def size(self) -> int:
        """How many addresses."""
        return sum(prefix.num_addresses for prefix in self.prefixes)

    def offset(self, address: str) -> int | None:
        """The number of `address`, or None when it is outside."""
        number = int(ip_address(address))
        firsts = [int(prefix.network_address) for prefix in self.prefixes]
        place = bisect_right(firsts, number) - 1
        if place < 0 or number > int(self.prefixes[place].broadcast_address):
            return None
        before = sum(prefix.num_addresses for prefix in self.prefixes[:place])
        return before + number - firsts[place]


def read_pool(prefixes: Sequence[Prefix], kind: QueryType) -> NumberedPool | None:
    """The pool of these prefixes, None without any. Raises InvalidInputError: wrong family, or overlaps."""
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
    """Draws counted by cell: each address of the pool, or buckets of it when it is too large for that."""

    over: str
    counts: tuple[int, ...]
    shares: tuple[float, ...]

    def test(self) -> ChiSquare:
        """Whether the counts fit the shares."""
        return chi_square(self.over, self.counts, self.shares)


def divide(offsets: dict[int, int], size: int, draws: int) -> tuple[Cells, ...]:
    """Count draws (offset to how often) by cell.

    By address while at least DRAWS_PER_CELL draws are expected of each. A larger pool is cut into buckets
    twice: by the first bits of an address and by the last, since a generator may be poor at either end.
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
    """How many numbers below `size` leave `residue` when divided by `modulus`."""
    return (size - residue + modulus - 1) // modulus
