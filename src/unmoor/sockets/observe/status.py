"""Status: bindings, registered sockets and counters of the live generation, read from the pins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from unmoor.bpf import libbpf
from unmoor.bpf.layout import (
    COOKIE,
    COUNTERS,
    COUNTERS_STRUCT,
    ERRORS,
    KEY,
    PROTOCOLS,
    SOCKET_SLOTS,
    group,
)
from unmoor.bpf.pins import Pins, opened_shared
from unmoor.errors import UnmoorError
from unmoor.model import Binding
from unmoor.sockets.dispatch.generation import OWN_NETNS, Live, find_live
from unmoor.sockets.table.precedence import Line, lines
from unmoor.sockets.table.record import Record

#: Groups whose counters are read in one call.
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Destination:
    """A service at one protocol and family (4 or 6): the cookies (SO_COOKIE) of its sockets, and counters."""

    service: str
    id: int
    protocol: str
    family: int
    sockets: tuple[int, ...]
    counters: dict[str, int]

    @property
    def errors(self) -> int:
        """The number of look-ups whose socket could not take the packet."""
        return sum(self.counters[name] for name in ERRORS)


@dataclass(frozen=True, slots=True)
class Status:
    """A generation and its destinations.

    `foreign` holds the ids of foreign sk_lookup programs in this network namespace, which may take packets
    before or after Unmoor's; None when the caller may not query them (CAP_NET_ADMIN).
    """

    live: Live
    destinations: tuple[Destination, ...]
    foreign: tuple[int, ...] | None

    @property
    def record(self) -> Record:
        """The record of the generation."""
        return self.live.record

    @property
    def bindings(self) -> tuple[Line, ...]:
        """The bindings in order of precedence."""
        return tuple(lines(self.record.rules))

    def as_json(self) -> dict[str, Any]:
        """The status for JSON."""
        pop, edge = self.record.packed.names
        return {
            "generation": self.record.generation,
            "program": self.record.program,
            "edge": edge,
            "pop": pop,
            "foreign_programs": None if self.foreign is None else list(self.foreign),
            "bindings": [binding_as_json(binding) for binding in self.bindings],
            "services": [
                {
                    "label": label,
                    "id": number,
                    "destinations": [
                        {
                            "protocol": each.protocol,
                            "family": each.family,
                            "sockets": list(each.sockets),
                            **each.counters,
                            "errors": each.errors,
                        }
                        for each in self.destinations
                        if each.service == label
                    ],
                }
                for label, number in sorted(self.record.services.items())
            ],
        }


def binding_as_json(binding: Binding | Line) -> dict[str, Any]:
    """Return a binding for JSON."""
    return {
        "protocol": binding.protocol,
        "prefix": str(binding.prefix),
        "first_port": binding.first_port,
        "last_port": binding.last_port,
        "interface": binding.interface,
        "service": binding.service,
    }


def read_status(pins: Pins, known: Live | None = None) -> Status:
    """Read the status of the live generation; if that is `known`, its record is not read again.

    Raises UnmoorError when nothing is loaded.
    """
    live = find_live(pins, known)
    if live is None:
        raise UnmoorError(f"nothing is loaded at {pins.root}: run unmoor sockets load")
    return Status(live, tuple(_destinations(pins, live.record)), _foreign(pins))


def _foreign(pins: Pins) -> tuple[int, ...] | None:
    """Return the ids of foreign programs; None when the caller may not query them or open the link."""
    try:
        own = pins.live_program()
        with OWN_NETNS.open("rb") as namespace:
            attached = libbpf.attached(namespace.fileno())
    except PermissionError:
        return None
    return tuple(number for number in attached if number != own)


def _destinations(pins: Pins, record: Record) -> list[Destination]:
    wanted = sorted(record.sizes, key=lambda each: (each[0], PROTOCOLS.index(each[1]), each[2]))
    groups = [group(record.services[service], protocol, family) for service, protocol, family in wanted]
    with opened_shared(pins, "counters") as counters, opened_shared(pins, "sockets") as sockets:
        counts = _counters(counters, groups)
        return [
            Destination(
                service, record.services[service], protocol, family, _cookies(sockets, number), counts[number]
            )
            for (service, protocol, family), number in zip(wanted, groups, strict=True)
        ]


def _cookies(sockets: int, number: int) -> tuple[int, ...]:
    slots = range(number * SOCKET_SLOTS, (number + 1) * SOCKET_SLOTS)
    values = (libbpf.lookup(sockets, KEY.pack(slot), COOKIE.size) for slot in slots)
    return tuple(COOKIE.unpack(value)[0] for value in values if value)


def _counters(counters: int, groups: Iterable[int]) -> dict[int, dict[str, int]]:
    """Return the counters of these groups, summed over all CPUs; neighbours are read in one call."""
    wanted = frozenset(groups)
    size = COUNTERS_STRUCT.size * libbpf.possible_cpus()
    found: dict[int, dict[str, int]] = {}
    for first in sorted({number // _BATCH * _BATCH for number in wanted}):
        for number, value in enumerate(libbpf.lookup_array(counters, first, _BATCH, size), first):
            if number in wanted:
                sums = [sum(column) for column in zip(*COUNTERS_STRUCT.iter_unpack(value), strict=True)]
                found[number] = dict(zip(COUNTERS, sums, strict=False))
    return found
