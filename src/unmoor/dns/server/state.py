"""What the parts of the parent process share: the generation in force, its document, and the counters."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from unmoor.dns.answer import rate_limit
from unmoor.dns.answer.snapshot import Snapshot
from unmoor.dns.counters.address_counters import AddressCounters
from unmoor.dns.counters.counters import Table
from unmoor.dns.observe.journal import Journal
from unmoor.dns.server import listeners
from unmoor.dns.server.listeners import Endpoint, Pair
from unmoor.model import DnsDocument, read


@dataclass(frozen=True, slots=True)
class Text:
    """The text of a document, and its SHA-256 in hexadecimal."""

    text: str
    digest: str

    @classmethod
    def of(cls, path: Path) -> Text:
        """Read a file. Raises InvalidInputError."""
        text = read(path)
        return cls(text, hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Generation:
    """What one set of workers serves. During a reload, `pairs` includes the sockets of the old document."""

    number: int
    snapshot: Snapshot
    pairs: dict[Endpoint, Pair]
    text: Text

    @property
    def places(self) -> int:
        """The number of workers."""
        return listeners.places(self.snapshot.document)

    def only(self, wanted: Iterable[Endpoint]) -> Generation:
        """Close the sockets of all endpoints that are not wanted; returns the generation without them."""
        listeners.close_others(self.pairs, keep=wanted)
        pairs = {endpoint: self.pairs[endpoint] for endpoint in wanted}
        return Generation(self.number, self.snapshot, pairs, self.text)


@dataclass(slots=True)
class State:
    """The generation in force and what outlives it.

    `document` is the parsed document, before the zones of catalogs are added. `started` is the start of the
    first server in a chain of upgrades, CLOCK_MONOTONIC seconds. `secret` makes DNS cookies if the document
    has none. `refused` is the error of the last reload or upgrade, if it was refused.
    """

    document: DnsDocument
    generation: Generation
    table: Table
    journal: Journal
    secret: bytes = field(default_factory=lambda: os.urandom(16))
    started: float = field(default_factory=time.monotonic)
    restarts: int = 0
    refused: str | None = None
    address_counters: AddressCounters = field(default_factory=AddressCounters)
    rates: memoryview = field(default_factory=rate_limit.shared_table)
