"""The dispatch table: rules compiled to the flat arrays that the program reads.

The longest prefix wins, then the narrower range of ports, then a binding to an interface. All ports with the
same bindings share one trie of prefixes. Bindings to any port have a separate trie, so that they need not be
in the trie of every port; the program takes the longer prefix of both.

These are pure functions that do not use the kernel.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from unmoor.bpf.layout import FAMILIES, LEAF, MAX_NESTING, PORT, PROTOCOLS, ROOT_AND_ANY
from unmoor.errors import InvalidInputError, Problem, UnmoorError
from unmoor.model.common import ANY_PORT
from unmoor.sockets.table import trie
from unmoor.sockets.table.allocation import Counted
from unmoor.sockets.table.rules import LENGTH_BITS, LENGTH_MASK, Key, Rule, prefix_of

#: Maximum number of nodes and leaves together; a larger table is refused.
MAX_ENTRIES = 1 << 23
_PORTS = 1 << 16
_IPV4_SHIFT = 96
_FULL = (1 << 128) - 1
_HALF = (1 << 64) - 1
#: A base that is past all counters for any address.
_UNCOUNTED = 1 << 32
_LEAF_WORDS = LEAF.size // 8
_MASKS = [_FULL ^ (_FULL >> length) for length in range(129)]

#: (interface index or 0, service id), in order of precedence.
Choices = tuple[tuple[int, int], ...]
#: What is bound at each prefix of a port.
Bound = dict[Key, Choices]


@dataclass(frozen=True, slots=True)
class Table:
    """The content of the maps: arrays of `struct port`, `struct node` and `struct leaf`.

    `any_roots` holds the roots for any port: TCP over IPv4 and IPv6, then UDP.
    """

    ports: bytes
    nodes: bytes
    leaves: bytes
    any_roots: tuple[int, int, int, int]


def build(
    rules: Iterable[Rule],
    services: Mapping[str, int],
    interfaces: Mapping[str, int] | None = None,
    counted: Sequence[Counted] = (),
) -> Table:
    """Compile rules to a table.

    `services` maps labels to ids, `interfaces` names to indexes; `counted` holds the IPv4 addresses that have
    counters. Raises InvalidInputError when two services have the same binding, UnmoorError when the table
    would be too large, and when ranges of equal width overlap or prefixes are nested too deeply.
    """
    compiler = _Compiler(services, {"": 0, **(interfaces or {})}, _Bases(counted))
    by_kind: dict[tuple[str, int], list[Rule]] = defaultdict(list)
    for rule in rules:
        by_kind[rule.protocol, rule.family].append(rule)
    ports = array("I", bytes(PORT.size * len(PROTOCOLS) * _PORTS))
    any_roots = []
    for number, protocol in enumerate(PROTOCOLS):
        for column, family in enumerate(FAMILIES):
            found = by_kind[protocol, family]
            wide = [rule for rule in found if (rule.first, rule.last) == ANY_PORT]
            any_roots.append(compiler.root(wide) if wide else 0)
            also = ROOT_AND_ANY if wide else 0
            begin = number * _PORTS * len(FAMILIES) + column
            ports[begin : begin + _PORTS * len(FAMILIES) : len(FAMILIES)] = array("I", [also]) * _PORTS
            for first, last, active in _segments(
                [rule for rule in found if (rule.first, rule.last) != ANY_PORT]
            ):
                start = (number * _PORTS + first) * len(FAMILIES) + column
                end = (number * _PORTS + last) * len(FAMILIES) + column + 1
                root = compiler.root(active) | also
                ports[start : end : len(FAMILIES)] = array("I", [root]) * (last - first + 1)
    if compiler.conflicts:
        raise InvalidInputError(compiler.conflicts.values())
    tcp4, tcp6, udp4, udp6 = any_roots
    return Table(
        ports.tobytes(), compiler.nodes.tobytes(), compiler.leaves.tobytes(), (tcp4, tcp6, udp4, udp6)
    )


def _segments(rules: list[Rule]) -> Iterator[tuple[int, int, list[Rule]]]:
    """Divide the ports where rules begin or end: (first port, last port, the rules that apply there)."""
    edges = sorted({rule.first for rule in rules} | {rule.last + 1 for rule in rules})
    begins: dict[int, list[Rule]] = defaultdict(list)
    for rule in rules:
        begins[rule.first].append(rule)
    active: list[Rule] = []
    for edge, following in pairwise(edges):
        active = [rule for rule in active if rule.last >= edge] + begins[edge]
        if active:
            yield edge, following - 1, active


class _Bases:
    """Bases of prefixes: base + IPv4 address = the index of the address's counter."""

    def __init__(self, counted: Sequence[Counted]) -> None:
        self._spans = sorted((start, start + count, number - start) for start, count, number in counted)
        self._starts = [start for start, _, _ in self._spans]

    def of(self, keys: Iterable[Key]) -> list[int | None]:
        """Return the base of each prefix; None if only some addresses are counted, or not in one piece."""
        spans, starts = self._spans, self._starts
        found: list[int | None] = []
        shift = LENGTH_BITS + _IPV4_SHIFT
        for key in keys:
            start = key >> shift
            end = start + (1 << 32 - (key & LENGTH_MASK))
            index = bisect_right(starts, start)
            if index and spans[index - 1][1] > start:
                _, upto, base = spans[index - 1]
                found.append(base % (1 << 64) if end <= upto else None)
            else:
                found.append(_UNCOUNTED if index == len(starts) or end <= starts[index] else None)
        return found

    def pieces(self, key: Key) -> Iterator[Key]:
        """Divide a prefix into prefixes such that each has its counters in one piece, where it has any."""
        start, end = _addresses(key)
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._spans) and self._starts[index] < end:
            at, upto = max(self._starts[index], start), min(self._spans[index][1], end)
            index += 1
            while at < upto:
                bits = (upto - at).bit_length() - 1
                if at:
                    bits = min(bits, (at & -at).bit_length() - 1)
                yield at << _IPV4_SHIFT + LENGTH_BITS | 32 - bits
                at += 1 << bits


