"""The two documents of one edge, and what stands in for them where the inventory is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unmoor.model.dns import DnsDocument, Hostnames, Zone
from unmoor.model.edge import EdgeDocument


@dataclass(frozen=True)
class Documents:
    """The documents of one edge, and the path of its registry on the controller."""

    edge: EdgeDocument
    dns: DnsDocument
    #: The registry that `dns` names, on the controller.
    registry: Path | None = None


@dataclass(frozen=True)
class BrokenZone:
    """A zone of the inventory of which something could not be read. What is None is not known.

    The reader has reported the reason, so later checks skip what is missing, and what depends on it.
    """

    name: str | None = None
    records: str | None = None
    source: str = ""
    hostnames: tuple[Hostnames, ...] | None = None


@dataclass(frozen=True)
class Draft:
    """The zones of an edge whose variables are wrong, so that zone files are checked in the same run."""

    zones: tuple[Zone | BrokenZone, ...]
    #: Whether every hostname was read; only then can a missing one be reported.
    complete: bool
