"""From what an inventory says to the two documents of each edge, with everything wrong said at once.

Pure: it is given variables and groups, and reads only the zone and hostname files that they name.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, SecretStr, TypeAdapter, ValidationError

from unmoor.errors import Problem, UnmoorError
from unmoor.model.common import Address, Document, Label, Prefix, parse_ports, problems_of
from unmoor.model.dns import (
    Catalog,
    CookieSecret,
    DnsDocument,
    Hostnames,
    Policy,
    Pool,
    Primary,
    QueryLog,
    RegistryFile,
    TsigKey,
    Zone,
)
from unmoor.model.edge import Binding, EdgeDocument, Service, ServiceBody
from unmoor.model.secrets import Secret

Key = tuple[int | str, ...]

#: Variables that dns.json holds under the same names, without `dns_`.
DNS_SETTINGS = (
    "dns_port",
    "dns_workers",
    "dns_cookie_secret",
    "dns_sticky_key",
    "dns_rate_limit",
    "dns_tcp_connections",
    "dns_tcp_per_client",
    "dns_tcp_idle",
    "dns_tell_name",
    "dns_tell_version",
    "dns_journal_keep",
    "dns_query_log",
    "dns_count_addresses",
)

#: Variables of the inventory begin with this.
PREFIX = "unmoor_"
#: A PoP is an inventory group whose name begins with this.
POP_GROUP = "pop_"
#: Where a value stands whose file is not known: a host's variables.
HOST_PLACE = "inventory, host "
#: Where a registry lies on an edge; its name there follows from its content.
REGISTRIES = "/var/lib/unmoor/registry"
#: What a rollout may remove, and must be expected to.
REMOVABLE = ("prefixes", "services", "zones", "hostnames")
#: The group of every machine that runs the stack.
EDGES_GROUP = "edges"
#: The group of the machines that have the probe.
VANTAGE_GROUP = "vantage"

#: Ranges that no prefix may share addresses with, and what they are.
_SPECIAL = {
    ip_network(prefix): what
    for prefix, what in (
        ("0.0.0.0/8", "addresses of no host (RFC 1122)"),
        ("127.0.0.0/8", "loopback addresses"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/4", "multicast addresses"),
        ("240.0.0.0/4", "reserved addresses (RFC 1112)"),
        ("::/128", "the unspecified address"),
        ("::1/128", "the loopback address"),
        ("::ffff:0:0/96", "IPv4-mapped addresses"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast addresses"),
    )
}


class ZoneFiles(Document):
    """A zone of the inventory: its name, and where its content comes from."""

    name: str = Field(description="The zone's apex, as in 'example.com'.")
    records_file: str | None = Field(
        None, description="Zone file of the static records, below the inventory's directory; or `primaries`."
    )
    primaries: tuple[Primary, ...] = Field(
        (), description="Servers that the edges transfer the static records from, the preferred one first."
    )
    hostnames_file: str | None = Field(
        None, description="CSV file of the hostnames: a column `name`, and one column for each tag."
    )


class Variables(Document):
    """Every `unmoor_` variable that a host may carry (here without that prefix)."""

    prefixes: tuple[Prefix, ...] = Field(min_length=1, description="What is advertised and bound to sockets.")
    services: dict[Label, ServiceBody] = Field(min_length=1, description="Services by label.")
    pools: dict[Label, Pool] = Field(min_length=1, description="Addresses in use by DNS, by name.")
    policies: tuple[Policy, ...] = Field(min_length=1, description="Ordered; the first that matches answers.")
    zones: tuple[ZoneFiles, ...] = Field(min_length=1, description="Zones served.")
    catalogs: tuple[Catalog, ...] = Field((), description="Catalog zones (RFC 9432), as in dns.json.")
    tsig_keys: dict[str, TsigKey] = Field(
        default_factory=dict, description="As tsig_keys of dns.json; keep it in a vault."
    )
    dns_unicast: tuple[Address, ...] = Field(
        (), description="The edge's own addresses on which its DNS server answers; gates ask there."
    )
    dns_anycast: tuple[Address, ...] = Field(
        (), description="Addresses of the DNS service that every edge answers on; made local on each."
    )
    dns_port: int = Field(53, ge=1, le=65535, description="UDP and TCP port of the DNS server.")
    dns_service: str = Field(
        "",
        description="Label of a service, UDP and TCP on dns_port, whose prefixes the DNS server answers on "
        "beside its own addresses.",
    )
    dns_workers: int = Field(0, ge=0, le=256, description="DNS worker processes; 0 means one for each core.")
    dns_cookie_secret: CookieSecret = Field(
        SecretStr(""), description="As cookie_secret of dns.json; keep it in a vault."
    )
    dns_sticky_key: Secret = Field(
        SecretStr(""), description="As sticky_key of dns.json; keep it in a vault."
    )
    dns_rate_limit: int = Field(0, description="As rate_limit of dns.json, queries per second.")
    dns_tcp_connections: int = Field(4096, description="As tcp_connections of dns.json.")
    dns_tcp_per_client: int = Field(256, description="As tcp_per_client of dns.json.")
    dns_tcp_idle: int = Field(15, description="As tcp_idle of dns.json, seconds.")
    dns_tell_name: bool = Field(False, description="As tell_name of dns.json.")
    dns_tell_version: bool = Field(False, description="As tell_version of dns.json.")
    dns_journal_keep: int = Field(400, description="As journal_keep of dns.json, days.")
    dns_query_log: QueryLog = Field(QueryLog(), description="As query_log of dns.json.")
    dns_count_addresses: bool = Field(True, description="As count_addresses of dns.json.")
    dns_registry: str = Field(
        "",
        description="Millions of hostnames beside those of the zones, in `zones/` of the inventory's "
        "directory: built by `unmoor dns registry build`, or a list (CSV, JSON lines) to build from.",
    )
    removals_unasked: dict[Literal["prefixes", "services", "zones", "hostnames"], NonNegativeInt] = Field(
        default_factory=dict,
        description="How many of each may be removed by one run without -e expect_removed; without it, none.",
    )
    own_listeners: tuple[Label, ...] = Field(
        (),
        description="Labels of services whose sockets the operator's own listeners register; those of role "
        "listener and of the DNS server need not be named.",
    )
    probe_ca: str | None = Field(
        None,
        description="File of certificates (PEM) that probes trust, on the vantage host, not the system's.",
    )
    vantage: str | None = Field(None, description="Host from which a whole PoP is proved.")
    gate_vantage: str | None = Field(
        None, description="Host on the edges' own network from which each single edge is proved."
    )
    gate_via: tuple[Address, ...] = Field(
        (),
        description="The edge's addresses as next hops, one a family, by which the gate reaches it alone; "
        "without it, unmoor_dns_unicast.",
    )


@dataclass(frozen=True)
class Documents:
    """What one edge gets."""

    edge: EdgeDocument
    dns: DnsDocument
    #: The registry that `dns` names, on the controller.
    registry: Path | None = None


#: Gives the registry that a file is, or that is built from it for some zones, its SHA-256, and how many
#: names it has. Raises UnmoorError.
RegistryMaker = Callable[[Path, Sequence[str]], tuple[Path, str, int]]


@dataclass
class Source:
    """One host's variables, and where each value of them stands.

    `place_of` names file and line of a value as the inventory's reader knows it, or is empty.
    """

    host: str
    variables: Mapping[str, Any]
    directory: Path
    place_of: Callable[[Any], str]
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Key) -> str:
        """File and line of the innermost value on `path` whose origin is known."""
        value: Any = {key.removeprefix(PREFIX): entry for key, entry in self.variables.items()}
        found = ""
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                break
            found = self.place_of(value) or found
        return found or HOST_PLACE + self.host

    def problem(self, path: Key, value: object, why: str, fix: str) -> None:
        """Note that the value at `path` is wrong."""
        key = PREFIX + ".".join(map(str, path))
        self.problems.append(Problem(self.place(path), key, str(value), why, fix))


@dataclass(frozen=True)
class Draft:
    """Of an edge whose variables are wrong: the zones all the same, as far as they could be read.

    Their files can be checked at once with the rest. An unknown zone stands as one that is transferred.
    """

    dns: DnsDocument
    #: Whether all hostnames are there, so that one which is missing is missed.
    complete: bool


@dataclass(frozen=True)
class Compiled:
    """The documents of every edge that has them, drafts of the others, and all that is wrong."""

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

    `groups` are the inventory's groups; `directories` says for each host where its inventory lies, which
    is what file names are relative to; `place_of` as in Source. `machines` are the names or addresses by
    which hosts are reached.
    """
    problems = list(_group_problems(groups))
    if any(problem.key.startswith(f"group {POP_GROUP}") for problem in problems):
        return Compiled({}, tuple(problems))  # without the PoPs' names nothing can be compiled
    pops = {name.removeprefix(POP_GROUP): members for name, members in _pop_groups(groups).items()}
    documents: dict[str, Documents] = {}
    drafts: dict[str, Draft] = {}
    for pop, members in pops.items():
        for host in members:
            ours = {key: value for key, value in hosts[host].items() if key.startswith(PREFIX)}
            source = Source(host, ours, directories[host], place_of)
            around = _Around(tuple(pops), tuple(groups.get(VANTAGE_GROUP, ())), machines or {})
            compiled = _compile_host(source, pop, around, registry_of)
            problems += source.problems
            if isinstance(compiled, Documents):
                documents[host] = compiled
            else:
                drafts[host] = compiled
    problems += _shared_addresses(documents)
    return Compiled(documents, merged(problems), drafts)


