"""The record of a generation: the document that was loaded and the ids in use, in a pinned map.

It lets `status`, the activation service and the next load see what the kernel runs, independently of files.
Ids of services and numbers of counters are stable: they carry over to the next record.
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from unmoor.errors import UnmoorError
from unmoor.model import Binding, EdgeDocument, Protocol, Service
from unmoor.sockets.table.allocation import Counted
from unmoor.sockets.table.packed import Packed
from unmoor.sockets.table.rules import Rule

FORMAT = 3
_SIZE = 4


@dataclass(frozen=True)
class Record:
    """One generation. `netns` is the inode of its network namespace, `program` the object file's SHA-256.

    `document` is the edge's, packed. `services` maps labels to ids, `interfaces` names to indexes. `counted`
    holds the IPv4 addresses that have counters. `begins` maps a counter that once counted another address to
    its value when it was given to this one.
    """

    generation: int
    program: str
    netns: int
    document: bytes
    services: dict[str, int]
    interfaces: dict[str, int] = field(default_factory=dict)
    counted: tuple[Counted, ...] = ()
    begins: dict[int, int] = field(default_factory=dict)

    @cached_property
    def packed(self) -> Packed:
        """The document, packed."""
        return Packed.decode(self.document)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The bindings as rules."""
        return self.packed.rules

    @property
    def declared(self) -> tuple[Service, ...]:
        """The services, without their prefixes."""
        return self.packed.services

    @cached_property
    def edge(self) -> EdgeDocument:
        """The document that was loaded."""
        return self.packed.edge

    @cached_property
    def sizes(self) -> dict[tuple[str, Protocol, int], int]:
        """The number of bindings of each service, protocol and family (4 or 6)."""
        found: Counter[tuple[str, Protocol, int]] = Counter()
        for rule in self.rules:
            found[rule.service, rule.protocol, rule.family] += len(rule.keys)
        return dict(found)

    @cached_property
    def bindings(self) -> tuple[Binding, ...]:
        """The bindings, one by one."""
        return tuple(self.edge.bindings())

    def encode(self) -> bytes:
        """Encode for the map: the length (u32), then compressed: format, head, arrays, document."""
        head = json.dumps(
            {
                "generation": self.generation,
                "program": self.program,
                "netns": self.netns,
                "services": self.services,
                "interfaces": self.interfaces,
                "counted": len(self.counted),
                "begins": len(self.begins),
            }
        ).encode()
        data = zlib.compress(
            b"".join(
                [
                    bytes([FORMAT]),
                    len(head).to_bytes(_SIZE, "little"),
                    head,
                    array("I", chain.from_iterable(self.counted)).tobytes(),
                    array("Q", chain.from_iterable(self.begins.items())).tobytes(),
                    self.document,
                ]
            ),
            1,
        )
        return len(data).to_bytes(_SIZE, "little") + data


def decode(data: bytes) -> Record:
    """Decode the result of `Record.encode`.

    Raises UnmoorError for a record of another version of Unmoor, and for one that is damaged.
    """
    try:
        return _decode(data)
    except (zlib.error, ValueError, LookupError, TypeError):
        raise UnmoorError(
            "the record of the loaded generation is damaged\n"
            "    fix: run unmoor sockets unload, then unmoor sockets load"
        ) from None


def _decode(data: bytes) -> Record:
    size = int.from_bytes(data[:_SIZE], "little")
    plain = zlib.decompress(data[_SIZE : _SIZE + size])
    # The formats before 3 were JSON from the first byte.
    version = json.loads(plain)["format"] if plain.startswith(b"{") else plain[0]
    if version != FORMAT:
        raise UnmoorError(
            f"the loaded generation has format {version}, but this version of Unmoor reads {FORMAT}\n"
            "    fix: use the version that loaded it, or run unmoor sockets unload"
        )
    start = 1 + _SIZE
    at = start + int.from_bytes(plain[1:start], "little")
    head = json.loads(plain[start:at])
    counted, begins = array("I"), array("Q")
    for found, length in ((counted, 3 * head.pop("counted")), (begins, 2 * head.pop("begins"))):
        end = at + length * found.itemsize
        found.frombytes(plain[at:end])
        at = end
    return Record(
        **head,
        document=plain[at:],
        counted=tuple(zip(counted[::3], counted[1::3], counted[2::3], strict=True)),
        begins=dict(zip(begins[::2], begins[1::2], strict=True)),
    )
