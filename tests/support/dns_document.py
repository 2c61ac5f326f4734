"""A small DNS document, its zone, and a registry for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unmoor.dns.hostnames.registry import sha256_of
from unmoor.dns.hostnames.registry_build import build
from unmoor.dns.hostnames.registry_list import BadLines, Line
from unmoor.dns.protocol import names
from unmoor.model import DnsDocument, validate

ZONE = r"""
$TTL 3600
@         IN SOA   ns1 hostmaster 7 7200 900 1209600 300
@         IN NS    ns1
@         IN NS    ns2.example.net.
@         IN MX    10 mail
ns1       IN A     198.18.0.53
ns1       IN AAAA  2001:db8::53
mail      IN A     198.18.1.1
txt       IN TXT   "hello"
short 20  IN TXT   "a lower TTL than the negative one"
www       IN CNAME alias
alias     IN CNAME host0
out       IN CNAME elsewhere.example.org.
dangling  IN CNAME nothing
loop1     IN CNAME loop2
loop2     IN CNAME loop1
a.b.ent   IN TXT   "below empty non-terminals"
*.wild    IN TXT   "wild"
*.wild    IN MX    10 host.wild
x.wild    IN A     198.18.1.2
_sip.wild IN SRV   1 1 5060 host
sub       IN NS    ns.sub
sub       IN NS    ns3.example.net.
sub       IN DS    1 8 2 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff
ns.sub    IN A     198.18.1.3
ns.sub    IN AAAA  2001:db8::3
old       IN DNAME new
host.new  IN A     198.18.1.4
to-sub    IN CNAME deep.sub
big       IN TXT   "BIG"
odd       IN TYPE65280 \# 3 010203
host0     IN CAA   0 issue "ca.example.net"
""".replace('"BIG"', " ".join('"' + "x" * 250 + '"' for _ in range(6)))


def document(**changes: Any) -> dict[str, Any]:
    """A small valid document."""
    return {
        "version": 1,
        "pop": "lab",
        "edge": "edge1",
        "listen": ["127.0.0.1", "::1"],
        "port": 5300,
        "workers": 2,
        "pools": {
            "free": {"ipv4": ["198.18.0.0/20"], "ipv6": ["2001:db8::/44"]},
            "business": {"ipv4": ["198.51.100.0/25", "198.51.100.128/26"]},
        },
        "policies": [
            {
                "name": "free",
                "match": {"tags": {"account_type": "free"}},
                "answer": {"pool": "free", "ttl": 30},
            },
            {"name": "business", "answer": {"pool": "business", "ttl": 60}},
        ],
        "zones": [
            {
                "name": "example.com",
                "records": ZONE,
                "source": "example.com.zone",
                "hostnames": [
                    {"tags": {"account_type": "free"}, "names": [f"host{n}" for n in range(50)]},
                    {"tags": {"account_type": "business"}, "names": ["biz", "deep.in.the.wood"]},
                ],
            }
        ],
        **changes,
    }


def model(data: dict[str, Any]) -> DnsDocument:
    return validate(DnsDocument, data, "dns.json")


def with_pool(data: dict[str, object], prefix: str) -> dict[str, object]:
    changed: dict[str, object] = json.loads(json.dumps(data))
    changed["pools"]["free"]["ipv4"] = [prefix]  # type: ignore[index] # a document is a dict of dicts
    return changed


Tags = dict[str, str]


def in_registry(directory: Path, entries: Iterable[tuple[str, Tags]], *zones: str) -> dict[str, str]:
    """Build a registry of names with their tags; return the entry `registry` of a document."""
    path = directory / "hostnames.registry"
    lines = [Line(n, "", name, frozenset(tags.items())) for n, (name, tags) in enumerate(entries, 1)]
    apexes = [names.from_text(zone) for zone in zones or ("example.com",)]
    build(lines, apexes, path, BadLines("list"))
    return {"path": str(path), "sha256": sha256_of(path)}
