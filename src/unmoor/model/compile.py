"""Compile an inventory into the two documents of each edge, with every problem of it at once.

Reads only the zone, hostname and registry files that the inventory names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unmoor import paths
from unmoor.errors import Problem
from unmoor.model.checks import Surroundings, check
from unmoor.model.common import problems_of
from unmoor.model.dns import DnsDocument, Primary, RegistryFile, Zone
from unmoor.model.documents import Documents
from unmoor.model.edge import EdgeDocument, Service
from unmoor.model.files import RegistryMaker, read_registry, read_zone
from unmoor.model.groups import POP_GROUP, VANTAGE_GROUP, group_problems, pop_groups
from unmoor.model.variables import DNS_SETTINGS, HOST_PLACE, PREFIX, Source, Variables, ZoneFiles


@dataclass(frozen=True)
class Draft:
    """The zones of an edge whose variables are wrong, as far as they could be read.

    With it the content of zone files is checked in the same run as the variables. A zone that could not be
    read is represented by a transferred one, whose content is unknown.
    """

    dns: DnsDocument
    #: Whether every hostname was read; only then can a missing one be reported.
    complete: bool


@dataclass(frozen=True)
class Compiled:
    """The documents of each edge whose variables are right, drafts of the others, and every problem."""

    documents: dict[str, Documents]
    problems: tuple[Problem, ...]
    drafts: dict[str, Draft] = field(default_factory=dict)


def compile_inventory(
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    directories: Mapping[str, Path],
    place_of: Callable[[Any], str],
    registry_of: RegistryMaker | None = None,
    machines: Mapping[str, str] | None = None,
) -> Compiled:
    """Compile the variables of `hosts` into documents.

    `groups` are the inventory's groups with their members. `directories` has the directory of each host's
    inventory, to which file names are relative. `place_of` is as in Source. `machines` has the name or
    address by which each host is reached.
    """
    problems = list(group_problems(groups))
    if any(problem.key.startswith(f"group {POP_GROUP}") for problem in problems):
        return Compiled({}, tuple(problems))  # nothing compiles without the names of PoPs
    pops = {name.removeprefix(POP_GROUP): members for name, members in pop_groups(groups).items()}
    surroundings = Surroundings(tuple(pops), tuple(groups.get(VANTAGE_GROUP, ())), machines or {})
    documents: dict[str, Documents] = {}
    drafts: dict[str, Draft] = {}
    for pop, members in pops.items():
        for host in members:
            given = {key: value for key, value in hosts[host].items() if key.startswith(PREFIX)}
            source = Source(host, given, directories[host], place_of)
            compiled = _compile_host(source, pop, surroundings, registry_of)
            problems += source.problems
            if isinstance(compiled, Documents):
                documents[host] = compiled
            else:
                drafts[host] = compiled
    problems += _shared_addresses(documents)
    return Compiled(documents, merged(problems), drafts)


def merged(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Merge equal problems of several hosts into one that names them all."""
    hosts: dict[Problem, list[str]] = defaultdict(list)
    for problem in problems:
        same = replace(problem, place="") if problem.place.startswith(HOST_PLACE) else problem
        host = problem.place.removeprefix(HOST_PLACE)
        if host not in hosts[same]:
            hosts[same].append(host)
    return tuple(
        problem if problem.place else replace(problem, place=HOST_PLACE + ", ".join(names))
        for problem, names in hosts.items()
    )


def _compile_host(
    source: Source, pop: str, surroundings: Surroundings, registry_of: RegistryMaker | None
) -> Documents | Draft:
    given = {key.removeprefix(PREFIX): value for key, value in source.variables.items()}
    try:
        variables = Variables.model_validate(given)
    except ValidationError as error:
        source.problems += [
            Problem(found.place, PREFIX + found.key, found.value, found.why, found.fix)
            for found in problems_of(error, Variables, source.place)
        ]
        return _draft_of_files(source, given, registry_of)
    services = tuple(Service(label=label, **dict(body)) for label, body in variables.services.items())
    check(source, variables, services, surroundings)
    zones = tuple(read_zone(source, number, zone) for number, zone in enumerate(variables.zones))
    registry = read_registry(
        source, variables.dns_registry, [zone.name for zone in variables.zones], registry_of
    )
    if source.problems:
        return _draft(source, zones, complete=False)
    edge = EdgeDocument(
        pop=pop,
        edge=source.host,
        prefixes=variables.prefixes,
        addresses=tuple(ip_network(address) for address in variables.dns_anycast),
        services=services,
    )
    settings = {
        name.removeprefix("dns_"): value
        for name, value in variables.model_dump(include=set(DNS_SETTINGS)).items()
    }
    try:
        dns = DnsDocument(
            pop=pop,
            edge=source.host,
            listen=variables.dns_unicast + variables.dns_anycast,
            any_address=bool(variables.dns_service),
            zones=zones,
            catalogs=variables.catalogs,
            tsig_keys=variables.tsig_keys,
            pools=variables.pools,
            policies=variables.policies,
            registry=registry
            and RegistryFile(
                path=f"{paths.REGISTRIES}/{registry[1][:16]}.registry", sha256=registry[1], names=registry[2]
            ),
            **settings,
        )
    except ValidationError as error:
        for found in problems_of(error, DnsDocument, lambda path: source.place((f"dns_{path[0]}",))):
            source.problem((f"dns_{found.key}",), found.value, found.why, found.fix)
        return _draft(source, zones, complete=registry is None)
    return Documents(edge, dns, registry[0] if registry else None)


#: Primaries of a zone whose content is unknown.
_UNKNOWN = (Primary(address=IPv4Address("127.0.0.1")),)


def _draft_of_files(source: Source, given: Mapping[str, Any], registry_of: RegistryMaker | None) -> Draft:
    """Read the files that faulty variables name, and add the problems of these files to `source`."""
    entries = given.get("zones")
    entries = entries if isinstance(entries, list | tuple) else []
    zones: list[Zone] = []
    for number, entry in enumerate(entries):
        try:
            zones.append(read_zone(source, number, ZoneFiles.model_validate(entry)))
        except ValidationError:
            zones.append(Zone(name=f"unknown{number}.invalid", primaries=_UNKNOWN))
    file = given.get("dns_registry")
    # A registry is built for known zones; with one unknown, its names would be reported as outside of any.
    if isinstance(file, str) and zones and not any(zone.primaries is _UNKNOWN for zone in zones):
        read_registry(source, file, [zone.name for zone in zones], registry_of)
    return _draft(source, zones, complete=False)


def _draft(source: Source, zones: Sequence[Zone], complete: bool) -> Draft:
    known = (
        zone if zone.records or zone.primaries else zone.model_copy(update={"primaries": _UNKNOWN})
        for zone in zones
    )
    listen = (IPv4Address("127.0.0.1"),)
    return Draft(DnsDocument(pop="draft", edge=source.host, listen=listen, zones=tuple(known)), complete)


def _shared_addresses(documents: Mapping[str, Documents]) -> Iterator[Problem]:
    """Report unicast addresses that two edges claim."""
    owners: dict[IPv4Address | IPv6Address, str] = {}
    for host, pair in documents.items():
        anycast = {prefix.network_address for prefix in pair.edge.addresses}
        for address in pair.dns.listen:
            if address in anycast:
                continue
            other = owners.setdefault(address, host)
            if other != host:
                why, fix = (
                    f"is the address of {other} as well",
                    "give each edge its own, or use unmoor_dns_anycast",
                )
                yield Problem(HOST_PLACE + host, "unmoor_dns_unicast", str(address), why, fix)
