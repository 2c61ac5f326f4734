"""The record of a generation: what was loaded, kept beside its table in a pinned map.

So whoever looks (`status`, the activation service, the next load) sees what the kernel really runs, whatever
became of the files. Ids of services and numbers of counters are stable: they carry over to the next record.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
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
    """Give every IPv4 address of these prefixes a counter, smaller prefixes first, up to a /16 in all.

    An address that is counted in `kept` (newest first) keeps its counter, and no other address gets that one.
    """
    earlier = [(_span(IPv4Network(prefix)), first) for allocation in kept for prefix, first in allocation]
    known = dict(reversed(earlier))
    sizes = sorted({end - start for start, end in known})
    gaps = _gaps((first, first + end - start) for (start, end), first in earlier)
    allocated: dict[tuple[int, int], int] = {}
    for start, end in sorted(_outermost(prefixes), key=lambda span: (span[1] - span[0], span)):
        number = _kept_counter(start, end, known, sizes)
        if number is None:
            # Sizes only grow from here on: a gap that is too small now is of no use any more.
            while gaps and gaps[-1][1] - gaps[-1][0] < end - start:
                gaps.pop()
            if not gaps:
                continue
            number, limit = gaps.pop()
            gaps.append((number + end - start, limit))
        allocated[start, end] = number
    return tuple((_prefix(*span), number) for span, number in allocated.items())


def _span(prefix: IPv4Network) -> tuple[int, int]:
    first = int(prefix.network_address)
    return first, first + prefix.num_addresses


def _prefix(start: int, end: int) -> str:
    return f"{IPv4Address(start)}/{33 - (end - start).bit_length()}"


def _outermost(prefixes: Iterable[Prefix]) -> Iterator[tuple[int, int]]:
    """First address and end of each IPv4 prefix that is inside no other."""
    reached = 0
    spans = {_span(prefix) for prefix in prefixes if isinstance(prefix, IPv4Network)}
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if end > reached:
            yield start, end
            reached = end


def _kept_counter(start: int, end: int, known: dict[tuple[int, int], int], sizes: list[int]) -> int | None:
    for size in sizes:
        around = start // size * size
        first = known.get((around, around + size))
        if first is not None and end <= around + size:
            return first + start - around
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
