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

from unmoor.bpf.layout import MAX_DEPTH
from unmoor.sockets.table.rules import LENGTH_BITS, LENGTH_MASK, Key

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


def parents(keys: Sequence[Key]) -> tuple[list[int], list[int]]:
    """Tell the trie's own prefixes from those that contain others.

    `keys` are sorted and distinct. Returns the positions of the innermost, and for each position that of the
    longest prefix around it, or -1.
    """
    around = [-1] * len(keys)
    if not any(map(_contains, keys, keys[1:])):
        return list(range(len(keys))), around
    innermost: list[int] = []
    stack: list[int] = []
    for index, key in enumerate(keys):
        while stack and not _contains(keys[stack[-1]], key):
            stack.pop()
        around[index] = stack[-1] if stack else -1
        stack.append(index)
        if index + 1 == len(keys) or not _contains(key, keys[index + 1]):
            innermost.append(index)
    return innermost, around


def _contains(outer: Key, key: Key) -> bool:
    """Whether the prefix `key`, which sorts after `outer`, lies inside it."""
    return not (outer ^ key) >> LENGTH_BITS + WIDTH - (outer & LENGTH_MASK)


def nesting(around: Sequence[int]) -> int:
    """The longest chain of parents."""
    depths: list[int] = []
    for parent in around:  # a parent stands before its children
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return max(depths)


def add(nodes: array[int], keys: Sequence[Key], leaves: Sequence[int]) -> int:
    """Append a trie of innermost prefixes in order, and the leaf of each; returns the number of its root."""
    root = len(nodes)
    nodes.append(0)
    _Builder(nodes, [key >> LENGTH_BITS for key in keys], [key & LENGTH_MASK for key in keys], leaves).fill(
        root, 0, len(keys), 0
    )
    return root


class _Builder:
    """One trie while it is built: the prefixes' addresses and lengths, and their leaves."""

    def __init__(
        self, nodes: array[int], values: Sequence[int], lengths: Sequence[int], leaves: Sequence[int]
    ) -> None:
        self._nodes, self._values, self._lengths, self._leaves = nodes, values, lengths, leaves

    def fill(self, at: int, low: int, high: int, depth: int) -> None:
        """Make node `at` the trie of the prefixes from `low` up to `high`."""
        nodes, values, leaves = self._nodes, self._values, self._leaves
        if high - low == 1:
            nodes[at] = leaves[low]
            return
        pos = WIDTH - (values[low] ^ values[high - 1]).bit_length()
        bits = _width(values, low, high, pos, depth)
        shift, mask = WIDTH - pos - bits, (1 << bits) - 1
        start = len(nodes)
        nodes[at] = start | pos << _POS | bits << _BITS

        patterns = [value >> shift & mask for value in values[low:high]]
        patterns.append(-1)  # ends the last group
        children: list[int] = []
        crowded: list[tuple[int, int, int]] = []  # children with several prefixes, and which
        index, count = 0, high - low
        while index < count:
            pattern = patterns[index]
            end = index + 1
            while patterns[end] == pattern:
                end += 1
            leaf = leaves[low + index]
            if len(children) < pattern:
                _fill_gap(children, pattern, leaves[low + index - 1] if index else 0, leaf)
            if end - index == 1:
                spare = pos + bits - self._lengths[low + index]
                children += [leaf] if spare <= 0 else [leaf] * (1 << spare)
            else:
                crowded.append((start + pattern, low + index, low + end))
                children.append(0)
            index = end
        children += [leaves[high - 1]] * ((1 << bits) - len(children))
        nodes.extend(children)
        for child, first, last in crowded:
            self.fill(child, first, last, depth + 1)


def _fill_gap(children: list[int], end: int, before: int, after: int) -> None:
    """Children without prefixes of their own repeat the neighbour that shares more bits with them.

    Any prefix that covers such a child contains that neighbour too, so its chain of parents has it.
    """
    first = split = len(children)
    if before:
        # Up to the point where the highest bit that differs between both neighbours changes.
        top = ((first - 1) ^ end).bit_length() - 1
        split = max(first, end >> top << top)
        children += [before] * (split - first)
    children += [after] * (end - split)


def _width(values: Sequence[int], low: int, high: int, pos: int, depth: int) -> int:
    """How many bits at `pos` to branch on: as many as keep the children from being mostly repeated."""
    room = min((_HALF if pos < _HALF else WIDTH) - pos, _MAX_BITS)
    least = min(room, _DEEP_BITS if depth >= _DEEP else 1)
    bits = max(least, min(room, (high - low).bit_length()))
    while bits > least:
        shift = WIDTH - pos - bits
        if len({value >> shift for value in values[low:high]}) * _SPARSE >= 1 << bits:
            break
        bits -= 1
    return bits


assert _DEEP + WIDTH // _DEEP_BITS + 2 <= MAX_DEPTH  # noqa: S101 - holds of constants, checked at import
