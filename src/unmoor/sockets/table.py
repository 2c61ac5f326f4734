"""The dispatch table: bindings compiled to the flat arrays that the program reads.

Precedence is longest prefix, then the narrower range of ports, then a given interface before any. Ports are
compiled away: all ports with the same bindings share one trie of prefixes. Bindings to any port have a trie
of their own, so that one of them does not grow every port's; the program takes the longer prefix of both.

Pure: nothing here touches the kernel.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from operator import itemgetter

from unmoor.errors import InvalidInputError, Problem, UnmoorError
from unmoor.model import Binding, Prefix
from unmoor.model.common import ANY_PORT
from unmoor.sockets import trie
from unmoor.sockets.layout import FAMILIES, LEAF, MAX_NESTING, PORT, PROTOCOLS

#: Nodes and leaves together may take so many entries; a table beyond that is refused.
MAX_ENTRIES = 1 << 23
_PORTS = 1 << 16
_SHIFT = {4: 96, 6: 0}
_FULL = (1 << 128) - 1
_HALF = (1 << 64) - 1
#: A base that leads past every counter from any address.
_UNCOUNTED = 1 << 32

#: (interface index or 0, service id), in order of precedence.
Choices = tuple[tuple[int, int], ...]
#: (address left-aligned in 128 bits, length) to what is bound there.
Rules = dict[tuple[int, int], Choices]


@dataclass(frozen=True, slots=True)
class Table:
    """What the program reads: `struct port`, `struct node` and `struct leaf` one after another.

    `any_roots` are the roots for any port: TCP over IPv4 and IPv6, then UDP.
    """

    ports: bytes
    nodes: bytes
    leaves: bytes
    any_roots: tuple[int, int, int, int]


def key(prefix: Prefix) -> tuple[int, int]:
    """A prefix as (address left-aligned in 128 bits, length)."""
    return int(prefix.network_address) << _SHIFT[prefix.version], prefix.prefixlen


def aligned(address: IPv4Address | IPv6Address) -> int:
    """An address left-aligned in 128 bits."""
    return int(address) << _SHIFT[address.version]


@dataclass(slots=True)
class _Span:
    """All bindings of one protocol and family to the same ports."""

    first: int
    last: int
    rules: Rules


def build(
    bindings: Iterable[Binding],
    services: Mapping[str, int],
    interfaces: Mapping[str, int] | None = None,
    counters: Iterable[tuple[Prefix, int]] = (),
) -> Table:
    """Compile bindings.

    `services` gives each label its id, `interfaces` each interface named its index, `counters` the first
    counter of each IPv4 prefix that is counted by address. Raises InvalidInputError where two services are
    bound to the same, UnmoorError where the table would grow too large.
    """
    compiler = _Compiler(dict(_bases(counters)))
    spans = _spans(bindings, services, interfaces or {})
    ports = array("I", bytes(PORT.size * len(PROTOCOLS) * _PORTS))
    any_roots = []
    for number, protocol in enumerate(PROTOCOLS):
        for column, family in enumerate(FAMILIES):
            found = spans.get((protocol, family), [])
            wide = [span for span in found if (span.first, span.last) == ANY_PORT]
            any_roots.append(compiler.root(wide[0].rules, family) if wide else 0)
            for first, last, rules in _segments(
                [span for span in found if (span.first, span.last) != ANY_PORT]
            ):
                start = (number * _PORTS + first) * len(FAMILIES) + column
                end = (number * _PORTS + last) * len(FAMILIES) + column + 1
                root = compiler.root(rules, family)
                ports[start : end : len(FAMILIES)] = array("I", [root]) * (last - first + 1)
    tcp4, tcp6, udp4, udp6 = any_roots
    return Table(ports.tobytes(), compiler.nodes.tobytes(), bytes(compiler.leaves), (tcp4, tcp6, udp4, udp6))


def _bases(counters: Iterable[tuple[Prefix, int]]) -> Iterator[tuple[tuple[int, int], int]]:
    for prefix, first in counters:
        yield key(prefix), (first - int(prefix.network_address)) % (1 << 64)


def _spans(
    bindings: Iterable[Binding], services: Mapping[str, int], interfaces: Mapping[str, int]
) -> dict[tuple[str, int], list[_Span]]:
    spans: dict[tuple[str, int], dict[tuple[int, int], _Span]] = defaultdict(dict)
    keys: dict[int, tuple[int, int]] = {}  # by identity: a document's prefixes are shared by its bindings
    kept: list[Prefix] = []
    conflicts: list[Problem] = []
    for binding in bindings:
        prefix = binding.prefix
        rule = keys.get(id(prefix))
        if rule is None:
            rule = keys[id(prefix)] = key(prefix)
            kept.append(prefix)  # while it lives no other prefix has its identity
        of = spans[binding.protocol, prefix.version]
        ports = binding.first_port, binding.last_port
        span = of.get(ports)
        if span is None:
            span = of[ports] = _Span(*ports, {})
        interface = interfaces[binding.interface] if binding.interface else 0
        choice = (interface, services[binding.service])
        choices = span.rules.get(rule, ())
        if choice in choices:
            continue
        if any(other == interface for other, _ in choices):
            conflicts.append(_conflict(binding))
        span.rules[rule] = tuple(sorted((*choices, choice), reverse=True))
    if conflicts:
        raise InvalidInputError(conflicts)
    return {name: sorted(found.values(), key=lambda span: span.first) for name, found in spans.items()}


def _conflict(binding: Binding) -> Problem:
    ports = f"{binding.first_port}-{binding.last_port}"
    return Problem(
        "edge.json",
        "services",
        binding.service,
        f"another service is bound to {binding.protocol} {binding.prefix} ports {ports} as well",
        "give each prefix and port to one service",
    )


def _segments(spans: list[_Span]) -> Iterator[tuple[int, int, Rules]]:
    """Cut the ports where bindings begin or end: (first port, last port, what is bound to them)."""
    edges = sorted({span.first for span in spans} | {span.last + 1 for span in spans})
    begins: dict[int, list[_Span]] = defaultdict(list)
    for span in spans:
        begins[span.first].append(span)
    active: list[_Span] = []
    for edge, following in pairwise(edges):
        active = [span for span in active if span.last >= edge] + begins[edge]
        if active:
            yield edge, following - 1, _merge(active)


def _merge(spans: list[_Span]) -> Rules:
    """What several overlapping ranges of ports bind: for each prefix the narrower range first."""
    if len(spans) == 1:
        return spans[0].rules
    candidates: dict[tuple[int, int], list[tuple[int, bool, int, int]]] = defaultdict(list)
    for span in spans:
        width = span.last - span.first
        for rule, choices in span.rules.items():
            candidates[rule] += [(width, not interface, interface, service) for interface, service in choices]
    return {rule: _choices(found) for rule, found in candidates.items()}


def _choices(candidates: list[tuple[int, bool, int, int]]) -> Choices:
    """The service for each interface: that of the narrowest range."""
    chosen: dict[int, tuple[int, int]] = {}
    for width, _, interface, service in sorted(candidates):
        first_width, first_service = chosen.setdefault(interface, (width, service))
        if first_width == width and first_service != service:
            raise UnmoorError(
                f"two services are bound to overlapping ranges of {width + 1} ports each at the same prefix: "
                "make one range narrower"
            )
    return tuple((interface, service) for interface, (_, service) in chosen.items())


class _Compiler:
    """Collects the nodes and leaves of all tries; equal rules share one trie."""

    def __init__(self, bases: dict[tuple[int, int], int]) -> None:
        self.nodes = array("Q", [0])  # node 0: nothing is bound
        self.leaves = bytearray(LEAF.size)  # leaf 0: the end of a chain
        self._bases = bases
        self._lengths = sorted({length for _, length in bases}, reverse=True)
        self._roots: dict[tuple[int, frozenset[tuple[tuple[int, int], Choices]]], int] = {}

    def root(self, rules: Rules, family: int) -> int:
        """The root node of the trie for these rules."""
        known = (family, frozenset(rules.items()))
        if known not in self._roots:
            self._roots[known] = self._add(rules, family)
            if len(self.nodes) + len(self.leaves) // LEAF.size > MAX_ENTRIES:
                raise UnmoorError(
                    "the dispatch table is too large: too many port ranges overlap over too many prefixes"
                )
        return self._roots[known]

    def _add(self, rules: Rules, family: int) -> int:
        ordered = sorted(rules.items(), key=itemgetter(0))
        number = len(self.leaves) // LEAF.size
        entries: list[trie.Entry] = []
        for (value, length), choices in ordered:
            entries.append((value, length, number))
            number += len(choices)
        innermost, around = trie.parents(entries)
        chunks = []
        for ((value, length), choices), (_, _, first) in zip(ordered, entries, strict=True):
            mask = _FULL ^ (_FULL >> length)
            base = self._base(value, length) if family == 4 else _UNCOUNTED
            for offset, (interface, service) in enumerate(choices):
                parent = first + offset + 1 if offset + 1 < len(choices) else around[first]
                chunks.append(
                    LEAF.pack(
                        value >> 64,
                        value & _HALF,
                        mask >> 64,
                        mask & _HALF,
                        parent,
                        service,
                        interface,
                        length,
                        base,
                    )
                )
        if trie.nesting(around) * max(map(len, rules.values())) > MAX_NESTING:
            raise UnmoorError(f"more than {MAX_NESTING} prefixes contain one another on one port")
        self.leaves += b"".join(chunks)
        return trie.add(self.nodes, innermost)

    def _base(self, value: int, length: int) -> int:
        """What added to an address of this IPv4 prefix gives the number of its counter."""
        for shorter in self._lengths:
            if shorter <= length:
                base = self._bases.get((value & (_FULL ^ (_FULL >> shorter)), shorter))
                if base is not None:
                    return base
        return _UNCOUNTED
