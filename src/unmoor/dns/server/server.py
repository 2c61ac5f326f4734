"""The parent process: one loop over the parts that hold the sockets, keep workers alive, reload and upgrade.

It answers no query. Workers inherit by fork what they need: the sockets, and a whole snapshot, shared
copy-on-write. So a reload starts a new set of workers on the same sockets and retires the old one.
"""

from __future__ import annotations

import logging
import os
import resource
import selectors
import signal
import socket
from contextlib import suppress
from pathlib import Path

from unmoor import paths, systemd
from unmoor.dns.counters.counters import Table
from unmoor.dns.observe.journal import Journal
from unmoor.dns.server import control, fd_store, listeners
from unmoor.dns.server.handover import Incoming, Outgoing
from unmoor.dns.server.intake import Intake
from unmoor.dns.server.pool import RETRY, SIGNALS, Pool
from unmoor.dns.server.reloader import Builder, Reloader
from unmoor.dns.server.requests import Requests
from unmoor.dns.server.state import Generation, State, Text
from unmoor.dns.server.upgrade import Predecessor
from unmoor.dns.transfer.transfers import Transfers
from unmoor.dns.zones.zone_store import Store
from unmoor.model import DnsDocument, parse

log = logging.getLogger(__name__)


class Server:
    """Serves the document at `config` until it is stopped. Raises UnmoorError if it cannot start."""

    def __init__(
        self,
        config: Path,
        control_path: Path,
        handover: int | None = None,
        directory: Path = paths.DNS_STATE,
    ) -> None:
        """Keep the journal and the copies of transferred zones in `directory`.

        With `handover`, a descriptor, take over from the server that started this one (see upgrade.py).
        """
        self._control_path = control_path
        self._predecessor = None if handover is None else Predecessor(handover)
        table = Table()
        self._builder = Builder(config, Store(directory, keep=True), table)
        self._state = self._first(config, table, Journal(directory))
        # After the document is compiled: a second server must fail before it takes a share of the queries.
        self._control = self._predecessor.control if self._predecessor else control.listen(control_path)
        self._selector = selectors.DefaultSelector()
        self._transfers = Transfers(directory)
        self._watched: socket.socket | None = None
        self._pool = Pool(self._state, self._selector, self._transfers.outbox, self._leave)
        self._reloader = Reloader(config, self._state, self._builder, self._pool, self._transfers)
        self._intake = Intake(self._state, self._builder, self._reloader, self._pool, self._transfers)
        arguments: tuple[str, ...] = ("--config", str(config), "--control", str(control_path))
        if directory != paths.DNS_STATE:  # releases before transfers have no such option
            arguments += ("--state", str(directory))
        self._outgoing = Outgoing(
            self._state, self._pool, self._transfers, self._selector, self._control, arguments
        )
        self._requests = Requests(
            self._state, self._pool, self._transfers, self._reload, self._outgoing.start
        )
        self._running = True

    def _first(self, config: Path, table: Table, journal: Journal) -> State:
        """Compile the document at `config`, and continue what a predecessor left. Raises UnmoorError."""
        number = 1
        if self._predecessor:
            left = self._predecessor.handover
            number, pairs = left.generation + 1, self._predecessor.pairs()
        else:  # queries that arrived since the last server ended wait in these
            pairs = fd_store.kept()
        text = Text.of(config)
        document = parse(DnsDocument, text.text, str(config))
        snapshot = self._builder.first(document)
        state = State(document, Generation(number, snapshot, pairs, text), table, journal)
        if self._predecessor:
            state.started, state.secret = left.started, bytes.fromhex(left.secret)
        state.address_counters.switch(snapshot.layout, number)
        return state

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP reloads."""
        _raise_file_limit()
        woken = _catch_signals()
        self._selector.register(woken, selectors.EVENT_READ, lambda: self._signalled(woken))
        try:
            if self._predecessor:
                Incoming(self._predecessor, self._state, self._pool, self._selector).take_over()
                self._predecessor = None
            else:
                self._begin()
            self._selector.register(
                self._control, selectors.EVENT_READ, lambda: self._requests.accept(self._control)
            )
            log.info("serving %s", self._pool.summary())
            self._transfers.follow(self._state.document)
            while self._running and not self._outgoing.done:
                self._watch_transfers()
                for key, _ in self._selector.select(self._wait()):
                    key.data()
                self._pool.retry()
                self._outgoing.check_deadline()
                if changed := self._transfers.tick():
                    self._take(changed)
        finally:
            if not self._outgoing.done:
                self._stop()

    def _begin(self) -> None:
        state = self._state
        document = state.generation.snapshot.document
        wanted = listeners.endpoints(document)
        state.generation.pairs.update(listeners.open_missing(wanted, state.generation.pairs))
        fd_store.forget(state.generation.pairs.keys() - set(wanted))
        state.generation = state.generation.only(wanted)
        fd_store.keep(state.generation.pairs)
        shortage = listeners.shortage(state.generation.pairs.values())
        if shortage and "NOTIFY_SOCKET" not in os.environ:  # the unit enlarges them after the start
            log.warning("%s", shortage)
        state.journal.take()
        state.journal.start(document, state.generation.number)
        for place in range(state.generation.places):
            self._pool.adopt(self._pool.spawn(place, state.generation))
        systemd.notify("READY=1", f"STATUS={self._pool.summary()}")

    def _leave(self) -> None:
        """Close, in a new worker, the descriptors that belong to the parent alone."""
        self._selector.close()
        for sock in (self._control, *self._transfers.sockets()):
            sock.close()
        if self._predecessor:
            self._predecessor.restore_errors()
            self._predecessor.channel.close()

    def _wait(self) -> float | None:
        """Return the seconds until something is due; None to wait for events alone."""
        waits = [RETRY if self._pool.vacant or self._outgoing.program else None, self._transfers.wait()]
        return min((each for each in waits if each is not None), default=None)

    def _watch_transfers(self) -> None:
        """Wait for messages of the transfer process, which may have been replaced."""
        if self._watched is self._transfers.link:
            return
        if self._watched:
            self._selector.unregister(self._watched)
        self._watched = self._transfers.link
        if self._watched:
            self._selector.register(self._watched, selectors.EVENT_READ, self._transfers.read)

    def _signalled(self, woken: socket.socket) -> None:
        numbers = set(woken.recv(4096))
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            self._running = False
        elif signal.SIGHUP in numbers:
            self._reload()

    def _reload(self) -> control.Reply:
        if program := self._outgoing.program:
            why = f"an upgrade to {program} is under way, which reads the document as well"
            log.error("reload refused: %s", why)
            return control.Reply(done=False, lines=(why,))
        return self._reloader.reload()

    def _take(self, changed: set[str]) -> None:
        if self._outgoing.program:  # it reads the copies as they are, and transfers what it lacks itself
            self._transfers.postpone(changed)
        else:
            self._intake.take(changed)

    def _stop(self) -> None:
        self._transfers.stop()
        if not self._predecessor:  # else the control socket belongs to the old server
            systemd.notify("STOPPING=1")
            with suppress(OSError):
                self._control_path.unlink()
        self._outgoing.close()
        self._pool.stop()
        if not self._predecessor:
            generation = self._state.generation
            self._state.journal.stop(generation.snapshot.document, generation.number)


def _catch_signals() -> socket.socket:
    """Turn signals into bytes on a socket, so that one loop waits for everything."""
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.detach())
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    return woken


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:  # a unit's system call filter may forbid the call; its LimitNOFILE= makes it needless
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
