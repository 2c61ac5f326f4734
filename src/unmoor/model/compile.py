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
from unmoor.model.common import faults_of
from unmoor.model.dns import DnsDocument, RegistryFile, Zone
from unmoor.model.documents import BrokenZone, Documents, Draft
from unmoor.model.edge import EdgeDocument, Service
from unmoor.model.files import Files, NamesRead, RegistryMaker, ZoneRead
from unmoor.model.groups import POP_GROUP, VANTAGE_GROUP, group_problems, pop_groups
from unmoor.model.source_map import SourceMap
from unmoor.model.variables import DNS_SETTINGS, HOST_PLACE, PREFIX, Source, Variables, ZoneFiles


@dataclass(frozen=True)
class Compiled:
    """The documents of each edge whose variables are right, drafts of the others, and every problem.

    `sources` has, for each document and draft, where its values come from.
    """

    documents: dict[str, Documents]
    problems: tuple[Problem, ...]
    drafts: dict[str, Draft] = field(default_factory=dict)
    sources: dict[str, SourceMap] = field(default_factory=dict)


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
    sources: dict[str, SourceMap] = {}
    files = Files(registry_of)
    for pop, members in pops.items():
        for host in members:
            given = {key: value for key, value in hosts[host].items() if key.startswith(PREFIX)}
            source = Source(host, given, directories[host], place_of)
            sources[host] = SourceMap(source)
            compiled = _compile_host(source, sources[host], pop, surroundings, files)
            problems += source.problems
            if isinstance(compiled, Documents):
                documents[host] = compiled
            else:
                drafts[host] = compiled
    problems += _shared_addresses(documents)
    return Compiled(documents, merged(problems), drafts, sources)


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
    source: Source, sources: SourceMap, pop: str, surroundings: Surroundings, files: Files
) -> Documents | Draft:
    given = {key.removeprefix(PREFIX): value for key, value in source.variables.items()}
    try:
        variables = Variables.model_validate(given)
    except ValidationError as error:
        for fault in faults_of(error, Variables):
            source.problem(fault.path, fault.value, fault.why, fault.fix)
        return _draft_of_files(source, sources, given, files)
    services = tuple(Service(label=label, **dict(body)) for label, body in variables.services.items())
    check(source, variables, services, surroundings)
    zones = _read_zones(source, sources, variables.zones, files)
    apexes = [zone.name for zone in variables.zones]
    registry = files.registry(source, variables.dns_registry, apexes)
    draft = _draft(zones, variables.dns_registry)
    whole = tuple(read.zone for read in zones if isinstance(read.zone, Zone))
    if source.problems or len(whole) < len(zones):
        return draft
    edge = EdgeDocument(
        pop=pop,
        edge=source.host,
        prefixes=variables.prefixes,
        addresses=tuple(ip_network(address) for address in variables.dns_anycast),
        services=services,
    )
    _map_settings(sources, variables)
    try:
        dns = _dns_document(source.host, pop, variables, whole, registry)
    except ValidationError as error:
        source.problems += map(sources.problem, faults_of(error, DnsDocument))
        return draft
    return Documents(edge, dns, registry[0] if registry else None)


def _dns_document(
    edge: str,
    pop: str,
    variables: Variables,
    zones: tuple[Zone, ...],
    registry: tuple[Path, str, int] | None,
) -> DnsDocument:
    settings = variables.model_dump(include=set(DNS_SETTINGS))
    return DnsDocument(
        pop=pop,
        edge=edge,
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
        **{name.removeprefix("dns_"): value for name, value in settings.items()},
    )


def _map_settings(sources: SourceMap, variables: Variables) -> None:
    """Record the origins of what has another name in the document than in the inventory."""
    for name in DNS_SETTINGS:
        sources.variable((name.removeprefix("dns_"),), (name,))
    sources.variable(("any_address",), ("dns_service",))
    sources.variable(("registry",), ("dns_registry",), whole=True)
    listen = [("dns_unicast", at) for at in range(len(variables.dns_unicast))]
    listen += [("dns_anycast", at) for at in range(len(variables.dns_anycast))]
    for number, path in enumerate(listen):
        sources.variable(("listen", number), path)


def _read_zones(
    source: Source, sources: SourceMap, zones: Iterable[ZoneFiles | None], files: Files
) -> list[ZoneRead]:
    """Read the files of all zones; None is a zone whose variables are wrong. Adds problems and origins."""
    found = []
    for number, given in enumerate(zones):
        if given is None:
            found.append(ZoneRead(BrokenZone(), (), NamesRead(groups=None)))
            continue
        read = files.zone(source.directory, given)
        for fault in read.faults:
            source.problem(("zones", number, *fault.path), fault.value, fault.why, fault.fix)
        source.problems += read.names.problems
        if given.records_file:
            sources.text(("zones", number, "records"), source.directory / given.records_file)
        if given.hostnames_file:
            file = source.directory / given.hostnames_file
            sources.rows(("zones", number, "hostnames"), file, read.names.lines)
        found.append(read)
    return found


def _draft_of_files(source: Source, sources: SourceMap, given: Mapping[str, Any], files: Files) -> Draft:
    """Read the files that faulty variables name, and add the problems of these files to `source`."""
    entries = given.get("zones")
    entries = entries if isinstance(entries, list | tuple) else []
    zones = _read_zones(source, sources, map(_zone_files, entries), files)
    file = given.get("dns_registry")
    apexes = [read.zone.name for read in zones if read.zone.name is not None]
    # A registry is built for known zones; with one unknown, its names would be reported as outside of any.
    if isinstance(file, str) and zones and len(apexes) == len(zones):
        files.registry(source, file, apexes)
    return _draft(zones, file)


def _zone_files(entry: Any) -> ZoneFiles | None:
    try:
        return ZoneFiles.model_validate(entry)
    except ValidationError:
        return None


def _draft(zones: Sequence[ZoneRead], registry: Any) -> Draft:
    complete = not registry and bool(zones) and all(read.complete for read in zones)
    return Draft(tuple(read.zone for read in zones), complete)


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
