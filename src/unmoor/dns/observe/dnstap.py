"""The query log as dnstap: protobuf messages in Frame Streams over a UNIX socket.

Implements only the parts of both formats that a response needs: libraries would be two dependencies for
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
#: Octets buffered for a receiver; beyond it entries are dropped.
_MAX_WAITING = 1 << 18
#: Seconds between two attempts to connect to the receiver.
_RETRY = 1.0

_MESSAGE, _AUTH_RESPONSE = 1, 2
_VARINT, _BYTES, _FIXED32 = 0, 2, 5


class Dnstap:
    """Sends entries to the receiver that listens at `path`, as soon as it has accepted the stream.

    It never blocks: entries for which there is no room are dropped. `edge` is the identity in messages.
    """

    def __init__(self, path: Path, edge: str) -> None:
        self._path = str(path)
        self._edge = edge.encode()
        self._sock: socket.socket | None = None
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
        if self._sock and self._accepted:
            with suppress(OSError):
                self._flush()
                if not self._waiting:  # within a frame it would be taken for data
                    self._sock.send(control(STOP))
        self._disconnect()

    def _is_open(self) -> bool:
        """Whether the receiver has accepted the stream; advances the handshake."""
        if self._sock is None:
            self._connect()
        if not self._accepted and self._sock is not None:
            with suppress(BlockingIOError):
                frame = self._sock.recv(512)
                if not frame.startswith(control(ACCEPT)[:4]) or frame[8:12] != ACCEPT.to_bytes(4, "big"):
                    raise ConnectionAbortedError
                self._waiting += control(START)
                self._accepted = True
        return self._accepted

    def _connect(self) -> None:
        if time.monotonic() < self._tried + _RETRY:
            return
        self._tried = time.monotonic()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._sock.connect(self._path)
        self._sock.send(control(READY))

    def _disconnect(self) -> None:
        if self._sock:
            self._sock.close()
        self._sock, self._accepted = None, False
        self._waiting.clear()

    def _flush(self) -> None:
        with suppress(BlockingIOError):
            while self._sock and self._waiting:
                del self._waiting[: self._sock.send(self._waiting)]


def _frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def control(kind: int) -> bytes:
    """Return a control frame; all but STOP contain the content type."""
    data = kind.to_bytes(4, "big")
    if kind != STOP:
        data += _CONTENT_TYPE_FIELD.to_bytes(4, "big") + _frame(CONTENT_TYPE)
    return bytes(4) + _frame(data)


def encoded(entry: Entry, edge: bytes) -> bytes:
    """Return an entry as a Dnstap message; fields that dnstap lacks are in `extra`, as JSON."""
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
    replied = entry.time + entry.took
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
                (_number(12, replied // 10**9), _fixed(13, replied % 10**9), _bytes(14, entry.reply))
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
