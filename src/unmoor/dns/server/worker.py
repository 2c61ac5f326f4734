"""One worker process: an event loop over its UDP and TCP sockets, until the parent retires it."""

from __future__ import annotations

import resource
import select
import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address

from unmoor import udp
from unmoor.dns.answer.fast_path import Answerer, answerer
from unmoor.dns.answer.rate_limit import Limiter, counted
from unmoor.dns.answer.snapshot import Snapshot
from unmoor.dns.counters.address_counters import WorkerCounters
from unmoor.dns.counters.counters import Counts, Event, RecordingCounts, Transport
from unmoor.dns.observe.query_log import QueryLogger
from unmoor.dns.observe.receivers import receiver_for
from unmoor.dns.observe.sampling import Observer
from unmoor.dns.protocol import message
from unmoor.dns.protocol.edns import Options
from unmoor.dns.server.listeners import ANY_ADDRESS, Pair
from unmoor.dns.server.tcp import Connections, Limits
from unmoor.dns.server.udp_batch import MAX_PACKET, Datagrams
from unmoor.dns.transfer.notify import NotifyHandler

# Messages between parent and worker, one packet each (SOCK_SEQPACKET).
READY = b"ready"
BEGIN = b"begin"
RETIRE = b"retire"
RETIRED = b"retired"
#: Followed by the number of the request.
SETTLE = b"settle"

#: Batches of packets taken from one socket before the next socket is served.
_BATCHES_AT_ONCE = 2
_PACKETS_AT_ONCE = 64
#: Descriptors that a worker needs besides its sockets and connections: standard streams, epoll, files.
_OTHER_DESCRIPTORS = 64
#: Seconds that a successor may take to accept a connection.
_HAND_OVER_TIMEOUT = 2.0


