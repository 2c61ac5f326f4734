"""The lab's network: a namespace for each host, bridges and veth pairs between them, addresses, routes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unmoor.lab.layout import MANAGEMENT, ROUTE_PROTOCOL, Layout
from unmoor.process import run

if TYPE_CHECKING:
    # Each host's supervisor imports this module, and needs half the memory without pydantic.
    from unmoor.lab.topology import Topology

# No duplicate address detection, so that addresses are usable at once; no routes from advertisements.
_SYSCTLS = {
    "net.ipv6.conf.all.accept_dad": 0,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.all.accept_ra": 0,
    "net.ipv6.conf.default.accept_ra": 0,
}


def build(layout: Layout, topology: Topology) -> None:
    """Create every namespace, link, address, setting and route of the topology. Raises UnmoorError."""
    names = [layout.namespace(name) for name in (*topology.hosts, MANAGEMENT)]
    _batch(f"netns add {name}" for name in names)
    for host, spec in topology.hosts.items():
        # Before any link exists, because links inherit the settings of 'default' when they are created.
        _sysctl(layout.namespace(host), _SYSCTLS | spec.sysctls)
    _batch(_links(layout, topology))
    _batch(_management_lines(topology), layout.namespace(MANAGEMENT))
    for host in topology.hosts:
        _batch(_host_lines(topology, host), layout.namespace(host))
    for host in topology.hosts:
        for version in (4, 6):
            text = "".join(f"{line}\n" for line in _route_lines(topology, host, version))
            layout.routes(host, version).write_text(text, encoding="utf-8")
        _set_routes(layout, host)


def reset(layout: Layout, host: str) -> None:
    """Remove routes and addresses that the guest added, as a reboot of a real machine does."""
    namespace = layout.namespace(host)
    for family in ("-4", "-6"):
        shown = run(["ip", "-n", namespace, "-json", family, "route", "show", "table", "all"]).stdout
        protocols = {route.get("protocol", "boot") for route in json.loads(shown or "[]")}
        for protocol in sorted(protocols - {"kernel", ROUTE_PROTOCOL}):
            run(["ip", "-n", namespace, family, "route", "flush", "table", "all", "proto", protocol])
    run(["ip", "-n", namespace, "address", "flush", "dev", "lo", "scope", "global"])
    _set_routes(layout, host)


def _set_routes(layout: Layout, host: str) -> None:
    """Set the host's routes of the topology, replacing others to the same prefixes."""
    for version in (4, 6):
        batch = str(layout.routes(host, version))
        run(["ip", "-n", layout.namespace(host), f"-{version}", "-batch", batch])


def destroy(layout: Layout) -> None:
    """Remove every namespace of the lab, also of an incomplete one."""
    _batch(f"netns delete {name}" for name in namespaces(layout))


def namespaces(layout: Layout) -> list[str]:
    """Return the names of the lab's existing network namespaces."""
    prefix = layout.namespace("")
    return [path.name for path in Path("/run/netns").glob(f"{prefix}*")]


def processes(layout: Layout) -> list[int]:
    """Return the ids of processes in the lab's network namespaces."""
    found = (run(["ip", "netns", "pids", name]).stdout.split() for name in namespaces(layout))
    return [int(pid) for pids in found for pid in pids]


def _links(layout: Layout, topology: Topology) -> Iterator[str]:
    """Yield `ip` commands for the bridges, and for veth pairs of hosts and management."""
    management = layout.namespace(MANAGEMENT)
    bridges = [(name, layout.namespace(lan.switch)) for name, lan in topology.networks.items()]
    for name, namespace in (*bridges, (MANAGEMENT, management)):
        yield f"link add name {name} netns {namespace} type bridge mcast_snooping 0"
    for host, spec in topology.hosts.items():
        own = layout.namespace(host)
        yield f"link add name {MANAGEMENT} netns {own} type veth peer name {host} netns {management}"
        for name in spec.addresses:
            switch = topology.networks[name].switch
            if switch != host:
                peer = f"{name}-{host} netns {layout.namespace(switch)}"
                yield f"link add name {name} netns {own} type veth peer name {peer}"


def _management_lines(topology: Topology) -> Iterator[str]:
    management = topology.management
    for host in topology.hosts:
        yield f"link set {host} master {MANAGEMENT} up"
    yield "link set lo up"
    yield f"link set {MANAGEMENT} up"
    yield f"address add {management.controller}/{management.ipv4.prefixlen} dev {MANAGEMENT}"


def _host_lines(topology: Topology, host: str) -> Iterator[str]:
    spec = topology.hosts[host]
    yield "link set lo up"
    for name in _ports(topology, host):
        yield f"link set {name} master {name.partition('-')[0]} up"
    for name in (MANAGEMENT, *spec.addresses):
        yield f"link set {name} up"
    yield f"address add {spec.management}/{topology.management.ipv4.prefixlen} dev {MANAGEMENT}"
    for name, addresses in spec.addresses.items():
        lan = topology.networks[name]
        for address in addresses:
            prefix = lan.ipv4 if address.version == 4 else lan.ipv6
            length = prefix.prefixlen if prefix else address.max_prefixlen
            yield f"address add {address}/{length} dev {name}" + " nodad" * (address.version == 6)


def _ports(topology: Topology, host: str) -> Iterator[str]:
    """Yield the ports of the bridges in this host's namespace."""
    for name, lan in topology.networks.items():
        if lan.switch == host:
            members = (other for other, spec in topology.hosts.items() if name in spec.addresses)
            yield from (f"{name}-{other}" for other in members if other != host)


def _route_lines(topology: Topology, host: str, version: int) -> Iterator[str]:
    for target, hops in topology.hosts[host].routes.items():
        if target != "default" and (":" in target) != (version == 6):
            continue
        paths = [
            f"nexthop via {address} dev {network}"
            for via in hops
            for address, network in topology.next_hops(host, via)
            if address.version == version
        ]
        if paths:
            yield f"route replace {target} proto {ROUTE_PROTOCOL} {' '.join(paths)}"


def _batch(lines: Iterable[str], namespace: str = "") -> None:
    text = "".join(f"{line}\n" for line in lines)
    if text:
        where = ["-n", namespace] if namespace else []
        run(["ip", *where, "-batch", "-"], stdin=text)


def _sysctl(namespace: str, settings: dict[str, int]) -> None:
    pairs = [f"{name}={value}" for name, value in settings.items()]
    run(["ip", "netns", "exec", namespace, "sysctl", "--quiet", "--write", *pairs])
