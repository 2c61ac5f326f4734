"""Prefixes to leaf numbers, as a level-compressed trie in one flat array of nodes.

Nilsson and Karlsson, "IP-address lookup using LC-tries", 1999: a node says which bits of the address choose
among its 2^bits children; bits in which all prefixes agree are skipped, and the leaf found is compared with
the address at the end. A prefix that contains others is no leaf of the trie: it is the `parent` of the
longest prefixes inside it, tried when those do not match. So a look-up costs the same few steps whether
there are ten prefixes or a hundred thousand.

Addresses are left-aligned in 128 bits, so that IPv4 and IPv6 share every line.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from unmoor.sockets.layout import MAX_DEPTH

#: (address left-aligned in 128 bits, prefix length, leaf number).
Entry = tuple[int, int, int]

WIDTH = 128
#: The program takes the bits from one half of the address, so no node may reach over the middle.
_HALF = 64
#: At least one in so many children of a node leads to prefixes of its own, the others repeat neighbours.
_SPARSE = 4
_MAX_BITS = 16
#: Below this depth nodes are as wide as is needed to reach the end within MAX_DEPTH, whatever it takes.
_DEEP = 8
_DEEP_BITS = 8

# A node is first | pos << 32 | bits << 40, as `struct node` has it on a little-endian machine.
_POS = 32
_BITS = 40


def parents(entries: Sequence[Entry]) -> tuple[list[Entry], dict[int, int]]:
    """Tell the trie's own prefixes from those that contain others.

    `entries` are sorted and distinct. Returns the innermost prefixes, and for each leaf number that of the
    longest prefix around it, or 0.
    """
    innermost: list[Entry] = []
    around: dict[int, int] = {}
    stack: list[Entry] = []
    for index, entry in enumerate(entries):
        value, length, leaf = entry
        while stack and (value ^ stack[-1][0]) >> (WIDTH - stack[-1][1]):
            stack.pop()
        around[leaf] = stack[-1][2] if stack else 0
        stack.append(entry)
        following = entries[index + 1] if index + 1 < len(entries) else None
        if following is None or (value ^ following[0]) >> (WIDTH - length):
            innermost.append(entry)
    return innermost, around


def nesting(around: dict[int, int]) -> int:
    """The longest chain of parents."""
    depths: dict[int, int] = {0: 0}
    for leaf, parent in around.items():  # a parent stands before its children
        depths[leaf] = depths[parent] + 1
    return max(depths.values())


def add(nodes: array[int], entries: Sequence[Entry]) -> int:
    """Append a trie of `entries`, innermost prefixes in order; returns the number of its root node."""
    root = len(nodes)
    nodes.append(0)
    _fill(nodes, root, entries, 0, len(entries), 0, 0)
    return root


def _fill(
    nodes: array[int], at: int, entries: Sequence[Entry], low: int, high: int, pos: int, depth: int
) -> None:
    """Make node `at` the trie of entries[low:high], which agree in the first `pos` bits."""
    if high - low == 1:
        nodes[at] = entries[low][2]
        return
    difference = entries[low][0] ^ entries[high - 1][0]
    pos = WIDTH - difference.bit_length()
    bits = _width(entries, low, high, pos, depth)
    shift, mask = WIDTH - pos - bits, (1 << bits) - 1
    start = len(nodes)
    nodes[at] = start | pos << _POS | bits << _BITS
    nodes.frombytes(bytes(8 << bits))

    filled = 0  # children before this one are done
    index = low
    while index < high:
        value, length, leaf = entries[index]
        pattern = value >> shift & mask
        end = index + 1
        while end < high and entries[end][0] >> shift & mask == pattern:
            end += 1
        _fill_gap(nodes, start, filled, pattern, entries[index - 1][2] if index > low else 0, leaf, bits)
        if end - index == 1:
            covered = 1 << max(0, pos + bits - length)
            for child in range(start + pattern, start + pattern + covered):
                nodes[child] = leaf
            filled = pattern + covered
        else:
            _fill(nodes, start + pattern, entries, index, end, pos + bits, depth + 1)
            filled = pattern + 1
        index = end
    for child in range(start + filled, start + (1 << bits)):
        nodes[child] = entries[high - 1][2]


def _fill_gap(
    nodes: array[int], start: int, first: int, end: int, before: int, after: int, bits: int
) -> None:
    """Children without prefixes of their own repeat the neighbour that shares more bits with them.

    Any prefix that covers such a child contains that neighbour too, so its chain of parents has it.
    """
    if first == end:
        return
    if not before:
        split = first
    else:
        # Up to the point where the highest bit that differs between both neighbours changes.
        top = ((first - 1) ^ end).bit_length() - 1
        split = max(first, end >> top << top)
    for child in range(start + first, start + split):
        nodes[child] = before
    for child in range(start + split, start + end):
        nodes[child] = after


def _width(entries: Sequence[Entry], low: int, high: int, pos: int, depth: int) -> int:
    """How many bits at `pos` to branch on: as many as keep the children from being mostly repeated."""
    room = min((_HALF if pos < _HALF else WIDTH) - pos, _MAX_BITS)
    least = min(room, _DEEP_BITS if depth >= _DEEP else 1)
    bits = max(least, min(room, (high - low).bit_length()))
    while bits > least:
        shift = WIDTH - pos - bits
        if len({entry[0] >> shift for entry in entries[low:high]}) * _SPARSE >= 1 << bits:
            break
        bits -= 1
    return bits


assert _DEEP + WIDTH // _DEEP_BITS + 2 <= MAX_DEPTH  # noqa: S101 - holds of constants, checked at import
