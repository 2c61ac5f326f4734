"""A minimal listener that sends each client the edge, address and port that it reached.

It shows that an ordinary program, started by a `.socket` unit, serves whole prefixes without any support for
them: `getsockname()` of a connection returns the address that the client connected to.
"""

from __future__ import annotations

import errno
import ipaddress
import selectors
import socket
import time
from collections.abc import Sequence

#: Seconds in which a client must close its side after it has its line, and the maximum of such clients.
TIMEOUT = 5.0
MAX_CLIENTS = 1024
_PAUSE = 0.1


def line(edge: str, name: tuple[str, int]) -> bytes:
    """Return the line for a client; `name` is the address and port that it connected to."""
    address = ipaddress.ip_address(name[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return f"whoami {edge} {mapped or address} {name[1]}\n".encode()


class Whoami:
    """Serves listening sockets; no client can delay another."""

    def __init__(self, edge: str, listeners: Sequence[socket.socket]) -> None:
        self._edge = edge
        self._listeners = listeners
        self._selector = selectors.DefaultSelector()
        self._clients: dict[socket.socket, float] = {}
        for listener in listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)

    def serve(self) -> None:
        """Answer clients without end."""
        while True:
            self.step(TIMEOUT)

    def step(self, timeout: float) -> None:
        """Wait for at most `timeout` seconds, and handle the clients that are ready."""
        for key, _ in self._selector.select(timeout):
            ready = key.fileobj
            if not isinstance(ready, socket.socket):
                continue
            if ready in self._clients:
                self._drain(ready)
            else:
                self._accept(ready)
        now = time.monotonic()
        for client in [client for client, end in self._clients.items() if end <= now]:
            self._drop(client)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                time.sleep(_PAUSE)  # clients wait in the backlog
            return
        client.setblocking(False)
        if len(self._clients) >= MAX_CLIENTS:
            self._drop(next(iter(self._clients)))
        try:
            client.send(line(self._edge, client.getsockname()[:2]))
            # Close after the client: closing with unread data would reset the connection and lose the line.
            client.shutdown(socket.SHUT_WR)
        except OSError:
            client.close()
            return
        self._clients[client] = time.monotonic() + TIMEOUT
        self._selector.register(client, selectors.EVENT_READ)

    def _drain(self, client: socket.socket) -> None:
        try:
            if client.recv(4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        del self._clients[client]
        self._selector.unregister(client)
        client.close()
