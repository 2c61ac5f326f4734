"""The journal read back as intervals: which policy answered with an address, and when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, NamedTuple

from unmoor import jsontext, paths
from unmoor.dns.observe import journal
from unmoor.errors import UnmoorError

Address = IPv4Address | IPv6Address


class Moment(NamedTuple):
    """The time of a query, from its first instant to its last: a date is a whole day."""

    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Use:
    """A policy's use of one pool: strategy, TTL in seconds, first and last address of each range."""

    policy: str
    pool: str
    strategy: str
    ttl: int
    ranges: tuple[tuple[Address, Address], ...]

    def has(self, address: Address) -> bool:
        """Whether it can answer with `address`."""
        return any(
            first.version == address.version and first <= address <= last  # type: ignore[operator]  # of one version
            for first, last in self.ranges
        )

    def __str__(self) -> str:
        shown = ", ".join(f"{one}-{two}" if one != two else str(one) for one, two in self.ranges)
        return f"policy {self.policy}, pool {self.pool}, {self.strategy}, TTL {self.ttl} s: {shown or 'none'}"


@dataclass(frozen=True, slots=True)
class Interval:
    """The time in which a use was in force; `end` is None if it still is.

    With `recorded` false the server ended without a record, so `end` is the latest possible time.
    """

    use: Use
    start: datetime
    end: datetime | None
    recorded: bool = True

    @property
    def cached_until(self) -> datetime | None:
        """When the last answer expires in a resolver that respects its TTL."""
        try:
            return self.end and self.end + timedelta(seconds=self.use.ttl)
        except OverflowError:  # a time that no honest record holds
            return datetime.max.replace(tzinfo=UTC)

    def touches(self, moment: Moment) -> bool:
        """Whether the use was visible to clients at that time: answered, or cached by a resolver."""
        until = self.cached_until
        return self.start <= moment.last and (until is None or until >= moment.first)

    def answered(self, moment: Moment) -> bool:
        """Whether it was answered at that time."""
        return self.start <= moment.last and (self.end is None or self.end >= moment.first)

    def as_json(self) -> dict[str, Any]:
        """Return a representation for JSON."""
        return {
            "policy": self.use.policy,
            "pool": self.use.pool,
            "strategy": self.use.strategy,
            "ttl": self.use.ttl,
            "from": _iso(self.start),
            "to": self.end and _iso(self.end),
            "cached_until": self.cached_until and _iso(self.cached_until),
            "end_recorded": self.recorded,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """One record of the journal: the event, and the uses that it added and removed."""

    time: datetime
    event: str
    generation: int
    came: tuple[Use, ...] = ()
    went: tuple[Use, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return a representation for JSON."""
        return {
            "time": _iso(self.time),
            "event": self.event,
            "generation": self.generation,
            "added": [str(use) for use in self.came],
            "removed": [str(use) for use in self.went],
        }


@dataclass(frozen=True, slots=True)
class History:
    """A journal's contents: edge, uses over time, times of the server's runs, and unreadable records."""

    edge: str
    pop: str
    intervals: tuple[Interval, ...]
    #: Start and end of each run of the server (None: it runs), and whether the end is recorded.
    runs: tuple[tuple[datetime, datetime | None, bool], ...]
    changes: tuple[Change, ...]
    unreadable: tuple[str, ...]

    def of(self, address: Address, moment: Moment | None = None) -> list[Interval]:
        """Return the intervals in which `address` was visible; successive ones of one policy are joined.

        They are joined across a restart no longer than the TTL, too: resolvers kept the address.
        """
        found: dict[Use, list[Interval]] = {}
        for each in self.intervals:
            if not each.use.has(address):
                continue
            row = found.setdefault(replace(each.use, ranges=()), [])
            last = row[-1] if row else None
            if last is None or (last.cached_until and last.cached_until < each.start):
                row.append(each)
            elif last.end and (each.end is None or each.end > last.end):
                row[-1] = replace(last, end=each.end, recorded=each.recorded)
        flat = [each for row in found.values() for each in row if moment is None or each.touches(moment)]
        return sorted(flat, key=lambda each: each.start)

    def ran(self, moment: Moment) -> bool:
        """Whether the server is known to have run at some instant of that time."""
        return any(
            start <= moment.last and (end is None or end >= moment.first) for start, end, _ in self.runs
        )


def read(directory: Path) -> History:
    """Read the journal in `directory`. Raises UnmoorError if it is missing or cannot be read."""
    unreadable: list[str] = []
    try:
        if not directory.is_dir():
            raise UnmoorError(
                f"{directory}: no such directory; an edge's is {paths.DNS_STATE}; --state names another"
            )
        records = list(_records(directory, unreadable))
        held = journal.is_held(directory)
    except OSError as error:
        raise UnmoorError(
            f"{error.filename or directory}: {error.strerror}; the journal is for root and group unmoor-dns"
        ) from None
    reader = _Reader()
    for where, record in records:
        try:
            reader.take(record)
        except (KeyError, TypeError, ValueError, OverflowError):
            unreadable.append(f"{where}: is no record of a journal")
    return reader.history(held, unreadable)


def _records(directory: Path, unreadable: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in journal.files(directory):
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            where = f"{path}:{number}"
            try:
                record = jsontext.parse(line)
            except ValueError:
                unreadable.append(f"{where}: is torn: the server or the machine stopped while it was written")
                continue
            yield where, record


class _Reader:
    """Turns the records, in order, into intervals."""

    def __init__(self) -> None:
        self.edge = self.pop = ""
        # The uses in force with their start; during a change, those that are about to replace them.
        self._now: dict[Use, datetime] = {}
        self._next: dict[Use, datetime] | None = None
        self._run: datetime | None = None
        self._intervals: list[Interval] = []
        self._runs: list[tuple[datetime, datetime | None, bool]] = []
        self._changes: list[Change] = []

    def take(self, record: dict[str, Any]) -> None:
        """Process one record. Raises KeyError, TypeError or ValueError if it is malformed."""
        time, event, generation = _moment(record["time"]), record["event"], int(record["generation"])
        uses = _uses(record["policies"]) if "policies" in record else ()
        since = _moment(record["since"]) if event == journal.CARRIED else time
        self.edge, self.pop = str(record["edge"]), str(record["pop"])
        before = {**self._now, **(self._next or {})}
        self._step(event, uses, time, since)
        after = {**self._now, **(self._next or {})}
        if event != journal.CARRIED:
            came = tuple(use for use in after if use not in before)
            went = tuple(use for use in before if use not in after)
            self._changes.append(Change(time, event, generation, came, went))

    def _step(self, event: str, uses: Iterable[Use], time: datetime, since: datetime) -> None:
        if event == journal.START:
            self._stop(time, recorded=False)  # remaining uses ended without a record
            self._run, self._now = time, dict.fromkeys(uses, time)
        elif event == journal.CARRIED:
            if self._run is None:  # the files before it are gone
                self._run, self._now = since, dict.fromkeys(uses, since)
        elif event == journal.CHANGE:
            self._settle(time)  # an earlier change must have come into force, even without a record
            self._next = {use: self._now.get(use, time) for use in uses}
        elif event == journal.IN_FORCE:
            self._settle(time)
        elif event == journal.REFUSED:
            self._end((use for use in self._next or () if use not in self._now), self._next or {}, time)
            self._next = None
        elif event == journal.STOP:
            self._stop(time, recorded=True)
        elif event != journal.SAME:
            raise ValueError(event)

    def _settle(self, time: datetime) -> None:
        """End the uses that the change has replaced."""
        if self._next is not None:
            self._end((use for use in self._now if use not in self._next), self._now, time)
            self._now, self._next = self._next, None

    def _stop(self, time: datetime, recorded: bool) -> None:
        everything = {**(self._next or {}), **self._now}
        self._end(everything, everything, time, recorded)
        self._now, self._next = {}, None
        if self._run is not None:
            self._runs.append((self._run, time, recorded))
            self._run = None

    def _end(
        self, uses: Iterable[Use], since: dict[Use, datetime], time: datetime, recorded: bool = True
    ) -> None:
        self._intervals += [Interval(use, since[use], time, recorded) for use in uses]

    def history(self, held: bool, unreadable: list[str]) -> History:
        """Return the history; open intervals continue if the server runs, or ended without a record."""
        everything = {**(self._next or {}), **self._now}
        if self._run is not None:
            end = None if held else datetime.now(UTC)
            self._runs.append((self._run, end, held))
            self._intervals += [Interval(use, since, end, held) for use, since in everything.items()]
        return History(
            self.edge,
            self.pop,
            tuple(sorted(self._intervals, key=lambda each: each.start)),
            tuple(self._runs),
            tuple(self._changes),
            tuple(unreadable),
        )


def _uses(policies: Iterable[dict[str, Any]]) -> tuple[Use, ...]:
    return tuple(
        Use(
            str(policy["policy"]),
            str(pool["pool"]),
            str(policy["strategy"]),
            int(policy["ttl"]),
            tuple(map(_range, pool["addresses"])),
        )
        for policy in policies
        for pool in policy["pools"]
    )


def _range(text: str) -> tuple[Address, Address]:
    first, dash, last = text.partition("-")
    return ip_address(first), ip_address(last if dash else first)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment


def parse_time(text: str) -> Moment:
    """Read a date (all of its day) or a time of ISO 8601; without a zone it is UTC. Raises UnmoorError."""
    try:
        if len(text) == len("2026-11-23"):
            first = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
            return Moment(first, first + timedelta(days=1, microseconds=-1))
        moment = datetime.fromisoformat(text)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise UnmoorError(
            f"TIME = {text}: is no date or time of ISO 8601\n"
            "    fix: write 2026-11-23, 2026-11-23T06:49 (UTC) or 2026-11-23T07:49:30+01:00"
        ) from None
    return Moment(moment, moment)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def shown(moment: datetime) -> str:
    """Format a time for operators: UTC, to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def lines(history: History, address: Address, moment: Moment | None) -> Iterator[str]:
    """Describe which policies answered with `address`, at that time or ever."""
    yield f"{address}, as {history.edge or 'nobody'} of PoP {history.pop or 'none'} answered" + _at(moment)
    found = history.of(address, moment)
    if moment and not history.ran(moment):
        yield "the server was not running then" + _nearest(history, moment)
    for each in found:
        use = each.use
        yield f"policy {use.policy}, pool {use.pool}, {use.strategy}, TTL {use.ttl} s"
        yield f"    answered from {shown(each.start)} to {_end(each)}"
        if each.cached_until:
            yield f"    possibly in use until {shown(each.cached_until)}, the end of the last answer's TTL"
        if moment and not each.answered(moment):
            yield "    no longer answered at the time asked for, but possibly kept by resolvers"
    if not found:
        yield "no policy answered with it" + (" then" if moment else "")


def as_json(history: History, address: Address | None, moment: Moment | None) -> dict[str, Any]:
    """Return the contents of `lines` or, without an address, of `change_lines`, for JSON."""
    head = {"edge": history.edge, "pop": history.pop, "unreadable": list(history.unreadable)}
    if address is None:
        return {**head, "changes": [each.as_json() for each in history.changes]}
    return {
        **head,
        "address": str(address),
        "at": moment and [_iso(moment.first), _iso(moment.last)],
        "server_ran": history.ran(moment) if moment else None,
        "intervals": [
            {**each.as_json(), "answered_then": each.answered(moment) if moment else None}
            for each in history.of(address, moment)
        ],
    }


def _end(interval: Interval) -> str:
    if interval.end is None:
        return "now"
    if interval.recorded:
        return shown(interval.end)
    return f"some time before {shown(interval.end)} (the server ended without a record)"


def _at(moment: Moment | None) -> str:
    if moment is None:
        return ":"
    if moment.first == moment.last:
        return f" at {shown(moment.first)}:"
    return f" on {moment.first:%Y-%m-%d} (UTC):"


def _nearest(history: History, moment: Moment) -> str:
    earlier = [end for _, end, _ in history.runs if end and end < moment.first]
    later = [start for start, _, _ in history.runs if start > moment.last]
    parts = [f"it had stopped by {shown(max(earlier))}"] if earlier else ["no earlier run is recorded"]
    parts += [f"began again at {shown(min(later))}"] if later else []
    return ": " + ", ".join(parts)


def change_lines(history: History) -> Iterator[str]:
    """List the changes."""
    for change in history.changes:
        yield f"{shown(change.time)}  {change.event:<8}  generation {change.generation}"
        yield from (f"    - {use}" for use in change.went)
        yield from (f"    + {use}" for use in change.came)
