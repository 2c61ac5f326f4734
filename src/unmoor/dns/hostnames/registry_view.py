"""A registry under a document: the traits of its hostnames, and its conflicts with the document's zones.

These follow from the registry's kinds and a few look-ups. Only if policies have suffixes inside its zones,
names are read, at most all of them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from unmoor.dns.hostnames.hostnames import Registered
from unmoor.dns.hostnames.registry import Kind, Registry, RegistryError, open_registry
from unmoor.dns.policy.policies import Classifier, Traits
from unmoor.dns.protocol import message, names
from unmoor.dns.zones.static_zone import Zone
from unmoor.errors import Fault
from unmoor.model import DnsDocument

T = TypeVar("T")
Suffixes = frozenset[bytes]


@dataclass(frozen=True, slots=True)
class RegistryView:
    """A registry under a document's policies.

    `inner` maps the registry's zones to the policies' suffixes that lie below the apex and have hostnames.
    """

    registry: Registry
    classifier: Classifier
    inner: Mapping[bytes, Suffixes]

    @classmethod
    def of(cls, document: DnsDocument, registry: Registry) -> RegistryView:
        """Make the view of a registry under a document."""
        classifier = Classifier(document.policies)
        inner: dict[bytes, set[bytes]] = {}
        for suffix in classifier.wanted:
            apex = registry.zone_of(suffix)
            if apex is not None and apex != suffix and registry.exists(suffix):
                inner.setdefault(apex, set()).add(suffix)
        return cls(registry, classifier, {apex: frozenset(found) for apex, found in inner.items()})

    def registered(self, name: bytes) -> Registered | None:
        """Return a hostname's registration; None if it is not in the registry."""
        kind = self.registry.kind_of(name)
        if kind is None:
            return None
        return Registered(kind.apex, self.classifier.traits(kind.tags, name, kind.apex))

    def examples(self) -> Iterator[tuple[Traits, bytes]]:
        """Yield all traits that the registry's hostnames have, each with a hostname that has them."""
        seen = _combinations(self.registry, tuple(sorted(self.inner.items()))) if self.inner else {}
        for kind in self.registry.kinds.values():
            if kind.apex not in self.inner:
                yield self._traits(kind, frozenset()), kind.example
        for (key, below), example in seen.items():
            yield self._traits(self.registry.kinds[key], below), example

    def finder(self, target_of: Callable[[Traits], T]) -> Callable[[bytes], T | None]:
        """Make the fast path's look-up: hostnames to `target_of` of their traits, other names to None."""
        plain: dict[bytes, T] = {}
        split: dict[bytes, tuple[tuple[bytes, ...], dict[Suffixes, T]]] = {}
        for key, kind in self.registry.kinds.items():
            inner = self.inner.get(kind.apex)
            if inner is None:
                plain[key] = target_of(self._traits(kind, frozenset()))
            else:
                chosen = {below: target_of(self._traits(kind, below)) for below in _chains(inner)}
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

    def _traits(self, kind: Kind, below: Suffixes) -> Traits:
        return self.classifier.traits_below(kind.tags, below, kind.apex)


_NONE: Suffixes = frozenset()


def _below(name: bytes, endings: tuple[bytes, ...]) -> Suffixes:
    return frozenset(suffix for suffix in names.suffixes(name) if suffix in endings)


def _chains(inner: Suffixes) -> set[Suffixes]:
    """Return all sets of suffixes that a name can be at or below at the same time."""
    return {_NONE, *(_below(suffix, tuple(inner)) for suffix in inner)}


@lru_cache(maxsize=1)
def _combinations(
    registry: Registry, inner: tuple[tuple[bytes, Suffixes], ...]
) -> dict[tuple[bytes, Suffixes], bytes]:
    """Return the kinds that occur below each set of suffixes, with an example.

    Reads names until all possible combinations have occurred. The result is cached, so that a change of
    pools does not read the file again.
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


def load(document: DnsDocument, file: Path | None = None) -> tuple[RegistryView | None, tuple[Fault, ...]]:
    """Return a view of the document's registry, or of its copy `file`, and faults; None without one."""
    if document.registry is None:
        return None, ()
    path = file or Path(document.registry.path)
    try:
        return RegistryView.of(document, open_registry(path, document.registry.sha256)), ()
    except RegistryError as error:
        return None, (Fault(_PATH, str(path), error.why, error.fix),)


def faults(view: RegistryView, apexes: Mapping[int, bytes], zones: Mapping[bytes, Zone]) -> Iterator[Fault]:
    """Yield the registry's conflicts with the document's zones, found without reading all names."""
    registry = view.registry
    for apex in registry.zones:
        kinds = registry.names_in(apex)
        if kinds and apex not in apexes.values():
            count = sum(kind.count for kind in kinds)
            why = (
                f"holds {count} hostnames of {names.to_text(apex)}, such as "
                f"{names.to_text(kinds[0].example)}, and the document has no such zone"
            )
            yield Fault(_PATH, str(registry.path), why, _ZONES)
    for apex in apexes.values():
        built_for = registry.zone_of(apex)
        if built_for not in (None, apex) and registry.exists(apex):
            why = f"was built without the zone {names.to_text(apex)}, and holds hostnames there"
            fix = f"build it again with --zone {names.to_text(apex)} as well"
            yield Fault(_PATH, str(registry.path), why, fix)
    for zone in zones.values():
        yield from (fault for _, fault in clashes(registry, zone))


_PATH = ("registry", "path")
_ZONES = "add the zone to the document, or build the registry again without these names"


def clashes(registry: Registry, zone: Zone) -> Iterator[tuple[bytes, Fault]]:
    """Yield hostnames that clash with a zone's records, and the fault; one for each delegation."""
    for name, node in zone.nodes.items():
        if node.keys() & {message.A, message.AAAA, message.CNAME} and registry.kind_of(name):
            why = "is in the registry, and has a static address or CNAME record as well"
            fix = "remove the record or the hostname"
            yield name, Fault(("registry",), names.to_text(name), why, fix)
    for cut in zone.cuts:
        below = _first_at_or_below(registry, cut, zone.apex)
        if below is not None:
            why = f"is in the registry, but below {names.to_text(cut)}, which is delegated"
            fix = "remove it from the registry, or remove the NS or DNAME record"
            yield below, Fault(("registry",), names.to_text(below), why, fix)


def _first_at_or_below(registry: Registry, cut: bytes, apex: bytes) -> bytes | None:
    if cut == apex:
        return next((kind.example for kind in registry.names_in(apex)), None)
    if registry.kind_of(cut):
        return cut
    return registry.first_below(cut) if registry.exists(cut) else None
