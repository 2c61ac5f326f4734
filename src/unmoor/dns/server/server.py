"""The parent process: holds the sockets, builds snapshots, and keeps one worker alive at each place.

It answers no query itself. What workers need they get by fork: the sockets, and a whole snapshot, shared
copy-on-write. So a reload is a new set of workers on the same sockets, and the retirement of the old one.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import unmoor
from unmoor import systemd
from unmoor.dns.answer import rate_limit
from unmoor.dns.answer.snapshot import ClashError, Snapshot, build
from unmoor.dns.check.check import NO_COPIES, Inspection
from unmoor.dns.counters.address_counters import Tallies
from unmoor.dns.counters.counters import Table
from unmoor.dns.observe.journal import Journal
from unmoor.dns.policy import pools
from unmoor.dns.protocol import cookies, names
from unmoor.dns.server import control, fd_store, listeners, upgrade, worker
from unmoor.dns.server.listeners import Endpoint, Pair
from unmoor.dns.server.upgrade import Estate, Predecessor, Successor
from unmoor.dns.server.worker import Worker
from unmoor.dns.transfer.transfers import Transfers
from unmoor.dns.zones import catalog, zone_store
from unmoor.dns.zones.catalog import Member
from unmoor.dns.zones.static_zone import Zone
from unmoor.dns.zones.zone_store import Key, Store
from unmoor.errors import InvalidInputError, UnmoorError
from unmoor.model import DnsDocument, parse, read
from unmoor.model.change import describe_change

log = logging.getLogger(__name__)

#: Where the release that runs stands; nothing when it was started in another way. Found out at once: later
#: the link that it was started by may lead to another release.
_PROGRAM = str(Path(sys.argv[0]).resolve()) if Path(sys.argv[0]).is_absolute() else ""

#: Seconds that a worker may take to begin, or to retire.
_PATIENCE = 10.0
#: Seconds. A worker that dies younger than this is not replaced before it would have been this old.
_YOUNG = 0.5
#: Seconds until a worker that could not be started is tried again.
_RETRY = 1.0
#: Seconds that workers may take to count what they have given; without it, up to a batch each is missing.
_SETTLE_PATIENCE = 0.25

_SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Text:
    """A document as it was read, and the SHA-256 of that in hexadecimal."""

    text: str
    digest: str

    @classmethod
    def of(cls, path: Path) -> Text:
        """Read a file. Raises InvalidInputError."""
        text = read(path)
        return cls(text, hashlib.sha256(text.encode()).hexdigest())


@dataclass(slots=True)
class Process:
    """A worker, as its parent knows it."""

    place: int
    pid: int
    channel: socket.socket
    #: Where its predecessor's connections are to be sent.
    inheritance: socket.socket
    generation: int
    born: float
    #: Digest of the document that it answers from.
    document: str


class Server:
    """Serves the document at `config` until it is told to stop, with a journal in the directory `state`.

    Raises UnmoorError if it cannot begin.
    """

    def __init__(
        self,
        config: Path,
        control_path: Path,
        estate: int | None = None,
        state: Path = zone_store.DIRECTORY,
    ) -> None:
        """Keep copies of transferred zones below `state`, too.

        With `estate`, a descriptor, take over from the server that started us (see upgrade.py).
        """
        self._config = config
        self._state = state
        self._journal = Journal(state)
        self._control_path = control_path
        self._table, self._tallies = Table(), Tallies()
        self._rates = rate_limit.shared_table()
        # Those that serve, by place; all that live, by pid; and places whose worker could not be started.
        self._processes: dict[int, Process] = {}
        self._children: dict[int, Process] = {}
        self._vacant: set[int] = set()
        self._refused: str | None = None
        self._successor: Successor | None = None
        # Who asked for the upgrade that is under way.
        self._asker: socket.socket | None = None
        self._predecessor = None if estate is None else Predecessor(estate)
        self._pairs: dict[Endpoint, Pair] = {}
        self._restarts, self._generation, self._started = 0, 1, time.monotonic()
        if self._predecessor:
            left = self._predecessor.estate
            self._generation, self._started = left.generation + 1, left.started
            self._pairs = self._predecessor.pairs()
            cookies.OWN_SECRET = bytes.fromhex(left.secret)
        else:  # what arrived since the server before us ended waits in them
            self._pairs = fd_store.kept()
        self._store = Store(state, keep=True)
        self._transfers = Transfers(state)
        self._watched: socket.socket | None = None
        # Member zones of catalogs, as they were when a snapshot was last made with them.
        self._members: list[Member] = []
        # The document in force, as it was read, and parsed.
        self._text = Text.of(config)
        self._document = parse(DnsDocument, self._text.text, str(config))
        # What the newest snapshot was made of.
        self._found: Inspection | None = None
        self._snapshot = self._first(self._document)
        self._tallies.switch(self._snapshot.layout, self._generation)
        # Ours alone from here: a second server must fail before it has taken a share of the queries.
        self._control = self._predecessor.control if self._predecessor else control.listen(control_path)
        self._selector = selectors.DefaultSelector()
        self._running = True
        # Whether another release has taken over, and what is ours no longer matters.
        self._replaced = False

    # -- life --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP reloads."""
        _raise_file_limit()
        woken = self._catch_signals()
        self._selector.register(woken, selectors.EVENT_READ, lambda: self._signalled(woken))
        try:
            if self._predecessor:
                self._take_over(self._predecessor)
            else:
                self._begin()
            self._selector.register(self._control, selectors.EVENT_READ, self._controlled)
            log.info("serving %s", self._summary())
            self._transfers.follow(self._document)
            while self._running:
                self._watch_transfers()
                for key, _ in self._selector.select(self._wait()):
                    key.data()
                for place in list(self._vacant):
                    self._fill(place)
                if self._successor and time.monotonic() > self._successor.deadline:
                    self._give_up(self._successor.last_words())
                if changed := self._transfers.tick():
                    self._take(changed)
        finally:
            if not self._replaced:
                self._stop()

    def _begin(self) -> None:
        wanted = listeners.endpoints(self._snapshot.document)
        self._pairs = listeners.open_missing(wanted, self._pairs)
        fd_store.forget(self._pairs.keys() - set(wanted))
        self._keep_only(wanted)
        fd_store.keep(self._pairs)
        shortage = listeners.shortage(self._pairs.values())
        if shortage and "NOTIFY_SOCKET" not in os.environ:  # the unit enlarges them after the start
            log.warning("%s", shortage)
        self._journal.take()
        self._journal.start(self._snapshot.document, self._generation)
        for place in range(listeners.places(self._snapshot.document)):
            self._adopt(self._spawn(place, self._snapshot, self._generation, self._pairs))
        systemd.notify("READY=1", f"STATUS={self._summary()}")

    def _keep_only(self, wanted: Iterable[Endpoint]) -> None:
        """Close the sockets that are not wanted."""
        listeners.close_others(self._pairs, keep=wanted)
        self._pairs = {endpoint: self._pairs[endpoint] for endpoint in wanted}

    def _wait(self) -> float | None:
        waits = [_RETRY if self._vacant or self._successor else None, self._transfers.wait()]
        return min((each for each in waits if each is not None), default=None)

    def _watch_transfers(self) -> None:
        """Listen to the process that transfers zones, which may be another than before."""
        if self._watched is self._transfers.link:
            return
        if self._watched:
            self._selector.unregister(self._watched)
        self._watched = self._transfers.link
        if self._watched:
            self._selector.register(self._watched, selectors.EVENT_READ, self._transfers.read)

    def _stop(self) -> None:
        self._transfers.stop()
        if not self._predecessor:  # else it is not ours, yet
            systemd.notify("STOPPING=1")
            with suppress(OSError):
                self._control_path.unlink()
        if self._successor:
            self._successor.close()
        for process in self._processes.values():
            process.channel.shutdown(socket.SHUT_RDWR)
        for process in list(self._children.values()):
            self._bury(process)
        if not self._predecessor:
            self._journal.stop(self._snapshot.document, self._generation)

    def _catch_signals(self) -> socket.socket:
        """Turn signals into bytes on a socket, so that one loop waits for everything."""
        woken, waker = socket.socketpair()
        woken.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.detach())
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        return woken

    def _signalled(self, woken: socket.socket) -> None:
        numbers = set(woken.recv(4096))
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            self._running = False
        elif signal.SIGHUP in numbers:
            self._reload()

    def _controlled(self) -> None:
        try:
            door, _ = self._control.accept()
        except OSError:  # it went away while it waited
            return
        with door:
            request = control.receive(door)
            if request is None:
                return
            if request.command == "status":
                control.reply(door, control.Reply(done=True, data=self.status()))
            elif request.command == "addresses":
                control.reply(door, control.Reply(done=True, data=self.addresses()))
            elif request.command == "sockets":
                control.lend(door, [pair.udp.fileno() for pair in self._pairs.values()])
            elif request.command == "document":
                control.reply(door, control.Reply(done=True, data=self._text.text))
            elif request.command == "reload":
                control.reply(door, self._reload())
            elif request.command == "upgrade":
                refusal = self._start_upgrade(request.program, door)
                if refusal:
                    log.error("upgrade refused: %s", refusal)
                    control.reply(door, control.Reply(done=False, lines=tuple(refusal.splitlines())))

    # -- workers -----------------------------------------------------------------------------------------

    def _spawn(
        self,
        place: int,
        snapshot: Snapshot,
        generation: int,
        pairs: dict[Endpoint, Pair],
        text: Text | None = None,
    ) -> Process:
        """Start a worker and wait until it stands by. Raises UnmoorError if it does not.

        `text` is what the snapshot was made of, unless that is the document in force.
        """
        # During a reload `pairs` holds those of the old document as well.
        own = [pairs[each] for each in listeners.endpoints(snapshot.document) if each.place == place]
        foreign = [each for pair in pairs.values() if pair not in own for each in pair]
        for other in self._children.values():
            foreign += (other.channel, other.inheritance)
        foreign += self._transfers.sockets()
        row, places = self._table.row(place, generation), listeners.places(snapshot.document)
        tally = self._tallies.tally(snapshot.layout, place, generation)
        with ExitStack() as ours, ExitStack() as theirs:
            try:
                channel, child_channel = _channel(ours, theirs)
                inheritance, child_inheritance = _channel(ours, theirs)
                # Room for the largest connection (tcp.py); the kernel doubles it.
                inheritance.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212992)

                def work() -> None:
                    doors = (child_channel, child_inheritance, self._transfers.outbox)
                    Worker(snapshot, row, places, own, *doors, generation, tally, self._rates).run()

                pid = _fork(lambda: self._become_worker(work, [*foreign, channel, inheritance]))
            except OSError as error:
                raise UnmoorError(f"cannot start worker {place}: {error.strerror}") from None
            ours.pop_all()
        digest = (text or self._text).digest
        process = Process(place, pid, channel, inheritance, generation, time.monotonic(), digest)
        self._children[pid] = process
        if _hear(process) != worker.READY:
            self._bury(process)
            raise UnmoorError(f"worker {place} did not start; see the journal before this line")
        return process

    def _become_worker(self, work: Callable[[], None], foreign: Iterable[socket.socket]) -> None:
        """Live as a worker, in the child process; never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:  # sent to the whole group: the parent decides, and its end is ours
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            # What is shared with the parent stays shared: the collector would write to every page.
            gc.freeze()
            self._selector.close()
            for each in (*foreign, self._control):
                each.close()
            if self._predecessor:
                self._predecessor.restore_errors()
                self._predecessor.channel.close()
            work()
            status = 0
        except BaseException:
            log.exception("worker %d failed", os.getpid())
        finally:
            os._exit(status)

    def _adopt(self, process: Process) -> None:
        """Have `process` serve its place, and watch over it."""
        process.inheritance.close()
        with suppress(OSError):  # it died: its channel will tell
            process.channel.send(worker.BEGIN)
        self._processes[process.place] = process
        self._selector.register(process.channel, selectors.EVENT_READ, lambda: self._died(process))

    def _abandon(self, process: Process) -> None:
        self._selector.unregister(process.channel)
        del self._processes[process.place]

    def _died(self, process: Process) -> None:
        """Replace a worker whose channel closed: nothing else makes it readable while it serves."""
        if self._processes.get(process.place) is not process:
            return  # a reload, woken by the same round of the loop, has buried it meanwhile
        self._abandon(process)
        status = self._bury(process)
        self._restarts += 1
        log.error("worker %d (pid %d) ended with status %d; replacing it", process.place, process.pid, status)
        time.sleep(max(0.0, process.born + _YOUNG - time.monotonic()))
        self._fill(process.place)

    def _fill(self, place: int) -> None:
        """Start a worker where there is none; later, if it cannot be now."""
        try:
            # It counts in the row of the one that died, which writes no more.
            self._adopt(self._spawn(place, self._snapshot, self._generation, self._pairs))
            self._vacant.discard(place)
        except UnmoorError as error:
            log.critical("%s; trying again in %.0f s", error, _RETRY)
            self._vacant.add(place)

    def _retire(self, process: Process, inheritance: socket.socket) -> None:
        """Have a worker stop, and send its connections to who reads `inheritance`; then it can be buried."""
        with suppress(OSError):
            socket.send_fds(process.channel, [worker.RETIRE], [inheritance.fileno()])
            if _hear(process) != worker.RETIRED:
                log.error("worker %d (pid %d) did not retire; killing it", process.place, process.pid)
                os.kill(process.pid, signal.SIGKILL)

    def _bury(self, process: Process) -> int:
        """Wait for a worker's end, which is brought about if it does not come; gives its exit status."""
        deadline = time.monotonic() + _PATIENCE
        while not (ended := os.waitpid(process.pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.002)
        process.inheritance.close()
        process.channel.close()
        del self._children[process.pid]
        return os.waitstatus_to_exitcode(ended[1])

    # -- reload ------------------------------------------------------------------------------------------

    def _build(
        self,
        document: DnsDocument,
        old: DnsDocument | None = None,
        offers: Mapping[bytes, Zone] = NO_COPIES,
        give_way: bool = False,
    ) -> Snapshot:
        """Compile a document, with its transferred zones as they are on disk, or as they are offered."""
        current = [policy.name for policy in old.policies] if old else []
        counters = self._table.slots((policy.name for policy in document.policies), current)
        whole, keys = catalog.expand(document, self._members)
        if keys or document.catalogs:
            self._store.check()
        zones = {**zone_store.current(self._store, keys.values(), time.time()), **offers}
        snapshot = build(whole, str(self._config), counters, zones, give_way, self._found)
        self._found = snapshot.found
        return snapshot

    def _first(self, document: DnsDocument) -> Snapshot:
        """Compile the document that we begin with: what primaries sent must not keep us from it."""
        self._members = catalog.load(self._store.members())
        try:
            return self._build_with_clashes(document)
        except InvalidInputError as error:
            if not document.catalogs:
                raise
            log.error("catalogs are left out, with their member zones: %s", error)  # noqa: TRY400
            self._members = []
            return self._build_with_clashes(document)

    def _build_with_clashes(self, document: DnsDocument) -> Snapshot:
        try:
            return self._build(document, document)
        except ClashError as error:
            log.error("hostnames that their zones have records for are left out: %s", error)  # noqa: TRY400
            return self._build(document, document, give_way=True)

    def _reload(self) -> control.Reply:
        """Bring the document on disk into force; refused, everything stays as it was."""
        if self._successor:
            why = f"an upgrade to {self._successor.program} is under way, which reads the document as well"
            log.error("reload refused: %s", why)
            return control.Reply(done=False, lines=(why,))
        systemd.reloading()
        old = self._document
        try:
            text = Text.of(self._config)
            document = parse(DnsDocument, text.text, str(self._config))
            changes = describe_change(old, document)
            half_switched = any(each.document != self._text.digest for each in self._processes.values())
            if document != old or half_switched:
                self._replace(self._build(document, old), text)
                self._document, self._text = document, text
                self._transfers.follow(document)
            else:  # perhaps another form of what the workers have
                self._text = text
                for process in self._processes.values():
                    process.document = text.digest
            self._refused = None
        except UnmoorError as error:
            self._refused = str(error)
            log.error("reload refused, generation %d stays in force: %s", self._generation, error)  # noqa: TRY400 - an operator's mistake needs no traceback
            return self._refuse()
        except Exception as error:
            # Whatever it is, whoever is served now must go on being served.
            self._refused = f"a defect of unmoor: {error!r}; see the journal"
            log.exception("reload failed, generation %d stays in force", self._generation)
            return self._refuse()
        systemd.notify("READY=1", f"STATUS={self._summary()}")
        state = f"generation {self._generation} in force on {_workers(len(self._processes))}"
        lines = (*changes, state) if changes else (f"no change: {state}",)
        if self._journal.failure:
            lines = (*lines, self._journal.failure)
        for line in lines:
            log.info("reload: %s", line)
        return control.Reply(done=True, lines=lines)

    def _refuse(self) -> control.Reply:
        systemd.notify("READY=1", f"STATUS={self._summary()}; the last reload was refused")
        return control.Reply(done=False, lines=tuple((self._refused or "").splitlines()))

    def _replace(self, snapshot: Snapshot, text: Text | None = None) -> None:
        """Start new workers, then retire the old ones. Raises UnmoorError, with nothing changed.

        `text` is what the snapshot was made of, unless that is the document in force.
        """
        wanted = listeners.endpoints(snapshot.document)
        pairs = listeners.open_missing(wanted, self._pairs)
        started: list[Process] = []
        try:
            for place in range(listeners.places(snapshot.document)):
                started.append(self._spawn(place, snapshot, self._generation + 1, pairs, text))
        except Exception:
            for process in started:
                process.channel.shutdown(socket.SHUT_RDWR)
                self._bury(process)
            self._tallies.discard(self._generation + 1)
            listeners.close_others(pairs, keep=self._pairs)
            raise
        # On the disk before the first worker can answer from it.
        self._journal.change(snapshot.document, self._generation + 1)
        self._switch(
            {process.place: process.inheritance for process in started},
            lambda place: self._adopt(started[place]),
        )
        self._vacant.clear()
        fd_store.keep({endpoint: pairs[endpoint] for endpoint in wanted if endpoint not in self._pairs})
        fd_store.forget(self._pairs.keys() - set(wanted))
        self._pairs = pairs
        self._keep_only(wanted)
        self._snapshot = snapshot
        self._generation += 1
        self._tallies.switch(snapshot.layout, self._generation)
        self._journal.settle(snapshot.document, self._generation)

    def _switch(self, inheritances: Mapping[int, socket.socket], begin: Callable[[int], None]) -> None:
        """Retire every worker and `begin` its successor, one place after another.

        What arrives at a place in between waits in its sockets. Places that go away leave their connections
        to the first one that stays, before that begins.
        """
        heir = next(iter(inheritances.values()))
        going = sorted(self._processes.values(), key=lambda each: each.place in inheritances)
        for process in going:
            self._abandon(process)
            self._retire(process, inheritances.get(process.place, heir))
            try:
                if process.place in inheritances:
                    begin(process.place)
            finally:  # its end takes a while, in which the place is served already
                self._bury(process)
        for place in inheritances.keys() - {process.place for process in going}:
            begin(place)

    # -- upgrade -----------------------------------------------------------------------------------------

    def _start_upgrade(self, program: str, asker: socket.socket) -> str:
        """Start the release that is to replace us; gives the reason if that cannot be."""
        if self._successor:
            return f"an upgrade to {self._successor.program} is under way; wait for its end"
        if refusal := upgrade.check_program(program):
            return refusal
        arguments: tuple[str, ...] = ("--config", str(self._config), "--control", str(self._control_path))
        if self._state != zone_store.DIRECTORY:  # releases before transfers know no such option
            arguments += ("--state", str(self._state))
        estate = Estate(
            self._generation,
            self._restarts,
            self._started,
            cookies.OWN_SECRET.hex(),
            self._control.fileno(),
            upgrade.describe(self._pairs),
        )
        try:
            self._successor = Successor(program, arguments, estate)
        except UnmoorError as error:
            return str(error)
        log.info("upgrade: %s is preparing", program)
        systemd.reloading()
        self._asker = asker.dup()
        self._selector.register(self._successor.channel, selectors.EVENT_READ, self._prepared)
        return ""

    def _prepared(self) -> None:
        """Listen to the new release; when its workers stand by, retire ours."""
        if self._successor is None:
            return
        try:
            if self._successor.hear():
                self._hand_over(self._successor)
        except UnmoorError as error:
            self._give_up(str(error))
        except Exception as error:
            log.exception("upgrade failed")
            self._give_up(f"a defect of unmoor: {error!r}; see the journal")

    def _hand_over(self, successor: Successor) -> None:
        self._transfers.stop()
        self._journal.release()
        self._switch(successor.inheritances, successor.begin)
        summary = successor.finish(self._table.all_totals(), self._restarts)
        self._running, self._replaced = False, True
        # Until this process has ended, connections to what the new document dropped would be taken and lost.
        listeners.close_others(self._pairs, keep=())
        log.info("upgrade: %s is in force", successor.program)
        systemd.hand_over(successor.pid, f"STATUS={summary}")
        if self._asker:
            control.reply(self._asker, control.Reply(done=True, lines=(summary,)))

    def _give_up(self, reason: str) -> None:
        """Stay in force, since the new release has failed."""
        if self._successor:
            self._selector.unregister(self._successor.channel)
            self._successor.close()
            self._successor = None
            self._journal.resume(self._snapshot.document, self._generation)
        for place in range(listeners.places(self._snapshot.document)):
            if place not in self._processes:
                self._fill(place)
        self._transfers.follow(self._document)
        self._refused = f"upgrade: {reason}"
        log.error("upgrade refused, generation %d stays in force: %s", self._generation, reason)
        systemd.notify("READY=1", f"STATUS={self._summary()}; the last upgrade was refused")
        if self._asker:
            with self._asker:
                control.reply(self._asker, control.Reply(done=False, lines=tuple(reason.splitlines())))
            self._asker = None

    def _take_over(self, predecessor: Predecessor) -> None:
        """Stand by, and begin at each place when the other server leaves it."""
        document = self._snapshot.document
        wanted = listeners.endpoints(document)
        self._pairs = listeners.open_missing(wanted, self._pairs)
        started = [
            self._spawn(place, self._snapshot, self._generation, self._pairs)
            for place in range(listeners.places(document))
        ]
        kept = False
        for place in predecessor.offer({each.place: each.inheritance for each in started}):
            if not kept:  # the other server has let go of it, and no worker of ours has begun
                self._journal.take()
                self._journal.change(document, self._generation)
                kept = True
            self._adopt(started[place])
        totals, self._restarts = predecessor.counters()
        self._table.carry(totals)
        old = list(self._pairs)
        self._keep_only(wanted)
        self._journal.settle(document, self._generation)
        predecessor.restore_errors()
        predecessor.in_force(f"release {unmoor.__version__} in force: {self._summary()}")
        self._predecessor = None
        self._selector.register(
            predecessor.channel, selectors.EVENT_READ, lambda: self._alone(predecessor.channel, old)
        )

    def _alone(self, channel: socket.socket, old: Iterable[Endpoint]) -> None:
        """Have systemd keep our sockets: the other server has ended, and systemd listens to us."""
        self._selector.unregister(channel)
        channel.close()
        fd_store.forget(set(old) - self._pairs.keys())
        fd_store.keep(self._pairs)

    # -- transfers ---------------------------------------------------------------------------------------

    def _take(self, changed: set[str]) -> None:
        """Serve what was transferred, or has expired; what cannot be served is refused, and the rest is."""
        if self._successor:  # it reads the copies as they are, and transfers again what it lacks
            self._transfers.postpone(changed)
            return
        before, self._members = self._members, catalog.load(self._store.members())
        _, keys = catalog.expand(self._document, self._members)
        offers = {
            apex: offer.zone
            for apex, key in keys.items()
            if names.to_text(apex) in changed and (offer := self._store.offered(key))
        }
        verdicts: dict[str, str | None] = dict.fromkeys(map(names.to_text, offers))
        try:
            snapshot = self._consider(offers, verdicts)
            self._replace(snapshot)
        except InvalidInputError as error:
            self._members = before
            log.error("what was transferred is not served: %s", error)  # noqa: TRY400
            verdicts = dict.fromkeys(verdicts, f"the document does not allow it: {error.problems[0]}")
        except UnmoorError as error:
            self._members = before
            log.critical("%s; trying again in %.0f s", error, _RETRY)
            self._transfers.postpone(changed)
            return
        for apex in keys:
            name = names.to_text(apex)
            if name in verdicts:
                self._settle(keys[apex], verdicts[name])
        self._transfers.decide(verdicts)
        log.info("generation %d in force on %s", self._generation, _workers(len(self._processes)))

    def _consider(self, offers: dict[bytes, Zone], verdicts: dict[str, str | None]) -> Snapshot:
        """Compile with all offers that can be served; the others are taken out, and `verdicts` says why."""
        while True:
            try:
                return self._build(self._document, self._document, offers)
            except ClashError as error:
                guilty = error.clashes.keys() & offers.keys()
                if not guilty:  # as at the start
                    log.error("hostnames that their zones have records for are left out: %s", error)  # noqa: TRY400
                    return self._build(self._document, self._document, offers, give_way=True)
                for apex in guilty:
                    del offers[apex]
                    first = next(iter(error.clashes[apex].values()))
                    verdicts[names.to_text(apex)] = f"the hostname {first.value} {first.why}"

    def _settle(self, key: Key, refusal: str | None) -> None:
        try:
            if refusal is None:
                self._store.accept(key)
            else:
                self._store.refuse(key)
        except OSError as error:  # it is served, but a restart will not find it
            log.error("the copy of %s cannot be kept: %s", names.to_text(key.apex), error.strerror)  # noqa: TRY400

    # -- what there is to say ----------------------------------------------------------------------------

    def _summary(self) -> str:
        document = self._snapshot.document
        return (
            f"generation {self._generation} on {_workers(len(self._processes))}: "
            f"{len(document.policies)} policies, {len(self._snapshot.zones)} zones, "
            f"{self._snapshot.count} hostnames"
        )

    def status(self) -> dict[str, Any]:
        """Give what `unmoor dns status` shows."""
        document = self._snapshot.document
        totals = self._table.totals(policy.name for policy in document.policies)
        return {
            "pop": document.pop,
            "edge": document.edge,
            "release": unmoor.__version__,
            "program": _PROGRAM,
            "pid": os.getpid(),
            "generation": self._generation,
            "document": self._text.digest,
            "uptime": round(time.monotonic() - self._started, 1),
            "listen": [str(address) for address in document.listen],
            "port": document.port,
            "zones": len(self._snapshot.zones),
            "hostnames": self._snapshot.count,
            "workers": [
                {
                    "place": each.place,
                    "pid": each.pid,
                    "generation": each.generation,
                    "document": each.document,
                }
                for each in sorted(self._processes.values(), key=lambda each: each.place)
            ],
            "restarts": self._restarts,
            "policies": totals.policies,
            "rcodes": totals.rcodes,
            "events": totals.events,
            "answers": totals.answers,
            "replies": totals.replies,
            "latency": totals.latency,
            "refused": self._refused,
            "transfers": dict(sorted(self._transfers.state.items())),
            "buffers": listeners.buffers_of(self._pairs.values())._asdict(),
            "shortage": listeners.shortage(self._pairs.values()),
            "journal": {"kept": self._journal.kept, "failure": self._journal.failure},
        }

    def addresses(self) -> dict[str, Any]:
        """Give what `unmoor dns top` shows: how often each address was given, exact to this moment."""
        self._settle_counts()
        document = self._snapshot.document
        return {
            "time": time.monotonic(),
            "uptime": max(0.001, time.monotonic() - self._started),
            "counted": document.count_addresses,
            "policies": self._table.totals(policy.name for policy in document.policies).policies,
            "pools": {
                name: [(version, *each) for version in (4, 6) for each in pools.ranges_in_use(pool, version)]
                for name, pool in document.pools.items()
            },
            "spans": self._tallies.spans(self._generation),
        }

    def _settle_counts(self) -> None:
        """Have every worker count what it has given; one that is busy for long is left out."""
        if self._snapshot.layout is None:
            return
        request = worker.SETTLE + self._tallies.request().to_bytes(8, "big")
        asked = list(self._processes.values())
        for process in asked:
            with suppress(OSError):
                process.channel.send(request, socket.MSG_DONTWAIT)
        deadline = time.monotonic() + _SETTLE_PATIENCE
        while time.monotonic() < deadline:
            if all(self._tallies.has_settled(process.place, process.generation) for process in asked):
                break
            time.sleep(0.001)


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count != 1)}"


def _hear(process: Process) -> bytes:
    """What a worker says next; nothing when it died, or kept silent for too long."""
    process.channel.settimeout(_PATIENCE)
    try:
        return process.channel.recv(64)
    except OSError:
        return b""


def _channel(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, socket.socket]:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ours.enter_context(one), theirs.enter_context(two)


def _fork(child: Callable[[], None]) -> int:
    """Fork; `child`, which never returns, runs in the child. Raises OSError."""
    # Until the child has put its own handling in place, a signal to it would be read by the parent.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            child()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    return pid


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:  # a unit's system call filter may forbid the call; its LimitNOFILE= makes it needless
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
