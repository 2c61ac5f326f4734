"""Validation of the primaries, TSIG keys and catalogs of a document."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import suppress

from unmoor.dns.policy.policies import Classifier, Traits, tags_of
from unmoor.dns.protocol import names
from unmoor.errors import Problem
from unmoor.model import DnsDocument
from unmoor.model.dns import Members, Primary

#: Octets. RFC 8945 section 8 recommends at least the length of the hash's output.
_MIN_SECRET = 16


def problems(document: DnsDocument, place: str) -> Iterator[Problem]:
    """Yield the problems of primaries, keys and catalogs; secrets are not shown."""
    yield from _keys(document, place)
    for index, zone in enumerate(document.zones):
        key = f"zones.{index}"
        if zone.primaries and zone.records:
            fix = "keep one: records here, or primaries to transfer them from"
            yield Problem(place, f"{key}.primaries", zone.name, "has records as well", fix)
        yield from _primaries(document, zone.primaries, f"{key}.primaries", place)
    apexes = {zone.name.lower().rstrip(".") for zone in document.zones}
    for index, catalog in enumerate(document.catalogs):
        key = f"catalogs.{index}"
        name = catalog.name.lower().rstrip(".")
        try:
            names.from_text(catalog.name)
        except ValueError as error:
            fix = "write a domain name, as in catalog.example"
            yield Problem(place, f"{key}.name", catalog.name, str(error), fix)
        if name in apexes:
            fix = "rename it, or remove the zone or other catalog"
            yield Problem(place, f"{key}.name", catalog.name, "is the name of a zone or catalog already", fix)
        apexes.add(name)
        yield from _primaries(document, catalog.primaries, f"{key}.primaries", place)
        yield from _members(document, catalog.members, f"{key}.members", place)
        for group, members in catalog.groups.items():
            yield from _members(document, members, f"{key}.groups.{group}", place)


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


def _keys(document: DnsDocument, place: str) -> Iterator[Problem]:
    for name, key in document.tsig_keys.items():
        where = f"tsig_keys.{name}"
        try:
            names.from_text(name)
        except ValueError as error:
            yield Problem(place, where, "", str(error), "name it as the primary does: a domain name")
        try:
            size = len(base64.b64decode(key.secret.get_secret_value(), validate=True))
        except (binascii.Error, ValueError):
            fix = "copy the output of tsig-keygen or keymgr"
            yield Problem(place, f"{where}.secret", "", "is not base64 (the value is not shown)", fix)
            continue
        if size < _MIN_SECRET:
            why = f"is {size} octets long, too few to be secure (the value is not shown)"
            fix = f"use at least {_MIN_SECRET} on both sides; tsig-keygen generates one"
            yield Problem(place, f"{where}.secret", "", why, fix)


def _primaries(
    document: DnsDocument, primaries: tuple[Primary, ...], key: str, place: str
) -> Iterator[Problem]:
    for position, primary in enumerate(primaries):
        where = f"{key}.{position}"
        if primary.tsig_key and primary.tsig_key not in document.tsig_keys:
            known = ", ".join(sorted(document.tsig_keys)) or "none"
            fix = f"add it to tsig_keys, or name one that exists: {known}"
            yield Problem(place, f"{where}.tsig_key", primary.tsig_key, "is not a key", fix)
        if (primary.address, primary.port) in [(each.address, each.port) for each in primaries[:position]]:
            yield Problem(place, where, str(primary.address), "is listed twice", "keep one of them")
        if primary.address in document.listen and primary.port == document.port:
            fix = "name another server"
            yield Problem(place, where, str(primary.address), "is this server itself", fix)


def _members(document: DnsDocument, members: Members, key: str, place: str) -> Iterator[Problem]:
    yield from _primaries(document, members.primaries, f"{key}.primaries", place)
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
                where = f"{key}.hostnames.{number}.names.{position}"
                yield Problem(place, where, text, why, "write a name relative to the zone: '@', 'www'")
