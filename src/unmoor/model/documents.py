"""The two documents of one edge, their texts, and what stands in for them where the inventory is wrong."""

from __future__ import annotations

import json
import operator
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unmoor.model.dns import DnsDocument, Hostnames, Zone
from unmoor.model.edge import EdgeDocument
from unmoor.model.secrets import dump_with_secrets, text_with_secrets

#: Zones that are kept, since further documents may have the same.
_KEPT = 4
#: Stands in for the zones; no zone has this name.
_MARK = Zone(name="\0")


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


def _zones_text(zones: tuple[Zone, ...]) -> str:
    """Return the text of the value of `zones`, as it is inside a document's text."""
    data = [dump_with_secrets(zone, exclude_defaults=True) for zone in zones]
    return json.dumps(data, indent=1).replace("\n", "\n ")  # JSON has no line ends inside of strings


class Writer:
    """Writes texts equal to those of `text_with_secrets`, each passed through `seal`.

    The text of zones that several documents share, which may be a megabyte, is made once.
    """

    def __init__(self, seal: Callable[[str], str]) -> None:
        self._seal = seal
        self._known: deque[tuple[tuple[Zone, ...], str]] = deque(maxlen=_KEPT)
        self._mark = _zones_text((_MARK,))

    def text(self, document: DnsDocument) -> str:
        """Return the sealed text of a document."""
        if not document.zones:
            return self._seal(text_with_secrets(document))
        rest = self._seal(text_with_secrets(document.model_copy(update={"zones": (_MARK,)})))
        before, _, after = rest.partition(self._mark)
        return before + self._zones(document.zones) + after

    def _zones(self, zones: tuple[Zone, ...]) -> str:
        for known, text in self._known:
            if len(known) == len(zones) and all(map(operator.is_, known, zones)):
                return text
        text = self._seal(_zones_text(zones))
        self._known.append((zones, text))
        return text
