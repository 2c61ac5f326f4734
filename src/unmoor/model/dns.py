"""What the DNS half of one edge is told: `/etc/unmoor/dns.json`."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from pydantic import Field

from unmoor.model.common import Document, Label, Prefix4, Prefix6


class Pool(Document):
    """The addresses in use by DNS: parts of prefixes, per family. An address counts once for each prefix."""

    ipv4: tuple[Prefix4, ...] = Field((), description="IPv4 prefixes; A answers are drawn from them.")
    ipv6: tuple[Prefix6, ...] = Field((), description="IPv6 prefixes; AAAA answers are drawn from them.")


class Match(Document):
    """When a policy applies: every condition given must hold; no condition matches everything."""

    pops: tuple[Label, ...] | None = Field(None, min_length=1, description="PoPs that answer.")
    tags: dict[str, str] = Field(default_factory=dict, description="Tags that the hostname must carry.")
    suffixes: tuple[str, ...] | None = Field(
        None, min_length=1, description="Names at or below one of these, as in 'shop.example.com'."
    )
    types: tuple[Literal["A", "AAAA"], ...] | None = Field(None, min_length=1, description="Query types.")


class Answer(Document):
    """What a policy answers: one record drawn from the pool, with this TTL."""

    pool: Label = Field(description="The pool to draw from.")
    ttl: int = Field(ge=0, le=2**31 - 1, description="Time to live, seconds (RFC 2181 section 8).")
    strategy: Literal["random"] = Field("random", description="How an address is chosen for each query.")


class Policy(Document):
    """One line of the ordered list; the first policy whose match holds answers."""

    name: Label
    match: Match = Match()
    answer: Answer


class Hostnames(Document):
    """Registered names that carry the same tags."""

    tags: dict[str, str] = Field(default_factory=dict, description="Attributes, such as the account type.")
    names: tuple[str, ...] = Field(description="Names relative to the zone, or absolute with a final dot.")


class Zone(Document):
    """SOA, NS and static records, and the hostnames answered by policy."""

    name: str = Field(description="The zone's apex, as in 'example.com'.")
    records: str = Field(description="The static records, as the text of a zone file (RFC 1035 section 5).")
    source: str = Field("", description="The file the records were read from; errors name it.")
    hostnames: tuple[Hostnames, ...] = ()


class DnsDocument(Document):
    """Where the server listens, its zones, and the policies that choose addresses from pools."""

    version: Literal[1] = 1
    pop: Label = Field(description="The PoP that answers.")
    edge: str = Field(min_length=1, description="The edge's name in the inventory.")
    listen: tuple[IPv4Address | IPv6Address, ...] = Field(min_length=1, description="Addresses served.")
    port: int = Field(53, ge=1, le=65535, description="UDP and TCP port.")
    workers: int = Field(0, ge=0, le=256, description="Worker processes; 0 means one for each core.")
    zones: tuple[Zone, ...] = ()
    pools: dict[Label, Pool] = Field(default_factory=dict)
    policies: tuple[Policy, ...] = ()
