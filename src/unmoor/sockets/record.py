"""The record of a generation: what was loaded, kept beside its table in a pinned map.

So whoever looks (`status`, the activation service, the next load) sees what the kernel really runs, whatever
became of the files. Ids of services and numbers of counters are stable: they carry over to the next record.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from ipaddress import IPv4Network, collapse_addresses, ip_network
from typing import Any

from unmoor.errors import UnmoorError
from unmoor.model import Binding, EdgeDocument, Prefix
from unmoor.sockets.layout import COUNTED_ADDRESSES, MAX_SERVICES

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One generation. `netns` is the inode of its network namespace, `program` the object's SHA-256.

    `services` gives each label its id, `interfaces` each interface its index, `counters` each IPv4 prefix
    that is counted by address the number of its first counter.
    """

    generation: int
    program: str
    netns: int
    edge: EdgeDocument
    services: dict[str, int]
    interfaces: dict[str, int] = field(default_factory=dict)
    counters: tuple[tuple[str, int], ...] = ()

    def bindings(self) -> tuple[Binding, ...]:
        """The lines of the dispatch table."""
        return tuple(self.edge.bindings())

    def counted(self) -> tuple[tuple[Prefix, int], ...]:
        """IPv4 prefixes counted by address, and the number of the first counter of each."""
        return tuple((IPv4Network(prefix), first) for prefix, first in self.counters)

    def encode(self) -> bytes:
        """As it stands in the map: the length (u32), then compressed JSON."""
        document: dict[str, Any] = {"format": FORMAT, **asdict(replace(self, edge=None))}  # type: ignore[arg-type]  # the edge is written by pydantic
        document["edge"] = self.edge.model_dump(mode="json")
        data = zlib.compress(json.dumps(document).encode(), 1)
        return len(data).to_bytes(4, "little") + data


def decode(data: bytes) -> Record:
    """Read what Record.encode wrote. Raises UnmoorError for a record of another version of Unmoor."""
    size = int.from_bytes(data[:4], "little")
    document = json.loads(zlib.decompress(data[4 : 4 + size]))
    found = document.pop("format")
    if found != FORMAT:
        raise UnmoorError(
            f"what is loaded has format {found}, this Unmoor knows {FORMAT}: "
            "use the version that loaded it, or run: unmoor sockets unload"
        )
    document["edge"] = EdgeDocument.model_validate(document["edge"])
    document["counters"] = tuple((prefix, first) for prefix, first in document["counters"])
    return Record(**document)


def allocate_ids(labels: Iterable[str], *kept: dict[str, int]) -> dict[str, int]:
    """Give each label an id: the one that it has in `kept` (newest first), else one that none of them uses.

    Raises UnmoorError when all ids are taken.
    """
    taken = {number for ids in kept for number in ids.values()}
    free = (number for number in range(MAX_SERVICES) if number not in taken)
    allocated: dict[str, int] = {}
    for label in labels:
        known = next((ids[label] for ids in kept if label in ids), None)
        number = next(free, None) if known is None else known
        if number is None:
            raise UnmoorError(f"more than {MAX_SERVICES} services, counting those of the generation before")
        allocated[label] = number
    return allocated


def allocate_counters(
    prefixes: Iterable[Prefix], *kept: tuple[tuple[str, int], ...]
) -> tuple[tuple[str, int], ...]:
    """Give every IPv4 address of these prefixes a counter, up to a /16 in all; larger prefixes go without.

    An address that is counted in `kept` (newest first) keeps its counter, and no other address gets that one.
    """
    earlier = [(ip_network(prefix), first) for allocation in kept for prefix, first in allocation]
    taken = sorted((first, first + prefix.num_addresses) for prefix, first in earlier)
    allocated: list[tuple[str, int]] = []
    wanted = collapse_addresses(prefix for prefix in prefixes if isinstance(prefix, IPv4Network))
    for prefix in sorted(wanted, key=lambda each: (each.num_addresses, each)):
        number = _kept_counter(prefix, earlier)
        if number is None:
            number = _free_range(taken, prefix.num_addresses)
        if number is None:
            continue
        taken = sorted([*taken, (number, number + prefix.num_addresses)])
        allocated.append((str(prefix), number))
    return tuple(allocated)


def _kept_counter(prefix: IPv4Network, earlier: list[tuple[Any, int]]) -> int | None:
    for counted, first in earlier:
        if prefix.subnet_of(counted):
            return first + int(prefix.network_address) - int(counted.network_address)
    return None


def _free_range(taken: list[tuple[int, int]], size: int) -> int | None:
    start = 0
    for first, end in taken:
        if first - start >= size:
            break
        start = max(start, end)
    return start if start + size <= COUNTED_ADDRESSES else None
