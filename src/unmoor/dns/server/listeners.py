"""The server's sockets: made by the parent, once, and inherited by every worker.

A worker that dies or is replaced takes no socket with it: queries that have arrived wait for its successor.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from unmoor import paths
from unmoor.errors import UnmoorError
from unmoor.model import DnsDocument
from unmoor.udp import BUFFER, buffers, enlarge_buffers

# From linux/in.h and linux/in6.h; Python's socket module does not name them all.
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_OMIT = 5

#: The most workers that a document can ask for.
_MAX_PLACES = 256
_BACKLOG = 1024
#: Of one TCP connection, for each direction, octets; the kernel doubles it.
_CONNECTION_BUFFER = 65536


class Endpoint(NamedTuple):
    """Where a worker's pair of sockets listens. `place` numbers the workers from 0."""

    address: IPv4Address | IPv6Address
    port: int
    place: int


#: Addresses to which the sockets that serve whole prefixes are bound: they receive only what a dispatch table
#: delivers, and queries from the host itself.
ANY_ADDRESS = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


class Pair(NamedTuple):
    """The UDP and the TCP socket of one endpoint."""

    udp: socket.socket
    tcp: socket.socket

    def close(self) -> None:
        """Close both."""
        self.udp.close()
        self.tcp.close()


class Buffers(NamedTuple):
    """Sizes of receive and send buffer, octets: the smallest of any UDP socket."""

    receive: int
    send: int


def buffers_of(pairs: Collection[Pair]) -> Buffers:
    """Return the smallest buffers of any UDP socket."""
    found = [buffers(pair.udp) for pair in pairs] or [(BUFFER, BUFFER)]
    return Buffers(min(receive for receive, _ in found), min(send for _, send in found))


def shortage(pairs: Collection[Pair]) -> str:
    """Describe buffers that are smaller than requested, and the fix; empty if there are none."""
    return "\n".join(
        f"{key} = {size}: a UDP socket has a {name} buffer of {size} octets instead of {BUFFER}: {loss}\n"
        f"    fix: systemctl reload {paths.DNS_UNIT}, which enlarges it, or raise {key} and restart it"
        for name, key, size, loss in zip(
            ("receive", "send"),
            ("net.core.rmem_max", "net.core.wmem_max"),
            buffers_of(pairs),
            ("a reload under load may lose queries", "spoofed queries may hold up replies"),
            strict=True,
        )
        if size < BUFFER
    )


def open_pair(endpoint: Endpoint, first: bool) -> Pair:
    """Bind both sockets of an endpoint. Raises UnmoorError with the address and the kernel's error.

    Every place has sockets of its own (SO_REUSEPORT), among which the kernel distributes clients. A reply
    leaves from the address that the client queried, since the socket is bound to it. With `first`, no other
    process may have the address: a second server of this kind would otherwise get a share of the queries.
    """
    try:
        if first:
            _bind(endpoint, shared=False).close()
        pair = _bind(endpoint, shared=True)
        pair.tcp.listen(_BACKLOG)
    except OSError as error:
        raise UnmoorError(
            f"cannot listen on {endpoint.address} port {endpoint.port}: {error.strerror}; "
            "see what holds it (ss -lntup), and that the unit has CAP_NET_BIND_SERVICE"
        ) from None
    return pair


def places(document: DnsDocument) -> int:
    """Return the number of workers: by default one for each core that this process may use."""
    return document.workers or min(len(os.sched_getaffinity(0)), _MAX_PLACES)


def endpoints(document: DnsDocument) -> list[Endpoint]:
    """Return the endpoints at which a document's workers listen."""
    return [
        Endpoint(address, document.port, place)
        for place in range(places(document))
        for address in dict.fromkeys(document.listen + ANY_ADDRESS * document.any_address)
    ]


def open_missing(wanted: Iterable[Endpoint], existing: dict[Endpoint, Pair]) -> dict[Endpoint, Pair]:
    """Open the sockets that are wanted and missing. Raises UnmoorError, with none of them opened."""
    pairs = dict(existing)
    taken = {(endpoint.address, endpoint.port) for endpoint in existing}
    try:
        for endpoint in wanted:
            if endpoint not in pairs:
                where = (endpoint.address, endpoint.port)
                pairs[endpoint] = open_pair(endpoint, first=where not in taken)
                taken.add(where)
    except UnmoorError:
        close_others(pairs, keep=existing)
        raise
    return pairs


def close_others(pairs: dict[Endpoint, Pair], keep: Iterable[Endpoint]) -> None:
    """Close the sockets of all endpoints but those to `keep`."""
    for endpoint in pairs.keys() - set(keep):
        pairs[endpoint].close()


def _bind(endpoint: Endpoint, shared: bool) -> Pair:
    family = socket.AF_INET if endpoint.address.version == 4 else socket.AF_INET6
    udp = socket.socket(family, socket.SOCK_DGRAM)
    tcp = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        for each in (udp, tcp):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
            _allow_any_address(each, family)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by connections. Without it the kernel would keep megabytes for a client that never reads.
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CONNECTION_BUFFER)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CONNECTION_BUFFER)
        enlarge_buffers(udp)
        _ignore_path_mtu(udp, family)
        udp.bind((str(endpoint.address), endpoint.port))
        tcp.bind((str(endpoint.address), endpoint.port))
    except OSError:
        udp.close()
        tcp.close()
        raise
    return Pair(udp, tcp)


def _allow_any_address(each: socket.socket, family: int) -> None:
    """Allow addresses that no interface has: those of AnyIP routes, or of an interface to come."""
    if family == socket.AF_INET:
        each.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    else:
        each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        each.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)


def _ignore_path_mtu(udp: socket.socket, family: int) -> None:
    """Ignore path MTU from ICMP, which is easily forged to have replies fragmented."""
    with suppress(OSError):  # additional protection, on kernels that have it
        if family == socket.AF_INET:
            udp.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_OMIT)
        else:
            udp.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_OMIT)
