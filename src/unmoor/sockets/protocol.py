"""How a listener talks to the activation service: one line of JSON each way over a UNIX stream socket.

A client sends the whole line and, as SCM_RIGHTS (unix(7)), the sockets to register in one message: one call
of sendmsg(2). The service reads the line first and receives no descriptor of a peer that may not register.
It answers once and closes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from unmoor.sockets.layout import FAMILIES, PROTOCOLS, SOCKET_SLOTS

SOCKET = Path("/run/unmoor/activation.sock")
#: Bytes of a line, and descriptors of one request: every slot of a service's protocols and families.
MOST_BYTES = 4096
MOST_DESCRIPTORS = SOCKET_SLOTS * len(PROTOCOLS) * len(FAMILIES)

Verb = Literal["register", "unregister"]


class ProtocolError(Exception):
    """The line is not what this protocol allows; says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants."""

    verb: Verb
    service: str

    def encode(self) -> bytes:
        """The line to send."""
        return json.dumps({"verb": self.verb, "service": self.service}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of it: the sockets that the service has now, or the reason why nothing was changed.

    `warnings` name what is odd about sockets that were registered.
    """

    ok: bool
    why: str = ""
    sockets: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The line to send."""
        return json.dumps(asdict(self)).encode() + b"\n"


def parse_request(text: bytes) -> Request:
    """Read a request. Raises ProtocolError for anything that is not one."""
    found = _parse(text)
    verb, service = found.get("verb"), found.get("service")
    if verb not in ("register", "unregister") or not isinstance(service, str) or len(found) != 2:
        raise ProtocolError('not a request: {"verb": "register" or "unregister", "service": LABEL}')
    return Request(verb, service)


def parse_reply(text: bytes) -> Reply:
    """Read a reply. Raises ProtocolError for anything that is not one."""
    found = _parse(text)
    try:
        return Reply(
            bool(found["ok"]),
            str(found["why"]),
            tuple(map(str, found["sockets"])),
            tuple(map(str, found.get("warnings", ()))),  # a service of an older release sends none
        )
    except (KeyError, TypeError):
        raise ProtocolError("not a reply of the activation service") from None


def _parse(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("not JSON") from None
    if not isinstance(found, dict):
        raise ProtocolError("not a JSON object")
    return found
