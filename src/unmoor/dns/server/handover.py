"""The two sides of an upgrade: the server that hands over, and the new release that takes over."""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections.abc import Iterable

import unmoor
from unmoor import systemd
from unmoor.dns.server import control, fd_store, listeners, upgrade
from unmoor.dns.server.listeners import Endpoint
from unmoor.dns.server.pool import Pool
from unmoor.dns.server.state import State
from unmoor.dns.server.upgrade import Handover, Predecessor, Successor
from unmoor.dns.transfer.transfers import Transfers
from unmoor.errors import UnmoorError

log = logging.getLogger(__name__)


class Outgoing:
    """Starts a new release and hands the sockets, connections and counters over to it.

    `arguments` are those of its `dns serve`; `control_sock` is the listening control socket. Until the new
    release has reported that it is in force, any failure leaves the running one in force.
    """

    def __init__(
        self,
        state: State,
        pool: Pool,
        transfers: Transfers,
        selector: selectors.BaseSelector,
        control_sock: socket.socket,
        arguments: tuple[str, ...],
    ) -> None:
        self._state = state
        self._pool = pool
        self._transfers = transfers
        self._selector = selector
        self._control = control_sock
        self._arguments = arguments
        self._successor: Successor | None = None
        # The client that requested the upgrade under way.
        self._client: socket.socket | None = None
        #: Whether the new release is in force, and this process is to end.
        self.done = False

    @property
    def program(self) -> str:
        """The program of the upgrade under way; empty without one."""
        return self._successor.program if self._successor else ""

    def start(self, program: str, client: socket.socket) -> str:
        """Start the new release, and reply to `client` when it is in force or has failed.

        Returns the reason if it cannot be started, empty otherwise.
        """
        if self._successor:
            return f"an upgrade to {self._successor.program} is under way; wait for its end"
        if refusal := upgrade.check_program(program):
            return refusal
        state = self._state
        handover = Handover(
            state.generation.number,
            state.restarts,
            state.started,
            state.secret.hex(),
            self._control.fileno(),
            upgrade.describe(state.generation.pairs),
        )
        try:
            self._successor = Successor(program, self._arguments, handover)
        except UnmoorError as error:
            return str(error)
        log.info("upgrade: %s is preparing", program)
        systemd.reloading()
        self._client = client.dup()
        self._selector.register(self._successor.channel, selectors.EVENT_READ, self._prepared)
        return ""

    def check_deadline(self) -> None:
        """Give the upgrade up if the new release has not become ready in time."""
        if self._successor and not self.done and time.monotonic() > self._successor.deadline:
            self._give_up(self._successor.end())

    def close(self) -> None:
        """End an unfinished upgrade."""
        if self._successor:
            self._successor.close()

    def _prepared(self) -> None:
        """Read from the new release; when its workers are ready, hand over."""
        if self._successor is None:
            return
        try:
            if self._successor.receive():
                self._hand_over(self._successor)
        except UnmoorError as error:
            self._give_up(str(error))
        except Exception as error:
            log.exception("upgrade failed")
            self._give_up(f"internal error: {error!r}; see the journal")

    def _hand_over(self, successor: Successor) -> None:
        state = self._state
        self._transfers.stop()
        state.journal.release()
        self._pool.switch(successor.inheritances, successor.begin)
        summary = successor.finish(state.table.all_totals(), state.restarts)
        self.done = True
        # Otherwise connections to addresses that the new document dropped would be accepted and lost until
        # this process ends.
        listeners.close_others(state.generation.pairs, keep=())
        log.info("upgrade: %s is in force", successor.program)
        systemd.hand_over(successor.pid, f"STATUS={summary}")
        if self._client:
            control.reply(self._client, control.Reply(done=True, lines=(summary,)))

    def _give_up(self, reason: str) -> None:
        """Stay in force, since the new release has failed."""
        state = self._state
        if self._successor:
            self._selector.unregister(self._successor.channel)
            self._successor.close()
            self._successor = None
            state.journal.resume(state.generation.snapshot.document, state.generation.number)
        self._pool.fill_all()
        self._transfers.follow(state.document)
        state.refused = f"upgrade: {reason}"
        log.error("upgrade refused, generation %d stays in force: %s", state.generation.number, reason)
        systemd.notify("READY=1", f"STATUS={self._pool.summary()}; the last upgrade was refused")
        if self._client:
            with self._client:
                control.reply(self._client, control.Reply(done=False, lines=tuple(reason.splitlines())))
            self._client = None


class Incoming:
    """Takes over from the server that started this one."""

    def __init__(
        self, predecessor: Predecessor, state: State, pool: Pool, selector: selectors.BaseSelector
    ) -> None:
        self._predecessor = predecessor
        self._state = state
        self._pool = pool
        self._selector = selector

    def take_over(self) -> None:
        """Spawn workers, and let each begin when the old server has left its place. Raises UnmoorError."""
        state, predecessor, generation = self._state, self._predecessor, self._state.generation
        document = generation.snapshot.document
        wanted = listeners.endpoints(document)
        generation.pairs.update(listeners.open_missing(wanted, generation.pairs))
        started = [
            # The order is that of the places.
            self._pool.spawn(place, generation)
            for place in range(generation.places)
        ]
        recorded = False
        for place in predecessor.offer({each.place: each.inheritance for each in started}):
            if not recorded:  # the old server has released the journal, and no new worker has begun
                state.journal.take()
                state.journal.change(document, generation.number)
                recorded = True
            self._pool.adopt(started[place])
        totals, state.restarts = predecessor.counters()
        state.table.carry(totals)
        old = list(generation.pairs)
        state.generation = generation.only(wanted)
        state.journal.settle(document, generation.number)
        predecessor.restore_errors()
        predecessor.in_force(f"release {unmoor.__version__} in force: {self._pool.summary()}")
        self._selector.register(predecessor.channel, selectors.EVENT_READ, lambda: self._ended(old))

    def _ended(self, old: Iterable[Endpoint]) -> None:
        """Store the sockets in systemd: the old server has ended, and systemd accepts them from this one."""
        channel, pairs = self._predecessor.channel, self._state.generation.pairs
        self._selector.unregister(channel)
        channel.close()
        fd_store.forget(set(old) - pairs.keys())
        fd_store.keep(pairs)
