"""The registrar: checks sockets and the right to register them, then puts them into a service's slots."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from unmoor.bpf import libbpf
from unmoor.bpf.layout import (
    DESCRIPTOR,
    FAMILIES,
    GROUPS_PER_SERVICE,
    KEY,
    PROTOCOLS,
    SOCKET_SLOTS,
    group,
)
from unmoor.bpf.pins import ACCOUNT, BusyError, Pins
from unmoor.errors import UnmoorError
from unmoor.model import Service
from unmoor.sockets.activation.descriptors import SocketInfo, UnsuitableError, inspect
from unmoor.sockets.activation.explain import ask
from unmoor.sockets.activation.protocol import MAX_DESCRIPTORS, Question, Request
from unmoor.sockets.dispatch import hints
from unmoor.sockets.dispatch.generation import OWN_NETNS, find_live, record_id

#: Seconds that a request waits while a load switches generations; it occupies a worker meanwhile.
GUARD_TIMEOUT = 0.5
#: How often a registration is repeated because a load has switched generations meanwhile.
_MAX_TRIES = 5

#: Sockets of a request by the index of their slots (`layout.group`): descriptor and description.
_Groups = dict[int, list[tuple[int, SocketInfo]]]


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that sent a request, as the kernel reports it (SO_PEERCRED, SO_PEERGROUPS)."""

    pid: int
    uid: int
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Table:
    """What a registration needs of a generation's record. `id` is that of the record's map."""

    id: int
    netns: int
    services: dict[str, int]
    declared: tuple[Service, ...]


