"""Parse the answer of a service, and check that the right service gave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal

from unmoor.probe.clients.outcome import Fault, Identity
from unmoor.probe.clients.targets import Target

Check = Literal["http", "connect", "banner"]

#: Maximum size of an answer, octets; those of probed services are far smaller.
MAX_ANSWER = 1 << 18
MAX_BANNER = 512


class BadAnswerError(Exception):
    """The bytes received are not an answer of the protocol expected."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """The identity expected of answers: the service label of each port, and the edge if one is required.

    An answer must also name the connection's destination address and port, which detects misdirected
    connections. With `anonymous` an answer may omit any of these, but those it has must be right.
    """

    services: Mapping[int, str] = field(default_factory=dict)
    edge: str = ""
    anonymous: bool = False

    def fault(self, found: Identity, target: Target) -> Fault | None:
        """Return what is wrong with the answer of `target`, or None."""
        service = self.services.get(target.port, "")
        wanted = (
            ("service", found.service, service or found.service, service != ""),
            ("edge", found.edge, self.edge or found.edge, self.edge != ""),
            ("address", found.address, target.address, True),
            ("port", found.port, str(target.port), True),
        )
        for name, value, right, needed in wanted:
            if value == right:
                continue
            if not value:
                if needed and not self.anonymous:
                    return Fault("no identity", f"the answer does not name its {name}")
            elif name != "address" or not _same_address(value, right):
                return Fault(f"wrong {name}", f"{value} instead of {right}")
        return None


def _same_address(one: str, other: str) -> bool:
    """Report whether both texts are the same address; an IPv4-mapped one equals its IPv4 address."""
    try:
        address = ip_address(one)
        return (getattr(address, "ipv4_mapped", None) or address) == ip_address(other)
    except ValueError:
        return False


def http_request(host: str) -> bytes:
    """Return the request (RFC 9112 section 3), with `Connection: close` to leave no idle connection."""
    return (
        f"GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: unmoor-probe\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n"
    ).encode()


def read_http(data: bytes, closed: bool) -> Identity | None:
    """Return the identity in the header fields of a complete HTTP/1.1 response (RFC 9112 section 6).

    Returns None while bytes are missing. Raises BadAnswerError for anything but a complete success.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        if closed:
            raise BadAnswerError(f"closed after {len(data)} bytes, before the end of the header")
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise BadAnswerError(f"not HTTP: {_excerpt(data)}")
        if len(data) > MAX_ANSWER:
            raise BadAnswerError("endless header")
        return None
    lines = head.split(b"\r\n")
    _check_status(lines[0])
    fields = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        fields[name.lower()] = value.strip().decode("latin-1")
    if not _body_is_complete(fields, body, closed):
        return None
    names = (b"unmoor-edge", b"unmoor-service", b"unmoor-address", b"unmoor-port")
    return Identity(*(fields.get(name, "") for name in names))


def _check_status(line: bytes) -> None:
    parts = line.split(b" ", 2)
    if len(parts) < 2 or parts[0] not in (b"HTTP/1.1", b"HTTP/1.0") or len(parts[1]) != 3:
        raise BadAnswerError(f"not HTTP: {_excerpt(line)}")
    if not parts[1].startswith(b"2"):
        raise BadAnswerError(f"status {parts[1].decode('latin-1')}")


def _body_is_complete(fields: Mapping[bytes, str], body: bytes, closed: bool) -> bool:
    if len(body) > MAX_ANSWER:
        raise BadAnswerError(f"more than {MAX_ANSWER} bytes")
    if "chunked" in fields.get(b"transfer-encoding", "").lower():
        complete = body.endswith(b"0\r\n\r\n")
    elif b"content-length" in fields:
        length = fields[b"content-length"]
        if not length.isascii() or not length.isdigit():
            raise BadAnswerError(f"Content-Length {length[:20]!r}")
        complete = len(body) >= int(length)
    else:
        complete = closed
    if closed and not complete:
        raise BadAnswerError(f"closed after {len(body)} bytes of the body")
    return complete


def read_banner(data: bytes, closed: bool) -> Identity | None:
    """Return the identity in the line `LABEL EDGE ADDRESS PORT` that a banner service sends on connect.

    Returns None while bytes are missing. Raises BadAnswerError for anything else.
    """
    line, end, _ = data.partition(b"\n")
    if not end:
        if closed:
            raise BadAnswerError(f"closed after {len(data)} bytes, before the end of the line")
        if len(data) > MAX_BANNER:
            raise BadAnswerError("endless line")
        return None
    words = line.decode("latin-1").split()
    if len(words) != 4:
        raise BadAnswerError(f"not a banner: {_excerpt(line)}")
    service, edge, address, port = words
    return Identity(edge, service, address, port)


def _excerpt(data: bytes) -> str:
    return repr(data[:40])[1:]


#: The parser of each check; `connect` is satisfied before a byte is read.
READERS: Mapping[Check, Callable[[bytes, bool], Identity | None]] = {
    "http": read_http,
    "banner": read_banner,
}
