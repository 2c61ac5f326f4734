"""The server's sockets in systemd's file descriptor store, where they outlive it with the queries in them.

systemd passes them to the next start of the service (FileDescriptorStoreMax= of the unit), whether it follows
a restart or a crash. Each is stored under a name that identifies it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address

from unmoor import systemd
from unmoor.dns.server.listeners import Endpoint, Pair


def kept() -> dict[Endpoint, Pair]:
    """Take the pairs of sockets that systemd has stored; other sockets that it passed are closed."""
    passed = {name: socket.socket(fileno=descriptor) for name, descriptor in systemd.stored_descriptors()}
    pairs = {}
    for name in list(passed):
        endpoint = _endpoint(name)
        if endpoint is None or not all(each in passed for each in _names(endpoint)):
            continue
        pairs[endpoint] = Pair(*(passed.pop(each) for each in _names(endpoint)))
    for name, sock in passed.items():
        sock.close()
        systemd.unstore(name)
    return pairs


def keep(pairs: Mapping[Endpoint, Pair]) -> None:
    """Store these pairs in systemd, which ignores those that it already has."""
    for endpoint, pair in pairs.items():
        for name, sock in zip(_names(endpoint), pair, strict=True):
            systemd.store(name, sock.fileno())


def forget(endpoints: Iterable[Endpoint]) -> None:
    """Remove the pairs of these endpoints from systemd's store."""
    for endpoint in endpoints:
        for name in _names(endpoint):
            systemd.unstore(name)


def _names(endpoint: Endpoint) -> tuple[str, str]:
    """Return the names of an endpoint's UDP and TCP socket; names must not contain a colon."""
    where = f"{endpoint.place}-{endpoint.port}-{endpoint.address}".replace(":", "_")
    return f"udp-{where}", f"tcp-{where}"


def _endpoint(name: str) -> Endpoint | None:
    """Parse the name of a UDP socket; None for any other name."""
    kind, *parts = name.split("-")
    if kind == "udp" and len(parts) == 3:
        with suppress(ValueError):
            return Endpoint(ip_address(parts[2].replace("_", ":")), int(parts[1]), int(parts[0]))
    return None
