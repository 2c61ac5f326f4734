"""When each transferred zone is checked next, and when its copy expires (RFC 1034 section 4.3.5)."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from unmoor.dns.protocol import names
from unmoor.dns.transfer.link import Link
from unmoor.dns.transfer.transfer import Source
from unmoor.dns.zones import zone_store
from unmoor.dns.zones.static_zone import Zone
from unmoor.dns.zones.zone_store import CopyKey, Store

#: Seconds between two checks of a zone, whatever its SOA or a NOTIFY demands.
MIN_INTERVAL, MAX_INTERVAL = 1.0, 86400.0


@dataclass(slots=True, eq=False)
class Followed:
    """A zone that is kept fresh. Times are the wall clock's, seconds since 1970, but for `due`: monotonic."""

    key: CopyKey
    sources: tuple[Source, ...]
    #: The catalog that lists it, as text; empty for a zone that the document names.
    member_of: str = ""
    is_catalog: bool = False
    serial: int | None = None
    refreshed: float = 0.0
    refresh: float = 0.0
    retry: float = 0.0
    expire: float = 0.0
    expired: bool = False
    due: float = 0.0
    #: Number of its timer; earlier ones are void.
    ticket: int = -1
    started: float = -1e9
    running: bool = False
    #: Whether a NOTIFY has arrived during a check, which calls for another.
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
        """When answers from the copy must end."""
        return self.refreshed + self.expire

    @property
    def idle(self) -> bool:
        """Whether it is neither being checked nor waiting for the server's decision."""
        return not self.running and self.offered is None

    def take(self, zone: Zone, refreshed: float) -> None:
        """Record the version that is served from now on."""
        self.serial, self.refreshed, self.expired = zone.serial, refreshed, False
        self.refresh = min(max(zone_store.refresh(zone), MIN_INTERVAL), MAX_INTERVAL)
        self.retry = min(max(zone_store.retry(zone), MIN_INTERVAL), MAX_INTERVAL)
        self.expire = zone_store.expire(zone)

    def state(self) -> dict[str, Any]:
        """Return what `unmoor dns status` reports of the zone."""
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


class Schedule:
    """The zones that are followed, by apex, and their timers. Reports each change over `link`."""

    def __init__(self, store: Store, link: Link) -> None:
        self.zones: dict[bytes, Followed] = {}
        self._store = store
        self._link = link
        self._timers: list[tuple[float, int, Followed]] = []
        self._order = count()

    def follow(self, followed: Followed) -> None:
        """Follow a zone from its copy on disk, if there is one."""
        copy = self._store.read(followed.key)
        self._store.refuse(followed.key)  # an offer to a server that is gone
        now = time.time()
        if copy:
            # A clock that was set back must not make a copy valid for longer.
            followed.take(copy.zone, min(copy.refreshed, now))
            followed.expired = followed.expires <= now
        self.zones[followed.key.apex] = followed
        overdue = max(0.0, followed.refreshed + followed.refresh - now)
        self.set_due(followed, time.monotonic() + min(overdue, MAX_INTERVAL))
        self.report(followed)

    def forget(self, followed: Followed) -> None:
        """Follow a zone no longer."""
        del self.zones[followed.key.apex]
        self._link.send(gone=followed.name)

    def is_current(self, followed: Followed) -> bool:
        """Whether the zone is still followed."""
        return self.zones.get(followed.key.apex) is followed

    def report(self, followed: Followed) -> None:
        """Report the state of a zone to the server."""
        self._link.send(state=followed.state(), name=followed.name)

    def set_due(self, followed: Followed, due: float) -> None:
        """Check a zone at `due`, CLOCK_MONOTONIC seconds."""
        followed.due = due
        self.arm(followed)

    def postpone(self, followed: Followed, wait: float) -> None:
        """Check a zone again in `wait` seconds, up to a tenth earlier so that zones do not come in step."""
        wait *= random.uniform(0.9, 1.0)  # noqa: S311 - no secret
        self.set_due(followed, time.monotonic() + (MIN_INTERVAL if followed.again else wait))
        self.report(followed)

    def arm(self, followed: Followed) -> None:
        """Set the timer to the next check or to the copy's expiry, whichever is first."""
        whens = [followed.due] if followed.idle else []
        if followed.serial is not None and not followed.expired:
            whens.append(time.monotonic() + followed.expires - time.time())
        followed.ticket = next(self._order)
        if whens:
            heapq.heappush(self._timers, (min(whens), followed.ticket, followed))

    def wait(self) -> float | None:
        """Return the seconds until the next timer; None without one."""
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def run_out(self, now: float) -> Iterator[Followed]:
        """Yield the zones whose timer has run out at `now`; the caller arms each again."""
        while self._timers and self._timers[0][0] <= now:
            _, ticket, followed = heapq.heappop(self._timers)
            if ticket == followed.ticket and self.is_current(followed):
                yield followed
