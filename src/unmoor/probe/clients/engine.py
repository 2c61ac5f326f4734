"""Many connections in one thread, with non-blocking sockets and edge-triggered epoll.

A pair costs one socket, one epoll registration and about eight system calls; asyncio's streams cost several
times that.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from unmoor.probe.clients.answer import READERS, BadAnswerError, Check, Expectation, http_request
from unmoor.probe.clients.outcome import Fault, Identity, Outcome, os_fault, tls_fault
from unmoor.probe.clients.targets import FAMILIES, Target

_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
_BROKEN = select.EPOLLERR | select.EPOLLHUP
_READABLE = select.EPOLLIN | _BROKEN
_CHUNK = 1 << 14
_NO_IDENTITY = Identity()


def _raise_errno(number: int) -> None:
    """Raise the OSError of errno `number`; 0 and EINPROGRESS are no errors."""
    if number not in (0, errno.EINPROGRESS):
        raise OSError(number, os.strerror(number))


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of every connection of a run.

    `timeout`: seconds for the whole exchange. `mark`: SO_MARK of each socket, 0 for none. `tls`: the context
    for TLS targets. `name`: the SNI and Host sent, and the name that certificates are verified for.
    """

    check: Check = "http"
    expectation: Expectation = field(default_factory=Expectation)
    timeout: float = 5.0
    mark: int = 0
    tls: ssl.SSLContext | None = None
    name: str = ""


class _Connection:
    """One connection. Its phases: connecting, the TLS handshake if any, waiting for the answer."""

    __slots__ = ("_doing", "_received", "_request", "_settings", "seconds", "sock", "started", "target")

    def __init__(self, target: Target, settings: Settings, sock: socket.socket) -> None:
        self.target = target
        self.sock = sock
        self.started = monotonic()
        self._settings = settings
        self._doing = "connecting"
        self._received = b""
        host = settings.name or (f"[{target.address}]" if ":" in target.address else target.address)
        self._request = http_request(host) if settings.check == "http" else b""

    def on_event(self, events: int) -> Outcome | None:
        """Handle epoll events. Returns the outcome when the connection has one."""
        try:
            return self._react(events)
        except ssl.SSLError as error:
            return self.outcome(tls_fault(error))
        except OSError as error:
            return self.outcome(os_fault(error, self._doing))
        except BadAnswerError as error:
            return self.outcome(Fault("bad answer", str(error)))

    def _react(self, events: int) -> Outcome | None:
        if self._doing == "connecting":
            if events & _BROKEN:
                _raise_errno(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            if self._connected():
                return self.outcome(None)
        return self._readable() if events & _READABLE else None

    def _connected(self) -> bool:
        """Send the request. Returns true if the check is complete with the connection."""
        if self._settings.check == "connect":
            return True
        self._doing = "waiting for the answer"
        if self._request:
            self._send(self._request)
        return False

    def _readable(self) -> Outcome | None:
        while True:
            try:
                data = self.sock.recv(_CHUNK)
            except BlockingIOError:
                return None
            outcome = self._take(data, closed=not data)
            if outcome is not None:
                return outcome

    def _take(self, data: bytes, *, closed: bool) -> Outcome | None:
        """Append decrypted bytes to the answer, and check it when it is complete."""
        self._received = self._received + data if self._received else data
        identity = READERS[self._settings.check](self._received, closed)
        if identity is None:
            return None
        return self.outcome(self._settings.expectation.fault(identity, self.target), identity)

    def _send(self, data: bytes) -> None:
        # A request is far smaller than the send buffer of a new socket.
        if self.sock.send(data) != len(data):
            _raise_errno(errno.ENOBUFS)

    def outcome(self, fault: Fault | None, identity: Identity = _NO_IDENTITY) -> Outcome:
        return Outcome(self.target, monotonic() - self.started, identity, fault)

    def timed_out(self) -> Outcome:
        return self.outcome(Fault("timeout", f"after {self._settings.timeout:g} s while {self._doing}"))


class _TlsConnection(_Connection):
    """A connection with TLS in memory buffers: SSLSocket makes four more system calls each."""

    __slots__ = ("_incoming", "_outgoing", "_shaken", "_tls")

    def __init__(
        self, target: Target, settings: Settings, sock: socket.socket, context: ssl.SSLContext
    ) -> None:
        super().__init__(target, settings, sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._shaken = False
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=settings.name or None)

    def _connected(self) -> bool:
        self._doing = "shaking hands"
        return self._shake()

    def _shake(self) -> bool:
        """Continue the handshake. Returns true if the check is complete with it."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError:
            self._flush()  # sends the alert to the server
            raise
        self._shaken = True
        self._doing = "waiting for the answer"
        if self._request:
            self._tls.write(self._request)
        self._flush()
        return self._settings.check == "connect"

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self._send(data)

    def _take(self, data: bytes, *, closed: bool) -> Outcome | None:
        if closed:
            self._incoming.write_eof()
        else:
            self._incoming.write(data)
        if not self._shaken:
            if self._shake():
                return self.outcome(None)
            if not self._shaken:
                return None
        while True:
            try:
                text = self._tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                return None
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                text = b""
            outcome = super()._take(text, closed=not text)
            if outcome is not None:
                return outcome


class Engine:
    """Runs connections. `start` adds one, `poll` handles events; each outcome is passed to `report`."""

    def __init__(self, settings: Settings, report: Callable[[Outcome], None]) -> None:
        self._settings = settings
        self._report = report
        self._epoll = select.epoll()
        # In the order of starting: a new connection is added at the end.
        self._active: dict[int, _Connection] = {}

    def __len__(self) -> int:
        """Return the number of connections in flight."""
        return len(self._active)

    def fileno(self) -> int:
        """Return a descriptor that is readable while `poll` has work."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close all connections; those in flight get no outcome."""
        for connection in self._active.values():
            connection.sock.close()
        self._active.clear()
        self._epoll.close()

    def start(self, target: Target) -> None:
        """Start a connection. An immediate failure is reported before this returns."""
        try:
            sock = socket.socket(FAMILIES[target.version], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._report(Outcome(target, 0.0, _NO_IDENTITY, os_fault(error, "making a socket")))
            return
        connection = self._connection(target, sock)
        try:
            if self._settings.mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._settings.mark)
            _raise_errno(sock.connect_ex((target.address, target.port)))
            self._epoll.register(sock, _EVENTS)
        except OSError as error:
            sock.close()
            self._report(connection.outcome(os_fault(error, "connecting")))
            return
        self._active[sock.fileno()] = connection

    def _connection(self, target: Target, sock: socket.socket) -> _Connection:
        if not target.tls:
            return _Connection(target, self._settings, sock)
        if self._settings.tls is None:
            raise ValueError("a target that speaks TLS needs a context")
        return _TlsConnection(target, self._settings, sock, self._settings.tls)

    def poll(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for events and handle them; end overdue connections."""
        oldest = next(iter(self._active.values()), None)
        if oldest is not None:
            timeout = max(0.0, min(timeout, oldest.started + self._settings.timeout - monotonic()))
        for number, events in self._epoll.poll(timeout):
            connection = self._active[number]
            outcome = connection.on_event(events)
            if outcome is not None:
                self._end(number, outcome)
        self._end_overdue()

    def _end_overdue(self) -> None:
        limit = monotonic() - self._settings.timeout
        overdue = []
        for number, connection in self._active.items():
            if connection.started > limit:
                break
            overdue.append((number, connection))
        for number, connection in overdue:
            self._end(number, connection.timed_out())

    def _end(self, number: int, outcome: Outcome) -> None:
        self._active.pop(number).sock.close()
        self._report(outcome)
