"""Rules: the bindings of a service that differ only in their prefix, as one object.

A load may have hundreds of thousands of bindings, but few lists of prefixes. It works on those lists, and
single bindings (`Binding`) are created only for display. A prefix is one number here, its `Key`.
"""

from __future__ import annotations

import heapq
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from itertools import chain, filterfalse
from typing import NamedTuple, overload

from unmoor.model import Binding, Prefix, Protocol, Service, parse_ports

#: A prefix: its address, left-aligned in 128 bits, then eight bits of length. Sorts by address, then length.
Key = int
#: Distinct sorted keys of one family. Equal lists are the same object, so that id() identifies them.
Keys = tuple[Key, ...]
#: The keys of a list of prefixes by family (4 and 6).
ByFamily = Mapping[int, Keys]

LENGTH_BITS = 8
LENGTH_MASK = (1 << LENGTH_BITS) - 1
_IPV4_SHIFT = 96


class Rule(NamedTuple):
    """A binding for each key: these ports of a protocol and family, at that prefix, to a service."""

    protocol: Protocol
    family: int
    first: int
    last: int
    service: str
    interface: str
    keys: Keys

    @property
    def width(self) -> int:
        """The number of ports, less one; at equal prefixes the narrower range wins."""
        return self.last - self.first


def key(prefix: Prefix) -> Key:
    """Return the key of a prefix."""
    address = int(prefix.network_address)
    if isinstance(prefix, IPv4Network):
        address <<= _IPV4_SHIFT
    return address << LENGTH_BITS | prefix.prefixlen


def prefix_of(number: Key, family: int) -> Prefix:
    """Return the prefix of a key of this family (4 or 6)."""
    address, length = number >> LENGTH_BITS, number & LENGTH_MASK
    return IPv4Network((address >> _IPV4_SHIFT, length)) if family == 4 else IPv6Network((address, length))


def prefix_text(number: Key, family: int) -> str:
    """Return the prefix of a key as text, such as 198.18.0.0/20; faster than by `prefix_of`."""
    if family == 6:
        return str(prefix_of(number, family))
    address = number >> LENGTH_BITS + _IPV4_SHIFT
    return f"{socket.inet_ntoa(address.to_bytes(4, 'big'))}/{number & LENGTH_MASK}"


def distinct(found: Mapping[int, Iterable[Key]]) -> ByFamily:
    """Sort the keys of each family and remove duplicates."""
    # Not a set: it would lose the order that most lists have, which makes the sort linear.
    return {family: tuple(sorted(dict.fromkeys(numbers))) for family, numbers in found.items()}


def of_services(services: Iterable[tuple[Service, ByFamily]]) -> tuple[Rule, ...]:
    """Return the rules of services, given with the keys of the prefixes that each is bound to."""
    return tuple(
        Rule(protocol, family, first, last, service.label, service.interface, numbers)
        for service, found in services
        for protocol in service.protocols
        for family, numbers in found.items()
        if numbers
        for first, last in map(parse_ports, service.ports)
    )


def of_bindings(bindings: Iterable[Binding]) -> Iterator[Rule]:
    """Group single bindings into rules."""
    found: dict[tuple[Protocol, int, int, int, str, str], set[Key]] = defaultdict(set)
    for protocol, prefix, first, last, service, interface in bindings:
        found[protocol, prefix.version, first, last, service, interface].add(key(prefix))
    shared: dict[Keys, Keys] = {}
    for same, numbers in found.items():
        keys = tuple(sorted(numbers))
        yield Rule(*same, shared.setdefault(keys, keys))


class Lines(Sequence[Binding]):
    """The bindings of rules as a sequence, ordered by protocol, family, prefix and ports.

    Bindings are created during iteration, so that counting them and showing the first few is fast.
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
    """Return the bindings of `wanted` that are not in `running`, and those of `running` not in `wanted`."""
    here, there = _by_signature(wanted), _by_signature(running)
    # Rules with the same lists (thirteen ports at the same prefixes) are compared once.
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[Keys, Keys]] = {}
    added: list[Rule] = []
    removed: list[Rule] = []
    for rule in here | there:
        left, right = here.get(rule, []), there.get(rule, [])
        same = tuple(map(id, left)), tuple(map(id, right))
        if same not in known:
            known[same] = _without(left, right), _without(right, left)
        for lines, keys in zip((added, removed), known[same], strict=True):
            if keys:
                lines.append(rule._replace(keys=keys))
    return Lines(added), Lines(removed)


def _without(lists: Sequence[Keys], others: Sequence[Keys]) -> Keys:
    """Return the keys of `lists` that are not in `others`, each once, in order."""
    known = frozenset(chain.from_iterable(others))
    left = filterfalse(known.__contains__, chain.from_iterable(lists))
    return tuple(left) if len(lists) == 1 else tuple(sorted(set(left)))


def _by_signature(rules: Iterable[Rule]) -> dict[Rule, list[Keys]]:
    """Group the lists of keys by the rest of their rules."""
    found: dict[Rule, list[Keys]] = defaultdict(list)
    for rule in rules:
        found[rule._replace(keys=())].append(rule.keys)
    return dict(found)
