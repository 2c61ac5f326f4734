"""The two documents of one edge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unmoor.model.dns import DnsDocument
from unmoor.model.edge import EdgeDocument


@dataclass(frozen=True)
class Documents:
    """What one edge gets."""

    edge: EdgeDocument
    dns: DnsDocument
    #: The registry that `dns` names, on the controller.
    registry: Path | None = None
