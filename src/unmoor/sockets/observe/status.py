"""Status: bindings, registered sockets and counters of the live generation, read from the pins."""

from __future__ import annotations

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
from unmoor.sockets.dispatch.generation import OWN_NETNS, read_current
from unmoor.sockets.table.precedence import order
from unmoor.sockets.table.record import Record


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
    """A generation, its bindings in order of precedence, and its destinations.

    `foreign` holds the ids of foreign sk_lookup programs in this network namespace, which may take packets
    before or after Unmoor's; None when the caller may not query them (CAP_NET_ADMIN).
    """

    record: Record
    bindings: tuple[Binding, ...]
    destinations: tuple[Destination, ...]
    foreign: tuple[int, ...] | None

    def as_json(self) -> dict[str, Any]:
        """The status for JSON."""
        return {
            "generation": self.record.generation,
            "program": self.record.program,
            "edge": self.record.edge.edge,
            "pop": self.record.edge.pop,
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


def binding_as_json(binding: Binding) -> dict[str, Any]:
    """Return a binding for JSON."""
    return {
        "protocol": binding.protocol,
        "prefix": str(binding.prefix),
        "first_port": binding.first_port,
        "last_port": binding.last_port,
        "interface": binding.interface,
        "service": binding.service,
    }


def read_status(pins: Pins) -> Status:
    """Read the status of the live generation. Raises UnmoorError when nothing is loaded."""
    record = read_current(pins)
    if record is None:
        raise UnmoorError(f"nothing is loaded at {pins.root}: run unmoor sockets load")
    bindings = sorted(
        record.bindings, key=lambda each: (each.protocol, each.prefix.version, order(each), each)
    )
    return Status(record, tuple(bindings), tuple(_destinations(pins, record)), _foreign(pins))


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
    wanted = sorted(
        {(each.service, each.protocol, each.prefix.version) for each in record.bindings},
        key=lambda each: (each[0], PROTOCOLS.index(each[1]), each[2]),
    )
    found = []
    with (
        opened_shared(pins, "counters") as counters,
        opened_shared(pins, "sockets") as sockets,
    ):
        for service, protocol, family in wanted:
            number = record.services[service]
            found.append(
                Destination(
                    service,
                    number,
                    protocol,
                    family,
                    _cookies(sockets, group(number, protocol, family)),
                    _counters(counters, group(number, protocol, family)),
                )
            )
    return found


def _cookies(sockets: int, number: int) -> tuple[int, ...]:
    slots = range(number * SOCKET_SLOTS, (number + 1) * SOCKET_SLOTS)
    values = (libbpf.lookup(sockets, KEY.pack(slot), COOKIE.size) for slot in slots)
    return tuple(COOKIE.unpack(value)[0] for value in values if value)


def _counters(counters: int, number: int) -> dict[str, int]:
    size = COUNTERS_STRUCT.size
    value = libbpf.lookup(counters, KEY.pack(number), size * libbpf.possible_cpus()) or b""
    sums = [sum(column) for column in zip(*COUNTERS_STRUCT.iter_unpack(value), strict=True)]
    return dict(zip(COUNTERS, sums, strict=False))
