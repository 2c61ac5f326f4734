"""Membership of catalog zones (RFC 9432): follow the zones that the catalogs list."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress

from unmoor.dns.protocol import names
from unmoor.dns.transfer import transfer
from unmoor.dns.transfer.link import Link
from unmoor.dns.transfer.schedule import Followed, Schedule
from unmoor.dns.zones import catalog
from unmoor.dns.zones.catalog import Entry, Member
from unmoor.dns.zones.zone_store import Store
from unmoor.model import DnsDocument

log = logging.getLogger(__name__)


class Members:
    """Keeps the followed zones in line with what the catalogs of `document` list."""

    def __init__(self, document: DnsDocument, store: Store, schedule: Schedule, link: Link) -> None:
        self._document = document
        self._store = store
        self._schedule = schedule
        self._link = link
        self._listed: dict[bytes, dict[bytes, Entry]] = {}
        self._members = catalog.load(store.members())
        self._warned: set[str] = set()

    def read(self, followed: Followed) -> None:
        """Read what a catalog listed when its copy was written."""
        copy = self._store.read(followed.key)
        if copy:
            with suppress(catalog.BrokenCatalogError):
                self._listed[followed.key.apex] = catalog.parse(copy.zone)

    def record(self, followed: Followed, listed: dict[bytes, Entry]) -> None:
        """Record what a new version of a catalog lists."""
        self._listed[followed.key.apex] = listed

    def update(self) -> None:
        """Follow the members that were added, and forget those that are gone."""
        before = {member.apex: member for member in catalog.load(self._store.members())}
        members = self._merge(before)
        wanted = {member.apex: member for member in members}
        for apex, followed in list(self._schedule.zones.items()):
            if followed.member_of and (apex not in wanted or wanted[apex].key != followed.key):
                log.info("zone %s: no longer a member of %s", followed.name, followed.member_of)
                self._schedule.forget(followed)
        for apex, old in before.items():
            if apex not in wanted or wanted[apex].key != old.key:
                self._store.remove(old.key)
        self._follow(wanted.values())

    def _merge(self, before: dict[bytes, Member]) -> list[Member]:
        """Merge the catalogs, and write the members down if they have changed."""
        members, warnings = catalog.merge(self._document, self._listed, self._members)
        for warning in warnings:
            if warning not in self._warned:
                log.warning("catalog zones: %s", warning)
        self._warned = set(warnings)
        if {member.apex: member for member in members} != before:
            self._store.keep_members(catalog.dump(members))
            self._link.send(changed="")
        self._members = members
        return members

    def _follow(self, members: Iterable[Member]) -> None:
        whole, _ = catalog.expand(self._document, members)
        primaries = {names.from_text(zone.name): zone.primaries for zone in whole.zones}
        for member in members:
            sources = transfer.sources(primaries[member.apex], self._document.tsig_keys)
            known = self._schedule.zones.get(member.apex)
            if known is None:
                self._schedule.follow(Followed(member.key, sources, member_of=member.catalog))
            elif known.member_of != member.catalog:
                known.member_of, known.sources = member.catalog, sources
                self._schedule.set_due(known, time.monotonic())
