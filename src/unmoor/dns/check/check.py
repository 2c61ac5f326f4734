"""Checks of parsed DNS documents: every fault at once. Nothing is parsed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from unmoor.dns.check import check_transfers as transfers
from unmoor.dns.check.check_policies import policy_faults
from unmoor.dns.check.check_pools import pointer_faults, pool_faults
from unmoor.dns.check.check_zones import clashes, content_faults, name_server_faults
from unmoor.dns.hostnames import registry_view
from unmoor.dns.parse.content import Content
from unmoor.dns.parse.document import Parsed, parse
from unmoor.dns.policy import reachability
from unmoor.errors import Fault, Problem
from unmoor.model import DnsDocument
from unmoor.model.secrets import sealed_in
from unmoor.model.source_map import in_document


@dataclass(frozen=True, slots=True)
class Checked:
    """A parsed document and its faults: those of the edge's own settings, and those of all else.

    `clashes` are hostnames that clash with a transferred zone's records, by apex. They are not faults, since
    the document alone does not cause them.
    """

    parsed: Parsed
    own: tuple[Fault, ...]
    shared: tuple[Fault, ...]
    clashes: Mapping[bytes, Mapping[bytes, Fault]]

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults."""
        return self.own + self.shared

    def problems(self, place: str) -> list[Problem]:
        """Return the faults as problems of the document's file, `place`, and of the zone files it names."""
        return list(map(in_document(self.parsed.document, place), self.faults))

    def has_same(self, parsed: Parsed) -> bool:
        """Report whether `parsed` differs in nothing but the edge's own settings."""
        mine, other = self.parsed, parsed.document
        own = {"edge": other.edge, "listen": other.listen}
        return (
            mine.content is parsed.content
            and (mine.view and mine.view.registry) is (parsed.view and parsed.view.registry)
            and mine.faults == parsed.faults
            and mine.document.model_copy(update=own) == other
        )


def check(parsed: Parsed, known: Checked | None = None) -> Checked:
    """Check a document. What `known` found is taken from it if all else but the edge's settings is equal."""
    own = (*_listen(parsed.document), *transfers.own_faults(parsed.document))
    if known and known.has_same(parsed):
        return Checked(parsed, own, known.shared, known.clashes)
    return Checked(parsed, own, tuple(_shared(parsed)), dict(clashes(parsed)))


def problems(document: DnsDocument, place: str, registry: Path | None = None) -> list[Problem]:
    """Parse and check a document; return all problems, which name `place`. `registry` is as for `parse`."""
    return check(parse(document, registry)).problems(place)


def zone_faults(content: Content, complete: bool) -> Iterator[Fault]:
    """Yield the faults of zones and hostnames alone.

    Without `complete`, hostnames may be missing, so name servers without an address are not reported.
    """
    yield from content_faults(content)
    if complete:
        yield from name_server_faults(content, content.hostnames.__contains__)


def _shared(parsed: Parsed) -> Iterator[Fault]:
    document, content = parsed.document, parsed.content
    yield from pool_faults(document)
    yield from policy_faults(document)
    yield from transfers.faults(document)
    for path in sealed_in(document):
        fix = "write the file by the playbooks, or with the module unmoor.unmoor.files, which unseals it"
        yield Fault(path, "", "is sealed, but is not a secret", fix)
    yield from pointer_faults(document, content.apexes.values())
    yield from content_faults(content)
    yield from parsed.faults
    if parsed.view:
        own = {apex: zone for apex, zone in content.zones.items() if apex not in content.transferred}
        yield from registry_view.faults(parsed.view, content.apexes, own)
    yield from name_server_faults(content, lambda name: parsed.registered(name) is not None)
    if parsed.count:
        yield from reachability.faults(document, parsed.examples(), transfers.expected(document))


def _listen(document: DnsDocument) -> Iterator[Fault]:
    for index, address in enumerate(document.listen):
        path = ("listen", index)
        if address in document.listen[:index]:
            yield Fault(path, str(address), "is listed twice", "keep one of them")
        if address.is_unspecified or address.is_multicast:
            why = "is not a unicast address, and cannot be the source of replies"
            yield Fault(path, str(address), why, "name each address that clients will ask")
        if address.version == 6 and address.is_link_local:
            yield Fault(path, str(address), "is a link-local address", "name a routable address")
