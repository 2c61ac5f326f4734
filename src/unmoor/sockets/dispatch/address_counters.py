"""The counters of IPv4 addresses, in the map that all generations share.

User space never resets a counter, since the kernel updates it at the same time. When a counter is given to
another address, the record keeps its value at that moment: its begin.
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
    """Read chunks of counters, summed over all CPUs; yields (chunk, counters) of those with a count."""
    size = _SIZE * libbpf.possible_cpus()
    nothing = bytes(size)
    for chunk in chunks:
        value = libbpf.lookup(addresses, KEY.pack(chunk), size) or nothing
        if value != nothing:
            counts = array("Q", value)
            columns = (counts[at : at + ADDRESS_CHUNK] for at in range(0, len(counts), ADDRESS_CHUNK))
            yield chunk, list(map(sum, zip(*columns, strict=True)))


def begins(addresses: int, counted: Allocation, earlier: Sequence[Record]) -> dict[int, int]:
    """Return the begins that are not 0, by counter; `earlier` holds the previous records, newest first.

    A counter that keeps its address keeps its begin. That of a newly counted address begins at its value now.
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
