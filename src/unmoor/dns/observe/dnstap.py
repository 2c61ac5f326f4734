"""The query log as dnstap: protobuf messages in Frame Streams over a UNIX socket.

Only what a response needs of both formats is written here: a library of each would be a dependency for
sixty lines. The numbers are those of dnstap.proto and of fstrm's control frames.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from pathlib import Path

from unmoor import __version__
from unmoor.dns.counters.counters import Transport
from unmoor.dns.observe.query_log import Entry
from unmoor.dns.protocol.client_subnet import Subnet

CONTENT_TYPE = b"protobuf:dnstap.Dnstap"
# Control frames: an escape (a frame of no octets), the length, then the type.
ACCEPT, START, STOP, READY = 1, 2, 3, 4
_CONTENT_TYPE_FIELD = 1
#: Octets that wait for a receiver; beyond it entries are dropped.
_MAX_WAITING = 1 << 18
#: Seconds from one attempt to reach the receiver to the next.
_RETRY = 1.0

_MESSAGE, _AUTH_RESPONSE = 1, 2
_VARINT, _BYTES, _FIXED32 = 0, 2, 5


class Dnstap:
    """Sends entries to the receiver that listens at `path`, as soon as it has accepted the stream.

    Nothing waits: whatever has no room yet is dropped. `edge` is the identity that messages carry.
    """

    def __init__(self, path: Path, edge: str) -> None:
        self._path = str(path)
        self._edge = edge.encode()
        self._door: socket.socket | None = None
        self._accepted = False
        self._tried = -_RETRY
        self._waiting = bytearray()

    def send(self, entry: Entry) -> bool:
        """Send an entry; False if it was dropped."""
        try:
            if not self._is_open():
                return False
            message = encoded(entry, self._edge)
            if len(self._waiting) + len(message) + 4 > _MAX_WAITING:
                self._flush()
                return False
            self._waiting += _frame(message)
            self._flush()
        except OSError:
            self._disconnect()
            return False
        return True

    def close(self) -> None:
        """End the stream."""
        if self._door and self._accepted:
            with suppress(OSError):
                self._flush()
                if not self._waiting:  # in the middle of a frame it would be taken for a part of it
                    self._door.send(control(STOP))
        self._disconnect()

    def _is_open(self) -> bool:
        """Whether the receiver has accepted the stream; makes a step on the way there."""
        if self._door is None:
            self._connect()
        if not self._accepted and self._door is not None:
            with suppress(BlockingIOError):
                said = self._door.recv(512)
                if not said.startswith(control(ACCEPT)[:4]) or said[8:12] != ACCEPT.to_bytes(4, "big"):
                    raise ConnectionAbortedError
                self._waiting += control(START)
                self._accepted = True
        return self._accepted

    def _connect(self) -> None:
        if time.monotonic() < self._tried + _RETRY:
            return
        self._tried = time.monotonic()
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._door.connect(self._path)
        self._door.send(control(READY))

    def _disconnect(self) -> None:
        if self._door:
            self._door.close()
        self._door, self._accepted = None, False
        self._waiting.clear()

    def _flush(self) -> None:
        with suppress(BlockingIOError):
            while self._door and self._waiting:
                del self._waiting[: self._door.send(self._waiting)]


def _frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def control(kind: int) -> bytes:
    """A control frame; all but STOP name the content type."""
    data = kind.to_bytes(4, "big")
    if kind != STOP:
        data += _CONTENT_TYPE_FIELD.to_bytes(4, "big") + _frame(CONTENT_TYPE)
    return bytes(4) + _frame(data)


def encoded(entry: Entry, edge: bytes) -> bytes:
    """An entry as a Dnstap message; what dnstap has no field for is in `extra`, as JSON."""
    fields = entry.fields()
    extra = {name: fields[name] for name in ("policy", "generation", "address") if name in fields}
    return b"".join(
        (
            _bytes(1, edge),
            _bytes(2, f"unmoor {__version__}".encode()),
            _bytes(3, json.dumps(extra, separators=(",", ":")).encode()),
            _bytes(14, _message(entry)),
            _number(15, _MESSAGE),
        )
    )


def _message(entry: Entry) -> bytes:
    said = entry.time + entry.took
    return b"".join(
        (
            _number(1, _AUTH_RESPONSE),
            _number(2, 1 if entry.client.version == 4 else 2),
            _number(3, 1 if entry.transport == Transport.UDP else 2),
            _bytes(4, _address(entry.client)),
            _number(8, entry.time // 10**9),
            _fixed(9, entry.time % 10**9),
            _bytes(10, entry.packet),
            *(
                (_number(12, said // 10**9), _fixed(13, said % 10**9), _bytes(14, entry.reply))
                if entry.reply is not None
                else ()
            ),
        )
    )


def _address(client: Subnet) -> bytes:
    return client.number.to_bytes(4 if client.version == 4 else 16, "big")


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(number)


def _fixed(field: int, number: int) -> bytes:
    return _varint(field << 3 | _FIXED32) + number.to_bytes(4, "little")


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(data)) + data
