"""A DNS client with many UDP queries in flight. It repeats lost queries, and counts each loss."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from itertools import cycle
from random import SystemRandom
from time import monotonic

from unmoor.errors import UnmoorError
from unmoor.probe.clients.dnswire import MalformedReplyError, Question, query, read_identifier, read_reply
from unmoor.probe.clients.outcome import Fault
from unmoor.probe.clients.targets import FAMILIES

#: Sockets for each server. Routers spread load over edges by source port, and the kernel over a server's
#: workers: one socket would reach one worker of one edge only.
SOCKETS = 16
_MAX_DATAGRAM = 65535


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one question.

    `addresses`: those of the answer, when `fault` is None. `lost`: datagrams without an answer in time.
    """

    question: Question
    server: str
    addresses: tuple[str, ...]
    lost: int
    fault: Fault | None


@dataclass(slots=True)
class _Pending:
    question: Question
    channel: _Channel
    identifier: int
    sent: float
    lost: int = 0


@dataclass(slots=True)
class _Channel:
    """One connected socket and its pending queries, by ID."""

    sock: socket.socket
    server: str
    pending: dict[int, _Pending] = field(default_factory=dict)


def _connected(server: IPv4Address | IPv6Address, port: int, mark: int) -> socket.socket:
    sock = socket.socket(FAMILIES[server.version], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.connect((str(server), port))
    except OSError:
        sock.close()
        raise
    return sock


class DnsClient:
    """Sends questions with `ask`; `poll` returns the replies received.

    `timeout`: seconds until a datagram counts as lost. `attempts`: datagrams per question. `mark`: SO_MARK of
    each socket, 0 for none. Raises UnmoorError when there is no route to a server.
    """

    def __init__(
        self,
        servers: Sequence[IPv4Address | IPv6Address],
        port: int,
        *,
        timeout: float = 1.0,
        attempts: int = 3,
        mark: int = 0,
    ) -> None:
        self._timeout = timeout
        self._attempts = attempts
        self._random = SystemRandom()
        self._epoll = select.epoll()
        self._channels: dict[int, _Channel] = {}
        for server in list(servers) * SOCKETS:
            try:
                sock = _connected(server, port, mark)
            except OSError as error:
                self.close()
                raise UnmoorError(f"DNS server {server}: {error.strerror}; is there a route to it?") from None
            self._channels[sock.fileno()] = _Channel(sock, str(server))
            self._epoll.register(sock, select.EPOLLIN)
        self._turn = cycle(self._channels.values())
        # In the order of sending: a repeated question moves to the end.
        self._waiting: dict[int, _Pending] = {}

    def __len__(self) -> int:
        """Return the number of questions in flight."""
        return len(self._waiting)

    def fileno(self) -> int:
        """Return a descriptor that is readable while `poll` has work."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close all sockets; questions in flight get no reply."""
        for channel in self._channels.values():
            channel.sock.close()
        self._epoll.close()

    def ask(self, question: Question) -> None:
        """Send `question` to the next server in turn."""
        self._send(question, lost=0)

    def _send(self, question: Question, lost: int) -> None:
        channel = next(self._turn)
        identifier = self._random.getrandbits(16)
        while identifier in channel.pending:
            identifier = self._random.getrandbits(16)
        pending = _Pending(question, channel, identifier, monotonic(), lost)
        channel.pending[identifier] = pending
        self._waiting[id(pending)] = pending
        datagram = query(identifier, question)
        try:
            channel.sock.send(datagram)
        except ConnectionRefusedError:
            # The error belongs to an earlier datagram; this one was not sent.
            with suppress(OSError):
                channel.sock.send(datagram)
        except OSError:
            return  # no buffer or no route: counted as lost at its timeout

    def poll(self, timeout: float) -> list[Reply]:
        """Wait at most `timeout` seconds and return the replies received.

        Overdue questions are sent again, or end with a fault after the last attempt.
        """
        replies: list[Reply] = []
        oldest = next(iter(self._waiting.values()), None)
        if oldest is not None:
            timeout = max(0.0, min(timeout, oldest.sent + self._timeout - monotonic()))
        for number, _ in self._epoll.poll(timeout):
            self._receive(self._channels[number], replies)
        limit = monotonic() - self._timeout
        overdue = []
        for pending in self._waiting.values():
            if pending.sent > limit:
                break
            overdue.append(pending)
        for pending in overdue:
            self._lose(pending, replies)
        return replies

    def _receive(self, channel: _Channel, replies: list[Reply]) -> None:
        while True:
            try:
                data = channel.sock.recv(_MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                # The error names no query: all that are pending on this socket count as refused.
                for pending in list(channel.pending.values()):
                    self._end(pending, replies, fault=Fault("refused", error.strerror or ""))
                return
            try:
                pending_or_none = channel.pending.get(read_identifier(data))
                if pending_or_none is not None:
                    self._answer(pending_or_none, data, replies)
            except MalformedReplyError:
                continue  # it has no ID to match; the question counts as lost at its timeout

    def _answer(self, pending: _Pending, data: bytes, replies: list[Reply]) -> None:
        try:
            message = read_reply(data, pending.question)
        except MalformedReplyError as error:
            self._end(pending, replies, fault=Fault("bad answer", str(error)))
            return
        fault = None
        if message.rcode != "NOERROR":
            fault = Fault(message.rcode)
        elif message.truncated:
            fault = Fault("truncated")
        elif not message.addresses:
            fault = Fault("no address", f"NOERROR without {pending.question.type} records")
        self._end(pending, replies, message.addresses if fault is None else (), fault)

    def _lose(self, pending: _Pending, replies: list[Reply]) -> None:
        pending.lost += 1
        if pending.lost >= self._attempts:
            self._end(pending, replies, fault=Fault("timeout", f"{pending.lost} datagrams without an answer"))
            return
        self._forget(pending)
        self._send(pending.question, pending.lost)

    def _end(
        self,
        pending: _Pending,
        replies: list[Reply],
        addresses: tuple[str, ...] = (),
        fault: Fault | None = None,
    ) -> None:
        self._forget(pending)
        replies.append(Reply(pending.question, pending.channel.server, addresses, pending.lost, fault))

    def _forget(self, pending: _Pending) -> None:
        del pending.channel.pending[pending.identifier]
        del self._waiting[id(pending)]
