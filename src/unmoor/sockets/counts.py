"""Counters of addresses: IPv4 exactly, IPv6 by the addresses that were seen, in bounded room."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import chain

from unmoor.errors import UnmoorError
from unmoor.sockets import libbpf
from unmoor.sockets.generation import read_current
from unmoor.sockets.layout import ADDRESS_CHUNK, ADDRESS_CHUNKS, KEY, SEEN, SEEN_SETS, SEEN_WAYS
from unmoor.sockets.pins import Pins
from unmoor.sockets.record import Record


def address_counts(pins: Pins) -> dict[IPv4Address | IPv6Address, int]:
    """Look-ups by address, of all services: every address that had one.

    Of IPv6 addresses the busiest: each processor has room for some 16,000 of them. Raises UnmoorError when
    nothing is loaded.
    """
    record = read_current(pins)
    if record is None:
        raise UnmoorError(f"nothing is loaded at {pins.root}: run unmoor sockets load")
    return dict(chain(_ipv4(pins, record), _ipv6(pins)))


def _ipv4(pins: Pins, record: Record) -> Iterator[tuple[IPv4Address, int]]:
    counts = _totals(pins)
    for start, number, first in record.counted:
        for offset in range(number):
            if counts[first + offset]:
                yield IPv4Address(start + offset), counts[first + offset]


def _totals(pins: Pins) -> array[int]:
    """Every counter, summed over the processors."""
    size = ADDRESS_CHUNK * 8
    cpus = libbpf.possible_cpus()
    totals = array("Q")
    with libbpf.closing(libbpf.open_pin_to_read(pins.root / "addresses")) as fd:
        for chunk in range(ADDRESS_CHUNKS):
            value = array("Q", libbpf.lookup(fd, KEY.pack(chunk), size * cpus) or b"")
            columns = (value[start : start + ADDRESS_CHUNK] for start in range(0, len(value), ADDRESS_CHUNK))
            totals.extend(map(sum, zip(*columns, strict=True)))
    return totals


def _ipv6(pins: Pins) -> Iterator[tuple[IPv6Address, int]]:
    """Addresses seen, summed over the processors, each of which has a table of its own."""
    size = SEEN.size * SEEN_WAYS * libbpf.possible_cpus()
    totals: dict[int, int] = defaultdict(int)
    with libbpf.closing(libbpf.open_pin_to_read(pins.root / "seen")) as fd:
        for number in range(SEEN_SETS):
            for high, low, count in SEEN.iter_unpack(libbpf.lookup(fd, KEY.pack(number), size) or b""):
                if count:
                    totals[high << 64 | low] += count
    for value, count in totals.items():
        yield IPv6Address(value), count
