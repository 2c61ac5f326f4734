"""Look-ups in a generation's table by test runs of its program `explain`.

`explain` is compiled from the same source lines as `dispatch`, reads the same maps, and counts nothing. It
decides only about packets without a remote port and an interface, which only test runs have; it passes all
others, in case it is attached by mistake.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from unmoor.bpf import libbpf
from unmoor.bpf.layout import ANSWER, CONTEXT, COOKIE, FAMILY_NUMBERS, PROTOCOL_NUMBERS
from unmoor.model import Protocol

#: The remote port of a test run's packet: `dispatch` ignores it, `explain` requires 0.
_REMOTE_PORT = 12345
_PASS = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What the program does with a packet.

    `service` is the id of the service that is bound, or None. `length` is the length of the binding's prefix
    and `ifindex` its interface, 0 for any. `cookie` is the SO_COOKIE of the socket that takes the packet, or
    0. `error` is 0, 1 when no socket is registered, or a negative errno when the socket cannot take it.
    """

    service: int | None
    length: int = 0
    ifindex: int = 0
    cookie: int = 0
    error: int = 0


def context(
    protocol: Protocol, address: IPv4Address | IPv6Address, port: int, remote_port: int = _REMOTE_PORT
) -> bytes:
    """Return the `struct bpf_sk_lookup` of a packet to this address and port."""
    packed = address.packed
    ipv4, ipv6 = (packed, bytes(16)) if address.version == 4 else (bytes(4), packed)
    return CONTEXT.pack(
        0,
        FAMILY_NUMBERS[address.version],
        PROTOCOL_NUMBERS[protocol],
        bytes(4),
        bytes(16),
        remote_port.to_bytes(2, "big") + bytes(2),
        ipv4,
        ipv6,
        port,
        0,
    )


class Explainer:
    """The program `explain` of one generation."""

    def __init__(self, program: int, answers: mmap.mmap) -> None:
        self._program = program
        self._answers = answers
        self._ifindex: int | None = None

    def ask(
        self, protocol: Protocol, address: IPv4Address | IPv6Address, port: int, ifindex: int = 0
    ) -> Answer:
        """Return what happens to a packet to this address and port from interface `ifindex` (0 for none)."""
        if ifindex != self._ifindex:
            ANSWER.pack_into(self._answers, 0, 0, 0, 0, 0, 0, ifindex)
            self._ifindex = ifindex
        run = libbpf.run_test(self._program, context(protocol, address, port, remote_port=0))
        bound, service, length, condition, error, _ = ANSWER.unpack_from(self._answers)
        if not bound:
            return Answer(None)
        cookie = COOKIE.unpack_from(run.context)[0] if run.verdict == _PASS else 0
        return Answer(service, length, condition, cookie, error)


@contextmanager
def explainer(generation: Path) -> Iterator[Explainer]:
    """Open `explain` of the generation pinned at a path. The caller holds the guard: one user at a time."""
    with (
        libbpf.opened(generation / "explain", "program") as program,
        libbpf.opened(generation / "answers", "map") as answers,
        mmap.mmap(answers, mmap.PAGESIZE) as memory,
    ):
        yield Explainer(program, memory)
