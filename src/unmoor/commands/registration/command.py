"""What `unmoor sockets register` and `unregister` do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from unmoor import systemd
from unmoor.errors import UnmoorError
from unmoor.sockets.activation import protocol
from unmoor.sockets.activation.client import MissingError, send, wait_for_sockets

if TYPE_CHECKING:
    from unmoor.commands.endpoints import Endpoint
    from unmoor.model import Protocol


def register(
    service: str,
    pid: int | None,
    pidfile: Path | None,
    listen: Sequence[Endpoint],
    kind: Protocol,
    wait: float,
    activation: Path,
) -> None:
    """Register the sockets of a process, or those passed by systemd."""
    if pid is None and pidfile is None:
        descriptors = systemd.listen_descriptors()
        if not descriptors:
            raise UnmoorError(
                "no sockets: give a process (--pid or --pidfile, and --listen), "
                "or start this from a unit with Sockets="
            )
    elif not listen:
        raise UnmoorError("no addresses: add --listen ADDRESS:PORT, where the process listens")
    else:
        try:
            descriptors = wait_for_sockets(pid, pidfile, listen, kind, wait)
        except MissingError as error:
            _fail(service, str(error))
    _request(activation, protocol.Request("register", service), descriptors)


def unregister(service: str, activation: Path) -> None:
    """Remove all sockets of a service."""
    _request(activation, protocol.Request("unregister", service), [])


def _request(activation: Path, request: protocol.Request, descriptors: Sequence[int]) -> None:
    reply = send(activation, request, descriptors)
    if not reply.ok:
        _fail(request.service, reply.why)
    for warning in reply.warnings:
        print(f"unmoor: {request.service}: warning: {warning}", file=sys.stderr)
    print(f"{request.service}: {', '.join(reply.sockets) or 'no sockets'}")


def _fail(service: str, why: str) -> NoReturn:
    print(f"unmoor: {service}: {why}", file=sys.stderr)
    sys.exit(1)
