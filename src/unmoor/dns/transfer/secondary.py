"""The process that keeps transferred zones and catalogs fresh (RFC 1034 section 4.3.5, RFC 1996).

It asks primaries, writes what it gets as an offer beside the zone's copy, and tells the server, which takes
it or not. Nobody waits for it: it shares nothing with the server but a socket and the directory of copies.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import random
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from unmoor.dns.protocol import names
from unmoor.dns.transfer import transfer
from unmoor.dns.transfer.transfer import Source, TransferError
from unmoor.dns.zones import catalog, zone_store
from unmoor.dns.zones.static_zone import Zone
from unmoor.dns.zones.zone_store import Key, Store
from unmoor.model import DnsDocument, validate

log = logging.getLogger(__name__)

#: Transfers at the same time.
_AT_ONCE = 8
#: Seconds: no zone is checked more often, whatever its SOA or a NOTIFY says, nor less often.
_SHORTEST, _LONGEST = 1.0, 86400.0
#: Seconds after which a zone without a copy is tried again, at first and at the most.
_FIRST_RETRY, _LAST_RETRY = 1.0, 300.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What asking the primaries came to: an error, a new version, or that ours is theirs."""

    source: Source | None = None
    error: str = ""
    zone: Zone | None = None
    listed: dict[bytes, catalog.Entry] | None = None


@dataclass(slots=True, eq=False)
class Followed:
    """A zone that we follow. Times are the wall clock's, seconds since 1970, but for `due`: monotonic."""

    key: Key
    sources: tuple[Source, ...]
    #: The catalog that it was found in, as text; nothing for a zone that the document names.
    member_of: str = ""
    is_catalog: bool = False
    serial: int | None = None
    refreshed: float = 0.0
    refresh: float = 0.0
    retry: float = 0.0
    expire: float = 0.0
    expired: bool = False
    due: float = 0.0
    #: That of its timer; earlier ones mean nothing any more.
    ticket: int = -1
    started: float = -1e9
    running: bool = False
    again: bool = False
    offered: Zone | None = None
    refused: int | None = None
    primary: str = ""
    error: str = ""
    failures: int = 0
    in_a_row: int = 0

    @property
    def name(self) -> str:
        """The zone's name, as text."""
        return names.to_text(self.key.apex)

    @property
    def expires(self) -> float:
        """When the copy may no longer be answered from."""
        return self.refreshed + self.expire

    def take(self, zone: Zone, refreshed: float) -> None:
        """Note the version that is served from now on."""
        self.serial, self.refreshed, self.expired = zone.serial, refreshed, False
        self.refresh = min(max(zone_store.refresh(zone), _SHORTEST), _LONGEST)
        self.retry = min(max(zone_store.retry(zone), _SHORTEST), _LONGEST)
        self.expire = zone_store.expire(zone)

    def state(self) -> dict[str, Any]:
        """What there is to tell."""
        until = time.time() - time.monotonic()
        return {
            "kind": "catalog" if self.is_catalog else "zone",
            "catalog": self.member_of or None,
            "serial": self.serial,
            "primary": self.primary or None,
            "refreshed": round(self.refreshed, 3) if self.serial is not None else None,
            "next": round(self.due + until, 3),
            "expires": round(self.expires, 3) if self.serial is not None else None,
            "expired": self.expired,
            "error": self.error or None,
            "failures": self.failures,
        }


