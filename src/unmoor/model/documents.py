"""The two documents of one edge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unmoor.model.dns import DnsDocument
from unmoor.model.edge import EdgeDocument


@dataclass(frozen=True)
class Documents:
    """The documents of one edge, and the path of its registry on the controller."""

    edge: EdgeDocument
    dns: DnsDocument
    #: The registry that `dns` names, on the controller.
    registry: Path | None = None
