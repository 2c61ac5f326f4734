"""Checks of transferred zones: ask the primaries in threads, and act on the result."""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from unmoor.dns.transfer import transfer
from unmoor.dns.transfer.link import Link
from unmoor.dns.transfer.members import Members
from unmoor.dns.transfer.schedule import Followed, Schedule
from unmoor.dns.transfer.transfer import Source, TransferError
from unmoor.dns.zones import catalog
from unmoor.dns.zones.static_zone import Zone
from unmoor.dns.zones.zone_store import Store

log = logging.getLogger(__name__)

#: Transfers at the same time.
_MAX_TRANSFERS = 8
#: Seconds until a zone without a copy is tried again, at first and at most.
_MIN_RETRY, _MAX_RETRY = 1.0, 300.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a check: an error, a new version, or neither when the copy is up to date."""

    source: Source | None = None
    error: str = ""
    zone: Zone | None = None
    listed: dict[bytes, catalog.Entry] | None = None


class Checks:
    """Checks zones and offers new versions to the server. `limit` is the maximum of records of a zone.

    `woken` becomes readable when a check has ended; `collect` is to be called then.
    """

    def __init__(self, store: Store, schedule: Schedule, members: Members, link: Link, limit: int) -> None:
        self._store = store
        self._schedule = schedule
        self._members = members
        self._link = link
        self._limit = limit
        self._done: deque[tuple[Followed, Outcome]] = deque()
        self.woken, self._waker = socket.socketpair()
        self.woken.setblocking(False)
        self._threads = ThreadPoolExecutor(_MAX_TRANSFERS)

    def start(self, followed: Followed) -> None:
        """Check a zone in a thread."""
        followed.running, followed.started, followed.again = True, time.monotonic(), False
        job = self._threads.submit(_check, followed, self._store, self._limit)
        job.add_done_callback(lambda done: self._ended(followed, done))

    def _ended(self, followed: Followed, done: Future[Outcome]) -> None:
        """Pass the outcome to the loop's thread."""
        error = done.exception()
        outcome = done.result() if error is None else Outcome(error=f"cannot be checked: {error!r}")
        self._done.append((followed, outcome))
        with suppress(OSError):
            self._waker.send(b"!")

    def collect(self) -> None:
        """Act on the outcomes of the checks that have ended."""
        with suppress(BlockingIOError):
            self.woken.recv(4096)
        while self._done:
            followed, outcome = self._done.popleft()
            followed.running = False
            if not self._schedule.is_current(followed):
                self._store.refuse(followed.key)
            elif outcome.error:
                self._fail(followed, outcome.error)
            elif outcome.zone is None:
                self._confirm(followed, outcome.source)
            else:
                self._offer(followed, outcome, outcome.zone)

    def decide(self, followed: Followed, refusal: str | None) -> None:
        """Accept the version that was offered, or refuse it for the reason given."""
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

    def _offer(self, followed: Followed, outcome: Outcome, zone: Zone) -> None:
        """Offer a new version to the server; that of a catalog is not served, and accepted here."""
        followed.primary = str(outcome.source)
        followed.offered = zone
        if outcome.listed is None:
            self._link.send(changed=followed.name, serial=zone.serial)
            return
        self._members.record(followed, outcome.listed)
        self.decide(followed, None)
        self._members.update()

    def _fail(self, followed: Followed, error: str) -> None:
        followed.failures += 1
        followed.in_a_row += 1
        if error != followed.error:
            log.error("zone %s: %s", followed.name, error)
        followed.error = error
        wait = followed.retry
        if followed.serial is None or followed.expired:
            wait = min(_MIN_RETRY * 2 ** min(followed.in_a_row - 1, 16), _MAX_RETRY)
        self._schedule.postpone(followed, wait)

    def _confirm(self, followed: Followed, source: Source | None) -> None:
        was_expired = followed.expired
        self._store.confirm(followed.key)
        followed.refreshed, followed.expired, followed.primary = time.time(), False, str(source)
        self._recover(followed)
        if was_expired:
            self._link.send(changed=followed.name)

    def _recover(self, followed: Followed) -> None:
        if followed.error:
            log.info("zone %s: in order again", followed.name)
        followed.error, followed.in_a_row = "", 0
        self._schedule.postpone(followed, followed.refresh)


def _check(followed: Followed, store: Store, limit: int) -> Outcome:
    """Ask the primaries in turn, in a thread; `followed` is only read."""
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
    apex, current = followed.key.apex, None if followed.expired else followed.serial
    serial = transfer.ask_serial(source, apex, over_tcp=followed.is_catalog)
    if serial == followed.serial:
        return Outcome(source)
    if current is not None and not transfer.is_newer(serial, current):
        raise TransferError(f"has serial {serial}, which is older than our {current}")
    if serial == followed.refused:
        return Outcome(error=followed.error)
    copy = store.read(followed.key) if current is not None else None
    zone = transfer.fetch(source, apex, copy.zone if copy else None, limit)
    if current is not None and not transfer.is_newer(zone.serial, current):
        raise TransferError(f"sent serial {zone.serial}, which is not newer than our {current}")
    listed = None
    if followed.is_catalog:
        try:
            listed = catalog.parse(zone)
        except catalog.BrokenCatalogError as error:
            raise TransferError(f"sent a broken catalog, which is ignored: it {error}") from None
    store.offer(followed.key, zone)
    return Outcome(source, zone=zone, listed=listed)
