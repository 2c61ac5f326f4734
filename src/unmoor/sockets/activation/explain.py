"""Explanations: which binding, service and socket take a packet, and why."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from unmoor import paths
from unmoor.bpf.pins import GUARD_TIMEOUT, Pins
from unmoor.errors import UnmoorError
from unmoor.model import Binding, Protocol
from unmoor.sockets.activation.client import send
from unmoor.sockets.activation.protocol import Question
from unmoor.sockets.dispatch.generation import find_live, record_id
from unmoor.sockets.dispatch.lookup import Answer, explainer
from unmoor.sockets.table.precedence import order
from unmoor.sockets.table.record import Record

#: How often a question is repeated because a load has switched generations meanwhile.
_MAX_TRIES = 5
_ERRORS = {
    -errno.EAFNOSUPPORT: "its socket is of the other address family",
    -errno.EPROTOTYPE: "its socket is of the other protocol",
    -errno.ESOCKTNOSUPPORT: "its socket is in a state that cannot take packets",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happens to a packet.

    `verdict` is one of socket (a socket takes it), miss (bound, but without a socket: refused), error (bound,
    but the socket cannot take it: refused) and pass (not bound: the kernel's own look-up decides). `losers`
    are the other bindings that match, in order of precedence. `cookie` is the socket's SO_COOKIE, or 0.
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
        """The explanation without its bindings, for JSON."""
        return {"verdict": self.verdict, "why": self.why, "service": self.service, "cookie": self.cookie}


def explain(
    pins: Pins,
    protocol: Protocol,
    address: IPv4Address | IPv6Address,
    port: int,
    interface: str = "",
    service: Path = paths.ACTIVATION_SOCKET,
) -> Explanation:
    """Explain what the live generation does with a packet to this address and port.

    `interface` is the name of the one that the packet arrives by, empty for none. A caller that may only read
    the pins asks the activation service at `service`. Raises UnmoorError when nothing is loaded, when the
    interface does not exist, and when the service refuses or does not answer.
    """
    question = Question(protocol, address, port, _index(interface))
    for _ in range(_MAX_TRIES):
        live = find_live(pins)
        if live is None:
            raise _nothing_loaded(pins)
        try:
            generation, answer = ask(pins, question)
        except PermissionError:
            generation, answer = _ask_service(question, service)
        if generation == live.id:
            return _explanation(live.record, question, interface, answer)
    raise UnmoorError("the dispatch table keeps changing: try again")


def ask(pins: Pins, question: Question, timeout: float = GUARD_TIMEOUT) -> tuple[int, Answer]:
    """Ask the live generation. Returns the id of its record, to which service ids refer, and the answer.

    Raises BusyError when the guard is not free within `timeout` seconds, UnmoorError when nothing is loaded,
    and PermissionError when the caller may only read.
    """
    with pins.guarded(timeout):
        directory = pins.live()
        generation = record_id(directory) if directory else None
        if directory is None or generation is None:
            raise _nothing_loaded(pins)
        with explainer(directory) as program:
            return generation, program.ask(
                question.protocol, question.address, question.port, question.ifindex
            )


def _nothing_loaded(pins: Pins) -> UnmoorError:
    return UnmoorError(f"nothing is loaded at {pins.root}: run unmoor sockets load")


def _ask_service(question: Question, service: Path) -> tuple[int, Answer]:
    reply = send(service, question)
    if not reply.ok:
        raise UnmoorError(f"the activation service refuses: {reply.why}")
    try:
        found: dict[str, Any] = dict(reply.answer or {})
        return found.pop("generation"), Answer(**found)
    except (KeyError, TypeError):
        raise UnmoorError(
            f"the activation service at {service} runs another version of Unmoor: restart it"
        ) from None


def _explanation(record: Record, question: Question, interface: str, answer: Answer) -> Explanation:
    protocol, address, port = question.protocol, question.address, question.port
    matching = _matching(record, protocol, address, port, interface)
    if answer.service is None:
        return Explanation("pass", _not_bound(record, protocol, address, port), None, "", 0, ())
    label = next(label for label, number in record.services.items() if number == answer.service)
    binding = next(
        (
            each
            for each in matching
            if (each.service, each.prefix.prefixlen) == (label, answer.length)
            and record.interfaces.get(each.interface, 0) == answer.ifindex
        ),
        None,
    )
    losers = tuple(each for each in matching if each != binding)
    verdict, why = _verdict(answer)
    return Explanation(verdict, why, binding, label, answer.cookie, losers)


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
        return "miss", "no socket is registered: the packet is refused and counted as a miss"
    reason = _ERRORS.get(answer.error, os.strerror(-answer.error))
    return "error", f"{reason}: the packet is refused and counted as an error"


def _not_bound(record: Record, protocol: Protocol, address: IPv4Address | IPv6Address, port: int) -> str:
    near = [
        each for each in record.bindings if each.prefix.version == address.version and address in each.prefix
    ]
    if not near:
        return f"{address} is in no bound prefix: the kernel's own look-up decides"
    if any(each.interface for each in near):
        return f"{protocol} port {port} is not bound there, or only on another interface: the kernel decides"
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
