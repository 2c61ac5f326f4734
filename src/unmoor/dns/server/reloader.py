"""Reload: compile the document on disk and switch to it, or keep everything as it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from unmoor import systemd
from unmoor.dns.answer.snapshot import ClashError, Snapshot, build, compiled
from unmoor.dns.counters.counters import Table
from unmoor.dns.parse.content import NO_COPIES, Content
from unmoor.dns.protocol import names
from unmoor.dns.server import control, fd_store, listeners
from unmoor.dns.server.pool import Pool, Process
from unmoor.dns.server.state import Generation, State, Text
from unmoor.dns.transfer.transfers import Transfers
from unmoor.dns.zones import catalog, zone_store
from unmoor.dns.zones.catalog import Member
from unmoor.dns.zones.static_zone import Zone
from unmoor.dns.zones.zone_store import CopyKey, Store
from unmoor.errors import InvalidInputError, UnmoorError
from unmoor.model import DnsDocument, parse
from unmoor.model.change import describe_change

log = logging.getLogger(__name__)


class Builder:
    """Compiles documents into snapshots, with the transferred zones and catalog members in `store`."""

    def __init__(self, config: Path, store: Store, table: Table) -> None:
        self.store = store
        self._config = config
        self._table = table
        #: Member zones of catalogs, as of the last snapshot that was made with them.
        self.members: list[Member] = []
        # Of the newest snapshot; the next one shares it if zones and hostnames are equal.
        self._content: Content | None = None

    def keys(self, document: DnsDocument) -> dict[bytes, CopyKey]:
        """Return the keys of all transferred zones by apex."""
        return catalog.expand(document, self.members)[1]

    def build(
        self,
        document: DnsDocument,
        old: DnsDocument | None = None,
        offers: Mapping[bytes, Zone] = NO_COPIES,
    ) -> Snapshot:
        """Compile a document. Transferred zones are those of `offers`, else the copies on disk.

        Raises UnmoorError.
        """
        counters = self._counters(document, old)
        whole, keys = catalog.expand(document, self.members)
        if keys or document.catalogs:
            self.store.check()
        zones = {**zone_store.current(self.store, keys.values(), time.time()), **offers}
        snapshot = build(whole, str(self._config), counters, zones, self._content)
        self._content = snapshot.content
        return snapshot

    def _give_way(self, error: ClashError, document: DnsDocument) -> Snapshot:
        """Compile a document without the hostnames that clash with a zone's records, and log these."""
        log.error("hostnames that their zones have records for are left out: %s", error)
        counters = self._counters(document, document)
        snapshot = compiled(error.checked, str(self._config), counters, give_way=True)
        self._content = snapshot.content
        return snapshot

    def _counters(self, document: DnsDocument, old: DnsDocument | None) -> Mapping[str, int]:
        current = [policy.name for policy in old.policies] if old else []
        return self._table.slots((policy.name for policy in document.policies), current)

    def first(self, document: DnsDocument) -> Snapshot:
        """Compile the document at the start of the server, which what primaries sent must not prevent."""
        self.members = catalog.load(self.store.members())
        try:
            return self._build_with_clashes(document)
        except InvalidInputError as error:
            if not document.catalogs:
                raise
            log.error("catalogs are left out, with their member zones: %s", error)  # noqa: TRY400
            self.members = []
            return self._build_with_clashes(document)

    def _build_with_clashes(self, document: DnsDocument) -> Snapshot:
        try:
            return self.build(document, document)
        except ClashError as error:
            return self._give_way(error, document)

    def select(
        self, document: DnsDocument, offers: dict[bytes, Zone], verdicts: dict[str, str | None]
    ) -> Snapshot:
        """Compile with all offers that can be served; removes the others, with the reason in `verdicts`."""
        while True:
            try:
                return self.build(document, document, offers)
            except ClashError as error:
                clashes = error.checked.clashes
                guilty = clashes.keys() & offers.keys()
                if not guilty:  # as at the start
                    return self._give_way(error, document)
                for apex in guilty:
                    del offers[apex]
                    first = next(iter(clashes[apex].values()))
                    verdicts[names.to_text(apex)] = f"the hostname {first.value} {first.why}"


