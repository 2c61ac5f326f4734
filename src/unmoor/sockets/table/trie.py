"""A level-compressed trie that maps prefixes to leaves, in one flat array of nodes.

Nilsson and Karlsson, "IP-address lookup using LC-tries", 1999. A node defines which bits of the address
select one of its 2^bits children. Bits that all prefixes share are skipped, and the leaf is compared with the
address at the end. A prefix that contains others is not in the trie: it is the `parent` of the longest
prefixes inside it, and is tried when those do not match. The number of steps of a look-up hardly depends on
the number of prefixes.

Addresses are left-aligned in 128 bits, so that IPv4 and IPv6 share all code.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from unmoor.bpf.layout import MAX_DEPTH, ROOT_IS_LEAF
from unmoor.sockets.table.rules import LENGTH_BITS, LENGTH_MASK, Key

WIDTH = 128
#: The program reads bits from one half of the address, so the bits of a node must not span both.
_HALF = 64
#: At least one in this many children of a node has prefixes of its own; the others repeat neighbours.
_SPARSE = 4
_MAX_BITS = 16
#: Below this depth, nodes are wide enough to end within MAX_DEPTH, at the expense of memory.
_DEEP = 8
_DEEP_BITS = 8

# A node is first | pos << 32 | bits << 40: `struct node` on a little-endian machine.
_POS = 32
_BITS = 40


def parents(keys: Sequence[Key]) -> tuple[list[int], list[int]]:
    """Find the innermost prefixes, which contain no others, and the parent of each prefix.

    `keys` are sorted and distinct. Returns the indexes of the innermost, and for each index that of the
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
    """Return the length of the longest chain of parents."""
    depths: list[int] = []
    for parent in around:  # a parent precedes its children
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return max(depths)


def add(nodes: array[int], keys: Sequence[Key], leaves: Sequence[int]) -> int:
    """Append a trie of sorted innermost prefixes, with a leaf for each; returns its root.

    The root is the index of a node. That of a single prefix is its leaf with `ROOT_IS_LEAF`: one step less.
    """
    if len(keys) == 1:
        return ROOT_IS_LEAF | leaves[0]
    root = len(nodes)
    nodes.append(0)
    _Builder(nodes, [key >> LENGTH_BITS for key in keys], [key & LENGTH_MASK for key in keys], leaves).fill(
        root, 0, len(keys), 0
    )
    return root


class _Builder:
    """Builds one trie from the prefixes' addresses and lengths, and their leaves."""

    def __init__(
        self, nodes: array[int], values: Sequence[int], lengths: Sequence[int], leaves: Sequence[int]
    ) -> None:
        self._nodes, self._values, self._lengths, self._leaves = nodes, values, lengths, leaves

    def fill(self, at: int, low: int, high: int, depth: int) -> None:
        """Make node `at` the root of a trie of the prefixes with index `low` <= index < `high`."""
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
        patterns.append(-1)  # terminates the last group
        children: list[int] = []
        crowded: list[tuple[int, int, int]] = []  # children with several prefixes: (node, first, end)
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
    """Fill children without prefixes with the leaf of the neighbour that shares more bits with them.

    A prefix that covers such a child contains that neighbour too, so the neighbour's chain of parents has it.
    """
    first = split = len(children)
    if before:
        # Split where the highest bit in which the two neighbours differ changes.
        top = ((first - 1) ^ end).bit_length() - 1
        split = max(first, end >> top << top)
        children += [before] * (split - first)
    children += [after] * (end - split)


def _width(values: Sequence[int], low: int, high: int, pos: int, depth: int) -> int:
    """Return the number of bits at `pos` to branch on, limited so that few children are repeated."""
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
