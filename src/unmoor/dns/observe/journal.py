"""A durable journal of the addresses in force: one line of JSON for each change.

A record is on disk before the first answer that it permits, and is complete: policies with the addresses of
their pools, strategies and TTLs. `history` reads the records back. There is one file for each month; each
begins with what was in force, so that older ones can be removed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from unmoor.dns.policy.pools import ranges_in_use
from unmoor.errors import UnmoorError
from unmoor.model import DnsDocument, Policy

log = logging.getLogger(__name__)

VERSION = 1
#: Events. START and CHANGE list all that is answered from now on; after a CHANGE the old addresses may be
#: answered as well until IN_FORCE, or alone again after REFUSED. SAME is a generation that changed no
#: address. CARRIED begins a file with what is in force already.
START, CHANGE, IN_FORCE, REFUSED, SAME, STOP, CARRIED = (
    *("start", "change", "in force", "refused", "same", "stop", "carried"),
)

_LOCK_FILE = "lock"
#: Seconds that a predecessor's last processes may take to release the journal.
_LOCK_TIMEOUT = 5.0
#: Records kept while the disk cannot be written; beyond it the oldest are dropped.
_MAX_WAITING = 1000
_FAMILIES = {"A": 4, "AAAA": 6}

Record = dict[str, Any]


def files(directory: Path) -> list[Path]:
    """Return the journal's files, the oldest first."""
    return sorted(directory.glob("journal-[0-9][0-9][0-9][0-9]-[0-9][0-9].jsonl"))


def _lock(directory: Path) -> int | None:
    """Lock the journal; None if another server holds the lock. Raises OSError.

    The lock is held by the descriptor that is returned, and by copies of it in child processes.
    """
    descriptor = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                return None
            time.sleep(0.05)
        else:
            return descriptor


