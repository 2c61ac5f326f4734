"""The zones and hostnames of a document, parsed. Documents with the same zones share one content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from unmoor.dns.hostnames import hostnames
from unmoor.dns.hostnames.hostnames import Registered
from unmoor.dns.policy.policies import Classifier, Traits
from unmoor.dns.protocol import names
from unmoor.dns.zones import static_zone
from unmoor.dns.zones.static_zone import Occluded
from unmoor.dns.zones.zone_file import ZoneFileError
from unmoor.dns.zones.zone_store import NOT_READY
from unmoor.errors import Fault
from unmoor.model import Policy, Zone
from unmoor.model.documents import BrokenZone

#: No copies of transferred zones.
NO_COPIES: Mapping[bytes, static_zone.Zone] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a zone file: its errors, and the records that are never answered."""

    errors: tuple[ZoneFileError, ...]
    occluded: tuple[Occluded, ...]


@dataclass(frozen=True, slots=True, eq=False)  # compared by `is_of`, not field by field
class Content:
    """The zones and hostnames that are right, by apex and by name (wire form, lower case), and the faults.

    `apexes` maps the index of each zone in the document to its apex; zones without a name of their own are
    left out. `records` has the zone files by index. `zones` includes transferred zones, which `transferred`
    names. `examples` maps all traits of the hostnames to a hostname that has them.
    """

    given: tuple[Zone | BrokenZone, ...]
    apexes: Mapping[int, bytes]
    records: Mapping[int, Records]
    zones: dict[bytes, static_zone.Zone]
    transferred: frozenset[bytes]
    hostnames: dict[bytes, Registered]
    examples: Mapping[Traits, bytes]
    faults: tuple[Fault, ...]
    #: What else the content was made from.
    classifier: Classifier
    copies: Mapping[bytes, static_zone.Zone | None]

    def is_of(
        self,
        zones: Sequence[Zone | BrokenZone],
        classifier: Classifier,
        copies: Mapping[bytes, static_zone.Zone],
    ) -> bool:
        """Report whether parsing these would give an equal content.

        A copy of a transferred zone must be the same object: a newer copy is another one.
        """
        return (
            self.given == zones
            and self.classifier.is_equivalent(classifier)
            and all(copies.get(apex) is copy for apex, copy in self.copies.items())
        )


def parse(
    zones: Sequence[Zone | BrokenZone],
    policies: Iterable[Policy] = (),
    copies: Mapping[bytes, static_zone.Zone] = NO_COPIES,
    known: Iterable[Content] = (),
) -> Content:
    """Parse the zones of a document, whose policies determine which traits hostnames have.

    `copies` maps the apexes of transferred zones to their copies; transferred zones without one are empty and
    marked as not ready. A content of `known` that would be equal is returned instead of a new one.
    """
    classifier = Classifier(policies)
    for content in known:
        if content.is_of(zones, classifier, copies):
            return content
    apexes, faults = _apexes(zones)
    records: dict[int, Records] = {}
    right: dict[bytes, static_zone.Zone] = {}
    transferred: dict[bytes, static_zone.Zone] = {}
    unknown: set[bytes] = set()
    for index, apex in apexes.items():
        zone = zones[index]
        if isinstance(zone, Zone) and zone.primaries:
            copy = copies.get(apex) or static_zone.unavailable(apex, NOT_READY)
            # A copy of the nodes: the names above hostnames are added to it.
            transferred[apex] = replace(copy, nodes=dict(copy.nodes))
        elif zone.records is None:
            unknown.add(apex)
        else:
            made, records[index] = _records(zone.records, apex)
            if made and not records[index].errors:
                right[apex] = made
    groups = {index: (apex, zones[index].hostnames or ()) for index, apex in apexes.items()}
    static: dict[bytes, static_zone.Zone | None] = {**right, **dict.fromkeys((*transferred, *unknown))}
    registered, name_faults = hostnames.read(groups, static, classifier)
    both = right | transferred
    examples: dict[Traits, bytes] = {}
    for name, each in registered.items():
        examples.setdefault(each.traits, name)
        if each.apex in both:
            both[each.apex].add_name(name)
    return Content(
        given=tuple(zones),
        apexes=apexes,
        records=records,
        zones=both,
        transferred=frozenset(transferred),
        hostnames=registered,
        examples=examples,
        faults=(*faults, *name_faults),
        classifier=classifier,
        copies={apex: copies.get(apex) for apex in transferred},
    )


def _apexes(zones: Sequence[Zone | BrokenZone]) -> tuple[dict[int, bytes], list[Fault]]:
    found: dict[int, bytes] = {}
    faults: list[Fault] = []
    for index, zone in enumerate(zones):
        if zone.name is None:
            continue
        path = ("zones", index, "name")
        try:
            apex = names.from_text(zone.name)
        except ValueError as error:
            faults.append(Fault(path, zone.name, str(error), "write a domain name, as in example.com"))
            continue
        if apex in found.values():
            faults.append(Fault(path, zone.name, "is the name of two zones", "merge them"))
            continue
        found[index] = apex
    return found, faults


def _records(text: str, apex: bytes) -> tuple[static_zone.Zone | None, Records]:
    zone, file = static_zone.parse(text, apex)
    occluded = tuple(static_zone.occluded(zone, file)) if zone else ()
    return zone, Records(tuple(file.errors), occluded)
