"""Messages between the server and its transfer process: a line of JSON each, over a stream socket."""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any


class Link:
    """The transfer process's end. Sends without blocking: what the socket has no room for waits."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._received, self._unsent = bytearray(), bytearray()

    @property
    def events(self) -> int:
        """The events to wait for."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)

    def send(self, **message: Any) -> None:
        """Send a message."""
        self._unsent += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room. Raises OSError."""
        with suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]

    def receive(self) -> list[Any]:
        """Receive the messages that have arrived. Raises EOFError when the server is gone."""
        try:
            chunk = self._sock.recv(65536)
        except BlockingIOError:
            return []
        if not chunk:
            raise EOFError
        self._received += chunk
        return list(take_lines(self._received))


def take_lines(received: bytearray) -> Iterator[Any]:
    """Remove the complete lines from `received`, and yield each as parsed JSON."""
    *whole, rest = bytes(received).split(b"\n")
    received[:] = rest
    for line in whole:
        yield json.loads(line)
