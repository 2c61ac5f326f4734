"""Asks the program itself: a test run of its twin `explain` over a generation's own table.

`explain` is compiled from the same lines as `dispatch`, reads the same maps, and counts nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from unmoor.model import Protocol
from unmoor.sockets import libbpf
from unmoor.sockets.layout import ANSWER, CONTEXT, COOKIE, FAMILY_NUMBERS, KEY, PROTOCOL_NUMBERS

#: What a test run's packet comes from; the program does not look at it.
_REMOTE_PORT = b"\x30\x39\0\0"
_PASS = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What the program does with a packet.

    `service` is the id of the service bound there, or None; `length` and `ifindex` tell its prefix and
    interface condition. `cookie` names the socket chosen, or is 0. `error` is 0, 1 where no socket is
    registered, or the errno (negative) of a socket that cannot take the packet.
    """

    service: int | None
    length: int = 0
    ifindex: int = 0
    cookie: int = 0
    error: int = 0


def context(protocol: Protocol, address: IPv4Address | IPv6Address, port: int) -> bytes:
    """`struct bpf_sk_lookup` of a packet to this address and port."""
    packed = address.packed
    ipv4, ipv6 = (packed, bytes(16)) if address.version == 4 else (bytes(4), packed)
    return CONTEXT.pack(
        0,
        FAMILY_NUMBERS[address.version],
        PROTOCOL_NUMBERS[protocol],
        bytes(4),
        bytes(16),
        _REMOTE_PORT,
        ipv4,
        ipv6,
        port,
        0,
    )


class Explainer:
    """One generation's twin, ready to ask."""

    def __init__(self, program: int, answers: int) -> None:
        self._program = program
        self._answers = answers
        self._ifindex: int | None = None

    def ask(
        self, protocol: Protocol, address: IPv4Address | IPv6Address, port: int, ifindex: int = 0
    ) -> Answer:
        """What happens to a packet to this address and port, from interface `ifindex`."""
        if ifindex != self._ifindex:
            libbpf.update(self._answers, KEY.pack(0), ANSWER.pack(0, 0, 0, 0, 0, ifindex))
            self._ifindex = ifindex
        run = libbpf.run_test(self._program, context(protocol, address, port))
        found = libbpf.lookup(self._answers, KEY.pack(0), ANSWER.size) or bytes(ANSWER.size)
        bound, service, length, condition, error, _ = ANSWER.unpack(found)
        if not bound:
            return Answer(None)
        cookie = COOKIE.unpack_from(run.context)[0] if run.verdict == _PASS else 0
        return Answer(service, length, condition, cookie, error)


@contextmanager
def explainer(generation: Path) -> Iterator[Explainer]:
    """The twin of the generation pinned at `generation`; one user at a time."""
    directory = os.open(generation, os.O_RDONLY | os.O_DIRECTORY)
    with libbpf.closing(directory):
        fcntl.flock(directory, fcntl.LOCK_EX)
        with (
            libbpf.opened(generation / "explain") as program,
            libbpf.opened(generation / "answers") as answers,
        ):
            yield Explainer(program, answers)
