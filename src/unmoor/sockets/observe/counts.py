"""Counters by address: of every IPv4 address, and of the busiest IPv6 addresses, in bounded memory."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import chain

from unmoor.bpf import libbpf
from unmoor.bpf.layout import ADDRESS_CHUNK, COUNTERS_OF_ADDRESSES, SEEN, SEEN_SETS, SEEN_WAYS
from unmoor.bpf.pins import Pins, opened_shared
from unmoor.sockets.dispatch.address_counters import totals
from unmoor.sockets.table.record import Record

#: Sets of IPv6 addresses that are read in one call.
_BATCH = 256


def address_counts(pins: Pins, record: Record) -> dict[IPv4Address | IPv6Address, int]:
    """Return the number of look-ups of each address that had any, of all services together.

    `record` is the live generation's. Of IPv6 addresses only the busiest are counted, up to 16,384 on each
    CPU. Raises UnmoorError when a pin is missing.
    """
    return dict(chain(_ipv4(pins, record), _ipv6(pins)))


def _ipv4(pins: Pins, record: Record) -> Iterator[tuple[IPv4Address, int]]:
    counts = array("Q", bytes(8 * COUNTERS_OF_ADDRESSES))
    used = {
        chunk
        for _, size, first in record.counted
        for chunk in range(first // ADDRESS_CHUNK, (first + size - 1) // ADDRESS_CHUNK + 1)
    }
    with opened_shared(pins, "addresses") as fd:
        for chunk, values in totals(fd, sorted(used)):
            counts[chunk * ADDRESS_CHUNK : (chunk + 1) * ADDRESS_CHUNK] = array("Q", values)
    for start, size, first in record.counted:
        for address, number in enumerate(range(first, first + size), start):
            count = counts[number] - record.begins.get(number, 0)
            if count:
                yield IPv4Address(address), count


def _ipv6(pins: Pins) -> Iterator[tuple[IPv6Address, int]]:
    """Sum the IPv6 counters of all CPUs, each of which has its own table."""
    size = SEEN.size * SEEN_WAYS * libbpf.possible_cpus()
    nothing = bytes(size)
    totals: dict[int, int] = defaultdict(int)
    with opened_shared(pins, "seen") as fd:
        for first in range(0, SEEN_SETS, _BATCH):
            for value in libbpf.lookup_array(fd, first, _BATCH, size):
                if value == nothing:
                    continue
                for high, low, count in SEEN.iter_unpack(value):
                    if count:
                        totals[high << 64 | low] += count
    for address, count in totals.items():
        yield IPv6Address(address), count
