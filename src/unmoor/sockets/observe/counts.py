"""Counters by address: of every IPv4 address, and of the busiest IPv6 addresses, in bounded memory."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import chain

from unmoor.bpf import libbpf
from unmoor.bpf.layout import ADDRESS_CHUNK, COUNTERS_OF_ADDRESSES, KEY, SEEN, SEEN_SETS, SEEN_WAYS
from unmoor.bpf.pins import Pins, opened_shared
from unmoor.errors import UnmoorError
from unmoor.sockets.dispatch.address_counters import totals
from unmoor.sockets.dispatch.generation import read_current
from unmoor.sockets.table.record import Record


def address_counts(pins: Pins) -> dict[IPv4Address | IPv6Address, int]:
    """Return the number of look-ups of each address that had any, of all services together.

    Of IPv6 addresses only the busiest are counted, up to 16,384 on each CPU. Raises UnmoorError when nothing
    is loaded.
    """
    record = read_current(pins)
    if record is None:
        raise UnmoorError(f"nothing is loaded at {pins.root}: run unmoor sockets load")
    return dict(chain(_ipv4(pins, record), _ipv6(pins)))


def _ipv4(pins: Pins, record: Record) -> Iterator[tuple[IPv4Address, int]]:
    counts = array("Q", bytes(8 * COUNTERS_OF_ADDRESSES))
    with opened_shared(pins, "addresses") as fd:
        for chunk, values in totals(fd):
            counts[chunk * ADDRESS_CHUNK : (chunk + 1) * ADDRESS_CHUNK] = array("Q", values)
    for start, size, first in record.counted:
        for address, number in enumerate(range(first, first + size), start):
            count = counts[number] - record.begins.get(number, 0)
            if count:
                yield IPv4Address(address), count


def _ipv6(pins: Pins) -> Iterator[tuple[IPv6Address, int]]:
    """Sum the IPv6 counters of all CPUs, each of which has its own table."""
    size = SEEN.size * SEEN_WAYS * libbpf.possible_cpus()
    totals: dict[int, int] = defaultdict(int)
    with opened_shared(pins, "seen") as fd:
        for number in range(SEEN_SETS):
            for high, low, count in SEEN.iter_unpack(libbpf.lookup(fd, KEY.pack(number), size) or b""):
                if count:
                    totals[high << 64 | low] += count
    for value, count in totals.items():
        yield IPv6Address(value), count