def _addresses(key: Key) -> tuple[int, int]:
    """Return the first address of an IPv4 prefix, and the one after its last."""
    start = key >> LENGTH_BITS + _IPV4_SHIFT
    return start, start + (1 << 32 - (key & LENGTH_MASK))


class _Compiler:
    """Collects the nodes and leaves of all tries. Equal sets of rules share one trie."""

    def __init__(self, services: Mapping[str, int], interfaces: Mapping[str, int], bases: _Bases) -> None:
        self.nodes = array("Q", [0])  # node 0: nothing is bound
        self.leaves = array("Q", bytes(LEAF.size))  # leaf 0: the end of a chain
        self.conflicts: dict[tuple[Key, int, int, str], Problem] = {}
        self._services, self._interfaces, self._bases = services, interfaces, bases
        self._roots: dict[tuple[tuple[int, int, int, int], ...], int] = {}

    def root(self, rules: Sequence[Rule]) -> int:
        """Return the root node of the trie for the rules that apply at a port."""
        ordered = sorted(rules, key=lambda rule: (rule.width, not rule.interface))
        widths = sorted({rule.width for rule in ordered})
        # Lists of keys live as long as the rules, so id() identifies them.
        known = tuple(
            (id(rule.keys), self._interfaces[rule.interface], self._services[rule.service], rank)
            for rule in ordered
            for rank in [widths.index(rule.width)]
        )
        if known not in self._roots:
            self._roots[known] = self._add(self._merge(ordered), rules[0].family)
            if len(self.nodes) + len(self.leaves) // _LEAF_WORDS > MAX_ENTRIES:
                raise UnmoorError(
                    "the dispatch table is too large: too many port ranges overlap over too many prefixes"
                )
        return self._roots[known]

    def _merge(self, ordered: list[Rule]) -> Bound:
        """Merge rules in order of precedence: at each prefix, one choice for each interface."""
        bound: Bound = {}
        winners: dict[
            tuple[Key, str], Rule
        ] = {}  # of the first `recorded` rules; only overlapping rules need it
        recorded = 0
        for number, rule in enumerate(ordered):
            choice = self._interfaces[rule.interface], self._services[rule.service]
            if bound.keys().isdisjoint(rule.keys):
                bound.update(dict.fromkeys(rule.keys, (choice,)))
                continue
            for earlier in ordered[recorded:number]:
                for key in earlier.keys:
                    winners.setdefault((key, earlier.interface), earlier)
            recorded = number
            for key in rule.keys:
                winner = winners.get((key, rule.interface))
                if winner is None:
                    bound[key] = (*bound.get(key, ()), choice)
                elif winner.width == rule.width and winner.service != rule.service:
                    self._conflict(key, winner, rule)
        return bound

    def _conflict(self, key: Key, one: Rule, other: Rule) -> None:
        prefix = prefix_of(key, one.family)
        if (one.first, one.last) != (other.first, other.last):
            raise UnmoorError(
                f"{one.service} and {other.service} are bound to overlapping ranges of {one.width + 1} "
                f"{one.protocol} ports each at {prefix}: make one range narrower"
            )
        self.conflicts[key, one.first, one.last, other.service] = Problem(
            "edge.json",
            "services",
            other.service,
            f"another service is bound to {one.protocol} {prefix} ports {one.first}-{one.last} as well",
            "bind each prefix and port to one service",
        )

    def _add(self, bound: Bound, family: int) -> int:
        keys = sorted(bound)
        lengths = [key & LENGTH_MASK for key in keys]
        bases: Sequence[int] = array("Q", [_UNCOUNTED]) * len(keys)
        if family == 4:
            partly = self._bases.of(keys)
            if None in partly:
                pieces = self._pieces(bound, keys, partly)
                bound = bound | {key: choices for key, (choices, _) in pieces.items()}
                keys = sorted(bound)
                lengths = [pieces[key][1] if key in pieces else key & LENGTH_MASK for key in keys]
                partly = self._bases.of(keys)
            bases = [_UNCOUNTED if base is None else base for base in partly]
        innermost, around = trie.parents(keys)
        choices = [bound[key] for key in keys]
        most = max(map(len, choices))
        if trie.nesting(around) * most > MAX_NESTING:
            raise UnmoorError(f"more than {MAX_NESTING} prefixes contain one another on one port")
        number = len(self.leaves) // _LEAF_WORDS
        if most == 1:
            numbers: Sequence[int] = range(number, number + len(keys))
        else:
            numbers = []
            for found in choices:
                numbers.append(number)
                number += len(found)
        parents = [numbers[index] if index >= 0 else 0 for index in around]
        self._add_leaves(keys, lengths, choices, parents, bases, numbers)
        return trie.add(self.nodes, [keys[index] for index in innermost], [numbers[i] for i in innermost])

    def _pieces(
        self, bound: Bound, keys: Sequence[Key], bases: Sequence[int | None]
    ) -> dict[Key, tuple[Choices, int]]:
        """Return additional leaves for prefixes whose counters are not in one piece.

        Each has the choices and the length of the longest prefix around it.
        """
        pieces: dict[Key, tuple[Choices, int]] = {}
        for key, base in zip(keys, bases, strict=True):  # outer prefixes first
            if base is None:
                for piece in self._bases.pieces(key):
                    if piece not in bound:
                        pieces[piece] = bound[key], key & LENGTH_MASK
        return pieces

    def _add_leaves(
        self,
        keys: Sequence[Key],
        lengths: Sequence[int],
        choices: Sequence[Choices],
        parents: Sequence[int],
        bases: Sequence[int],
        numbers: Sequence[int],
    ) -> None:
        """Append a leaf for each choice of each prefix, chained by `parent`; filled by column for speed."""
        if len(choices) < sum(map(len, choices)):
            each = [index for index, found in enumerate(choices) for _ in found]
            last = [number + len(found) - 1 for number, found in zip(numbers, choices, strict=True)]
            own = range(numbers[0], last[-1] + 1)
            parents = [
                parents[index] if number == last[index] else number + 1
                for number, index in zip(own, each, strict=True)
            ]
            keys, lengths, bases = ([of[index] for index in each] for of in (keys, lengths, bases))
        flat = list(chain.from_iterable(choices))
        masks = [_MASKS[key & LENGTH_MASK] for key in keys]
        leaves = array("Q", bytes(LEAF.size * len(keys)))
        leaves[0::_LEAF_WORDS] = array("Q", [key >> LENGTH_BITS + 64 for key in keys])
        leaves[1::_LEAF_WORDS] = array("Q", [key >> LENGTH_BITS & _HALF for key in keys])
        leaves[2::_LEAF_WORDS] = array("Q", [mask >> 64 for mask in masks])
        leaves[3::_LEAF_WORDS] = array("Q", [mask & _HALF for mask in masks])
        leaves[4::_LEAF_WORDS] = array(
            "Q", [parent | service << 32 for parent, (_, service) in zip(parents, flat, strict=True)]
        )
        leaves[5::_LEAF_WORDS] = array(
            "Q", [interface | length << 32 for length, (interface, _) in zip(lengths, flat, strict=True)]
        )
        leaves[6::_LEAF_WORDS] = array("Q", bases)
        self.leaves += leaves
