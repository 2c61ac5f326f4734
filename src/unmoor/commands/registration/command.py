"""What `unmoor sockets register` and `unregister` do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from unmoor import systemd
from unmoor.errors import UnmoorError
from unmoor.sockets.activation import protocol
from unmoor.sockets.activation.client import NotRegisteredError, Wanted, send, wait_for_sockets
from unmoor.sockets.activation.process import MissingError, finder

if TYPE_CHECKING:
    from unmoor.bpf.pins import Pins
    from unmoor.commands.endpoints import Endpoint
    from unmoor.model import Protocol


def register(
    service: str,
    pid: int | None,
    pidfile: Path | None,
    unit: str | None,
    listen: Sequence[Endpoint],
    kinds: Sequence[Protocol],
    wait: float,
    activation: Path,
) -> None:
    """Register the sockets of a process, or those passed by systemd."""
    find = finder(pid, pidfile, unit)
    with _failing(service):
        if find:
            _register_process(service, find, _wanted(listen, kinds), wait, activation)
        else:
            _report(service, _request(activation, protocol.Request("register", service), _passed()))


def _passed() -> list[int]:
    descriptors = systemd.listen_descriptors()
    if not descriptors:
        raise UnmoorError(
            "no sockets: give a process (--pid, --pidfile or --unit, and --listen), "
            "or start this from a unit with Sockets="
        )
    return descriptors


def follow(
    service: str,
    pid: int | None,
    pidfile: Path | None,
    unit: str | None,
    listen: Sequence[Endpoint],
    kinds: Sequence[Protocol],
    wait: float,
    activation: Path,
    pins: Pins,
    code: bytes,
) -> None:
    """Register the sockets of a process, and those that it opens later, until it ends."""
    from unmoor.sockets.activation import follow as following  # noqa: PLC0415 - others need none of it

    find, wanted = finder(pid, pidfile, unit), _wanted(listen, kinds)
    if not find:
        raise UnmoorError("no process to follow: add --pid, --pidfile or --unit")

    with _failing(service):
        register_once = partial(_register_process, service, find, wanted, wait, activation)
        following.follow(pins, service, find, wanted, register_once, wait, code)


def _wanted(listen: Sequence[Endpoint], kinds: Sequence[Protocol]) -> list[Wanted]:
    if not listen:
        raise UnmoorError("no addresses: add --listen ADDRESS:PORT, where the process listens")
    return [(kind, endpoint) for kind in kinds for endpoint in listen]


def _register_process(
    service: str, find: Callable[[], int], wanted: Sequence[Wanted], wait: float, activation: Path
) -> None:
    try:
        descriptors = wait_for_sockets(find, wanted, wait)
    except MissingError as error:
        raise NotRegisteredError(str(error)) from None
    try:
        reply = _request(activation, protocol.Request("register", service), descriptors)
    finally:  # before anything is printed: a copy keeps a socket open that the process has closed
        for descriptor in descriptors:
            os.close(descriptor)
    _report(service, reply)


def unregister(service: str, activation: Path) -> None:
    """Remove all sockets of a service."""
    with _failing(service):
        _report(service, _request(activation, protocol.Request("unregister", service), []))


def _request(activation: Path, request: protocol.Request, descriptors: Sequence[int]) -> protocol.Reply:
    reply = send(activation, request, descriptors)
    if not reply.ok:
        raise NotRegisteredError(reply.why)
    return reply


def _report(service: str, reply: protocol.Reply) -> None:
    for warning in reply.warnings:
        print(f"unmoor: {service}: warning: {warning}", file=sys.stderr)
    print(f"{service}: {', '.join(reply.sockets) or 'no sockets'}", flush=True)


@contextmanager
def _failing(service: str) -> Iterator[None]:
    """Exit with status 1 when a registration fails."""
    try:
        yield
    except (NotRegisteredError, MissingError) as error:
        print(f"unmoor: {service}: {error}", file=sys.stderr)
        sys.exit(1)
