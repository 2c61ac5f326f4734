"""Puts sockets into the slots of a service, all or none, for whoever may do so."""

from __future__ import annotations

import grp
import os
import pwd
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from unmoor.errors import UnmoorError
from unmoor.model import Service
from unmoor.sockets import libbpf
from unmoor.sockets.descriptors import SocketInfo, UnsuitableError, inspect
from unmoor.sockets.generation import OWN_NETNS, read_current
from unmoor.sockets.layout import (
    DESCRIPTOR,
    FAMILIES,
    GROUPS_PER_SERVICE,
    KEY,
    PROTOCOLS,
    SOCKET_SLOTS,
    group,
)
from unmoor.sockets.pins import Pins
from unmoor.sockets.protocol import MOST_DESCRIPTORS, Request
from unmoor.sockets.record import Record


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, as the kernel says (SO_PEERCRED, SO_PEERGROUPS)."""

    pid: int
    uid: int
    groups: frozenset[int]


class RefusedError(Exception):
    """The request is refused; says why. Nothing was changed."""


class Registry:
    """The sockets of all services, as the running generation knows them."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins

    def authorize(self, request: Request, peer: Peer) -> None:
        """Whether the peer may ask this. Raises RefusedError. Needs none of the request's descriptors."""
        self._authorized(request, peer)

    def _authorized(self, request: Request, peer: Peer) -> tuple[Record, list[Service]]:
        try:
            record = read_current(self._pins)
        except UnmoorError as error:
            raise RefusedError(str(error)) from None
        if record is None:
            raise RefusedError("no dispatch table is loaded: run unmoor sockets load")
        services = [service for service in record.declared if service.label == request.service]
        if not services:
            raise RefusedError(f"unknown service {request.service!r}: add it to the inventory's services")
        if not any(may_register(service, peer) for service in services):
            raise RefusedError(
                f"user id {peer.uid} may not register {request.service!r}: "
                "add the user to the service's users"
            )
        return record, services

    def handle(self, request: Request, descriptors: Sequence[int], peer: Peer) -> tuple[SocketInfo, ...]:
        """Do what is asked; returns the sockets registered. Raises RefusedError, with nothing changed."""
        record, services = self._authorized(request, peer)
        if request.verb == "unregister":
            if descriptors:
                raise RefusedError("unregister takes no sockets")
            self._unregister(record, request.service)
            return ()
        return self._register(record, request.service, services, descriptors)

    def _register(
        self, record: Record, label: str, services: Sequence[Service], descriptors: Sequence[int]
    ) -> tuple[SocketInfo, ...]:
        if not descriptors:
            raise RefusedError("no socket came with the request")
        allowed = {protocol for service in services for protocol in service.protocols}
        groups: dict[int, list[tuple[int, SocketInfo]]] = defaultdict(list)
        for descriptor in descriptors:
            try:
                info = inspect(descriptor)
            except UnsuitableError as error:
                raise RefusedError(str(error)) from None
            if info.protocol not in allowed:
                raise RefusedError(
                    f"wrong protocol: {info} for {label!r}, which has {', '.join(sorted(allowed))}"
                )
            if info.netns != OWN_NETNS.stat().st_ino or info.netns != record.netns:
                raise RefusedError(f"{info} is in another network namespace than the dispatch table")
            groups[group(record.services[label], info.protocol, info.family)].append((descriptor, info))
        for members in groups.values():
            _check_group([info for _, info in members])
        self._prove([descriptor for members in groups.values() for descriptor, _ in members])
        with libbpf.opened(self._pins.registry) as sockets:
            for number, members in groups.items():
                _fill_slots(sockets, number, [descriptor for descriptor, _ in members])
        return tuple(info for members in groups.values() for _, info in members)

    def _unregister(self, record: Record, label: str) -> None:
        first = group(record.services[label], PROTOCOLS[0], FAMILIES[0])
        with libbpf.opened(self._pins.registry) as sockets:
            for number in range(first, first + GROUPS_PER_SERVICE):
                _fill_slots(sockets, number, [])

    @staticmethod
    def _prove(descriptors: Sequence[int]) -> None:
        """Put all into a map that nothing reads: so the kernel refuses before anything changes."""
        with libbpf.closing(
            libbpf.create_map(libbpf.MAP_SOCKMAP, "proof", KEY.size, DESCRIPTOR.size, MOST_DESCRIPTORS)
        ) as proof:
            for number, descriptor in enumerate(descriptors):
                try:
                    libbpf.update(proof, KEY.pack(number), DESCRIPTOR.pack(descriptor))
                except OSError as error:
                    raise RefusedError(
                        f"the kernel refuses the socket: {os.strerror(error.errno or 0)}"
                    ) from None


def _check_group(members: Sequence[SocketInfo]) -> None:
    first = members[0]
    if len(members) > SOCKET_SLOTS:
        raise RefusedError(
            f"table full: {len(members)} sockets like {first}, at most {SOCKET_SLOTS} have room"
        )
    if len({member.cookie for member in members}) < len(members):
        raise RefusedError(f"{first} came twice")
    if len(members) > 1 and not all(
        member.reuseport and (member.address, member.port) == (first.address, first.port)
        for member in members
    ):
        raise RefusedError(
            f"several sockets for {first.protocol} over IPv{first.family}: "
            "only the members of one SO_REUSEPORT group can be registered together"
        )


def _fill_slots(sockets: int, number: int, descriptors: Sequence[int]) -> None:
    start = number * SOCKET_SLOTS
    for slot, descriptor in enumerate(descriptors, start):
        libbpf.update(sockets, KEY.pack(slot), DESCRIPTOR.pack(descriptor))
    for slot in range(start + len(descriptors), start + SOCKET_SLOTS):
        libbpf.delete(sockets, KEY.pack(slot))


def may_register(service: Service, peer: Peer) -> bool:
    """Whether the peer may register this service: root, one of its users, a member of one of its groups."""
    if peer.uid == 0:
        return True
    return any(_uid(user) == peer.uid for user in service.users) or any(
        _gid(name) in peer.groups for name in service.groups
    )


def _uid(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
