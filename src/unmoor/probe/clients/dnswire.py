"""The part of the DNS wire format that a probe needs: queries, and the addresses of replies."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from unmoor.errors import InvalidInputError, Problem

QueryType = Literal["A", "AAAA"]

#: RFC 1035 section 3.2.2 and RFC 3596 section 2.1: type and the length of its data.
_TYPES: dict[QueryType, tuple[int, int]] = {"A": (1, 4), "AAAA": (28, 16)}
_FAMILIES: dict[QueryType, socket.AddressFamily] = {"A": socket.AF_INET, "AAAA": socket.AF_INET6}
_CLASS_IN = 1
_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")

_QR = 0x8000
_TC = 0x0200
_RCODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")


class MalformedReplyError(Exception):
    """The datagram is not a well-formed reply (RFC 1035 section 4)."""


@dataclass(frozen=True, slots=True)
class Question:
    """A name and a type; `wire` is the question section (RFC 1035 section 4.1.2)."""

    name: str
    type: QueryType
    wire: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """A reply: response code, whether it is truncated, and the addresses of its answer section."""

    rcode: str
    truncated: bool
    addresses: tuple[str, ...]


def question(name: str, kind: QueryType) -> Question:
    """Return the question for `name`. Raises InvalidInputError if it is not a hostname."""
    labels = name.rstrip(".").split(".")
    wire = b"".join(bytes([len(label)]) + label.encode() for label in labels if label.isascii()) + b"\0"
    fits = all(re.fullmatch(r"[A-Za-z0-9_*-]{1,63}", label) for label in labels) and len(wire) <= 255
    if not fits:
        raise InvalidInputError(
            [Problem("", "NAME", name, "is not a hostname", "write it as in www.example.com")]
        )
    return Question(name, kind, wire + struct.pack("!HH", _TYPES[kind][0], _CLASS_IN))


def query(identifier: int, asked: Question) -> bytes:
    """Return the query: one question, without RD, since the server is authoritative."""
    return _HEADER.pack(identifier, 0, 1, 0, 0, 0) + asked.wire


def read_identifier(data: bytes) -> int:
    """Return the ID of a reply. Raises MalformedReplyError if it has none."""
    if len(data) < 2:
        raise MalformedReplyError(f"{len(data)} bytes")
    return int.from_bytes(data[:2], "big")


def read_reply(data: bytes, asked: Question) -> Message:
    """Parse the reply to `asked`. Raises MalformedReplyError for anything else."""
    try:
        return _read_reply(data, asked)
    except (struct.error, IndexError):
        raise MalformedReplyError("it ends in the middle of a record") from None


def _read_reply(data: bytes, asked: Question) -> Message:
    _, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
    if not flags & _QR:
        raise MalformedReplyError("it is a query")
    number = flags & 15
    rcode = _RCODES[number] if number < len(_RCODES) else f"RCODE{number}"
    end = _HEADER.size + len(asked.wire)
    # Name, type and class; a server may change the case of letters (RFC 4343), nothing else.
    if questions == 1 and data[_HEADER.size : end].lower() == asked.wire.lower():
        addresses = tuple(_addresses(data, end, answers, asked.type))
    elif questions == 0 and rcode != "NOERROR":
        addresses = ()
    else:
        raise MalformedReplyError("its question differs from the query's")
    return Message(rcode, bool(flags & _TC), addresses)


def _addresses(data: bytes, offset: int, count: int, kind: QueryType) -> Iterator[str]:
    number, length = _TYPES[kind]
    for _ in range(count):
        offset = _after_name(data, offset)
        found, class_, _, size = _RECORD.unpack_from(data, offset)
        offset += _RECORD.size
        if offset + size > len(data):
            raise MalformedReplyError("it ends in the middle of a record")
        if (found, class_) == (number, _CLASS_IN):
            if size != length:
                raise MalformedReplyError(f"its {kind} record has {size} bytes")
            yield socket.inet_ntop(_FAMILIES[kind], data[offset : offset + size])
        offset += size


def _after_name(data: bytes, offset: int) -> int:
    """Return the offset after a name; a compression pointer ends it (RFC 1035 section 4.1.4)."""
    while True:
        length = data[offset]
        if length >= 0xC0:
            return offset + 2
        if length > 63:
            raise MalformedReplyError(f"label type {length >> 6:#b}")
        offset += 1 + length
        if length == 0:
            return offset
