"""The topology file of a lab: types and checks, which report every problem at once."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from unmoor.errors import InvalidInputError, Problem, UnmoorError
from unmoor.lab.layout import MANAGEMENT
from unmoor.model.common import Document, Prefix4, Prefix6, validate

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Default path of the topology, relative to the current directory or one above it.
DEFAULT = Path("inventories/lab/topology.yml")

# The name of a bridge port is NETWORK-HOST; the kernel allows 15 characters (IFNAMSIZ).
_INTERFACE_LENGTH = 15

# No '-' in a network's name: in the name of a port, the first one ends it.
NetworkName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,12}$")]
HostName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,11}[a-z0-9])?$")]
Package = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
Sysctl = Annotated[str, Field(pattern=r"^net\.[a-z0-9_./-]+$")]


class Packages(Document):
    """Debian packages of the image's two layers."""

    base: tuple[Package, ...] = Field(
        min_length=1, description="Packages of a fresh machine, before any role."
    )
    golden: tuple[Package, ...] = Field(
        description="Packages that the roles install: part of golden hosts, available to bare ones."
    )


class Image(Document):
    """The cached root file system that hosts boot from."""

    suite: str = Field(pattern=r"^[a-z]+$", description="Debian release by its code name.")
    packages: Packages


class Lan(Document):
    """A network between hosts: a bridge in the namespace of one of them."""

    ipv4: Prefix4
    ipv6: Prefix6 | None = None
    switch: HostName = Field(description="The host whose namespace holds the bridge.")


class Management(Document):
    """The network for ssh, separate from all others."""

    ipv4: Prefix4
    controller: IPv4Address = Field(description="Address of the computer on this network.")


class Host(Document):
    """A host: its addresses on each network, its routes and its kernel settings."""

    management: IPv4Address = Field(description="Its address for ssh.")
    addresses: dict[NetworkName, tuple[Address, ...]] = Field(min_length=1, description="By network.")
    nameservers: tuple[Address, ...] = Field((), max_length=3, description="For /etc/resolv.conf.")
    sysctls: dict[Sysctl, int] = Field(default_factory=dict, description="Network settings (net.*).")
    routes: dict[str, tuple[HostName, ...]] = Field(
        default_factory=dict, description="Next hops by prefix or 'default'; several hosts are used by ECMP."
    )


class Topology(Document):
    """A whole topology file."""

    image: Image
    networks: dict[NetworkName, Lan] = Field(min_length=1)
    management: Management
    hosts: dict[HostName, Host] = Field(min_length=1)

    def next_hops(self, host: str, via: str) -> Iterator[tuple[Address, str]]:
        """Yield one address per family of `via` on a network shared with `host`, and that network."""
        seen: set[int] = set()
        for network in self.hosts[host].addresses:
            for address in self.hosts[via].addresses.get(network, ()):
                if address.version not in seen:
                    seen.add(address.version)
                    yield address, network


def find(path: Path | None) -> Path:
    """Return `path`, or the default topology in this directory or above. Raises UnmoorError if none."""
    if path:
        return path
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (directory / DEFAULT).is_file():
            return directory / DEFAULT
    raise UnmoorError(f"no {DEFAULT} in {here} or above: name the file with --topology")


def load(path: Path) -> Topology:
    """Read and check the topology at `path`. Raises InvalidInputError with every problem found."""
    topology = validate(Topology, _read(path), str(path))
    problems = tuple(_problems(topology, str(path)))
    if problems:
        raise InvalidInputError(problems)
    return topology


def _read(path: Path) -> Any:
    try:
        # Imported here, because only a controller has PyYAML (a dependency of ansible-core).
        import yaml  # noqa: PLC0415 - see above
    except ModuleNotFoundError:
        raise UnmoorError(
            "the lab needs PyYAML, which comes with ansible-core: run it on a controller"
        ) from None
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        why, fix = str(error.strerror), "name a readable topology file with --topology"
    except RecursionError:
        why, fix = "is nested too deeply", "correct the syntax"
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        why, fix = f"is not YAML: {' '.join(str(error).split())}", "correct the syntax"
    raise InvalidInputError([Problem(str(path), "", "", why, fix)])


