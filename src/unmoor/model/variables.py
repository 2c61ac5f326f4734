"""The variables that an inventory sets, with the file and line of each value.

Plain types: nothing here reads a file or compares one host with another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, SecretStr

from unmoor.errors import Key, Problem, dotted
from unmoor.model.common import Address, Document, Label, Prefix
from unmoor.model.dns import Catalog, CookieSecret, Policy, Pool, Primary, QueryLog, TsigKey
from unmoor.model.edge import ServiceBody
from unmoor.model.secrets import Secret

#: Variables that are fields of dns.json, there without `dns_`.
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
#: The name of each variable begins with this.
PREFIX = "unmoor_"
#: The place of a value whose file is unknown: this and the host's name.
HOST_PLACE = "inventory, host "
#: What a rollout removes only if the operator expects it.
REMOVABLE = ("prefixes", "services", "zones", "hostnames")


class ZoneFiles(Document):
    """A zone of the inventory: its name and the sources of its content."""

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
    """Every `unmoor_` variable of a host, here without that prefix."""

    prefixes: tuple[Prefix, ...] = Field(
        min_length=1, description="Prefixes that are advertised and bound to sockets."
    )
    services: dict[Label, ServiceBody] = Field(min_length=1, description="Services by label.")
    pools: dict[Label, Pool] = Field(min_length=1, description="Pools of addresses for DNS answers, by name.")
    policies: tuple[Policy, ...] = Field(min_length=1, description="Ordered; the first that matches answers.")
    zones: tuple[ZoneFiles, ...] = Field(min_length=1, description="Zones served.")
    catalogs: tuple[Catalog, ...] = Field((), description="Catalog zones (RFC 9432), as in dns.json.")
    tsig_keys: dict[str, TsigKey] = Field(
        default_factory=dict, description="As tsig_keys of dns.json; keep it in a vault."
    )
    dns_unicast: tuple[Address, ...] = Field(
        (), description="The edge's own addresses of its DNS server, which gates query."
    )
    dns_anycast: tuple[Address, ...] = Field(
        (), description="Addresses of the DNS service, shared by all edges and local on each."
    )
    dns_port: int = Field(53, ge=1, le=65535, description="UDP and TCP port of the DNS server.")
    dns_service: str = Field(
        "",
        description="Label of a service with UDP and TCP on dns_port: the DNS server answers on its prefixes "
        "too, besides its own addresses.",
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
        description="File of millions of further hostnames, in `zones/` of the inventory's directory: "
        "built by `unmoor dns registry build`, or a list (CSV, JSON lines) to build from.",
    )
    removals_unasked: dict[Literal["prefixes", "services", "zones", "hostnames"], NonNegativeInt] = Field(
        default_factory=dict,
        description="Number of each that one run may remove without -e expect_removed; by default none.",
    )
    own_listeners: tuple[Label, ...] = Field(
        (),
        description="Labels of services whose sockets the operator's own listeners register, besides those "
        "of role listener and of the DNS server.",
    )
    probe_ca: str | None = Field(
        None,
        description="File on the vantage host: certificates (PEM) that probes trust, not the system's.",
    )
    vantage: str | None = Field(None, description="Host from which a whole PoP is proved.")
    gate_vantage: str | None = Field(
        None, description="Host on the edges' own network from which each single edge is proved."
    )
    gate_via: tuple[Address, ...] = Field(
        (),
        description="The edge's addresses, one per family, that the gate uses as next hops; by default "
        "unmoor_dns_unicast.",
    )


@dataclass
class Source:
    """One host's variables, and the problems found in them.

    `place_of` returns the file and line of a value, or an empty string where they are unknown.
    """

    host: str
    variables: Mapping[str, Any]
    directory: Path
    place_of: Callable[[Any], str]
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Key) -> str:
        """Return file and line of the innermost value on `path` whose origin is known."""
        found = ""
        for value in self._walk(path):
            found = self.place_of(value) or found
        return found or HOST_PLACE + self.host

    def written(self, path: Key) -> Any:
        """Return the value at `path` as the operator wrote it; None if there is none."""
        values = tuple(self._walk(path))
        return values[-1] if path and len(values) == len(path) else None

    def problem(self, path: Key, value: object, why: str, fix: str) -> None:
        """Add the problem that the value at `path` is wrong."""
        self.problems.append(Problem(self.place(path), PREFIX + dotted(path), str(value), why, fix))

    def _walk(self, path: Key) -> Iterator[Any]:
        """Yield the value of each step of `path`, up to the first that does not exist."""
        value: Any = {key.removeprefix(PREFIX): entry for key, entry in self.variables.items()}
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return
            yield value


def shown(path: Path) -> str:
    """Return a path as problems show it: relative to the working directory if it is below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
