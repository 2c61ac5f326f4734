"""The registered names of a document: read, placed in their zones, grouped by what policies see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from unmoor.dns.policy.policies import Classifier, Subject, tags_of
from unmoor.dns.protocol import message, names
from unmoor.dns.zones.static_zone import Zone
from unmoor.errors import Problem
from unmoor.model import DnsDocument


@dataclass(frozen=True, slots=True)
class Registered:
    """What is known of a hostname: its zone's apex, and its subject."""

    apex: bytes
    subject: Subject


def read(
    document: DnsDocument, apexes: Mapping[int, bytes], zones: Mapping[bytes, Zone | None], place: str
) -> tuple[dict[bytes, Registered], list[Problem]]:
    """Read every hostname of the zones in `apexes` (index in the document to apex).

    `zones` are those whose files could be read; names that clash with their records are problems. None
    stands for a zone that is transferred.
    """
    found: dict[bytes, Registered] = {}
    problems: list[Problem] = []
    classifier = Classifier(document.policies)
    # One object for all names of a zone that policies treat alike: twenty bytes a name, not a hundred.
    shared: dict[Registered, Registered] = {}
    for index, apex in apexes.items():
        objection = _objections(apex, zones)
        for number, group in enumerate(document.zones[index].hostnames):
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
                    key = f"zones.{index}.hostnames.{number}.names.{position}"
                    problems.append(Problem(place, key, text, why, fix))
                    continue
                registered = Registered(apex, classifier.subject(tags, name, apex))
                found[name] = shared.setdefault(registered, registered)
    return found, problems


def _objections(apex: bytes, zones: Mapping[bytes, Zone | None]) -> Callable[[bytes], tuple[str, str]]:
    """Give a function that says why a name cannot be registered in the zone, and the fix; or two empties."""
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
    """Say why a hostname cannot stand beside the zone's records, and the fix; or two empties."""
    if zone.nodes.get(name, {}).keys() & {message.A, message.AAAA, message.CNAME}:
        return "has a static address or CNAME record as well", "remove the record or the hostname"
    if cut := zone.cut_above(name):
        return (
            f"is below {names.to_text(cut)}, which is delegated",
            "register it in the zone that it is in",
        )
    return "", ""
