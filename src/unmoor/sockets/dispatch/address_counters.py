"""The counters of IPv4 addresses, as they stand in the map that all generations share.

The kernel counts while user space looks, so nothing here writes: a counter that gets another address begins
at what it stands at, and its record remembers that.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from unmoor.bpf import libbpf
from unmoor.bpf.layout import ADDRESS_CHUNK, ADDRESS_CHUNKS, COUNTERS_OF_ADDRESSES, KEY
from unmoor.sockets.table.allocation import Allocation
from unmoor.sockets.table.record import Record

_SIZE = ADDRESS_CHUNK * 8


def totals(
    addresses: int, chunks: Iterable[int] = range(ADDRESS_CHUNKS)
) -> Iterator[tuple[int, Sequence[int]]]:
    """Chunks of counters in which anything was counted, summed over the processors: (number, counters)."""
    size = _SIZE * libbpf.possible_cpus()
    nothing = bytes(size)
    for chunk in chunks:
        value = libbpf.lookup(addresses, KEY.pack(chunk), size) or nothing
        if value != nothing:
            counts = array("Q", value)
            columns = (counts[at : at + ADDRESS_CHUNK] for at in range(0, len(counts), ADDRESS_CHUNK))
            yield chunk, list(map(sum, zip(*columns, strict=True)))


def begins(addresses: int, counted: Allocation, earlier: Sequence[Record]) -> dict[int, int]:
    """Where counters begin, of those that do not begin at 0; `earlier` are the records before, newest first.

    An address that goes on in its counter keeps that counter's begin; others begin at what is counted now.
    """
    fresh = bytearray(COUNTERS_OF_ADDRESSES)
    for number, count in counted.fresh:
        fresh[number : number + count] = b"\1" * count
    kept = bytearray(COUNTERS_OF_ADDRESSES)
    for _, count, number in counted.spans:
        kept[number : number + count] = b"\1" * count
    found: dict[int, int] = {}
    for record in reversed(earlier):
        found |= {number: value for number, value in record.begins.items() if kept[number] > fresh[number]}
    chunks = [at for at in range(ADDRESS_CHUNKS) if any(fresh[at * ADDRESS_CHUNK : (at + 1) * ADDRESS_CHUNK])]
    for chunk, counts in totals(addresses, chunks):
        for number, value in enumerate(counts, chunk * ADDRESS_CHUNK):
            if value and fresh[number]:
                found[number] = value
    return found
