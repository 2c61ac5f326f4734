"""The hostnames of a document, with their zones and the traits that policies match."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unmoor.dns.policy.policies import Classifier, Traits, tags_of
from unmoor.dns.protocol import message, names
from unmoor.dns.zones.static_zone import Zone
from unmoor.errors import Fault
from unmoor.model import Hostnames


@dataclass(frozen=True, slots=True)
class Registered:
    """A hostname's registration: the apex of its zone, and its traits."""

    apex: bytes
    traits: Traits


def read(
    groups: Mapping[int, tuple[bytes, Sequence[Hostnames]]],
    zones: Mapping[bytes, Zone | None],
    classifier: Classifier,
) -> tuple[dict[bytes, Registered], list[Fault]]:
    """Return all hostnames of a document's zones, and the faults.

    `groups` maps the index of a zone in the document to its apex and hostnames. `zones` maps the apex of each
    parsed zone to the zone, and that of one whose records are not known to None. Hostnames that clash with a
    zone's records are faults.
    """
    found: dict[bytes, Registered] = {}
    faults: list[Fault] = []
    # Hostnames with equal registrations share one object, which saves some 80 octets a name.
    shared: dict[Registered, Registered] = {}
    for index, (apex, listed) in groups.items():
        objection = _objections(apex, zones)
        for number, group in enumerate(listed):
            tags = tags_of(group.tags)
            for position, text in enumerate(group.names):
                try:
                    name = names.from_text(text, apex)
                    why, fix = objection(name)
                except ValueError as error:
                    why, fix = str(error), "write a name as in 'www', or absolute with a final dot"
                else:
                    if not why and name in found:
                        why, fix = "is registered twice", "keep one of them"
                if why:
                    path = ("zones", index, "hostnames", number, "names", position)
                    faults.append(Fault(path, text, why, fix))
                    continue
                registered = Registered(apex, classifier.traits(tags, name, apex))
                found[name] = shared.setdefault(registered, registered)
    return found, faults


def _objections(apex: bytes, zones: Mapping[bytes, Zone | None]) -> Callable[[bytes], tuple[str, str]]:
    """Make a function that returns why a name cannot be in the zone, and the fix; both empty if it can."""
    zone = zones.get(apex)
    inner = {other for other in zones if other != apex and names.is_below(other, apex)}
    shown = names.to_text(apex)

    def objection(name: bytes) -> tuple[str, str]:
        if not names.is_below(name, apex):
            return (
                f"is outside its zone {shown}",
                f"register it in its own zone, or write it relative to {shown}",
            )
        if inner and (owner := next((s for s in names.suffixes(name) if s in inner), None)):
            return f"belongs to the zone {names.to_text(owner)}", "register it there"
        return clash(zone, name) if zone else ("", "")

    return objection


def clash(zone: Zone, name: bytes) -> tuple[str, str]:
    """Return why a hostname clashes with the zone's records, and the fix; both empty if it does not."""
    if zone.nodes.get(name, {}).keys() & {message.A, message.AAAA, message.CNAME}:
        return "has a static address or CNAME record as well", "remove the record or the hostname"
    if cut := zone.cut_above(name):
        return (
            f"is below {names.to_text(cut)}, which is delegated",
            "register it in the delegated zone",
        )
    return "", ""
