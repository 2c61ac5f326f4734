"""AnyIP: routes that make whole prefixes local to this host, so that its sockets can take their packets.

A prefix is local when table `local` has a route of type local for it (`ip route add local PREFIX dev lo`).
Unmoor's routes have their own route protocol number, which distinguishes them from others without any state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from unmoor import process
from unmoor.model import EdgeDocument

#: The protocol of Unmoor's routes (rtm_protocol, rtnetlink(7)): not assigned in iproute2's rt_protos.
PROTOCOL = 117
#: Seconds that one call of ip(8) may take; a change of all prefixes takes a fraction of one.
_TIMEOUT = 60.0

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Change:
    """The prefixes that `apply` makes local, and those that it makes not local."""

    added: tuple[Network, ...]
    removed: tuple[Network, ...]


def wanted(document: EdgeDocument) -> set[Network]:
    """Return what must be local on this edge: its prefixes and further addresses."""
    return {*document.prefixes, *document.addresses}


def current() -> set[Network]:
    """Return what Unmoor's routes make local in this network namespace. Raises ProcessError of ip(8)."""
    found: set[Network] = set()
    for family in ("-4", "-6"):
        routes = _ip("-json", family, "route", "show", "table", "local", "proto", str(PROTOCOL))
        found |= {ip_network(route["dst"]) for route in json.loads(routes or "[]")}
    return found


def plan(document: EdgeDocument | None) -> Change:
    """Return the change from the routes that exist to this document; without one, remove all routes."""
    want = wanted(document) if document else set()
    have = current()
    return Change(_ordered(want - have), _ordered(have - want))


def apply(change: Change) -> None:
    """Add and then remove routes, by one call of ip(8) for each family. Raises ProcessError if it fails."""
    for version in (4, 6):
        lines = [
            f"route {verb} local {prefix} dev lo proto {PROTOCOL}" for verb, prefix in _steps(change, version)
        ]
        if lines:
            _ip(f"-{version}", "-batch", "-", stdin="\n".join(lines) + "\n")


def _steps(change: Change, version: int) -> Iterable[tuple[str, Network]]:
    yield from (("replace", prefix) for prefix in change.added if prefix.version == version)
    yield from (("del", prefix) for prefix in change.removed if prefix.version == version)


def _ordered(prefixes: set[Network]) -> tuple[Network, ...]:
    return tuple(sorted(prefixes, key=lambda prefix: (prefix.version, prefix)))


def _ip(*arguments: str, stdin: str | None = None) -> str:
    done = process.run(["ip", *arguments], stdin=stdin, timeout=_TIMEOUT, fixes=process.NEEDS_ROOT)
    return done.stdout
