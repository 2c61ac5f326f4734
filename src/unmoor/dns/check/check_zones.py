"""Checks of zones and hostnames, which need no other part of a document."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from unmoor.dns.hostnames import hostnames, registry_view
from unmoor.dns.parse.content import Content
from unmoor.dns.parse.document import Parsed
from unmoor.dns.protocol import message, names
from unmoor.dns.zones import static_zone
from unmoor.errors import Fault


def content_faults(content: Content) -> Iterator[Fault]:
    """Yield the faults of zone files and hostnames."""
    yield from content.faults
    for index, records in content.records.items():
        path = ("zones", index, "records")
        for error in records.errors:
            yield Fault(path, "", error.why, error.fix, error.line)
        for each in records.occluded:
            why = f"is below {names.to_text(each.cut)}, which is delegated: it is never answered"
            fix = "remove it here; keep address records as glue only"
            yield Fault(path, names.to_text(each.name), why, fix, each.line)


def name_server_faults(content: Content, is_registered: Callable[[bytes], bool]) -> Iterator[Fault]:
    """Yield name servers that lie in their zone and have no address there (RFC 1912 section 2.8)."""
    for index, apex in content.apexes.items():
        if apex in content.transferred or not (zone := content.zones.get(apex)):
            continue
        for (target,) in zone.nodes[apex][message.NS].rdatas:
            name = names.fold(target)
            if not names.is_below(name, apex) or static_zone.addresses(zone, [name]) or is_registered(name):
                continue
            if (cut := zone.cut_above(name)) and cut != apex:
                continue
            why = f"is a name server of {names.to_text(apex)} without an address in the zone"
            fix = "add its A or AAAA record (a CNAME is not allowed)"
            yield Fault(("zones", index, "records"), names.to_text(name), why, fix)


def clashes(parsed: Parsed) -> Iterator[tuple[bytes, dict[bytes, Fault]]]:
    """Yield the hostnames that clash with the records of each transferred zone, by apex."""
    registered = parsed.content.hostnames
    for apex in parsed.content.apexes.values():
        if apex not in parsed.content.transferred:
            continue
        zone = parsed.content.zones[apex]
        found = dict(registry_view.clashes(parsed.view.registry, zone)) if parsed.view else {}
        # Loop over the zone's names, which are usually fewer, unless delegations cover names that it lacks.
        for name in registered if zone.cuts else zone.nodes:
            each = registered.get(name)
            why, fix = hostnames.clash(zone, name) if each and each.apex == apex else ("", "")
            if why:
                found[name] = Fault(("hostname",), names.to_text(name), why, fix)
        if found:
            yield apex, found
