"""A DNS document with everything in it parsed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unmoor.dns.hostnames import registry_view
from unmoor.dns.hostnames.hostnames import Registered
from unmoor.dns.hostnames.registry_view import RegistryView
from unmoor.dns.parse import content
from unmoor.dns.parse.content import NO_COPIES, Content
from unmoor.dns.policy.policies import Traits
from unmoor.dns.zones.static_zone import Zone
from unmoor.errors import Fault
from unmoor.model import DnsDocument


@dataclass(frozen=True, slots=True)
class Parsed:
    """A document, the content of its zones, and its registry; `faults` has why the latter cannot be read."""

    document: DnsDocument
    content: Content
    view: RegistryView | None
    faults: tuple[Fault, ...]

    def registered(self, name: bytes) -> Registered | None:
        """Return a hostname's registration, in the document or its registry; None if it is in neither."""
        return self.content.hostnames.get(name) or (self.view.registered(name) if self.view else None)

    @property
    def count(self) -> int:
        """The number of hostnames; one that is in both the document and the registry counts twice."""
        return len(self.content.hostnames) + (len(self.view.registry) if self.view else 0)

    def examples(self) -> dict[Traits, bytes]:
        """Return all traits of the hostnames, each with a hostname that has them."""
        found = dict(self.content.examples)
        for traits, name in self.view.examples() if self.view else ():
            found.setdefault(traits, name)
        return found


def parse(
    document: DnsDocument,
    registry: Path | None = None,
    copies: Mapping[bytes, Zone] = NO_COPIES,
    known: Iterable[Content] = (),
) -> Parsed:
    """Parse what a document holds as text.

    `registry` is the path of the registry if it is not the document's. `copies` and `known` are as in
    content.parse.
    """
    view, faults = registry_view.load(document, registry)
    return Parsed(document, content.parse(document.zones, document.policies, copies, known), view, faults)
