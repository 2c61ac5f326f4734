"""Checks of one edge's variables against each other and against the inventory around them. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import combinations
from operator import itemgetter

from unmoor.errors import Key
from unmoor.model.common import Prefix, parse_ports
from unmoor.model.edge import Binding, EdgeDocument, Service
from unmoor.model.groups import VANTAGE_GROUP
from unmoor.model.variables import Source, Variables


@dataclass(frozen=True)
class Surroundings:
    """The inventory around an edge: names of PoPs, vantage hosts, and the address of each machine."""

    pops: tuple[str, ...]
    vantage: tuple[str, ...]
    machines: Mapping[str, str]

    @cached_property
    def reached(self) -> dict[int, list[tuple[int, str]]]:
        """The numeric addresses of machines in order, each with the machine's name, by IP version."""
        found: dict[int, list[tuple[int, str]]] = {4: [], 6: []}
        for name, given in self.machines.items():
            with suppress(ValueError):  # a name: only the resolver knows its addresses
                address = ip_address(given)
                found[address.version].append((int(address), name))
        return {version: sorted(each) for version, each in found.items()}

    def inside(self, prefix: Prefix) -> list[tuple[int, str]]:
        """Return the machines of `reached` whose address is in `prefix`."""
        every = self.reached[prefix.version]
        first = bisect_left(every, int(prefix.network_address), key=itemgetter(0))
        return every[first : bisect_right(every, int(prefix.broadcast_address), key=itemgetter(0))]


def check(
    source: Source, variables: Variables, services: Sequence[Service], surroundings: Surroundings
) -> None:
    """Add to `source` everything that is wrong with `variables`; `services` are those of them."""
    _check_prefixes(source, variables)
    _check_machines(source, variables, surroundings)
    _check_services(source, variables, services)
    _check_proofs(source, variables)
    _check_vantage(source, variables, surroundings.vantage)
    _check_dns_service(source, variables)
    _check_pools(source, variables)
    _check_policies(source, variables, surroundings.pops)
    if not variables.dns_unicast:
        source.problem(
            ("dns_unicast",),
            "",
            "is missing: gates query the edge's own DNS server there, and prove a new pool there",
            "name the edge's own addresses in the host's vars",
        )


#: Ranges that no prefix may overlap, with the reason.
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


def _overlap(one: Prefix, other: Prefix) -> bool:
    return one.version == other.version and one.overlaps(other)


def _inside(part: Prefix, wholes: Sequence[Prefix]) -> bool:
    return any(part.version == whole.version and part.subnet_of(whole) for whole in wholes)  # type: ignore[arg-type]  # the versions are equal


def _check_prefixes(source: Source, variables: Variables) -> None:
    for number, prefix in enumerate(variables.prefixes):
        why = next((f"has {what}: {net}" for net, what in _SPECIAL.items() if _overlap(prefix, net)), "")
        if not prefix.prefixlen:
            why = f"is the whole of IPv{prefix.version}, with the addresses of the edge's neighbours"
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


def _check_machines(source: Source, variables: Variables, surroundings: Surroundings) -> None:
    """Report prefixes with a machine's address: local on each edge, it would cut the machine off."""
    fix = "a machine's own addresses stay outside of unmoor_prefixes: shrink the prefix, or renumber"
    for number, prefix in enumerate(variables.prefixes):
        inside = surroundings.inside(prefix)
        if inside:
            first, name = inside[0]
            why = f"has {type(prefix.network_address)(first)}, the address of host {name}"
            why += f", and those of {len(inside) - 1} more" if inside[1:] else ""
            source.problem(
                ("prefixes", number), prefix, f"{why}: it would be a local address of each edge", fix
            )
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
    """Report services that no probe can prove and that do not have `check: none`."""
    for label, service in variables.services.items():
        if service.check == "none":
            continue
        if "any" in service.ports:
            path: Key = ("services", label, "ports", service.ports.index("any"))
            why = f"cannot be probed with check: {service.check}, which connects to each port of each address"
            source.problem(path, "any", why, "add check: none, or name the ports")
        if "tcp" not in service.protocols:
            why = f"has UDP only, which no probe tests: check: {service.check} would prove nothing"
            source.problem(("services", label), "", why, "add check: none, and prove it by other means")


def _check_vantage(source: Source, variables: Variables, hosts: Sequence[str]) -> None:
    """Report vantage hosts without the probe, which role vantage installs on its group."""
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
        why = "is missing: each edge is proved from a vantage host before the next one is changed"
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
        why = f"is a service of other ports than {port}, the source port of the DNS server's UDP replies"
        fix = f"write {fix}"
    else:
        return
    source.problem(("dns_service",), label, why, fix)


def _clashes(bindings: Sequence[Binding]) -> Iterator[tuple[Binding, Binding]]:
    """Yield pairs of bindings that precedence cannot order: neither port range is the narrower one."""
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
                    parts = ", ".join(str(p) for p in variables.prefixes if p.version == part.version)
                    source.problem(
                        ("pools", name, family, number),
                        part,
                        "the pool is outside of the prefixes bound to sockets: no service would answer there",
                        f"use a part of {parts or 'a prefix added to unmoor_prefixes'}",
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