def _problems(topology: Topology, place: str) -> Iterator[Problem]:
    for check in (_names, _lans, _addresses, _management, _routes):
        for key, value, why, fix in check(topology):
            yield Problem(place, key, value, why, fix)


_Found = Iterator[tuple[str, str, str, str]]


def _names(topology: Topology) -> _Found:
    for kind, names in (("hosts", topology.hosts), ("networks", topology.networks)):
        for name in names:
            if name in (MANAGEMENT, "lo"):
                yield f"{kind}.{name}", "", "is a name that the lab uses itself", "choose another name"
    for host in topology.hosts:
        for network in topology.hosts[host].addresses:
            if len(f"{network}-{host}") > _INTERFACE_LENGTH:
                yield (
                    f"hosts.{host}.addresses.{network}",
                    "",
                    f"'{network}-{host}' is too long for the name of an interface",
                    f"shorten one of the names: together at most {_INTERFACE_LENGTH - 1} characters",
                )


def _lans(topology: Topology) -> _Found:
    for name, lan in topology.networks.items():
        if name not in getattr(topology.hosts.get(lan.switch), "addresses", ()):
            yield (
                f"networks.{name}.switch",
                lan.switch,
                "is not a host with an address on this network",
                "name the host, usually the router, in whose namespace the bridge is built",
            )
    prefixes: list[tuple[str, Network]] = [
        (f"networks.{name}.ipv{prefix.version}", prefix)
        for name, lan in topology.networks.items()
        for prefix in (lan.ipv4, lan.ipv6)
        if prefix
    ]
    prefixes.append(("management.ipv4", topology.management.ipv4))
    for (key, one), (other_key, other) in combinations(prefixes, 2):
        if one.version == other.version and one.overlaps(other):
            yield other_key, str(other), f"overlaps {key} = {one}", "use a prefix of its own"


def _addresses(topology: Topology) -> _Found:
    taken: dict[Address, str] = {}
    for host, spec in topology.hosts.items():
        for network, addresses in spec.addresses.items():
            key, lan = f"hosts.{host}.addresses.{network}", topology.networks.get(network)
            if lan is None:
                known = ", ".join(topology.networks)
                yield key, "", "is not a network of this topology", f"use one of: {known}"
                continue
            for address in addresses:
                prefix = lan.ipv4 if address.version == 4 else lan.ipv6
                if prefix is None or address not in prefix:
                    fix = (
                        f"use an address of {prefix}" if prefix else f"give networks.{network} an ipv6 prefix"
                    )
                    yield key, str(address), "is not in the network's prefix", fix
                if address in taken:
                    yield key, str(address), f"is taken by {taken[address]}", "use an address of its own"
                taken.setdefault(address, key)


def _management(topology: Topology) -> _Found:
    taken: dict[Address, str] = {}
    prefix = topology.management.ipv4
    addresses = {f"hosts.{host}.management": spec.management for host, spec in topology.hosts.items()}
    for key, address in ({"management.controller": topology.management.controller} | addresses).items():
        if address not in prefix:
            yield key, str(address), "is not in management.ipv4", f"use an address of {prefix}"
        if address in taken:
            yield key, str(address), f"is taken by {taken[address]}", "use an address of its own"
        taken.setdefault(address, key)


def _routes(topology: Topology) -> _Found:
    for host, spec in topology.hosts.items():
        for target, hops in spec.routes.items():
            key = f"hosts.{host}.routes.{target}"
            version = _version(target)
            if version is None:
                yield key, "", "is not an IP prefix or 'default'", "write it as in 198.18.0.0/20"
                continue
            if not hops:
                yield key, "", "has no next hop", "name at least one host"
            for via in hops:
                found = via in topology.hosts and list(topology.next_hops(host, via))
                if not found or (version and version not in {address.version for address, _ in found}):
                    yield (
                        key,
                        via,
                        f"is not a host that shares a network with {host}"
                        + (f" for IPv{version}" if version else ""),
                        "name a neighbour, or give both an address on one network",
                    )


def _version(target: str) -> int | None:
    """Return the family of a route's target: 4, 6, 0 for 'default' (both), or None if it is invalid."""
    if target == "default":
        return 0
    try:
        return ip_network(target).version
    except ValueError:
        return None