class Reloader:
    """Brings a new document or new zones into force."""

    def __init__(
        self, config: Path, state: State, builder: Builder, pool: Pool, transfers: Transfers
    ) -> None:
        self._config = config
        self._state = state
        self._builder = builder
        self._pool = pool
        self._transfers = transfers

    def reload(self) -> control.Reply:
        """Bring the document on disk into force; if it is refused, everything stays as it was."""
        systemd.reloading()
        state = self._state
        try:
            changes = self._reload()
            state.refused = None
        except UnmoorError as error:
            state.refused = str(error)
            log.error("reload refused, generation %d stays in force: %s", state.generation.number, error)  # noqa: TRY400 - an operator's mistake needs no traceback
            return self._refuse(state.refused)
        except Exception as error:
            # Whatever the fault, clients that are served now must continue to be served.
            state.refused = f"internal error: {error!r}; see the journal"
            log.exception("reload failed, generation %d stays in force", state.generation.number)
            return self._refuse(state.refused)
        systemd.notify("READY=1", f"STATUS={self._pool.summary()}")
        in_force = self._pool.in_force()
        lines = (*changes, in_force) if changes else (f"no change: {in_force}",)
        if state.journal.failure:
            lines = (*lines, state.journal.failure)
        for line in lines:
            log.info("reload: %s", line)
        return control.Reply(done=True, lines=lines)

    def _reload(self) -> list[str]:
        """Switch to the document on disk; returns the changes. Raises UnmoorError."""
        state, old = self._state, self._state.document
        text = Text.of(self._config)
        document = parse(DnsDocument, text.text, str(self._config))
        changes = describe_change(old, document)
        half_switched = any(each.document != state.generation.text.digest for each in self._pool)
        if document != old or half_switched:
            self.replace(self._builder.build(document, old), text)
            state.document = document
            self._transfers.follow(document)
        else:  # the same document, perhaps formatted differently
            generation = state.generation
            state.generation = Generation(generation.number, generation.snapshot, generation.pairs, text)
            for process in self._pool:
                process.document = text.digest
        return changes

    def _refuse(self, reason: str) -> control.Reply:
        systemd.notify("READY=1", f"STATUS={self._pool.summary()}; the last reload was refused")
        return control.Reply(done=False, lines=tuple(reason.splitlines()))

    def replace(self, snapshot: Snapshot, text: Text | None = None) -> None:
        """Start workers for a snapshot, then retire the old ones. Raises UnmoorError, with nothing changed.

        `text` is the document of the snapshot, if it is not the one in force.
        """
        state, old = self._state, self._state.generation
        wanted = listeners.endpoints(snapshot.document)
        pairs = listeners.open_missing(wanted, old.pairs)
        new = Generation(old.number + 1, snapshot, pairs, text or old.text)
        started: list[Process] = []
        try:
            for place in range(new.places):
                started.append(self._pool.spawn(place, new))
        except Exception:
            for process in started:
                self._pool.discard(process)
            state.address_counters.discard(new.number)
            listeners.close_others(pairs, keep=old.pairs)
            raise
        # On disk before the first worker can answer from it.
        state.journal.change(snapshot.document, new.number)
        self._pool.switch(
            {process.place: process.inheritance for process in started},
            lambda place: self._pool.adopt(started[place]),
        )
        fd_store.keep({endpoint: pairs[endpoint] for endpoint in wanted if endpoint not in old.pairs})
        fd_store.forget(old.pairs.keys() - set(wanted))
        state.generation = new.only(wanted)
        state.address_counters.switch(snapshot.layout, new.number)
        state.journal.settle(snapshot.document, new.number)