def is_held(directory: Path) -> bool:
    """Whether a server holds the journal now. Raises OSError."""
    try:
        descriptor = os.open(directory / _LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def in_use(document: DnsDocument) -> list[Record]:
    """Return what this edge may answer: for each policy that can apply here, its addresses by pool.

    Hostnames are not part of it.
    """
    return [
        {
            "policy": policy.name,
            "strategy": policy.answer.strategy,
            "ttl": policy.answer.ttl,
            "pools": list(_pools(document, policy)),
        }
        for policy in document.policies
        if policy.match.pops is None or document.pop in policy.match.pops
    ]


def _pools(document: DnsDocument, policy: Policy) -> Iterator[Record]:
    answer = policy.answer
    versions = [_FAMILIES[each] for each in policy.match.types or _FAMILIES]
    if answer.strategy == "pinned":
        pinned = [str(each) for each in answer.addresses if each.version in versions]
        yield {"pool": answer.pool, "weight": answer.weight, "addresses": pinned}
        return
    for name, weight in ((answer.pool, answer.weight), *answer.also.items()):
        pool = document.pools[name]
        addresses = [
            str(ip_address(_packed(first, version)))
            + (f"-{ip_address(_packed(first + size - 1, version))}" if size > 1 else "")
            for version in versions
            for first, size in ranges_in_use(pool, version)
        ]
        found = {"pool": name, "weight": weight, "addresses": addresses}
        if pool.exclude:
            found["excluded"] = [str(prefix) for prefix in pool.exclude]
        yield found


def _packed(number: int, version: int) -> bytes:
    return number.to_bytes(4 if version == 4 else 16, "big")


class Journal:
    """Writes the journal in `directory`, or none if that is missing; `now` is a clock with a time zone.

    A disk that cannot be written does not stop the server: `failure` is the error, and records that could not
    be written are written with the next one that can.
    """

    def __init__(
        self, directory: Path | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.failure: str | None = None
        self._directory = directory
        self._now = now
        self._waiting: list[Record] = []
        # What is in force, and since when: carried into the next file.
        self._state: Record | None = None
        self._lock: int | None = None
        # Whether the last change moved an address.
        self._moves = False

    @property
    def kept(self) -> bool:
        """Whether there is a journal."""
        return self._directory is not None

    def take(self) -> None:
        """Lock the journal. Raises UnmoorError if another server writes it."""
        if self._directory is None:
            return
        try:
            self._lock = _lock(self._directory)
        except FileNotFoundError:
            log.info("no journal is kept: there is no directory %s", self._directory)
            self._directory = None
        except OSError as error:
            self._fail(self._directory, error)
        else:
            if self._lock is None:
                raise UnmoorError(
                    f"another server keeps the journal in {self._directory}; name another by --state"
                )

    def release(self) -> None:
        """Unlock the journal, in this process and in its workers, for another server."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    def resume(self, document: DnsDocument, generation: int) -> None:
        """Continue after `release`: the other server has failed, perhaps after recording a change."""
        if self._lock is not None:
            return
        try:
            self.take()
        except UnmoorError as error:
            log.error("%s", error)  # noqa: TRY400 - it needs no traceback
        self.refuse(document, generation)

    def start(self, document: DnsDocument, generation: int) -> None:
        """Record that the server is about to answer from `document`."""
        self._begin(START, document, generation)

    def change(self, document: DnsDocument, generation: int) -> None:
        """Record that the server is about to switch to `document`; `settle` or `refuse` must follow."""
        self._moves = self._state is None or self._state["policies"] != in_use(document)
        if self._moves:
            self._begin(CHANGE, document, generation)
        else:
            self._write({"event": SAME, "generation": generation}, document)

    def settle(self, document: DnsDocument, generation: int) -> None:
        """Record that the change is in force, and nothing is answered from the old document."""
        if self._moves:
            self._write({"event": IN_FORCE, "generation": generation}, document)

    def refuse(self, document: DnsDocument, generation: int) -> None:
        """Record that the change failed, and `document` stays in force."""
        self._write({"event": REFUSED, "generation": generation}, document)
        self._state = _state(document, generation, self._now())

    def stop(self, document: DnsDocument, generation: int) -> None:
        """Record that all workers have ended."""
        if self._state:
            self._write({"event": STOP, "generation": generation}, document)
        self._state = None

    def _begin(self, event: str, document: DnsDocument, generation: int) -> None:
        state = _state(document, generation, self._now())
        self._write({"event": event, "generation": generation, "policies": state["policies"]}, document)
        self._state = state

    def _write(self, record: Record, document: DnsDocument) -> None:
        """Write a record to disk, after those that could not be written before."""
        if self._directory is None:
            return
        now = self._now()
        head = {"version": VERSION, "time": _text(now), "pop": document.pop, "edge": document.edge}
        self._waiting = [*self._waiting, {**head, **record}][-_MAX_WAITING:]
        try:
            path = self._directory / f"journal-{now:%Y-%m}.jsonl"
            if not path.exists():
                if self._state:
                    _append(path, [{**head, "event": CARRIED, **self._state}])
                _remove_old(self._directory, now - timedelta(days=document.journal_keep))
            _append(path, self._waiting)
            self._waiting.clear()
            if self.failure:
                log.warning("the journal in %s is written again", self._directory)
            self.failure = None
        except OSError as error:
            self._fail(self._directory, error)

    def _fail(self, directory: Path, error: OSError) -> None:
        self.failure = f"the journal in {directory} cannot be written: {error.strerror}"
        log.error(self.failure)


def _remove_old(directory: Path, oldest: datetime) -> None:
    """Remove the files of months that were over before `oldest`."""
    for path in files(directory):
        if _end_of(path) < oldest.date():
            path.unlink()
            log.info("journal: %s removed after its retention time", path.name)


def _state(document: DnsDocument, generation: int, since: datetime) -> Record:
    return {"since": _text(since), "generation": generation, "policies": in_use(document)}


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _end_of(path: Path) -> date:
    """Return the first day after the month of a file."""
    first = date.fromisoformat(f"{path.stem.removeprefix('journal-')}-01")
    return (first + timedelta(days=31)).replace(day=1)


def _append(path: Path, records: list[Record]) -> None:
    """Append lines, and wait until they and the file's name are on disk. Raises OSError."""
    text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records).encode()
    fresh = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        end = os.fstat(descriptor).st_size
        if end and os.pread(descriptor, 1, end - 1) != b"\n":
            log.warning("journal: the last line of %s is torn; it is left as it is", path)
            text = b"\n" + text
        try:
            _write_all(descriptor, text)
            os.fsync(descriptor)
        except OSError:
            # All of it is written again later; a part would be read twice.
            with suppress(OSError):
                os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)
    if fresh:
        _sync_directory(path.parent)


def _write_all(descriptor: int, text: bytes) -> None:
    while text:
        text = text[os.write(descriptor, text) :]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