class Worker:
    """Serves one snapshot for its whole life.

    A reload starts a new worker on the same sockets, which waits, and retires this one: this one stops
    between two packets, and only then the new one begins. No packet is lost, since packets that have arrived
    stay in the sockets; and no client that the new worker has answered is answered by this one afterwards.
    `workers` is how many there are; `secret` makes DNS cookies if the document has none; `notify` takes the
    NOTIFYs that primaries send; `rates` are the counters of the rate limit, shared by all workers.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        counts: Counts,
        workers: int,
        pairs: Iterable[Pair],
        parent: socket.socket,
        predecessor: socket.socket,
        *,
        secret: bytes = b"",
        notify: socket.socket | None = None,
        generation: int = 0,
        address_counters: WorkerCounters | None = None,
        rates: memoryview | None = None,
    ) -> None:
        self._parent = parent
        self._address_counters = address_counters
        self._selectors = snapshot.selectors if address_counters else ()
        if address_counters:
            for each in self._selectors:
                each.count_into(address_counters)
        self._predecessor = predecessor
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        document = snapshot.document
        if snapshot.registry:
            snapshot.registry.populate()
        self._pairs = tuple(pairs)
        self._any_address = document.any_address
        limits = Limits.of(document, workers, _descriptors_left(self._pairs))
        options = Options(document, secret)
        excess = counted(document.rate_limit, rates) if rates is not None and document.rate_limit else None
        self._receiver = receiver_for(document)

        def answering(counts: Counts) -> Answerer:
            over_udp = counts.transport == Transport.UDP
            limiter = Limiter(excess, options, counts) if excess and over_udp else None
            return answerer(snapshot, counts, options, NotifyHandler(snapshot.sources, notify), limiter)

        def observer(counts: Counts) -> Observer:
            log = None
            if self._receiver:
                recording = RecordingCounts(counts)
                log = QueryLogger(answering(recording), recording, self._receiver, snapshot, generation)
            return Observer(answering(counts), counts, log)

        over_tcp = observer(counts.over(Transport.TCP)).alone
        self._connections = Connections(limits, over_tcp, counts, self._watch, self._unwatch)
        self._drains: list[Callable[[int], None]] = []
        self._observer, self._counts = observer(counts), counts
        self._watch(parent.fileno(), select.EPOLLIN, self._obey)
        self._watch(predecessor.fileno(), select.EPOLLIN, self._adopt)
        self._running = True

    def run(self) -> None:
        """Serve from BEGIN until retired, or until the parent is gone."""
        self._parent.send(READY)
        poll, handlers = self._poll.poll, self._handlers
        while self._running:
            for descriptor, events in poll(self._connections.expire()):
                # A handler before it may have closed it in the same round.
                if handler := handlers.get(descriptor):
                    handler(events)
                if not self._running:
                    break

    def _begin(self) -> None:
        for pair in self._pairs:
            drain = self._drain_of(pair.udp)(pair.udp, self._observer, self._counts)
            self._drains.append(drain)
            self._watch(pair.udp.fileno(), select.EPOLLIN, drain)
            self._watch(pair.tcp.fileno(), select.EPOLLIN, self._accept_from(pair.tcp))

    def _drain_of(self, sock: socket.socket) -> Callable[..., Callable[[int], None]]:
        """Return the handler for a UDP socket: of one address, or of whole prefixes."""
        if self._any_address and ip_address(sock.getsockname()[0]) in ANY_ADDRESS:
            udp.prepare(sock)
            return _drain_any_address
        return _drain

    def _settle(self, request: int = 0) -> None:
        """Count the addresses given so far; `request` is the number of the parent's request."""
        for each in self._selectors:
            each.settle()
        if self._address_counters:
            self._address_counters.settled(request)

    def _watch(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        known = descriptor in self._handlers
        self._handlers[descriptor] = handler
        if known:
            self._poll.modify(descriptor, events)
        else:
            self._poll.register(descriptor, events)

    def _unwatch(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._handlers[descriptor]

    def _accept_from(self, listener: socket.socket) -> Callable[[int], None]:
        return lambda _: self._connections.accept(listener)

    def _adopt(self, _: int) -> None:
        if not self._connections.adopt(self._predecessor):
            self._unwatch(self._predecessor.fileno())
            self._predecessor.close()

    def _obey(self, _: int) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._parent, 64, 1)
        if message == BEGIN:
            self._begin()
            return
        if message.startswith(SETTLE):
            self._settle(int.from_bytes(message[len(SETTLE) :], "big"))
            return
        self._running = False
        for drain in self._drains:  # the parent may close the sockets after this
            drain(0)
        self._settle()
        if self._receiver:
            self._receiver.close()
        if message != RETIRE:  # the parent is gone, or going
            return
        with socket.socket(fileno=descriptors[0]) as successor:
            successor.settimeout(_HAND_OVER_TIMEOUT)
            self._connections.hand_over(successor)
        self._parent.send(RETIRED)


def _descriptors_left(pairs: Sequence[Pair]) -> int:
    """Return how many connections the limit on descriptors leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft - 2 * len(pairs) - _OTHER_DESCRIPTORS


def _drain(sock: socket.socket, observer: Observer, counts: Counts) -> Callable[[int], None]:
    """Make the handler that answers the packets in a UDP socket."""
    # Sending fails without a route or buffer space, and to port 0: the client will ask again.
    datagrams = Datagrams(sock.family, message.EDNS_SIZE, lambda: counts.add(Event.UNSENT))
    one_batch = datagrams.drain(sock, observer.answer, observer)

    def drain(_: int) -> None:
        for _ in range(_BATCHES_AT_ONCE):
            if not one_batch():
                return

    return drain


def _drain_any_address(sock: socket.socket, observer: Observer, counts: Counts) -> Callable[[int], None]:
    """Make the handler for a socket of whole prefixes: replies leave from the address that was queried."""

    def drain(_: int) -> None:
        for _ in range(_PACKETS_AT_ONCE):
            try:
                datagram = udp.receive(sock, MAX_PACKET, socket.MSG_DONTWAIT)
            except OSError:  # empty
                return
            except ValueError:  # without the address that was queried
                counts.add(Event.UNSENT)
                continue
            reply = observer.each(datagram.data, message.EDNS_SIZE, datagram.client[0])
            if reply is not None:
                try:
                    udp.reply(sock, datagram, reply)
                except OSError:  # no route, no buffer space, or port 0: the client will ask again
                    counts.add(Event.UNSENT)
            observer.end()

    return drain
