"""DNS over TCP (RFC 7766): pipelined queries, bounded in connections, memory and time.

Queries are answered immediately and in order, so replies are never reordered (RFC 7766 section 6.2.1.1). Many
queries on one connection do not delay others: a turn answers the queries of one read, and nothing is read
while too many replies wait for a slow reader.
"""

from __future__ import annotations

import logging
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from unmoor.dns.answer.fast_path import Answerer
from unmoor.dns.counters.counters import Counts, Event
from unmoor.dns.protocol import message
from unmoor.model import DnsDocument

log = logging.getLogger(__name__)

#: Octets that all connections of one worker may buffer, received and unsent together; beyond it those that
#: have been idle for longest are closed. One connection holds at most about 210 KB.
MAX_HELD = 32 << 20
#: Replies waiting for a slow reader, octets; beyond it no further query of the connection is read.
_MAX_UNSENT = 65536
_CHUNK = 16384
_ACCEPTS_AT_ONCE = 16
#: Format of a connection that is passed to another worker, which may be of another release.
_FORMAT = 1
_STATE = struct.Struct("!B?I")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one worker: connections, connections of one client, seconds that one may be idle."""

    connections: int
    per_client: int
    idle: float

    @classmethod
    def of(cls, document: DnsDocument, workers: int, descriptors: int) -> Limits:
        """Return the share of one of `workers`, at most as many connections as `descriptors`."""
        share = -(-document.tcp_connections // workers)
        if share > descriptors:
            log.warning(
                "tcp_connections: %d a worker are asked for, LimitNOFILE= of the unit leaves room for %d",
                share,
                descriptors,
            )
        return cls(
            max(1, min(share, descriptors)), max(1, document.tcp_per_client // workers), document.tcp_idle
        )


@dataclass(slots=True)
class Connection:
    """One client's connection, with unanswered queries in `received` and replies in `unsent`."""

    sock: socket.socket
    address: str
    client: bytes
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    finished: bool = False
    #: Octets of both buffers, as last counted.
    held: int = 0


