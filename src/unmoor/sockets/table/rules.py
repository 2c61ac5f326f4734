"""Bindings by the hundred thousand: those of a service that differ in their prefix alone are one rule.

A document says a list of prefixes once, and a load works on such lists; the single lines (`Binding`) are made
only where somebody looks at them. A prefix is one number here, its `Key`.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from itertools import chain, filterfalse
from typing import NamedTuple, overload

from unmoor.model import Binding, Prefix, Protocol, Service, parse_ports

#: A prefix: its address, left-aligned in 128 bits, then eight bits of length. Sorts by address, then length.
Key = int
#: Distinct keys in order, of one family. Equal lists are one object, so that its identity names it.
Keys = tuple[Key, ...]
#: The keys of a list of prefixes by family (4 and 6).
ByFamily = Mapping[int, Keys]

LENGTH_BITS = 8
LENGTH_MASK = (1 << LENGTH_BITS) - 1
_IPV4_SHIFT = 96


class Rule(NamedTuple):
    """Ports of one protocol and family, at every prefix of a list, to a service: a binding for each key."""

    protocol: Protocol
    family: int
    first: int
    last: int
    service: str
    interface: str
    keys: Keys

    @property
    def width(self) -> int:
        """How many ports beside the first; at equal prefixes the narrower range wins."""
        return self.last - self.first


def key(prefix: Prefix) -> Key:
    """A prefix as one number."""
    address = int(prefix.network_address)
    if isinstance(prefix, IPv4Network):
        address <<= _IPV4_SHIFT
    return address << LENGTH_BITS | prefix.prefixlen


def prefix_of(number: Key, family: int) -> Prefix:
    """The prefix that a key stands for."""
    address, length = number >> LENGTH_BITS, number & LENGTH_MASK
    return IPv4Network((address >> _IPV4_SHIFT, length)) if family == 4 else IPv6Network((address, length))


def distinct(found: Mapping[int, Iterable[Key]]) -> ByFamily:
    """The same keys, each once, in order."""
    # A set would lose the order that most lists have already, and with it a sort of linear time.
    return {family: tuple(sorted(dict.fromkeys(numbers))) for family, numbers in found.items()}


def of_services(services: Iterable[tuple[Service, ByFamily]]) -> tuple[Rule, ...]:
    """Every rule of services, each with the prefixes that it is bound to."""
    return tuple(
        Rule(protocol, family, first, last, service.label, service.interface, numbers)
        for service, found in services
        for protocol in service.protocols
        for family, numbers in found.items()
        if numbers
        for first, last in map(parse_ports, service.ports)
    )


def of_bindings(bindings: Iterable[Binding]) -> Iterator[Rule]:
    """Single lines as rules."""
    found: dict[tuple[Protocol, int, int, int, str, str], set[Key]] = defaultdict(set)
    for protocol, prefix, first, last, service, interface in bindings:
        found[protocol, prefix.version, first, last, service, interface].add(key(prefix))
    shared: dict[Keys, Keys] = {}
    for same, numbers in found.items():
        keys = tuple(sorted(numbers))
        yield Rule(*same, shared.setdefault(keys, keys))


class Lines(Sequence[Binding]):
    """The bindings of rules as a sequence, ordered by protocol, family, prefix and ports.

    A line is made when it is looked at: to count forty thousand and to show the first forty takes no time.
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = tuple(rules)
        self._length = sum(len(rule.keys) for rule in self.rules)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Binding]:
        for protocol, family, number, first, last, interface, service in heapq.merge(
            *map(self._sortable, self.rules)
        ):
            yield Binding(protocol, prefix_of(number, family), first, last, service, interface)

    @staticmethod
    def _sortable(rule: Rule) -> Iterator[tuple[Protocol, int, Key, int, int, str, str]]:
        for number in rule.keys:
            yield rule.protocol, rule.family, number, rule.first, rule.last, rule.interface, rule.service

    @overload
    def __getitem__(self, index: int) -> Binding: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Binding]: ...
    def __getitem__(self, index: int | slice) -> Binding | Sequence[Binding]:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # compares by content, as a list does


def difference(wanted: Iterable[Rule], running: Iterable[Rule]) -> tuple[Lines, Lines]:
    """The bindings of `wanted` that `running` lacks, and those of `running` that `wanted` lacks."""
    here, there = _by_signature(wanted), _by_signature(running)
    # Thirteen ports at the same prefixes are compared once.
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[Keys, Keys]] = {}
    added: list[Rule] = []
    removed: list[Rule] = []
    for rule in here | there:
        ours, others = here.get(rule, []), there.get(rule, [])
        same = tuple(map(id, ours)), tuple(map(id, others))
        if same not in known:
            known[same] = _without(ours, others), _without(others, ours)
        for lines, keys in zip((added, removed), known[same], strict=True):
            if keys:
                lines.append(rule._replace(keys=keys))
    return Lines(added), Lines(removed)


def _without(ours: Sequence[Keys], others: Sequence[Keys]) -> Keys:
    """The keys of some lists that no other list has, each once, in order."""
    known = frozenset(chain.from_iterable(others))
    left = filterfalse(known.__contains__, chain.from_iterable(ours))
    return tuple(left) if len(ours) == 1 else tuple(sorted(set(left)))


def _by_signature(rules: Iterable[Rule]) -> dict[Rule, list[Keys]]:
    """Lists of keys by the rest of their rules."""
    found: dict[Rule, list[Keys]] = defaultdict(list)
    for rule in rules:
        found[rule._replace(keys=())].append(rule.keys)
    return dict(found)
