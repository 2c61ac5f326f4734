"""Why a packet goes where it goes: asks the live table, and says it in words."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from unmoor.errors import UnmoorError
from unmoor.model import Binding, Protocol
from unmoor.sockets.generation import find_live
from unmoor.sockets.lookup import Answer, explainer
from unmoor.sockets.pins import Pins
from unmoor.sockets.precedence import order
from unmoor.sockets.record import Record

_ERRORS = {
    -errno.EAFNOSUPPORT: "its socket is of the other address family",
    -errno.EPROTOTYPE: "its socket is of the other protocol",
    -errno.ESOCKTNOSUPPORT: "its socket is in a state that cannot take packets",
    -errno.EEXIST: "another program chose a socket first",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of a packet.

    `verdict` is one of socket (it reaches one), miss (bound, but no socket: refused), error (bound, but the
    socket cannot take it: refused) and pass (not bound: the kernel's own look-up decides). `losers` are
    bindings that match too, next best first.
    """

    verdict: str
    why: str
    binding: Binding | None
    service: str
    cookie: int
    losers: tuple[Binding, ...]

    @property
    def reached(self) -> bool:
        """Whether a socket of a service takes the packet."""
        return self.verdict == "socket"

    def as_json(self) -> dict[str, Any]:
        """For programs; bindings are left to the caller."""
        return {"verdict": self.verdict, "why": self.why, "service": self.service, "cookie": self.cookie}


def explain(
    pins: Pins, protocol: Protocol, address: IPv4Address | IPv6Address, port: int, interface: str = ""
) -> Explanation:
    """Ask the live generation. Raises UnmoorError when nothing is loaded."""
    found = find_live(pins)
    if found is None:
        raise UnmoorError(f"nothing is loaded at {pins.root}: run unmoor sockets load")
    directory, record = found
    matching = _matching(record, protocol, address, port, interface)
    with explainer(directory) as twin:
        answer = twin.ask(protocol, address, port, _index(interface))
    if answer.service is None:
        return Explanation("pass", _not_bound(record, protocol, address, port), None, "", 0, ())
    service = next(label for label, number in record.services.items() if number == answer.service)
    binding = next(
        (
            each
            for each in matching
            if (each.service, each.prefix.prefixlen) == (service, answer.length)
            and record.interfaces.get(each.interface, 0) == answer.ifindex
        ),
        None,
    )
    losers = tuple(each for each in matching if each != binding)
    verdict, why = _verdict(answer)
    return Explanation(verdict, why, binding, service, answer.cookie, losers)


def _matching(
    record: Record, protocol: Protocol, address: IPv4Address | IPv6Address, port: int, interface: str
) -> list[Binding]:
    found = [
        each
        for each in record.bindings
        if each.protocol == protocol
        and each.first_port <= port <= each.last_port
        and each.prefix.version == address.version
        and address in each.prefix
        and each.interface in ("", interface)
    ]
    return sorted(found, key=order)


def _verdict(answer: Answer) -> tuple[str, str]:
    if answer.error == 0:
        return "socket", "its socket takes the packet"
    if answer.error == 1:
        return "miss", "no socket is registered: the packet is refused, and a miss counted"
    reason = _ERRORS.get(answer.error, os.strerror(-answer.error))
    return "error", f"{reason}: the packet is refused, and an error counted"


def _not_bound(record: Record, protocol: Protocol, address: IPv4Address | IPv6Address, port: int) -> str:
    near = [
        each for each in record.bindings if each.prefix.version == address.version and address in each.prefix
    ]
    if not near:
        return f"no prefix that is bound contains {address}: the kernel's own look-up decides"
    if any(each.interface for each in near):
        return f"{protocol} port {port} is not bound there, or on another interface: the kernel decides"
    return (
        f"{address} is in a bound prefix, but {protocol} port {port} is not bound there: the kernel decides"
    )


def _index(interface: str) -> int:
    if not interface:
        return 0
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise UnmoorError(f"there is no interface {interface!r}") from None