def merged(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Say once what is wrong with several hosts."""
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


def _pop_groups(groups: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    return {name: members for name, members in groups.items() if name.lower().startswith(POP_GROUP)}


def _group_problems(groups: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    edges = groups.get(EDGES_GROUP, ())
    pops = _pop_groups(groups)
    if not edges:
        why = "has no hosts" if EDGES_GROUP in groups else "is missing"
        yield Problem(
            "inventory", f"group {EDGES_GROUP}", "", why, "put the PoPs' groups below it (children)"
        )
    for name, members in pops.items():
        if not members:
            yield Problem("inventory", f"group {name}", "", "has no hosts", "add its edges, or remove it")
    homes: dict[str, list[str]] = defaultdict(list)
    for name, members in pops.items():
        for host in members:
            homes[host].append(name)
    for host, names in homes.items():
        if len(names) > 1:
            yield Problem(
                "inventory", f"host {host}", ", ".join(names), "is in two PoPs", "leave it in one pop_ group"
            )
        if edges and host not in edges:
            fix = f"put group {names[0]} below {EDGES_GROUP} (children)"
            yield Problem("inventory", f"host {host}", "", f"is in a PoP but not in group {EDGES_GROUP}", fix)
    for host in edges:
        if host not in homes:
            yield Problem(
                "inventory", f"host {host}", "", "has no PoP", "put it in a group pop_<name>, as in pop_ams"
            )
    yield from _pop_name_problems(pops)


def _pop_name_problems(pops: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    adapter = TypeAdapter[str](Label)
    for name in pops:
        try:
            adapter.validate_python(name.removeprefix(POP_GROUP))
        except ValidationError:
            fix = "name it pop_ and lower case letters, digits, '-' or '_', as in pop_ams"
            yield Problem("inventory", f"group {name}", "", "is not a PoP's name", fix)
    for one, other in combinations(pops, 2):
        if one.lower().replace("-", "_") == other.lower().replace("-", "_"):
            fix = "join the two groups, or give one PoP another name"
            yield Problem("inventory", f"group {other}", "", f"is a second PoP of the name of {one}", fix)


@dataclass(frozen=True)
class _Around:
    """What an edge's variables are checked against: the inventory's PoPs, vantage hosts and machines."""

    pops: tuple[str, ...]
    vantage: tuple[str, ...]
    machines: Mapping[str, str]


def _compile_host(
    source: Source, pop: str, around: _Around, registry_of: RegistryMaker | None
) -> Documents | Draft:
    ours = {key.removeprefix(PREFIX): value for key, value in source.variables.items()}
    try:
        variables = Variables.model_validate(ours)
    except ValidationError as error:
        source.problems += [
            Problem(found.place, PREFIX + found.key, found.value, found.why, found.fix)
            for found in problems_of(error, Variables, source.place)
        ]
        return _draft_of_files(source, ours, registry_of)
    services = tuple(Service(label=label, **dict(body)) for label, body in variables.services.items())
    _check_prefixes(source, variables)
    _check_machines(source, variables, around.machines)
    _check_services(source, variables, services)
    _check_proofs(source, variables)
    _check_vantage(source, variables, around.vantage)
    _check_dns_service(source, variables)
    _check_pools(source, variables)
    _check_policies(source, variables, around.pops)
    zones = tuple(_read_zone(source, number, zone) for number, zone in enumerate(variables.zones))
    registry = _registry(source, variables.dns_registry, [zone.name for zone in variables.zones], registry_of)
    listen = variables.dns_unicast + variables.dns_anycast
    if not variables.dns_unicast:
        source.problem(
            ("dns_unicast",),
            "",
            "is missing: gates ask the edge's own DNS server there, and a new pool is proved there",
            "name the edge's own addresses in the host's vars",
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
    given = variables.model_dump(include=set(DNS_SETTINGS))
    settings = {name.removeprefix("dns_"): value for name, value in given.items()}
    try:
        dns = DnsDocument(
            pop=pop,
            edge=source.host,
            listen=listen,
            any_address=bool(variables.dns_service),
            zones=zones,
            catalogs=variables.catalogs,
            tsig_keys=variables.tsig_keys,
            pools=variables.pools,
            policies=variables.policies,
            registry=registry
            and RegistryFile(
                path=f"{REGISTRIES}/{registry[1][:16]}.registry", sha256=registry[1], names=registry[2]
            ),
            **settings,
        )
    except ValidationError as error:
        for found in problems_of(error, DnsDocument, lambda path: source.place((f"dns_{path[0]}",))):
            source.problem((f"dns_{found.key}",), found.value, found.why, found.fix)
        return _draft(source, zones, complete=registry is None)
    return Documents(edge, dns, registry[0] if registry else None)


#: What stands for the primaries of a zone of which nothing else is known.
_UNKNOWN = (Primary(address=IPv4Address("127.0.0.1")),)


def _draft_of_files(source: Source, ours: Mapping[str, Any], registry_of: RegistryMaker | None) -> Draft:
    """Read the files that variables name which are wrong otherwise, and note what is wrong with these."""
    entries = ours.get("zones")
    entries = entries if isinstance(entries, list | tuple) else []
    zones: list[Zone] = []
    for number, entry in enumerate(entries):
        try:
            zones.append(_read_zone(source, number, ZoneFiles.model_validate(entry)))
        except ValidationError:
            zones.append(Zone(name=f"unknown{number}.invalid", primaries=_UNKNOWN))
    file = ours.get("dns_registry")
    # A list is built for the zones there are: with one unknown, its names would seem to have no zone.
    if isinstance(file, str) and zones and not any(zone.primaries is _UNKNOWN for zone in zones):
        _registry(source, file, [zone.name for zone in zones], registry_of)
    return _draft(source, zones, complete=False)


def _draft(source: Source, zones: Sequence[Zone], complete: bool) -> Draft:
    known = (
        zone if zone.records or zone.primaries else zone.model_copy(update={"primaries": _UNKNOWN})
        for zone in zones
    )
    listen = (IPv4Address("127.0.0.1"),)
    return Draft(DnsDocument(pop="draft", edge=source.host, listen=listen, zones=tuple(known)), complete)


def _registry(
    source: Source, file: str, zones: Sequence[str], registry_of: RegistryMaker | None
) -> tuple[Path, str, int] | None:
    if not file or registry_of is None:
        return None
    try:
        return registry_of(source.directory / file, zones)
    except UnmoorError as error:
        lines = getattr(error, "problems", ())
        source.problems += lines
        first, _, rest = str(error).partition("\n    fix: ")
        why = first.splitlines()[0].rstrip(":")
        fix = "mend them; each is told by itself" if lines else rest or "mend the list"
        source.problem(("dns_registry",), file, why, fix)
        return None


def _overlap(one: Prefix, other: Prefix) -> bool:
    return one.version == other.version and one.overlaps(other)


def _inside(part: Prefix, wholes: Sequence[Prefix]) -> bool:
    return any(part.version == whole.version and part.subnet_of(whole) for whole in wholes)  # type: ignore[arg-type]  # the versions are equal


def _check_prefixes(source: Source, variables: Variables) -> None:
    for number, prefix in enumerate(variables.prefixes):
        why = next((f"has {what}: {net}" for net, what in _SPECIAL.items() if _overlap(prefix, net)), "")
        if not prefix.prefixlen:
            why = f"is every IPv{prefix.version} address there is, those of the edge's neighbours among them"
        if why:
            source.problem(("prefixes", number), prefix, why, "name the prefixes that are routed to the PoP")
    for (_, one), (number, other) in combinations(enumerate(variables.prefixes), 2):
        if _overlap(one, other):
            source.problem(
                ("prefixes", number),
                other,
                f"overlaps {one}",
                "keep the larger one; services and pools may name parts",
            )


def _check_machines(source: Source, variables: Variables, machines: Mapping[str, str]) -> None:
    """No prefix has an address of a machine: on the edge it would be local, and the machine cut off."""
    fix = "a machine's own addresses stay outside of unmoor_prefixes: shrink the prefix, or renumber"
    reached: dict[str, IPv4Address | IPv6Address] = {}
    for name, given in machines.items():
        with suppress(ValueError):  # a name, which means what the resolver makes of it
            reached[name] = ip_address(given)
    for number, prefix in enumerate(variables.prefixes):
        inside = [name for name, address in reached.items() if address in prefix]
        if inside:
            why = f"has {reached[inside[0]]}, the address by which {inside[0]} is reached"
            why += f", and those of {len(inside) - 1} more" if inside[1:] else ""
            source.problem(("prefixes", number), prefix, f"{why}: each edge would take it for its own", fix)
    own: list[tuple[Key, IPv4Address | IPv6Address]] = [
        ((key, number), address)
        for key in ("dns_unicast", "gate_via")
        for number, address in enumerate(getattr(variables, key))
    ]
    for at, zone in enumerate(variables.zones):
        own += [(("zones", at, "primaries", n), each.address) for n, each in enumerate(zone.primaries)]
    for path, address in own:
        for prefix in variables.prefixes:
            if address in prefix:
                source.problem(path, address, f"is inside {prefix} of unmoor_prefixes", fix)


def _check_proofs(source: Source, variables: Variables) -> None:
    """Each service can be proved, or says that it is not to be."""
    for label, service in variables.services.items():
        if service.check == "none":
            continue
        if "any" in service.ports:
            path: Key = ("services", label, "ports", service.ports.index("any"))
            why = f"cannot be probed with check: {service.check}, which tries each port on each address"
            source.problem(path, "any", why, "add check: none, or name the ports")
        if "tcp" not in service.protocols:
            why = f"is UDP alone, and no probe asks UDP: check: {service.check} would prove nothing"
            source.problem(("services", label), "", why, "add check: none, and prove it by other means")


def _check_vantage(source: Source, variables: Variables, hosts: Sequence[str]) -> None:
    """Hosts from which edges are proved have the probe: role vantage installs it on that group."""
    for key in ("gate_vantage", "vantage"):
        host = getattr(variables, key)
        if host and host not in (*hosts, "localhost"):
            why = f"is not in group {VANTAGE_GROUP}, so it has no probe"
            near = get_close_matches(host, hosts, 1)
            fix = (
                f"did you mean {near[0]}?" if near else f"put it in group {VANTAGE_GROUP}, or write localhost"
            )
            source.problem((key,), host, why, fix)
    if not variables.gate_vantage and not variables.vantage:
        why = "is missing: no host is named from which the edge is proved before the next one is touched"
        fix = f"name a host of group {VANTAGE_GROUP}; or localhost, if this computer reaches the prefixes"
        source.problem(("gate_vantage",), "", why, fix)


def _check_services(source: Source, variables: Variables, services: Sequence[Service]) -> None:
    for service in services:
        for number, part in enumerate(service.prefixes or ()):
            if not _inside(part, variables.prefixes):
                source.problem(
                    ("services", service.label, "prefixes", number),
                    part,
                    "is outside of unmoor_prefixes",
                    "name a part of a prefix, or add it to unmoor_prefixes",
                )
    document = EdgeDocument(pop="x", edge="x", prefixes=variables.prefixes, services=tuple(services))
    claims: dict[tuple[str, Prefix, str], list[Binding]] = defaultdict(list)
    for binding in document.bindings():
        claims[binding.protocol, binding.prefix, binding.interface].append(binding)
    for bindings in claims.values():
        for one, other in _clashes(bindings):
            ports = str(other.first_port)
            if other.last_port != other.first_port:
                ports += f"-{other.last_port}"
            source.problem(
                ("services", other.service, "ports", _port_index(variables, other)),
                ports,
                f"{other.protocol} port on {other.prefix} is claimed by {one.service} as well",
                "take it from one of the two",
            )


def _check_dns_service(source: Source, variables: Variables) -> None:
    label, port = variables.dns_service, variables.dns_port
    if not label:
        return
    fix = f"{label}: {{ports: [{port}], protocols: [udp, tcp]}}"
    if label not in variables.services:
        why, fix = "is not a service", f"add to unmoor_services: {fix}"
    elif set(variables.services[label].protocols) != {"udp", "tcp"}:
        why, fix = "is a service without both UDP and TCP, which DNS needs", f"write {fix}"
    elif variables.services[label].ports != (port,):
        why = "is a service of other ports than the server's, and a UDP reply leaves from the server's own"
        fix = f"write {fix}"
    else:
        return
    source.problem(("dns_service",), label, why, fix)


def _clashes(bindings: Sequence[Binding]) -> Iterator[tuple[Binding, Binding]]:
    """Pairs neither of which is narrower: precedence cannot choose between them."""
    ordered = sorted(bindings, key=lambda binding: (binding.first_port, -binding.last_port))
    open_ranges: list[Binding] = []
    for binding in ordered:
        open_ranges = [other for other in open_ranges if other.last_port >= binding.first_port]
        for other in open_ranges:
            same = (other.first_port, other.last_port) == (binding.first_port, binding.last_port)
            if same or binding.last_port > other.last_port:
                yield other, binding
        open_ranges.append(binding)


def _port_index(variables: Variables, binding: Binding) -> int:
    ports = variables.services[binding.service].ports
    return [parse_ports(spec) for spec in ports].index((binding.first_port, binding.last_port))


def _check_pools(source: Source, variables: Variables) -> None:
    for name, pool in variables.pools.items():
        for family in ("ipv4", "ipv6"):
            for number, part in enumerate(getattr(pool, family)):
                if not _inside(part, variables.prefixes):
                    ours = ", ".join(str(p) for p in variables.prefixes if p.version == part.version)
                    source.problem(
                        ("pools", name, family, number),
                        part,
                        "the pool is outside of the prefixes bound to sockets: nobody would answer there",
                        f"use a part of {ours or 'a prefix added to unmoor_prefixes'}",
                    )


def _check_policies(source: Source, variables: Variables, pops: tuple[str, ...]) -> None:
    for number, policy in enumerate(variables.policies):
        for index, pop in enumerate(policy.match.pops or ()):
            if pop not in pops:
                source.problem(
                    ("policies", number, "match", "pops", index),
                    pop,
                    "can never match: the inventory has no such PoP",
                    f"use one of: {', '.join(pops)}",
                )


def _read_zone(source: Source, number: int, zone: ZoneFiles) -> Zone:
    records = _read_records(source, number, zone) if zone.records_file else ""
    if bool(zone.records_file) == bool(zone.primaries):
        why = "has both a records_file and primaries" if zone.primaries else "has no records"
        fix = "give it either a records_file, or primaries to transfer them from"
        source.problem(("zones", number), zone.name, why, fix)
    hostnames: tuple[Hostnames, ...] = ()
    if zone.hostnames_file:
        hostnames = _read_hostnames(source, number, zone.name, source.directory / zone.hostnames_file)
    return Zone(
        name=zone.name,
        records=records,
        source=zone.records_file or "",
        primaries=zone.primaries,
        hostnames=hostnames,
    )


def _read_records(source: Source, number: int, zone: ZoneFiles) -> str:
    path = source.directory / (zone.records_file or "")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        key = ("zones", number, "records_file")
        source.problem(key, zone.records_file, str(reason), f"write the zone file {path}")
        return ""


def _read_hostnames(source: Source, number: int, zone: str, path: Path) -> tuple[Hostnames, ...]:
    by_tags: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    lines = 0
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if "name" not in (rows.fieldnames or ()):
                source.problems.append(
                    Problem(
                        f"{path}:1",
                        "",
                        "",
                        "has no column `name`",
                        "begin the file with `name,account` or the like",
                    )
                )
                return ()
            for row in rows:
                lines = rows.line_num
                name = row.pop("name") or ""
                if problem := _name_problem(name, zone):
                    source.problems.append(Problem(f"{path}:{lines}", "name", repr(name)[1:-1], *problem))
                    continue
                if None in row or None in row.values() or not name:
                    source.problems.append(
                        Problem(
                            f"{path}:{lines}",
                            "name",
                            name,
                            "the line has no name, or more or fewer fields than the first line",
                            "write one field for each column",
                        )
                    )
                    continue
                by_tags[tuple(sorted((tag, value) for tag, value in row.items() if value))].append(name)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        source.problem(
            ("zones", number, "hostnames_file"), path.name, str(reason), f"write the CSV file {path}"
        )
        return ()
    if not lines:
        why = "has no names, only its first line"
        fix = "write the names; or remove hostnames_file from the zone, if it is to have none"
        source.problems.append(Problem(f"{path}:1", "", "", why, fix))
    elif not path.read_bytes().endswith(b"\n"):
        why = "ends in the middle of a line: it may have been cut short"
        fix = "write the file again; if it is whole, end its last line"
        source.problems.append(Problem(f"{path}:{lines}", "", "", why, fix))
    return tuple(Hostnames(tags=dict(tags), names=tuple(names)) for tags, names in by_tags.items())


def _name_problem(name: str, zone: str) -> tuple[str, str] | None:
    """What is wrong with a name of a zone's file, and the fix; whether it is a name is checked elsewhere."""
    if any(letter.isspace() or not letter.isprintable() for letter in name):
        return "has a space or a control character", "remove it; inside a label, write \\DDD (RFC 1035)"
    whole, apex = name.lower(), zone.lower().rstrip(".")
    if apex and (whole == apex or whole.endswith(f".{apex}")):
        relative = name[: -len(apex) - 1] or "@"
        why = f"is a whole name, and names here are relative to the zone: it would be {name}.{apex}"
        return why, f"write {relative}, or {name}. with a final dot"
    return None


def _shared_addresses(documents: Mapping[str, Documents]) -> Iterator[Problem]:
    """An address of one edge alone that two edges claim."""
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
