"""Catalog zones (RFC 9432): parse their member zones, and add these to a document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from unmoor.dns.protocol import message, names
from unmoor.dns.zones.static_zone import Zone
from unmoor.dns.zones.zone_store import CopyKey, Store, current
from unmoor.model import DnsDocument
from unmoor.model import Zone as ZoneDocument

_VERSION, _ZONES, _COO, _GROUP = b"\7version", b"\5zones", b"\3coo", b"\5group"


class BrokenCatalogError(Exception):
    """A catalog zone that is broken and must not be processed (RFC 9432 section 5.1)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A member zone in a catalog.

    `unique` is the unique label in hexadecimal, `owner` the catalog that the property `coo` names (section
    4.3.1), and `groups` are the values of the property `group` (section 4.3.2).
    """

    unique: str
    owner: bytes | None
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A member zone and the catalog that it belongs to, with names as text.

    `state` changes when the zone must be reset (section 5): when its unique label changes, and when it
    moves to another catalog without `coo` of the first.
    """

    name: str
    catalog: str
    group: str
    state: str

    @property
    def apex(self) -> bytes:
        """The zone's name in wire form."""
        return names.from_text(self.name)

    @property
    def key(self) -> CopyKey:
        """The key of the zone's copy."""
        return CopyKey(self.apex, self.state)


def parse(zone: Zone) -> dict[bytes, Entry]:
    """Return a catalog's member zones by apex. Raises BrokenCatalogError."""
    versions = _texts(zone, _VERSION + zone.apex)
    if versions != ["2"]:
        found_versions = ", ".join(versions) or "none"
        why = f"must have one TXT record 'version' with the value 2 (RFC 9432 4.2.1), has {found_versions}"
        raise BrokenCatalogError(why)
    found: dict[bytes, Entry] = {}
    for node in _nodes(zone):
        label = next(names.labels(node))
        member = _one_name(zone, node)
        if member is None:
            continue
        if member in found:
            raise BrokenCatalogError(f"names {names.to_text(member)} twice")
        owner = _one_name(zone, _COO + node)
        found[member] = Entry(label.hex(), owner, tuple(_texts(zone, _GROUP + node)))
    return found


def _nodes(zone: Zone) -> Iterator[bytes]:
    """Yield the member nodes, one label below 'zones' (section 4.1)."""
    above = _ZONES + zone.apex
    yield from (name for name in zone.nodes if names.parent(name) == above)


def _one_name(zone: Zone, owner: bytes) -> bytes | None:
    """Return the target of the PTR record at `owner`, None without one. Several break the catalog."""
    found = zone.nodes.get(owner, {}).get(message.PTR)
    if found is None:
        return None
    if len(found.rdatas) > 1:
        raise BrokenCatalogError(f"has several PTR records at {names.to_text(owner)}")
    return names.fold(found.rdatas[0][0])


def _texts(zone: Zone, owner: bytes) -> list[str]:
    found = zone.nodes.get(owner, {}).get(message.TXT)
    return [_text(data) for (data,) in found.rdatas] if found else []


def _text(data: bytes) -> str:
    """Join a TXT record's strings."""
    parts, at = [], 0
    while at < len(data):
        parts.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return b"".join(parts).decode(errors="replace")


def merge(
    document: DnsDocument, listed: Mapping[bytes, Mapping[bytes, Entry]], before: Iterable[Member]
) -> tuple[list[Member], list[str]]:
    """Assign each member zone to a catalog.

    `listed` maps catalogs that could be parsed to their entries; `before` are the members so far. Returns
    the members, and warnings about zones that catalogs list and cannot have.
    """
    catalogs = {names.from_text(each.name): each for each in document.catalogs}
    configured = {names.from_text(zone.name) for zone in document.zones} | catalogs.keys()
    earlier = {member.apex: member for member in before}
    found: list[Member] = []
    warnings = []
    order = [apex for apex in catalogs if apex in listed]
    # Members of a catalog that is not transferred yet, or is broken, are kept.
    found += [
        member
        for member in earlier.values()
        if (apex := names.from_text(member.catalog)) in catalogs
        and apex not in listed
        and member.apex not in configured
    ]
    kept = {member.apex for member in found}
    for name in sorted({name for apex in order for name in listed[apex]}):
        shown, owners = names.to_text(name), [apex for apex in order if name in listed[apex]]
        if name in configured:
            warnings.append(
                f"{shown}, of {_row(owners)}, is configured in the document, which takes precedence"
            )
            continue
        if name in kept:
            continue
        previous = earlier.get(name)
        holder = names.from_text(previous.catalog) if previous else owners[0]
        if holder not in owners:
            holder, previous = owners[0], None
        passed = [holder]
        # A change of ownership needs `coo` in the old catalog and an entry in the new one (section 4.3.1).
        while (
            (owner := listed[passed[-1]][name].owner) in owners and owner is not None and owner not in passed
        ):
            passed.append(owner)
        if owner not in passed:  # a cycle of `coo` properties changes nothing
            holder = passed[-1]
        if others := [apex for apex in owners if apex not in passed]:
            warnings.append(f"{shown} belongs to {names.to_text(holder)}; {_row(others)} cannot own it")
        entry = listed[holder][name]
        state = f"{names.to_text(holder)} {entry.unique}"
        if previous and previous.state.endswith(f" {entry.unique}"):
            state = previous.state
        group = next((group for group in catalogs[holder].groups if group in entry.groups), "")
        found.append(Member(shown, names.to_text(holder), group, state))
    return found, warnings


def _row(apexes: Iterable[bytes]) -> str:
    return ", ".join(map(names.to_text, apexes))


def dump(members: Iterable[Member]) -> list[dict[str, str]]:
    """Convert members to the form that `load` reads."""
    return [asdict(member) for member in members]


def load(kept: Iterable[dict[str, str]]) -> list[Member]:
    """Convert what `dump` returned. Invalid members are skipped: parsing their catalog finds them again."""
    found = []
    for each in kept:
        try:
            member = Member(**each)
            names.from_text(member.catalog), names.from_text(member.name)
        except (TypeError, ValueError):
            continue
        found.append(member)
    return found


def expand(document: DnsDocument, members: Iterable[Member]) -> tuple[DnsDocument, dict[bytes, CopyKey]]:
    """Return the document with member zones added, and the keys of all transferred zones by apex."""
    catalogs = {_wire(each.name): each for each in document.catalogs}
    taken = {_wire(zone.name) for zone in document.zones}
    keys = {_wire(zone.name): CopyKey(_wire(zone.name)) for zone in document.zones if zone.primaries}
    added = []
    for member in members:
        catalog = catalogs.get(names.from_text(member.catalog))
        if catalog is None or member.apex in taken:
            continue
        how = catalog.groups.get(member.group, catalog.members)
        primaries = how.primaries or catalog.members.primaries or catalog.primaries
        added.append(ZoneDocument(name=member.name, primaries=primaries, hostnames=how.hostnames))
        keys[member.apex] = member.key
    keys.pop(b"", None)
    return document.model_copy(update={"zones": document.zones + tuple(added)}) if added else document, keys


def served(document: DnsDocument, store: Store, now: float) -> tuple[DnsDocument, dict[bytes, Zone]]:
    """Return the document with member zones added, and its transferred zones as of `now` (Unix time)."""
    whole, keys = expand(document, load(store.members()) if document.catalogs else ())
    return whole, current(store, keys.values(), now)


def _wire(text: str) -> bytes:
    """Return a name in wire form; empty for an invalid name, which `check` reports."""
    try:
        return names.from_text(text)
    except ValueError:
        return b""
