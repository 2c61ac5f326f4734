"""The document of an edge's DNS half: `/etc/unmoor/dns.json`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from unmoor.model.common import Address, Document, Label, Prefix, Prefix4, Prefix6
from unmoor.model.secrets import SEALED, Secret

#: RFC 9018 section 4.2: SipHash-2-4 takes 128 bits.
_COOKIE_SECRET = "^([0-9a-f]{32})?$"  # noqa: S105 - the form of one


def _cookie_secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not re.match(_COOKIE_SECRET, text) and not text.startswith(SEALED):
        raise ValueError(
            "is not 32 hexadecimal digits (the value is not shown): openssl rand -hex 16 makes them"
        )
    return value


CookieSecret = Annotated[
    Secret, AfterValidator(_cookie_secret), Field(json_schema_extra={"pattern": _COOKIE_SECRET})
]


class Pool(Document):
    """A pool: prefixes of each family whose addresses DNS answers with. Overlapping prefixes add weight."""

    ipv4: tuple[Prefix4, ...] = Field((), description="IPv4 prefixes; A answers are drawn from them.")
    ipv6: tuple[Prefix6, ...] = Field((), description="IPv6 prefixes; AAAA answers are drawn from them.")
    ptr: str = Field(
        "",
        description="Answer to PTR queries for its addresses, as in 'ip-{address}.example.com'; "
        "the reverse zones must be among the zones.",
    )
    exclude: tuple[Prefix, ...] = Field(
        (), description="Addresses never answered, as prefixes of either family: 198.18.0.1/32."
    )


class Match(Document):
    """The conditions of a policy. All must hold; without any, the policy matches every query."""

    pops: tuple[Label, ...] | None = Field(None, min_length=1, description="PoPs that answer.")
    tags: dict[str, str] = Field(default_factory=dict, description="Tags that the hostname must carry.")
    suffixes: tuple[str, ...] | None = Field(
        None, min_length=1, description="Names at or below one of these, as in 'shop.example.com'."
    )
    zones: tuple[str, ...] | None = Field(None, min_length=1, description="Zones that the name is in.")
    clients: tuple[Prefix, ...] | None = Field(
        None,
        min_length=1,
        description="Networks of clients: the EDNS client subnet of the query (RFC 7871), or else the "
        "resolver's own address.",
    )
    types: tuple[Literal["A", "AAAA"], ...] | None = Field(None, min_length=1, description="Query types.")


class ServiceBinding(Document):
    """Parameters of the HTTPS and SVCB records (RFC 9460) of a hostname."""

    alpn: tuple[str, ...] = Field(("h2",), min_length=1, description="Protocols offered, as in 'h3', 'h2'.")
    port: int | None = Field(
        None, ge=1, le=65535, description="Port, if it is not the default of the protocol."
    )
    priority: int = Field(1, ge=1, le=65535, description="Rank among several records: the lowest first.")
    hints: bool = Field(True, description="Add address hints, chosen as for A and AAAA.")


class Answer(Document):
    """The answer of a policy: addresses of a pool, with their TTL."""

    pool: Label = Field(description="The pool to draw from.")
    weight: int = Field(1, ge=1, le=2**31, description="Weight of `pool` among the pools in `also`.")
    also: dict[Label, int] = Field(
        default_factory=dict,
        description="Further pools with their weights; each query draws from one of all.",
    )
    records: int = Field(1, ge=1, le=32, description="Different addresses in one answer, at most.")
    ttl: int = Field(ge=0, le=2**31 - 1, description="Time to live, seconds (RFC 2181 section 8).")
    strategy: Literal["random", "sticky", "pinned"] = Field(
        "random",
        description="random: drawn for each query; sticky: by a keyed hash of `sticky_by`; "
        "pinned: always those of `addresses`.",
    )
    sticky_by: Literal["name", "client"] = Field(
        "name", description="Input of the hash: the name, or the client's network (IPv4 /24, IPv6 /56)."
    )
    https: ServiceBinding | None = Field(None, description="Answer to HTTPS queries; without it, no data.")
    svcb: ServiceBinding | None = Field(None, description="Answer to SVCB queries; without it, no data.")
    addresses: tuple[Address, ...] = Field(
        (), description="Addresses of the pool that a pinned policy answers, all of the query's family."
    )


class Policy(Document):
    """A policy. The first of the list that matches a query answers it."""

    name: Label
    match: Match = Match()
    answer: Answer
    exclusive: bool = Field(
        False, description="No other policy may match a query that this one matches; the check verifies it."
    )


class Hostnames(Document):
    """Registered names that carry the same tags."""

    tags: dict[str, str] = Field(default_factory=dict, description="Attributes, such as the account type.")
    names: tuple[str, ...] = Field(description="Names relative to the zone, or absolute with a final dot.")


class TsigKey(Document):
    """A secret shared with a primary: transfers and NOTIFY are signed with it (RFC 8945)."""

    algorithm: Literal["hmac-sha1", "hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512"] = Field(
        "hmac-sha256", description="Both sides must use the same."
    )
    secret: Secret = Field(description="In base64, as tsig-keygen and keymgr print it; keep it in a vault.")


class Primary(Document):
    """A server that zones are transferred from (RFC 5936)."""

    address: Address
    port: int = Field(53, ge=1, le=65535)
    tsig_key: str = Field("", description="One of tsig_keys; messages not signed with it are refused.")


class Zone(Document):
    """A zone: SOA, NS and static records, and the hostnames that policies answer."""

    name: str = Field(description="The zone's apex, as in 'example.com'.")
    records: str = Field(
        "",
        description="The static records, as the text of a zone file (RFC 1035 section 5).",
    )
    source: str = Field("", description="The file the records were read from; errors name it.")
    primaries: tuple[Primary, ...] = Field(
        (), description="Servers to transfer the static records from, instead of `records`."
    )
    hostnames: tuple[Hostnames, ...] = ()


class RegistryFile(Document):
    """A registry of hostnames, built by `unmoor dns registry build`."""

    path: str = Field(min_length=1, description="Path of the file on the edge.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Its digest, as sha256sum prints it.")
    names: int | None = Field(None, ge=0, description="Number of names, from which a plan counts removals.")

    def __str__(self) -> str:
        names = "" if self.names is None else f", {self.names} names"
        return f"{self.path} (SHA-256 {self.sha256[:12]}{names})"


class Members(Document):
    """Settings of the member zones of a catalog."""

    primaries: tuple[Primary, ...] = Field(
        (), description="Servers to transfer the zones from; without any, those of the catalog."
    )
    hostnames: tuple[Hostnames, ...] = Field(
        (), description="Names registered in each of the zones, relative to it: '@', 'www'."
    )


class Catalog(Document):
    """A catalog zone (RFC 9432), which lists further zones to serve."""

    name: str = Field(description="The catalog's own name, as in 'catalog.example'.")
    primaries: tuple[Primary, ...] = Field(min_length=1, description="Servers to transfer it from.")
    members: Members = Members()
    groups: dict[str, Members] = Field(
        default_factory=dict,
        description="Settings, instead of `members`, of member zones whose property `group` is the key "
        "(RFC 9432 section 4.3.2). If a zone has several groups, the first of this list counts.",
    )


class QueryLog(Document):
    """A log of a sample of the queries, with their answers."""

    sample: int = Field(
        0, ge=0, le=10**9, description="One query in so many is logged, chosen at random; 0: none, 1: all."
    )
    to: Literal["journald", "dnstap"] = Field("journald", description="Receiver of the log.")
    socket: str = Field(
        "", description="The receiver's UNIX socket; required for dnstap, by default that of journald."
    )
    whole_addresses: bool = Field(
        False, description="Log full client addresses, not networks (IPv4 /24, IPv6 /56)."
    )

    @model_validator(mode="after")
    def _names_a_socket(self) -> QueryLog:
        if self.to == "dnstap" and self.sample and not self.socket:
            raise ValueError("dnstap has no socket: name the receiver's, as in /run/dnstap/unmoor.sock")
        return self


class DnsDocument(Document):
    """The configuration of the DNS server: sockets, zones, pools and policies."""

    version: Literal[1] = 1
    pop: Label = Field(description="The PoP that answers.")
    edge: str = Field(min_length=1, description="The edge's name in the inventory.")
    listen: tuple[Address, ...] = Field(min_length=1, description="Addresses served.")
    port: int = Field(53, ge=1, le=65535, description="UDP and TCP port.")
    any_address: bool = Field(
        False,
        description="Listen on loopback too, and reply from the address of the query: a dispatch table may "
        "steer all addresses of some prefixes to these sockets (unmoor sockets register).",
    )
    workers: int = Field(0, ge=0, le=256, description="Worker processes; 0 means one for each core.")
    zones: tuple[Zone, ...] = ()
    registry: RegistryFile | None = Field(
        None, description="Hostnames in addition to those of the zones, which take precedence."
    )
    catalogs: tuple[Catalog, ...] = ()
    tsig_keys: dict[str, TsigKey] = Field(default_factory=dict, description="By name, as the primary has it.")
    transfer_limit: int = Field(
        1_000_000,
        ge=1,
        description="Maximum number of records of a transferred zone; a larger one is refused.",
    )
    pools: dict[Label, Pool] = Field(default_factory=dict)
    policies: tuple[Policy, ...] = ()
    cookie_secret: CookieSecret = Field(
        SecretStr(""),
        description="Secret of DNS cookies, 32 hexadecimal digits, the same on all edges that share an "
        "address (RFC 9018); without it, each server draws its own when it starts.",
    )
    tcp_connections: int = Field(
        4096,
        ge=16,
        le=65536,
        description="TCP connections at once, split evenly among workers; a further one closes the idlest. "
        "Each takes a descriptor (LimitNOFILE= of the unit).",
    )
    tcp_per_client: int = Field(
        256,
        ge=1,
        le=65536,
        description="TCP connections of one client (an IPv4 address, or an IPv6 /64), split evenly among the "
        "workers; a further one is closed at once.",
    )
    tcp_idle: int = Field(
        15, ge=1, le=3600, description="Seconds in which a TCP connection must send a complete query."
    )
    rate_limit: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Full UDP replies per second to one client network (IPv4 /24, IPv6 /56) for one name and "
        "type, one zone's missing names, or one error; beyond it half of the replies are truncated and half "
        "are dropped. 0: no limit.",
    )
    tell_name: bool = Field(
        False, description="Answer queries for the edge's name: NSID (RFC 5001), id.server CH TXT (RFC 4892)."
    )
    tell_version: bool = Field(False, description="Answer queries for the version: version.server CH TXT.")
    sticky_key: Secret = Field(
        SecretStr(""),
        description="Secret of sticky answers, the same on all edges; without it answers are predictable.",
    )
    journal_keep: int = Field(
        400,
        ge=1,
        le=36500,
        description="Minimum age in days at which records of the address journal are removed.",
    )
    query_log: QueryLog = QueryLog()
    count_addresses: bool = Field(True, description="Count answers by address.")
