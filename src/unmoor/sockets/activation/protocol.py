"""The protocol of the activation service: one line of JSON each way over a UNIX stream socket.

A client sends the line and the sockets to register (SCM_RIGHTS, unix(7)) in one message, by one call of
sendmsg(2). The service reads the line first, and receives descriptors only from a peer that may register. It
replies once and closes the connection.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Literal

from unmoor.bpf.layout import FAMILIES, PROTOCOLS, SOCKET_SLOTS

if TYPE_CHECKING:  # see client
    from unmoor.model import Protocol

#: Maximum length of a line in bytes, and of descriptors in one request: all slots of one service.
MAX_BYTES = 4096
MAX_DESCRIPTORS = SOCKET_SLOTS * len(PROTOCOLS) * len(FAMILIES)

Verb = Literal["register", "unregister"]


class ProtocolError(Exception):
    """A line violates the protocol; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to register or unregister the sockets of a service (its label)."""

    verb: Verb
    service: str

    def encode(self) -> bytes:
        """The line to send."""
        return json.dumps({"verb": self.verb, "service": self.service}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Question:
    """A request to explain a packet to `address` and `port` from interface `ifindex` (0 for none)."""

    protocol: Protocol
    address: IPv4Address | IPv6Address
    port: int
    ifindex: int = 0

    def encode(self) -> bytes:
        """The line to send."""
        return json.dumps({"verb": "explain", **asdict(self), "address": str(self.address)}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply: the sockets that the service has now, or in `why` the reason why nothing was changed.

    `warnings` are about sockets that were registered but may not work as expected. `answer` is the reply to a
    question: see `Registrar.explain`.
    """

    ok: bool
    why: str = ""
    sockets: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    answer: dict[str, int | None] | None = None

    def encode(self) -> bytes:
        """The line to send."""
        return json.dumps(asdict(self)).encode() + b"\n"


def parse_request(text: bytes) -> Request | Question:
    """Parse a request. Raises ProtocolError when it is not valid."""
    found = _parse(text)
    if found.get("verb") == "explain":
        return _parse_question(found)
    verb, service = found.get("verb"), found.get("service")
    if verb not in ("register", "unregister") or not isinstance(service, str) or len(found) != 2:
        raise ProtocolError('not a request: {"verb": "register" or "unregister", "service": LABEL}')
    return Request(verb, service)


def _parse_question(found: dict[str, Any]) -> Question:
    try:
        address = ip_address(str(found.get("address")))
    except ValueError:
        raise ProtocolError("not a question: address is not an IP address") from None
    if (
        found.get("protocol") not in PROTOCOLS
        or len(found) != 5
        or not _is_number(found.get("port"), 1, (1 << 16) - 1)
        or not _is_number(found.get("ifindex"), 0, (1 << 31) - 1)
    ):
        raise ProtocolError(
            'not a question: {"verb": "explain", "protocol": "tcp" or "udp", '
            '"address": ADDRESS, "port": PORT, "ifindex": NUMBER}'
        )
    return Question(found["protocol"], address, found["port"], found["ifindex"])


def _is_number(value: object, minimum: int, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def parse_reply(text: bytes) -> Reply:
    """Parse a reply. Raises ProtocolError when it is not valid."""
    found = _parse(text)
    try:
        return Reply(
            bool(found["ok"]),
            str(found["why"]),
            tuple(map(str, found["sockets"])),
            tuple(map(str, found.get("warnings", ()))),  # older releases send none
            found.get("answer"),
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
