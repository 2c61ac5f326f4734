"""Documents of a given number of bindings, the same at every run."""

from __future__ import annotations

import random
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network

from unmoor.model import EdgeDocument, Prefix, Service

PORTS = (80, 8080, 8880, 2052, 2082, 2086, 2095, 443, 2053, 2083, 2087, 2096, 8443)
_BASES = {4: (int(IPv4Address("198.18.0.0")), 17), 6: (int(IPv6Address("2001:db8::")), 84)}


def thirteen(ports: tuple[int, ...] = PORTS) -> EdgeDocument:
    """A /20 and a /44 on the usual 13 ports."""
    return _document([ip_network("198.18.0.0/20")], [ip_network("2001:db8::/44")], ports)


def floods() -> EdgeDocument:
    """A /20 on the usual 13 ports, TCP and UDP; one of the ports is a separate service."""
    web = Service(label="web", protocols=("tcp", "udp"), ports=tuple(port for port in PORTS if port != 8080))
    connect = Service(label="connect", ports=(8080,))
    prefixes = (ip_network("198.18.0.0/20"),)
    return EdgeDocument(pop="bench", edge="bench", prefixes=prefixes, services=(web, connect))


def many(count: int, family: int, seed: int = 1) -> EdgeDocument:
    """`count` single addresses of one family, spread at random over a /15 or a /44, on port 80."""
    draw = random.Random(seed)
    base, bits = _BASES[family]
    offsets = (
        sorted(draw.sample(range(1 << bits), count))
        if family == 4
        else sorted({draw.getrandbits(bits) for _ in range(count)})
    )
    kind = IPv4Address if family == 4 else IPv6Address
    prefixes = [ip_network(kind(base + offset)) for offset in offsets]
    return _document(prefixes, (), (80,))


def wide(count: int, seed: int = 1) -> EdgeDocument:
    """About `count` bindings like those of operators: prefixes of both families on the 13 ports."""
    draw = random.Random(seed)
    number = round(count / len(PORTS))
    base = int(IPv4Address("198.18.0.0"))
    ipv4 = [ip_network((base + 16 * each, 28)) for each in sorted(draw.sample(range(8192), number // 2))]
    base6 = int(IPv6Address("2001:db8::"))
    ipv6 = [
        ip_network((base6 + (each << 64), 64))
        for each in sorted(draw.sample(range(1 << 20), number - number // 2))
    ]
    return _document(ipv4, ipv6, PORTS)


def _document(
    ipv4: Iterable[Prefix],
    ipv6: Iterable[Prefix],
    ports: tuple[int, ...],
) -> EdgeDocument:
    service = Service(label="web", ports=ports)
    return EdgeDocument(pop="bench", edge="bench", prefixes=(*ipv4, *ipv6), services=(service,))