class Secondary:
    """Follows what `document` says, until `link` (to the server) is closed. `notices` brings NOTIFYs."""

    def __init__(
        self, document: DnsDocument, store: Store, link: socket.socket, notices: socket.socket
    ) -> None:
        self._document = document
        self._store = store
        self._link = link
        self._notices = notices
        self._selector = selectors.DefaultSelector()
        self._received, self._unsent = bytearray(), bytearray()
        self._followed: dict[bytes, Followed] = {}
        self._timers: list[tuple[float, int, Followed]] = []
        self._order = count()
        self._listed: dict[bytes, dict[bytes, catalog.Entry]] = {}
        self._members = catalog.load(store.members())
        self._warned: set[str] = set()
        self._done: deque[tuple[Followed, Outcome]] = deque()
        self._woken, self._waker = socket.socketpair()
        self._pool = ThreadPoolExecutor(_AT_ONCE)

    # -- the loop ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Follow; returns when the server is gone."""
        for door in (self._link, self._notices, self._woken):
            door.setblocking(False)
        self._watch(self._link, self._serve_link)
        self._watch(self._notices, self._read_notices)
        self._watch(self._woken, self._collect)
        self._begin()
        while True:
            wait = self._timers[0][0] - time.monotonic() if self._timers else None
            for key, events in self._selector.select(max(0.0, wait) if wait is not None else None):
                try:
                    key.data(events)
                except EOFError:
                    return
            self._run_timers()

    def _watch(self, door: socket.socket, handler: Callable[[int], None]) -> None:
        self._selector.register(door, selectors.EVENT_READ, handler)

    def _begin(self) -> None:
        """Follow the document's zones and catalogs, and the members as they were last known."""
        for zone in self._document.zones:
            if zone.primaries:
                self._follow(Followed(Key(names.from_text(zone.name)), self._sources(zone.primaries)))
        for each in self._document.catalogs:
            followed = Followed(
                Key(names.from_text(each.name)), self._sources(each.primaries), is_catalog=True
            )
            copy = self._store.read(followed.key)
            if copy:
                with suppress(catalog.BrokenCatalogError):
                    self._listed[followed.key.apex] = catalog.parse(copy.zone)
            self._follow(followed)
        self._follow_members()

    def _sources(self, primaries: Any) -> tuple[Source, ...]:
        return transfer.sources(primaries, self._document.tsig_keys)

    def _follow(self, followed: Followed) -> None:
        copy = self._store.read(followed.key)
        self._store.refuse(followed.key)  # an offer to a server that is gone
        now = time.time()
        if copy:
            # A clock that was set back must not make a copy valid for longer.
            followed.take(copy.zone, min(copy.refreshed, now))
            followed.expired = followed.expires <= now
        self._followed[followed.key.apex] = followed
        overdue = max(0.0, followed.refreshed + followed.refresh - now)
        self._schedule(followed, time.monotonic() + min(overdue, _LONGEST))
        self._tell(followed)

    # -- timers ------------------------------------------------------------------------------------------

    def _schedule(self, followed: Followed, due: float) -> None:
        followed.due = due
        self._arm(followed)

    def _arm(self, followed: Followed) -> None:
        """Set the timer to when something is to be done: a check, or the copy's expiry."""
        whens = [] if followed.running or followed.offered is not None else [followed.due]
        if followed.serial is not None and not followed.expired:
            whens.append(time.monotonic() + followed.expires - time.time())
        followed.ticket = next(self._order)
        if whens:
            heapq.heappush(self._timers, (min(whens), followed.ticket, followed))

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, ticket, followed = heapq.heappop(self._timers)
            if ticket != followed.ticket or self._followed.get(followed.key.apex) is not followed:
                continue
            if followed.serial is not None and not followed.expired and followed.expires <= time.time():
                followed.expired = True
                log.error("zone %s: expired, no primary has confirmed it in time", followed.name)
                self._tell(followed)
                self._say(changed=followed.name)
            if followed.due <= now and not followed.running and followed.offered is None:
                self._start(followed)
            self._arm(followed)

    def _start(self, followed: Followed) -> None:
        followed.running, followed.started, followed.again = True, time.monotonic(), False
        job = self._pool.submit(_check, followed, self._store, self._document.transfer_limit)
        job.add_done_callback(lambda done: self._report(followed, done))

    def _report(self, followed: Followed, done: Future[Outcome]) -> None:
        """Give the outcome to the loop's thread."""
        error = done.exception()
        outcome = done.result() if error is None else Outcome(error=f"cannot be checked: {error!r}")
        self._done.append((followed, outcome))
        with suppress(OSError):
            self._waker.send(b"!")

    # -- what came of it ---------------------------------------------------------------------------------

    def _collect(self, _: int) -> None:
        with suppress(BlockingIOError):
            self._woken.recv(4096)
        while self._done:
            followed, outcome = self._done.popleft()
            followed.running = False
            if self._followed.get(followed.key.apex) is not followed:
                self._store.refuse(followed.key)
            elif outcome.error:
                self._fail(followed, outcome.error)
            elif outcome.zone is None:
                self._confirm(followed, outcome.source)
            else:
                followed.primary = str(outcome.source)
                followed.offered = outcome.zone
                if outcome.listed is None:
                    self._say(changed=followed.name, serial=outcome.zone.serial)
                else:
                    self._listed[followed.key.apex] = outcome.listed
                    self._decide(followed, None)
                    self._follow_members()

    def _fail(self, followed: Followed, error: str) -> None:
        followed.failures += 1
        followed.in_a_row += 1
        if error != followed.error:
            log.error("zone %s: %s", followed.name, error)
        followed.error = error
        wait = followed.retry
        if followed.serial is None or followed.expired:
            wait = min(_FIRST_RETRY * 2 ** min(followed.in_a_row - 1, 16), _LAST_RETRY)
        self._again(followed, wait)

    def _confirm(self, followed: Followed, source: Source | None) -> None:
        was_expired = followed.expired
        self._store.confirm(followed.key)
        followed.refreshed, followed.expired, followed.primary = time.time(), False, str(source)
        self._recover(followed)
        if was_expired:
            self._say(changed=followed.name)

    def _decide(self, followed: Followed, refusal: str | None) -> None:
        """Take or drop the version that was offered."""
        zone, followed.offered = followed.offered, None
        if zone is None:
            return
        if refusal is not None:
            followed.refused = zone.serial
            self._fail(followed, f"serial {zone.serial} from {followed.primary} is refused: {refusal}")
            return
        if followed.is_catalog:
            self._store.accept(followed.key)
        log.info("zone %s: serial %d from %s", followed.name, zone.serial, followed.primary)
        followed.take(zone, time.time())
        followed.refused = None
        self._recover(followed)

    def _recover(self, followed: Followed) -> None:
        if followed.error:
            log.info("zone %s: in order again", followed.name)
        followed.error, followed.in_a_row = "", 0
        self._again(followed, followed.refresh)

    def _again(self, followed: Followed, wait: float) -> None:
        """Plan the next check; a little earlier than told, so that zones do not come in step."""
        wait *= random.uniform(0.9, 1.0)  # noqa: S311 - no secret
        self._schedule(followed, time.monotonic() + (_SHORTEST if followed.again else wait))
        self._tell(followed)

    # -- members of catalogs -----------------------------------------------------------------------------

    def _follow_members(self) -> None:
        """Bring what is followed in line with what the catalogs list."""
        members, warnings = catalog.merge(self._document, self._listed, self._members)
        for warning in warnings:
            if warning not in self._warned:
                log.warning("catalog zones: %s", warning)
        self._warned = set(warnings)
        before = {member.apex: member for member in catalog.load(self._store.members())}
        if {member.apex: member for member in members} != before:
            self._store.keep_members(catalog.dump(members))
            self._say(changed="")
        self._members = members
        wanted = {member.apex: member for member in members}
        for apex, followed in list(self._followed.items()):
            if followed.member_of and (apex not in wanted or wanted[apex].key != followed.key):
                log.info("zone %s: no longer a member of %s", followed.name, followed.member_of)
                del self._followed[apex]
                self._say(gone=followed.name)
        for apex, old in before.items():
            if apex not in wanted or wanted[apex].key != old.key:
                self._store.remove(old.key)
        whole, _ = catalog.expand(self._document, members)
        primaries = {names.from_text(zone.name): zone.primaries for zone in whole.zones}
        for apex, member in wanted.items():
            known, sources = self._followed.get(apex), self._sources(primaries[apex])
            if known is None:
                self._follow(Followed(member.key, sources, member_of=member.catalog))
            elif known.member_of != member.catalog:
                known.member_of, known.sources = member.catalog, sources
                self._schedule(known, time.monotonic())

    # -- messages ----------------------------------------------------------------------------------------

    def _read_notices(self, _: int) -> None:
        """Check zones that a primary says have changed (RFC 1996 section 4.7), that primary first."""
        for _ in range(64):
            try:
                notice = self._notices.recv(1024)
            except OSError:
                return
            address, _newline, apex = notice.partition(b"\n")
            followed = self._followed.get(apex)
            if followed is None:
                continue
            first = [each for each in followed.sources if str(each.address).encode() == address]
            followed.sources = (*first, *(each for each in followed.sources if each not in first))
            if followed.running or followed.offered is not None:
                followed.again = True
            else:
                self._schedule(followed, max(time.monotonic(), followed.started + _SHORTEST))

    def _tell(self, followed: Followed) -> None:
        self._say(state=followed.state(), name=followed.name)

    def _say(self, **message: Any) -> None:
        self._unsent += json.dumps(message).encode() + b"\n"
        self._send()

    def _send(self) -> None:
        with suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: self._link.send(self._unsent)]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._link, events, self._serve_link)

    def _serve_link(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._send()
        if not events & selectors.EVENT_READ:
            return
        try:
            chunk = self._link.recv(65536)
        except BlockingIOError:
            return
        if not chunk:
            raise EOFError
        self._received += chunk
        for message in lines(self._received):
            for name, refusal in message["verdicts"].items():
                if followed := self._followed.get(names.from_text(name)):
                    self._decide(followed, refusal)


def lines(received: bytearray) -> Iterator[Any]:
    """Take the whole lines of JSON out of what was received."""
    *whole, rest = bytes(received).split(b"\n")
    received[:] = rest
    for line in whole:
        yield json.loads(line)


def _check(followed: Followed, store: Store, limit: int) -> Outcome:
    """Ask the primaries in turn, in a thread of the pool; `followed` is only read."""
    errors = []
    for source in followed.sources:
        try:
            return _ask(followed, source, store, limit)
        except TransferError as error:
            errors.append(f"{source} {error}")
        except OSError as error:
            return Outcome(error=f"the copy cannot be written: {error.strerror}")
    return Outcome(error="; ".join(errors))


def _ask(followed: Followed, source: Source, store: Store, limit: int) -> Outcome:
    """Bring the zone up to date from one primary. Raises TransferError, OSError."""
    apex, ours = followed.key.apex, None if followed.expired else followed.serial
    serial = transfer.ask_serial(source, apex, over_tcp=followed.is_catalog)
    if serial == followed.serial:
        return Outcome(source)
    if ours is not None and not transfer.is_newer(serial, ours):
        raise TransferError(f"has serial {serial}, which is older than our {ours}")
    if serial == followed.refused:
        return Outcome(error=followed.error)
    copy = store.read(followed.key) if ours is not None else None
    zone = transfer.fetch(source, apex, copy.zone if copy else None, limit)
    if ours is not None and not transfer.is_newer(zone.serial, ours):
        raise TransferError(f"sent serial {zone.serial}, which is not newer than our {ours}")
    listed = None
    if followed.is_catalog:
        try:
            listed = catalog.parse(zone)
        except catalog.BrokenCatalogError as error:
            raise TransferError(f"sent a broken catalog, which is ignored: it {error}") from None
    store.offer(followed.key, zone)
    return Outcome(source, zone=zone, listed=listed)


def main() -> None:
    """Run as the server starts it: descriptors of the link and of NOTIFYs are the arguments."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # sent to the whole group: the server
        signal.signal(number, signal.SIG_IGN)  # decides, and its end is ours
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    link, notices = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    with link.makefile("rb", buffering=0) as stream:
        told = json.loads(stream.readline())
    document = validate(DnsDocument, told["document"], "what the server said")
    status = 1
    try:
        Secondary(document, Store(Path(told["directory"])), link, notices).run()
        status = 0
    except OSError as error:  # the link broke
        log.error("transfers end: %s", error)  # noqa: TRY400
    except Exception:
        log.exception("transfers end")
    finally:
        os._exit(status)  # a transfer under way must not be waited for


if __name__ == "__main__":
    main()
