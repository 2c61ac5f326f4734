"""The packed form of an edge's document: lists of prefixes as binary numbers, the rest as JSON.

The record of a generation holds its document in this form. Forty thousand prefixes as text would take longer
to read or write than their table takes to build. Packed documents are equal if their bytes are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Network

from unmoor.model import EdgeDocument, Prefix, Service
from unmoor.sockets.table.rules import (
    LENGTH_BITS,
    LENGTH_MASK,
    ByFamily,
    Key,
    Rule,
    distinct,
    key,
    of_services,
)
from unmoor.sockets.table.rules import prefix_of as _prefix_of

# The size of a prefix's key in bytes, and what is added to the length of an IPv4 prefix.
_SIZE = 17
_IPV4 = 129
_HEAD_SIZE = 4


@dataclass(frozen=True)
class Packed:
    """A document, with the order of its lists kept.

    `head` is the document as JSON, with a number in place of each list of prefixes. `lists` has the keys of
    those lists; `_IPV4` is added to the keys of IPv4 prefixes. `validated` holds the services of the document
    that was packed, so that `head` need not be parsed for them; None if this was decoded.
    """

    head: str
    lists: tuple[tuple[int, ...], ...]
    validated: tuple[Service, ...] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, edge: EdgeDocument) -> Packed:
        """Pack a document."""
        numbers: dict[int, int] = {}  # by id(): the lists live as long as the document
        lists: list[tuple[int, ...]] = []

        def number(prefixes: tuple[Prefix, ...]) -> int:
            if id(prefixes) not in numbers:
                numbers[id(prefixes)] = len(lists)
                lists.append(tuple(map(_code, prefixes)))
            return numbers[id(prefixes)]

        head = edge.model_dump(mode="json", exclude={"prefixes": True, "services": True})
        head["prefixes"] = number(edge.prefixes)
        head["services"] = [
            service.model_dump(mode="json", exclude={"prefixes"})
            | {"prefixes": None if service.prefixes is None else number(service.prefixes)}
            for service in edge.services
        ]
        head["lists"] = [len(found) for found in lists]
        return cls(json.dumps(head), tuple(lists), edge.services)

    @classmethod
    def decode(cls, data: bytes) -> Packed:
        """Decode the result of `encode`. Raises ValueError, LookupError or TypeError if damaged."""
        size = int.from_bytes(data[:_HEAD_SIZE], "little")
        head = data[_HEAD_SIZE : _HEAD_SIZE + size].decode()
        at = _HEAD_SIZE + size
        lists = []
        for count in json.loads(head)["lists"]:
            end = at + count * _SIZE
            lists.append(tuple(int.from_bytes(data[i : i + _SIZE], "big") for i in range(at, end, _SIZE)))
            at = end
        return cls(head, tuple(lists))

    def encode(self) -> bytes:
        """Encode to bytes; equal documents give equal bytes."""
        head = self.head.encode()
        size = len(head).to_bytes(_HEAD_SIZE, "little")
        return b"".join(
            [size, head, *(number.to_bytes(_SIZE, "big") for codes in self.lists for number in codes)]
        )

    @property
    def names(self) -> tuple[str, str]:
        """The names of the PoP and the edge."""
        head = json.loads(self.head)
        return head["pop"], head["edge"]

    @cached_property
    def services(self) -> tuple[Service, ...]:
        """The services, possibly without their prefixes."""
        if self.validated is not None:
            return self.validated
        return tuple(
            Service.model_validate(each | {"prefixes": None}) for each in json.loads(self.head)["services"]
        )

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of the document, in its order."""
        head = json.loads(self.head)
        shared: dict[tuple[int, ...], ByFamily] = {}
        found = [shared.setdefault(codes, _by_family(codes)) for codes in self.lists]
        numbers = (
            head["prefixes"] if each["prefixes"] is None else each["prefixes"] for each in head["services"]
        )
        return of_services(zip(self.services, (found[number] for number in numbers), strict=True))

    @cached_property
    def edge(self) -> EdgeDocument:
        """The document, unpacked."""
        head = json.loads(self.head)
        del head["lists"]
        lists = [tuple(map(_prefix, codes)) for codes in self.lists]
        head["prefixes"] = lists[head["prefixes"]]
        for service in head["services"]:
            if service["prefixes"] is not None:
                service["prefixes"] = lists[service["prefixes"]]
        return EdgeDocument.model_validate(head)


def _code(prefix: Prefix) -> int:
    return key(prefix) + _IPV4 if isinstance(prefix, IPv4Network) else key(prefix)


def _prefix(code: int) -> Prefix:
    return _prefix_of(code - _IPV4, 4) if _is_ipv4(code) else _prefix_of(code, 6)


def _is_ipv4(code: int) -> bool:
    return code & LENGTH_MASK >= _IPV4


def _by_family(codes: Sequence[int]) -> ByFamily:
    ipv4: Iterable[Key] = [code - _IPV4 for code in codes if code & LENGTH_MASK >= _IPV4]
    ipv6: Iterable[Key] = [code for code in codes if code & LENGTH_MASK < _IPV4]
    return distinct({4: ipv4, 6: ipv6})


assert LENGTH_BITS + 128 == _SIZE * 8  # noqa: S101 - holds of constants, checked at import
