"""Transfer intake: bring zones into force that were transferred or have expired."""

from __future__ import annotations

import logging

from unmoor.dns.protocol import names
from unmoor.dns.server.pool import RETRY, Pool
from unmoor.dns.server.reloader import Builder, Reloader
from unmoor.dns.server.state import State
from unmoor.dns.transfer.transfers import Transfers
from unmoor.dns.zones import catalog
from unmoor.dns.zones.zone_store import CopyKey, Store
from unmoor.errors import InvalidInputError, UnmoorError

log = logging.getLogger(__name__)


class Intake:
    """Accepts or refuses the zones that the transfer process offers."""

    def __init__(
        self, state: State, builder: Builder, reloader: Reloader, pool: Pool, transfers: Transfers
    ) -> None:
        self._state = state
        self._builder = builder
        self._reloader = reloader
        self._pool = pool
        self._transfers = transfers

    def take(self, changed: set[str]) -> None:
        """Serve the zones named in `changed`; those that cannot be served are refused one by one."""
        document, builder = self._state.document, self._builder
        before, builder.members = builder.members, catalog.load(builder.store.members())
        keys = builder.keys(document)
        offers = {
            apex: offer.zone
            for apex, key in keys.items()
            if names.to_text(apex) in changed and (offer := builder.store.offered(key))
        }
        verdicts: dict[str, str | None] = dict.fromkeys(map(names.to_text, offers))
        try:
            self._reloader.replace(builder.select(document, offers, verdicts))
        except InvalidInputError as error:
            builder.members = before
            log.error("transferred zones are not served: %s", error)  # noqa: TRY400
            verdicts = dict.fromkeys(verdicts, f"the document does not allow it: {error.problems[0]}")
        except UnmoorError as error:
            builder.members = before
            log.critical("%s; trying again in %.0f s", error, RETRY)
            self._transfers.postpone(changed)
            return
        for apex, key in keys.items():
            name = names.to_text(apex)
            if name in verdicts:
                _settle(builder.store, key, verdicts[name])
        self._transfers.decide(verdicts)
        log.info("%s", self._pool.in_force())


def _settle(store: Store, key: CopyKey, refusal: str | None) -> None:
    """Keep an accepted copy, drop a refused one."""
    try:
        if refusal is None:
            store.accept(key)
        else:
            store.refuse(key)
    except OSError as error:  # it is served, but a restart will not find it
        log.error("the copy of %s cannot be kept: %s", names.to_text(key.apex), error.strerror)  # noqa: TRY400
