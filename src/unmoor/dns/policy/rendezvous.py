"""Rendezvous hashing over ranges of addresses: few choices change when the ranges do.

For each key, every address has a score that depends on the key and the address alone, and the lowest score
wins (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998). So a key leaves its
address only if the ranges lose it, or for a new address with a lower score. All addresses win equally often.

The usual algorithm hashes each address: 4,096 of them for a /20, 2**84 for a /44. Here scores are
exponentially distributed, and drawn for blocks of addresses:

- The lowest of n scores is exponential with a mean of 1/n, and is equally likely to be that of each address.
  So one hash gives the lowest score of a block, and its address.
- If that address is not in the ranges, the lowest score in each sixteenth of the block is the block's plus an
  exponential of the sixteenth's size, since exponentials have no memory.

The search begins with blocks of a fixed size that contain addresses of the ranges. It divides the block with
the lowest score until the address of that score is in the ranges: a few hashes for each range, whatever its
size, and no memory besides the ranges. Of the alternatives, jump hashing (Lamping and Veach, 2014) moves keys
between old addresses unless the last address is removed; rings and Maglev's tables take memory for each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from math import log
from typing import NamedTuple

#: A block is divided into 16.
_BITS = 4
#: Host bits of the first blocks, by the octets of an address: IPv4 /16, IPv6 /40. A choice depends on them.
_FIRST = {4: 16, 16: 88}
_LOW_128 = (1 << 128) - 1
_MAX_SHARE = 1 << 64


class _Block(NamedTuple):
    """A block: its first address, its host bits, and what is hashed to draw for it."""

    first: int
    bits: int
    data: bytes


def draw(key: bytes, data: bytes) -> tuple[float, int]:
    """Hash `data` under `key`; return an exponential variate with a mean of 1, and a number below 2**128."""
    number = int.from_bytes(blake2b(data, key=key, digest_size=24).digest(), "big")
    return -log(((number >> 128) + 1) / _MAX_SHARE), number & _LOW_128


class Rendezvous:
    """Chooses addresses, as numbers, from ranges of (first address, size), of `octets` octets each (4 or 16).

    Raises ValueError if the ranges hold no address.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]], octets: int) -> None:
        self._spans = sorted((first, first + size) for first, size in ranges if size)
        if not self._spans:
            raise ValueError("cannot choose from no addresses")
        self._starts = [start for start, _ in self._spans]
        self._blocks = list(dict.fromkeys(self._parts(0, 8 * octets, _FIRST[octets])))
        # The parts of blocks that were divided: of each size, at most the two at the ends of a range.
        self._known: dict[_Block, list[_Block]] = {}

    def choose(self, key: bytes) -> int:
        """Return the address with the lowest score for a key of at most 64 octets."""
        # The lowest score of each block, and its address.
        lowest = [(*_lowest(key, 0.0, block), block) for block in self._blocks]
        heapify(lowest)
        while True:
            score, address, block = heappop(lowest)
            at = bisect_right(self._starts, address) - 1
            if at >= 0 and address < self._spans[at][1]:
                return address
            for part in self._divided(block):
                heappush(lowest, (*_lowest(key, score, part), part))

    def _divided(self, block: _Block) -> list[_Block]:
        """Return the parts of a block that contain addresses."""
        if block not in self._known:
            self._known[block] = list(dict.fromkeys(self._parts(block.first, block.bits, block.bits - _BITS)))
        return self._known[block]

    def _parts(self, first: int, bits: int, small: int) -> Iterator[_Block]:
        end = first + (1 << bits)
        for start, stop in self._spans:
            for number in range(max(start, first) >> small, (min(stop, end) - 1 >> small) + 1):
                yield _Block(number << small, small, number.to_bytes(16, "big") + bytes((small,)))


def _lowest(key: bytes, above: float, block: _Block) -> tuple[float, int]:
    """Draw the lowest score of a block, none of whose scores is below `above`, and its address."""
    score, number = draw(key, block.data)
    size = 1 << block.bits
    return above + score / size, block.first + (number & size - 1)
