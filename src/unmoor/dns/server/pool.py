"""The pool of worker processes: spawn, adopt, replace, retire and reap them."""

from __future__ import annotations

import gc
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from unmoor.dns.server import listeners, worker
from unmoor.dns.server.state import Generation, State
from unmoor.dns.server.worker import Worker
from unmoor.errors import UnmoorError

log = logging.getLogger(__name__)

#: Seconds until a worker that could not be started is tried again.
RETRY = 1.0
#: Signals that the parent handles and its workers ignore.
SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)

#: Seconds that a worker may take to start, or to retire.
_TIMEOUT = 10.0
#: Seconds. A worker that dies younger than this is replaced only when it would have reached this age.
_MIN_AGE = 0.5
#: Seconds that workers may take to flush their counts; a slower one is missing up to a batch.
_SETTLE_TIMEOUT = 0.25


@dataclass(slots=True)
class Process:
    """A worker, as seen by its parent."""

    place: int
    pid: int
    channel: socket.socket
    #: The socket to which its predecessor sends its connections.
    inheritance: socket.socket
    generation: int
    born: float
    #: Digest of the document that it answers from.
    document: str


class Spawner:
    """Forks workers and reaps them. `notify` and `leave` are as of Pool."""

    def __init__(self, state: State, notify: socket.socket, leave: Callable[[], None]) -> None:
        self._state = state
        self._notify = notify
        self._leave = leave
        self._children: dict[int, Process] = {}  # by pid

    def spawn(self, place: int, generation: Generation) -> Process:
        """Start a worker and wait until it is ready. Raises UnmoorError if it fails to start."""
        state, pairs, document = self._state, generation.pairs, generation.snapshot.document
        own = [pairs[each] for each in listeners.endpoints(document) if each.place == place]
        foreign = [each for pair in pairs.values() if pair not in own for each in pair]
        for other in self._children.values():
            foreign += (other.channel, other.inheritance)
        row = state.table.row(place, generation.number)
        address_counters = state.address_counters.of_worker(
            generation.snapshot.layout, place, generation.number
        )
        with ExitStack() as parents, ExitStack() as childs:
            try:
                channel, child_channel = _channel(parents, childs)
                inheritance, child_inheritance = _channel(parents, childs)
                # Room for the largest connection (tcp.py); the kernel doubles it.
                inheritance.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212992)

                def work() -> None:
                    Worker(
                        generation.snapshot,
                        row,
                        generation.places,
                        own,
                        child_channel,
                        child_inheritance,
                        secret=state.secret,
                        notify=self._notify,
                        generation=generation.number,
                        address_counters=address_counters,
                        rates=state.rates,
                    ).run()

                pid = _fork(lambda: self._become_worker(work, [*foreign, channel, inheritance]))
            except OSError as error:
                raise UnmoorError(f"cannot start worker {place}: {error.strerror}") from None
            parents.pop_all()
        born, digest = time.monotonic(), generation.text.digest
        process = Process(place, pid, channel, inheritance, generation.number, born, digest)
        self._children[pid] = process
        if _receive(process) != worker.READY:
            self.reap(process)
            raise UnmoorError(f"worker {place} did not start; see the journal before this line")
        return process

    def _become_worker(self, work: Callable[[], None], foreign: Iterable[socket.socket]) -> None:
        """Run as a worker, in the child process; never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:  # sent to the whole process group; the parent stops its workers
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            # Memory shared with the parent stays shared: the collector would write to every page.
            gc.freeze()
            for each in foreign:
                each.close()
            self._leave()
            work()
            status = 0
        except BaseException:
            log.exception("worker %d failed", os.getpid())
        finally:
            os._exit(status)

    def reap(self, process: Process) -> int:
        """Wait for a worker to exit, and kill it after a timeout; returns its exit status."""
        deadline = time.monotonic() + _TIMEOUT
        while not (ended := os.waitpid(process.pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.002)
        process.inheritance.close()
        process.channel.close()
        del self._children[process.pid]
        return os.waitstatus_to_exitcode(ended[1])

    def reap_all(self) -> None:
        """Wait for all workers to exit."""
        for process in list(self._children.values()):
            self.reap(process)


class Pool:
    """Keeps one worker alive at each place of the generation in force.

    `notify` is the socket to which workers pass NOTIFYs. `leave` runs first in each new worker and closes
    the descriptors that belong to the parent alone.
    """

    def __init__(
        self,
        state: State,
        selector: selectors.BaseSelector,
        notify: socket.socket,
        leave: Callable[[], None],
    ) -> None:
        self._state = state
        self._selector = selector
        self._spawner = Spawner(state, notify, leave)
        # Serving workers by place, and places whose worker failed to start.
        self._serving: dict[int, Process] = {}
        self._vacant: set[int] = set()

    def __iter__(self) -> Iterator[Process]:
        """Iterate over the serving workers by place."""
        return iter(sorted(self._serving.values(), key=lambda each: each.place))

    @property
    def vacant(self) -> bool:
        """Whether a worker failed to start and is to be retried."""
        return bool(self._vacant)

    def in_force(self) -> str:
        """Describe the generation in force, for operators."""
        return f"generation {self._state.generation.number} in force on {self._workers()}"

    def summary(self) -> str:
        """Describe the generation in force and its size in one line, for operators."""
        generation = self._state.generation
        snapshot = generation.snapshot
        return (
            f"generation {generation.number} on {self._workers()}: "
            f"{len(snapshot.document.policies)} policies, {len(snapshot.zones)} zones, "
            f"{snapshot.count} hostnames"
        )

    def _workers(self) -> str:
        count = len(self._serving)
        return f"{count} worker{'s' * (count != 1)}"

    def spawn(self, place: int, generation: Generation) -> Process:
        """Start a worker and wait until it is ready. Raises UnmoorError if it fails to start."""
        return self._spawner.spawn(place, generation)

    def adopt(self, process: Process) -> None:
        """Let a spawned worker serve its place, and replace it when it dies."""
        process.inheritance.close()
        with suppress(OSError):  # it died: its channel becomes readable
            process.channel.send(worker.BEGIN)
        self._serving[process.place] = process
        self._selector.register(process.channel, selectors.EVENT_READ, lambda: self._died(process))

    def discard(self, process: Process) -> None:
        """End a spawned worker that was not adopted."""
        process.channel.shutdown(socket.SHUT_RDWR)
        self._spawner.reap(process)

    def fill(self, place: int) -> None:
        """Start a worker at a place without one; on failure, leave it to `retry`."""
        try:
            # The worker counts in the row of the dead one, which no longer writes to it.
            self.adopt(self.spawn(place, self._state.generation))
            self._vacant.discard(place)
        except UnmoorError as error:
            log.critical("%s; trying again in %.0f s", error, RETRY)
            self._vacant.add(place)

    def fill_all(self) -> None:
        """Start a worker at each place of the generation in force that has none."""
        for place in range(self._state.generation.places):
            if place not in self._serving:
                self.fill(place)

    def retry(self) -> None:
        """Start the workers that failed to start."""
        for place in list(self._vacant):
            self.fill(place)

    def switch(self, inheritances: Mapping[int, socket.socket], begin: Callable[[int], None]) -> None:
        """Retire every worker and `begin` its successor, one place after another.

        Queries that arrive at a place in between wait in its sockets. Places that go away pass their
        connections to the first remaining one, before that begins.
        """
        first = next(iter(inheritances.values()))
        retiring = sorted(self._serving.values(), key=lambda each: each.place in inheritances)
        for process in retiring:
            self._release(process)
            self._retire(process, inheritances.get(process.place, first))
            try:
                if process.place in inheritances:
                    begin(process.place)
            finally:  # its exit takes a while, and the successor already serves the place
                self._spawner.reap(process)
        for place in inheritances.keys() - {process.place for process in retiring}:
            begin(place)
        self._vacant.clear()

    def stop(self) -> None:
        """End all workers."""
        for process in self._serving.values():
            process.channel.shutdown(socket.SHUT_RDWR)
        self._spawner.reap_all()

    def settle(self) -> None:
        """Have every worker flush its counts of addresses; one that does not in time is left out."""
        counters = self._state.address_counters
        if self._state.generation.snapshot.layout is None:
            return
        request = worker.SETTLE + counters.request().to_bytes(8, "big")
        asked = list(self._serving.values())
        for process in asked:
            with suppress(OSError):
                process.channel.send(request, socket.MSG_DONTWAIT)
        deadline = time.monotonic() + _SETTLE_TIMEOUT
        while time.monotonic() < deadline:
            if all(counters.has_settled(process.place, process.generation) for process in asked):
                break
            time.sleep(0.001)

    def _release(self, process: Process) -> None:
        self._selector.unregister(process.channel)
        del self._serving[process.place]

    def _died(self, process: Process) -> None:
        """Replace a worker whose channel closed: nothing else makes the channel readable while it serves."""
        if self._serving.get(process.place) is not process:
            return  # a reload in the same round of the loop has reaped it
        self._release(process)
        status = self._spawner.reap(process)
        self._state.restarts += 1
        log.error("worker %d (pid %d) ended with status %d; replacing it", process.place, process.pid, status)
        time.sleep(max(0.0, process.born + _MIN_AGE - time.monotonic()))
        self.fill(process.place)

    def _retire(self, process: Process, inheritance: socket.socket) -> None:
        """Stop a worker, which passes its connections to the reader of `inheritance`; reap it afterwards."""
        with suppress(OSError):
            socket.send_fds(process.channel, [worker.RETIRE], [inheritance.fileno()])
            if _receive(process) != worker.RETIRED:
                log.error("worker %d (pid %d) did not retire; killing it", process.place, process.pid)
                os.kill(process.pid, signal.SIGKILL)


def _receive(process: Process) -> bytes:
    """Receive a worker's next message; empty when it died or the timeout passed."""
    process.channel.settimeout(_TIMEOUT)
    try:
        return process.channel.recv(64)
    except OSError:
        return b""


def _channel(parents: ExitStack, childs: ExitStack) -> tuple[socket.socket, socket.socket]:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return parents.enter_context(one), childs.enter_context(two)


def _fork(child: Callable[[], None]) -> int:
    """Fork; `child`, which never returns, runs in the child. Raises OSError."""
    # Until the child has installed its own handlers, a signal to it would wake the parent.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            child()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return pid
