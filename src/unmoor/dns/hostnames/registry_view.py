"""The registry as one document sees it: what its policies make of the names, and whether its zones suit them.

All of it follows from the kinds that the registry says it has, from a few look-ups, and, only where policies
name suffixes inside its zones, from one pass over the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from unmoor.dns.hostnames.hostnames import Registered
from unmoor.dns.hostnames.registry import Kind, Registry, RegistryError, open_registry
from unmoor.dns.policy.policies import Classifier, Subject
from unmoor.dns.protocol import message, names
from unmoor.dns.zones.static_zone import Zone
from unmoor.errors import Problem
from unmoor.model import DnsDocument

T = TypeVar("T")
Suffixes = frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A registry, and the document's way of telling its names apart.

    `inner` are, for each of its zones, the suffixes below the apex that policies name and names have.
    """

    registry: Registry
    classifier: Classifier
    inner: Mapping[bytes, Suffixes]

    @classmethod
    def of(cls, document: DnsDocument, registry: Registry) -> Enrolled:
        """Look at a registry with the eyes of a document."""
        classifier = Classifier(document.policies)
        inner: dict[bytes, set[bytes]] = {}
        for suffix in classifier.wanted:
            apex = registry.zone_of(suffix)
            if apex is not None and apex != suffix and registry.exists(suffix):
                inner.setdefault(apex, set()).add(suffix)
        return cls(registry, classifier, {apex: frozenset(found) for apex, found in inner.items()})

    def registered(self, name: bytes) -> Registered | None:
        """What is known of a hostname."""
        kind = self.registry.kind_of(name)
        if kind is None:
            return None
        return Registered(kind.apex, self.classifier.subject(kind.tags, name, kind.apex))

    def subjects(self) -> Iterator[tuple[Subject, bytes]]:
        """What policies can tell its names apart by, exactly, each with a name of that sort."""
        seen = _combinations(self.registry, tuple(sorted(self.inner.items()))) if self.inner else {}
        for kind in self.registry.kinds.values():
            if kind.apex not in self.inner:
                yield self._subject(kind, frozenset()), kind.example
        for (key, below), example in seen.items():
            yield self._subject(self.registry.kinds[key], below), example

    def finder(self, target_of: Callable[[Subject], T]) -> Callable[[bytes], T | None]:
        """Make the look-up of the serving path: from a name to what `target_of` gives for its subject."""
        plain: dict[bytes, T] = {}
        split: dict[bytes, tuple[tuple[bytes, ...], dict[Suffixes, T]]] = {}
        for key, kind in self.registry.kinds.items():
            inner = self.inner.get(kind.apex)
            if inner is None:
                plain[key] = target_of(self._subject(kind, frozenset()))
            else:
                chosen = {below: target_of(self._subject(kind, below)) for below in _chains(inner)}
                split[key] = tuple(inner), chosen
        if not split:
            return self.registry.finder(plain.get)
        find = self.registry.find

        def found(name: bytes) -> T | None:
            key = find(name)
            if key is None or key in plain or key not in split:
                return plain.get(key or b"")
            endings, targets = split[key]
            return targets[_below(name, endings) if name.endswith(endings) else _NONE]

        return found

    def _subject(self, kind: Kind, below: Suffixes) -> Subject:
        return self.classifier.subject_below(kind.tags, below, kind.apex)


_NONE: Suffixes = frozenset()


def _below(name: bytes, endings: tuple[bytes, ...]) -> Suffixes:
    return frozenset(suffix for suffix in names.suffixes(name) if suffix in endings)


def _chains(inner: Suffixes) -> set[Suffixes]:
    """Every set of suffixes that one name can be below at once."""
    return {_NONE, *(_below(suffix, tuple(inner)) for suffix in inner)}


@lru_cache(maxsize=1)
def _combinations(
    registry: Registry, inner: tuple[tuple[bytes, Suffixes], ...]
) -> dict[tuple[bytes, Suffixes], bytes]:
    """Which kinds occur below which suffixes, each with a name; reads names until all that can be are seen.

    Kept for the next look at the same file: a change of pools does not read it again.
    """
    found: dict[tuple[bytes, Suffixes], bytes] = {}
    zones = dict(inner)
    missing = {key: _chains(zones[kind.apex]) for key, kind in registry.kinds.items() if kind.apex in zones}
    endings = {key: tuple(zones[registry.kinds[key].apex]) for key in missing}
    for name, key in registry.entries():
        wanted = missing.get(key)
        if wanted is None:
            continue
        below = _below(name, endings[key]) if name.endswith(endings[key]) else _NONE
        if below in wanted:
            found[key, below] = name
            wanted.discard(below)
            if not wanted:
                del missing[key]
                if not missing:
                    break
    return found


def load(
    document: DnsDocument, place: str, file: Path | None = None
) -> tuple[Enrolled | None, list[Problem]]:
    """Open the registry that a document names, or `file`, which is the same one elsewhere."""
    if document.registry is None:
        return None, []
    path = file or Path(document.registry.path)
    try:
        return Enrolled.of(document, open_registry(path, document.registry.sha256)), []
    except RegistryError as error:
        return None, [Problem(place, "registry.path", str(path), error.why, error.fix)]


def problems(
    enrolled: Enrolled, apexes: Mapping[int, bytes], zones: Mapping[bytes, Zone], place: str
) -> Iterator[Problem]:
    """What of the registry does not suit the document's zones: found from their side, not name by name."""
    registry = enrolled.registry
    for apex in registry.zones:
        kinds = registry.names_in(apex)
        if kinds and apex not in apexes.values():
            count = sum(kind.count for kind in kinds)
            why = (
                f"holds {count} hostnames of {names.to_text(apex)}, such as "
                f"{names.to_text(kinds[0].example)}, and the document has no such zone"
            )
            yield Problem(place, "registry.path", str(registry.path), why, _ZONES)
    for apex in apexes.values():
        built_for = registry.zone_of(apex)
        if built_for not in (None, apex) and registry.exists(apex):
            why = f"was built without the zone {names.to_text(apex)}, and holds hostnames there"
            fix = f"build it again with --zone {names.to_text(apex)} as well"
            yield Problem(place, "registry.path", str(registry.path), why, fix)
    for zone in zones.values():
        yield from (problem for _, problem in clashes(registry, zone, place))


_ZONES = "add the zone to the document, or build the registry again without these names"


def clashes(registry: Registry, zone: Zone, place: str) -> Iterator[tuple[bytes, Problem]]:
    """Names of the registry that cannot stand beside a zone's records; below a delegation, one of them."""
    for name, node in zone.nodes.items():
        if node.keys() & {message.A, message.AAAA, message.CNAME} and registry.kind_of(name):
            why = "is in the registry, and has a static address or CNAME record as well"
            fix = "remove the record or the hostname"
            yield name, Problem(place, "registry", names.to_text(name), why, fix)
    for cut in zone.cuts:
        below = _first_at_or_below(registry, cut, zone.apex)
        if below is not None:
            why = f"is in the registry, but below {names.to_text(cut)}, which is delegated"
            fix = "remove it from the registry, or remove the NS or DNAME record"
            yield below, Problem(place, "registry", names.to_text(below), why, fix)


def _first_at_or_below(registry: Registry, cut: bytes, apex: bytes) -> bytes | None:
    if cut == apex:
        return next((kind.example for kind in registry.names_in(apex)), None)
    if registry.kind_of(cut):
        return cut
    return registry.first_below(cut) if registry.exists(cut) else None
