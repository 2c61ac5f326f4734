"""Checks of the primaries, TSIG keys and catalogs of a document."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import suppress

from unmoor.dns.policy.policies import Classifier, Traits, tags_of
from unmoor.dns.protocol import names
from unmoor.errors import Fault, Key
from unmoor.model import DnsDocument
from unmoor.model.dns import Members, Primary

#: Octets. RFC 8945 section 8 recommends at least the length of the hash's output.
_MIN_SECRET = 16


def faults(document: DnsDocument) -> Iterator[Fault]:
    """Yield the faults of primaries, keys and catalogs; secrets are not shown."""
    yield from _keys(document)
    for index, zone in enumerate(document.zones):
        if zone.primaries and zone.records:
            fix = "keep one: records here, or primaries to transfer them from"
            yield Fault(("zones", index, "primaries"), zone.name, "has records as well", fix)
    for path, primaries in _primaries(document):
        yield from _primary_faults(document, primaries, path)
    apexes = {zone.name.lower().rstrip(".") for zone in document.zones}
    for index, catalog in enumerate(document.catalogs):
        where: Key = ("catalogs", index)
        name = catalog.name.lower().rstrip(".")
        try:
            names.from_text(catalog.name)
        except ValueError as error:
            fix = "write a domain name, as in catalog.example"
            yield Fault((*where, "name"), catalog.name, str(error), fix)
        if name in apexes:
            fix = "rename it, or remove the zone or other catalog"
            yield Fault((*where, "name"), catalog.name, "is the name of a zone or catalog already", fix)
        apexes.add(name)
        yield from _members(catalog.members, (*where, "members"))
        for group, members in catalog.groups.items():
            yield from _members(members, (*where, "groups", group))


def own_faults(document: DnsDocument) -> Iterator[Fault]:
    """Yield primaries that are this server itself."""
    for path, primaries in _primaries(document):
        for position, primary in enumerate(primaries):
            if primary.address in document.listen and primary.port == document.port:
                fix = "name another server"
                yield Fault((*path, position), str(primary.address), "is this server itself", fix)


def expected(document: DnsDocument) -> dict[Traits, bytes]:
    """Return the traits that hostnames of member zones will have, each with an example."""
    classifier = Classifier(document.policies)
    found: dict[Traits, bytes] = {}
    for catalog in document.catalogs:
        for members in (catalog.members, *catalog.groups.values()):
            for group in members.hostnames:
                with suppress(ValueError, IndexError):
                    name = names.from_text(group.names[0], names.from_text(f"member.{catalog.name}"))
                    found[classifier.traits(tags_of(group.tags), name, names.ROOT)] = name
    return found


def _keys(document: DnsDocument) -> Iterator[Fault]:
    for name, key in document.tsig_keys.items():
        path = ("tsig_keys", name)
        try:
            names.from_text(name)
        except ValueError as error:
            yield Fault(path, "", str(error), "name it as the primary does: a domain name")
        try:
            size = len(base64.b64decode(key.secret.get_secret_value(), validate=True))
        except (binascii.Error, ValueError):
            fix = "copy the output of tsig-keygen or keymgr"
            yield Fault((*path, "secret"), "", "is not base64 (the value is not shown)", fix)
            continue
        if size < _MIN_SECRET:
            why = f"is {size} octets long, too few to be secure (the value is not shown)"
            fix = f"use at least {_MIN_SECRET} on both sides; tsig-keygen generates one"
            yield Fault((*path, "secret"), "", why, fix)


def _primaries(document: DnsDocument) -> Iterator[tuple[Key, tuple[Primary, ...]]]:
    """Yield all lists of primaries with their paths."""
    for index, zone in enumerate(document.zones):
        yield ("zones", index, "primaries"), zone.primaries
    for index, catalog in enumerate(document.catalogs):
        path: Key = ("catalogs", index)
        yield (*path, "primaries"), catalog.primaries
        yield (*path, "members", "primaries"), catalog.members.primaries
        for group, members in catalog.groups.items():
            yield (*path, "groups", group, "primaries"), members.primaries


def _primary_faults(document: DnsDocument, primaries: tuple[Primary, ...], path: Key) -> Iterator[Fault]:
    for position, primary in enumerate(primaries):
        where = (*path, position)
        if primary.tsig_key and primary.tsig_key not in document.tsig_keys:
            known = ", ".join(sorted(document.tsig_keys)) or "none"
            fix = f"add it to tsig_keys, or name one that exists: {known}"
            yield Fault((*where, "tsig_key"), primary.tsig_key, "is not a key", fix)
        if (primary.address, primary.port) in [(each.address, each.port) for each in primaries[:position]]:
            yield Fault(where, str(primary.address), "is listed twice", "keep one of them")


def _members(members: Members, path: Key) -> Iterator[Fault]:
    for number, group in enumerate(members.hostnames):
        for position, text in enumerate(group.names):
            why = ""
            try:
                names.from_text(text)
            except ValueError as error:
                why = str(error)
            if text != "@" and text.endswith(".") and not text.endswith("\\."):
                why = "is absolute, but must be relative to the member zone"
            if why:
                where = (*path, "hostnames", number, "names", position)
                yield Fault(where, text, why, "write a name relative to the zone: '@', 'www'")