class Connections:
    """All TCP connections of a worker. `watch` and `unwatch` add and remove descriptors of its event loop."""

    def __init__(
        self,
        limits: Limits,
        answer: Answerer,
        counts: Counts,
        watch: Callable[[int, int, Callable[[int], None]], None],
        unwatch: Callable[[int], None],
    ) -> None:
        self._limits = limits
        self._answer = answer
        self._counts = counts
        self._watch = watch
        self._unwatch = unwatch
        # Ordered by deadline: a connection with a new query moves to the end.
        self._open: dict[int, Connection] = {}
        self._clients: Counter[bytes] = Counter()
        self._held = 0

    def accept(self, listener: socket.socket) -> None:
        """Accept the connections in the listener's queue."""
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, address = listener.accept()
            except OSError:  # empty, or the client has closed the connection
                return
            sock.setblocking(False)
            self._counts.add(Event.TCP_CONNECTIONS)
            client = _client(sock.family, address[0])
            self._add(Connection(sock, address[0], client, time.monotonic() + self._limits.idle))

    def _add(self, connection: Connection) -> None:
        if self._clients[connection.client] >= self._limits.per_client:
            connection.sock.close()
            return
        if len(self._open) >= self._limits.connections:
            self._close(next(iter(self._open.values())))
        descriptor = connection.sock.fileno()
        self._open[descriptor] = connection
        self._clients[connection.client] += 1
        self._watch(descriptor, select.EPOLLIN, lambda events: self._serve(connection, events))

    def expire(self) -> float | None:
        """Close connections that have been idle for too long; returns the seconds until the next deadline."""
        now = time.monotonic()
        while self._open:
            idlest = next(iter(self._open.values()))
            if idlest.deadline > now:
                return idlest.deadline - now
            self._close(idlest)
        return None

    def _serve(self, connection: Connection, events: int) -> None:
        try:
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                chunk = connection.sock.recv(_CHUNK)
                connection.finished = not chunk
                connection.received += chunk
            self._advance(connection)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        self._weigh(connection)

    def _weigh(self, connection: Connection) -> None:
        """Count the octets that are held, and close connections if they are too many."""
        if connection.sock.fileno() < 0:
            return
        held = len(connection.received) + len(connection.unsent)
        self._held += held - connection.held
        connection.held = held
        if self._held > MAX_HELD:
            for each in [other for other in self._open.values() if other.held]:
                self._close(each)
                if self._held <= MAX_HELD:
                    break

    def _advance(self, connection: Connection) -> None:
        """Answer and send as far as possible; then wait for more input or room."""
        asked = self._answer_all(connection)
        while connection.unsent:
            try:
                sent = connection.sock.send(connection.unsent)
            except BlockingIOError:
                break
            del connection.unsent[:sent]
            asked |= self._answer_all(connection)
        if connection.finished and not connection.unsent:
            self._close(connection)
            return
        descriptor = connection.sock.fileno()
        if asked:
            connection.deadline = time.monotonic() + self._limits.idle
            self._open[descriptor] = self._open.pop(descriptor)
        reading = not connection.finished and len(connection.unsent) < _MAX_UNSENT
        wanted = select.EPOLLIN * reading | select.EPOLLOUT * bool(connection.unsent)
        self._watch(descriptor, wanted, lambda events: self._serve(connection, events))

    def _answer_all(self, connection: Connection) -> bool:
        """Answer the complete queries received, in order; returns whether any was replied to."""
        received, at, asked = connection.received, 0, False
        while len(connection.unsent) < _MAX_UNSENT and len(received) >= at + 2:
            (size,) = struct.unpack_from("!H", received, at)
            if len(received) < at + 2 + size:
                break
            self._counts.add(Event.TCP_QUERIES)
            reply = self._answer(
                bytes(received[at + 2 : at + 2 + size]), message.TCP_SIZE, connection.address
            )
            at += 2 + size
            if reply is not None:  # a query without a reply does not extend the deadline
                asked = True
                connection.unsent += struct.pack("!H", len(reply)) + reply
        del received[:at]
        return asked

    def _close(self, connection: Connection) -> None:
        descriptor = connection.sock.fileno()
        self._unwatch(descriptor)
        self._forget(connection)
        connection.sock.close()

    def _forget(self, connection: Connection) -> None:
        del self._open[connection.sock.fileno()]
        self._held -= connection.held
        self._clients[connection.client] -= 1
        if not self._clients[connection.client]:
            del self._clients[connection.client]

    def hand_over(self, successor: socket.socket) -> None:
        """Pass every connection, with its buffers, to the worker that takes over."""
        for connection in list(self._open.values()):
            self._unwatch(connection.sock.fileno())
            state = _STATE.pack(_FORMAT, connection.finished, len(connection.received))
            with suppress(OSError):  # no worker takes over: the client will connect again
                socket.send_fds(
                    successor,
                    [state + connection.received + connection.unsent],
                    [connection.sock.fileno()],
                )
            self._forget(connection)
            connection.sock.close()

    def adopt(self, predecessor: socket.socket) -> bool:
        """Receive one connection of `hand_over`; False when there are no more."""
        message, descriptors, _, _ = socket.recv_fds(predecessor, 1 << 20, 1)
        if not message:
            return False
        if not descriptors:  # out of descriptors: the client will connect again
            return True
        sock = socket.socket(fileno=descriptors[0])
        if message[0] != _FORMAT:  # of another release
            sock.close()
            return True
        sock.setblocking(False)
        _, finished, received = _STATE.unpack_from(message)
        split = _STATE.size + received
        try:
            address = sock.getpeername()[0]
        except OSError:  # the client has closed it
            sock.close()
            return True
        deadline = time.monotonic() + self._limits.idle
        connection = Connection(
            sock,
            address,
            _client(sock.family, address),
            deadline,
            bytearray(message[_STATE.size : split]),
            bytearray(message[split:]),
            finished,
        )
        self._add(connection)
        if sock.fileno() >= 0:
            self._serve(connection, 0)
        return True


def _client(family: int, address: str) -> bytes:
    """Return the key by which a client is counted: its IPv4 address, or the /64 of its IPv6 address."""
    if family == socket.AF_INET:
        return socket.inet_aton(address)
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])[:8]