class RefusedError(Exception):
    """The request is refused and nothing was changed; the message is the reason."""


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _refusing(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Turn UnmoorError, which an operator can fix, into RefusedError."""

    @wraps(function)
    def refusing(*arguments: _P.args, **options: _P.kwargs) -> _T:
        try:
            return function(*arguments, **options)
        except BusyError:
            raise RefusedError("the dispatch table is being changed: try again") from None
        except UnmoorError as error:
            raise RefusedError(str(error)) from None

    return refusing


class Registrar:
    """Registers sockets for the services of the live generation."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        # Kept from one request to the next: the kernel does not give a map's id to another map.
        self._table: _Table | None = None

    @_refusing
    def authorize(self, request: Request, peer: Peer) -> None:
        """Raise RefusedError unless the peer may make this request. Needs none of its descriptors."""
        _authorized(self._live(), request.service, peer)

    @_refusing
    def handle(self, request: Request, descriptors: Sequence[int], peer: Peer) -> tuple[SocketInfo, ...]:
        """Register or unregister sockets: all or none. Returns the sockets that the service has now.

        Raises RefusedError with nothing changed. All checks precede the guard, which is held for the write
        only. Under it the generation is compared with the one that was checked, so no load can have given the
        service's id to another service.
        """
        for _ in range(_MAX_TRIES):
            live = self._live()
            services = _authorized(live, request.service, peer)
            groups = self._prepared(live, request, services, descriptors)
            with self._pins.guarded(GUARD_TIMEOUT):
                directory = self._pins.live()
                if directory and record_id(directory) == live.id:
                    self._write(directory, groups)
                    return tuple(info for members in groups.values() for _, info in members)
        raise RefusedError("the dispatch table keeps changing: try again")

    @_refusing
    def explain(self, question: Question, peer: Peer) -> dict[str, int | None]:
        """Return the fields of `lookup.Answer`, and `generation`: the id of the record that they refer to.

        Takes one test run. Raises RefusedError when the peer may not read the pins, nothing is loaded, or a
        load holds the guard.
        """
        if not _may_read(self._pins.root, peer):
            raise RefusedError(
                f"user id {peer.uid} may not read the pins: "
                f"run this as root or as a member of group {ACCOUNT}"
            )
        generation, answer = ask(self._pins, question, GUARD_TIMEOUT)
        return {"generation": generation, **asdict(answer)}

    def renew_hints(self) -> None:
        """Renew the hints of all services of the live generation, if there is one."""
        with suppress(UnmoorError, RefusedError, OSError), self._pins.guarded(GUARD_TIMEOUT):
            services, directory = self._live().services, self._pins.live()
            if directory is None:
                return
            groups = [
                number
                for service in services.values()
                for number in range(service * GROUPS_PER_SERVICE, (service + 1) * GROUPS_PER_SERVICE)
            ]
            with self._opened(directory) as sockets, hints.filling(directory, sockets, groups):
                pass

    def withdraw_hints(self) -> None:
        """Withdraw all hints: the next activation service may be of a release without them."""
        with suppress(UnmoorError, OSError), self._pins.guarded(GUARD_TIMEOUT):
            directory = self._pins.live()
            if directory:
                hints.withdraw(directory)

    def _live(self) -> _Table:
        """Return the live generation; its record is decoded only if it differs from the last one."""
        directory = self._pins.live()
        if directory and self._table and record_id(directory) == self._table.id:
            return self._table
        found = find_live(self._pins)
        if found is None:
            raise RefusedError("no dispatch table is loaded: run unmoor sockets load")
        record = found.record
        self._table = _Table(found.id, record.netns, record.services, record.declared)
        return self._table

    def _prepared(
        self, table: _Table, request: Request, services: Sequence[Service], descriptors: Sequence[int]
    ) -> _Groups:
        """Check the sockets and group them by their slots; to unregister, all slots without sockets."""
        label = request.service
        if request.verb == "unregister":
            if descriptors:
                raise RefusedError("unregister takes no sockets")
            first = group(table.services[label], PROTOCOLS[0], FAMILIES[0])
            return {number: [] for number in range(first, first + GROUPS_PER_SERVICE)}
        if not descriptors:
            raise RefusedError("the request has no socket")
        allowed = {protocol for service in services for protocol in service.protocols}
        groups: _Groups = defaultdict(list)
        for descriptor in descriptors:
            try:
                info = inspect(descriptor)
            except UnsuitableError as error:
                raise RefusedError(str(error)) from None
            if info.protocol not in allowed:
                raise RefusedError(
                    f"wrong protocol: {info} for {label!r}, which has {', '.join(sorted(allowed))}"
                )
            if info.netns != OWN_NETNS.stat().st_ino or info.netns != table.netns:
                raise RefusedError(f"{info} is in another network namespace than the dispatch table")
            groups[group(table.services[label], info.protocol, info.family)].append((descriptor, info))
        for members in groups.values():
            _check_group([info for _, info in members])
        self._prove([descriptor for members in groups.values() for descriptor, _ in members])
        return groups

    def _write(self, directory: Path, groups: _Groups) -> None:
        first = min(groups) // GROUPS_PER_SERVICE * GROUPS_PER_SERVICE
        service = range(first, first + GROUPS_PER_SERVICE)
        slots = [
            number * SOCKET_SLOTS + slot for number, members in groups.items() for slot in range(len(members))
        ]
        with self._opened(directory) as sockets, hints.filling(directory, sockets, service, slots):
            for number, members in groups.items():
                _fill_slots(sockets, number, [descriptor for descriptor, _ in members])

    @contextmanager
    def _opened(self, directory: Path) -> Iterator[int]:
        """Open the map of sockets for the program of a generation. Raises RefusedError if it uses another."""
        with libbpf.opened(self._pins.registry, "map") as sockets:
            with libbpf.opened(directory / "explain", "program") as program:
                if libbpf.map_info(sockets).id not in libbpf.program_maps(program):
                    raise RefusedError(
                        f"{self._pins.registry} is not the map that the dispatch program uses: "
                        "run unmoor sockets load, which restores it"
                    )
            yield sockets

    @staticmethod
    def _prove(descriptors: Sequence[int]) -> None:
        """Put the sockets into a temporary map, so that the kernel refuses any of them before the change."""
        with libbpf.closing(
            libbpf.create_map(libbpf.MAP_SOCKMAP, "proof", KEY.size, DESCRIPTOR.size, MAX_DESCRIPTORS)
        ) as proof:
            for number, descriptor in enumerate(descriptors):
                try:
                    libbpf.update(proof, KEY.pack(number), DESCRIPTOR.pack(descriptor))
                except OSError as error:
                    raise RefusedError(
                        f"the kernel refuses the socket: {os.strerror(error.errno or 0)}"
                    ) from None


def _authorized(table: _Table, label: str, peer: Peer) -> list[Service]:
    """Return the services with this label. Raises RefusedError if there is none or the peer has no right."""
    services = [service for service in table.declared if service.label == label]
    if not services:
        raise RefusedError(f"unknown service {label!r}: add it to the inventory's services")
    if not any(may_register(service, peer) for service in services):
        raise RefusedError(
            f"user id {peer.uid} may not register {label!r}: add the user to the service's users"
        )
    return services


def _may_read(path: Path, peer: Peer) -> bool:
    """Whether the peer is root, or the mode of a path lets it read as a member of the group."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return peer.uid == 0
    return peer.uid == 0 or (found.st_gid in peer.groups and bool(found.st_mode & stat.S_IRGRP))


def _check_group(members: Sequence[SocketInfo]) -> None:
    first = members[0]
    if len(members) > SOCKET_SLOTS:
        raise RefusedError(
            f"too many sockets for {first.protocol} over IPv{first.family}: {len(members)}, "
            f"at most {SOCKET_SLOTS}"
        )
    if len({member.cookie for member in members}) < len(members):
        raise RefusedError(f"{first} is in the request twice")
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
    """Whether the peer is root, one of the service's users, or a member of one of its groups."""
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
