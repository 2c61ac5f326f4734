"""The record of a generation: what was loaded, kept beside its table in a pinned map.

So whoever looks (`status`, the activation service, the next load) sees what the kernel really runs, whatever
became of the files. Ids of services and numbers of counters are stable: they carry over to the next record.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from unmoor.errors import UnmoorError
from unmoor.model import Binding, EdgeDocument, Prefix
from unmoor.sockets.layout import COUNTED_ADDRESSES, MAX_SERVICES

FORMAT = 2

#: IPv4 addresses that are counted: the first address, how many follow it, the number of the first counter.
Counted = tuple[int, int, int]


@dataclass(frozen=True)
class Record:
    """One generation. `netns` is the inode of its network namespace, `program` the object's SHA-256.

    `document` is the edge's, as JSON. `services` gives each label its id, `interfaces` each interface its
    index.
    """

    generation: int
    program: str
    netns: int
    document: str
    services: dict[str, int]
    interfaces: dict[str, int] = field(default_factory=dict)
    counted: tuple[Counted, ...] = ()

    @cached_property
    def edge(self) -> EdgeDocument:
        """What was loaded."""
        return EdgeDocument.model_validate_json(self.document)

    @cached_property
    def bindings(self) -> tuple[Binding, ...]:
        """The lines of the dispatch table."""
        return tuple(self.edge.bindings())

    def _fields(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def encode(self) -> bytes:
        """As it stands in the map: the length (u32), then compressed JSON."""
        data = zlib.compress(json.dumps({"format": FORMAT, **self._fields()}).encode(), 1)
        return len(data).to_bytes(4, "little") + data


def decode(data: bytes) -> Record:
    """Read what Record.encode wrote. Raises UnmoorError for a record of another version of Unmoor."""
    size = int.from_bytes(data[:4], "little")
    found = json.loads(zlib.decompress(data[4 : 4 + size]))
    version = found.pop("format")
    if version != FORMAT:
        raise UnmoorError(
            f"what is loaded has format {version}, this Unmoor knows {FORMAT}: "
            "use the version that loaded it, or run: unmoor sockets unload"
        )
    found["counted"] = tuple((address, count, first) for address, count, first in found["counted"])
    return Record(**found)


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


def allocate_counters(prefixes: Iterable[Prefix], *kept: tuple[Counted, ...]) -> tuple[Counted, ...]:
    """Give every IPv4 address of these prefixes a counter, smaller prefixes first, up to a /16 in all.

    An address that is counted in `kept` (newest first) keeps its counter, and no other address gets that one.
    """
    known = [{(start, count): first for start, count, first in counted} for counted in kept]
    gaps = _gaps((first, first + count) for counted in kept for _, count, first in counted)
    allocated: list[Counted] = []
    for count, start in sorted(_outermost(prefixes)):
        number = _kept_counter(start, count, known)
        if number is None:
            # Sizes only grow from here on: a gap that is too small now is of no use any more.
            while gaps and gaps[-1][1] - gaps[-1][0] < count:
                gaps.pop()
            if not gaps:
                continue
            number, limit = gaps.pop()
            gaps.append((number + count, limit))
        allocated.append((start, count, number))
    return tuple(allocated)


def _outermost(prefixes: Iterable[Prefix]) -> Iterator[tuple[int, int]]:
    """How many addresses and the first, of each IPv4 prefix that is inside no other."""
    reached = 0
    spans = {
        (int(prefix.network_address), -(1 << (32 - prefix.prefixlen)))
        for prefix in prefixes
        if prefix.version == 4
    }
    for start, negative in sorted(spans):
        if start - negative > reached:
            yield -negative, start
            reached = start - negative


def _kept_counter(start: int, count: int, known: list[dict[tuple[int, int], int]]) -> int | None:
    for counted in known:
        size = count
        while size <= COUNTED_ADDRESSES:
            around = start // size * size
            if (around, size) in counted:
                return counted[around, size] + start - around
            size *= 2
    return None


def _gaps(taken: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Counters that nothing uses, the smallest gap last."""
    gaps, reached = [], 0
    for first, end in sorted(taken):
        if first > reached:
            gaps.append((reached, first))
        reached = max(reached, end)
    if reached < COUNTED_ADDRESSES:
        gaps.append((reached, COUNTED_ADDRESSES))
    return sorted(gaps, key=lambda gap: gap[0] - gap[1])
