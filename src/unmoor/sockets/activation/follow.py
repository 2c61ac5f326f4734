"""Following a process: what it listens at stays registered when it opens new sockets.

A program in its control group (`follow.bpf.c`) puts each new TCP listener into the socket map within the
listen(2) call, before the process can close the old one. A new UDP socket is added as soon as its event has
been read. This process only fills empty slots, so it takes away nothing that the program has added: a
registration by the activation service, which replaces all sockets of a service, could remove a newer one.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from struct import Struct

from unmoor import systemd
from unmoor.bpf import libbpf
from unmoor.bpf.layout import (
    COOKIE,
    DESCRIPTOR,
    FAMILY_NUMBERS,
    KEY,
    PROTOCOL_NUMBERS,
    SOCKET_SLOTS,
    group,
)
from unmoor.bpf.pins import BusyError, Pins
from unmoor.errors import UnmoorError
from unmoor.model import Protocol
from unmoor.sockets.activation.client import Wanted, gather
from unmoor.sockets.activation.process import MissingError, retry
from unmoor.sockets.dispatch import hints
from unmoor.sockets.dispatch.generation import find_live, record_id
from unmoor.sockets.table.record import Record

#: The source of the program.
SOURCE = Path(__file__).with_name("follow.bpf.c")
#: struct target: address, family, protocol, port, zero. struct place: first, next.
_TARGET = Struct("=16sIIII")
_PLACE = Struct("=II")
_PROGRAMS = {
    "listening": libbpf.ATTACH_CGROUP_SOCK_OPS,
    "bound4": libbpf.ATTACH_CGROUP_POST_BIND4,
    "bound6": libbpf.ATTACH_CGROUP_POST_BIND6,
}
_SO_NETNS_COOKIE = 71  # <asm-generic/socket.h>
_PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")
_GUARD_TIMEOUT = 0.5  # as the activation service has it
#: The program in the kernel cannot take the guard. It needs none as long as each generation is noticed: the
#: load that removes a service gives its id to no other one; only the next load may.
_INTERVAL = 1.0  # seconds between two checks of the generation and of the slots


def follow(
    pins: Pins,
    service: str,
    find: Callable[[], int],
    wanted: Sequence[Wanted],
    register: Callable[[], None],
    wait: float,
    code: bytes,
) -> None:
    """Register the sockets of a process now and whenever it opens one, until it has ended.

    `find` returns its id, for which this waits `wait` seconds, and `wanted` are its sockets. `register`
    registers them, once. Reports READY=1 to systemd after that. `code` is the compiled program.

    Raises UnmoorError when no table is loaded or the process is in the root control group, MissingError
    when there is no process.
    """
    process = _Process(find, wait)
    ready = False
    while process.runs():
        with _program(pins, service, wanted, process.control_group(), code) as program:
            if not ready:
                register()
                systemd.notify("READY=1")
                ready = True
            _watch(program, process)
    print(f"unmoor: {service}: process {process.pid} has ended", file=sys.stderr)


def _watch(program: _Program, process: _Process) -> None:
    """Add new sockets, until the process has ended or another table is loaded."""
    # The registration may have removed one that was opened meanwhile, and another table may have another map.
    program.add(process.pid, _PROTOCOLS)
    while process.runs() and not program.outdated():
        select.select([program.events, process.fd], [], [], _INTERVAL)
        if program.drain():
            program.add(process.pid, ("udp",))
        elif program.first_slot_is_empty():
            # Not while a server reloads: a copy would keep the old listener open for a moment, and the
            # connections that the kernel gives to it then are lost.
            program.add(process.pid, _PROTOCOLS)


class _Process:
    """The process; when it ends and `find` returns another id, as after an upgrade, the other one."""

    def __init__(self, find: Callable[[], int], wait: float) -> None:
        self._find = find
        self.pid = retry(find, wait)
        self.fd = _open_process(self.pid)

    def runs(self) -> bool:
        """Whether the process or its successor runs."""
        while select.select([self.fd], [], [], 0)[0]:
            with suppress(MissingError):
                pid = self._find()
                if pid != self.pid:
                    os.close(self.fd)
                    self.pid, self.fd = pid, _open_process(pid)
                    continue
            return False
        return True

    def control_group(self) -> Path:
        """The directory of its control group (v2). Raises UnmoorError if that is the root's."""
        lines = Path(f"/proc/{self.pid}/cgroup").read_text(encoding="utf-8").splitlines()
        name = next((line[3:] for line in lines if line.startswith("0::")), "/")
        if name == "/" or name.startswith("/.."):
            raise UnmoorError(
                f"process {self.pid} is in the root control group (version 2)\n"
                "    fix: start it as a systemd service"
            )
        return _control_groups() / name[1:]


def _open_process(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise MissingError(f"there is no process {pid}") from None


def _control_groups() -> Path:
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            return Path(fields.split()[4])
    raise UnmoorError("no cgroup2 file system is mounted\n    fix: mount -t cgroup2 none /sys/fs/cgroup")


@contextmanager
def _program(
    pins: Pins, service: str, wanted: Sequence[Wanted], control_group: Path, code: bytes
) -> Iterator[_Program]:
    """Attach the program to a control group for the length of a block."""
    live = find_live(pins)
    if live is None:
        raise UnmoorError(f"nothing is loaded at {pins.root}\n    fix: unmoor sockets load")
    with ExitStack() as stack:
        sockets = stack.enter_context(libbpf.opened(pins.registry, "map"))
        with socket.socket() as sock:
            netns = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        bpf = stack.enter_context(
            libbpf.open_object(code, entries={}, shared={"sockets": sockets}, initial={".rodata": netns})
        )
        groups = dict(_groups(live.record, service, wanted))
        for each, number in groups.items():
            libbpf.update(bpf.map_fd("targets"), _target(each), _PLACE.pack(number * SOCKET_SLOTS, 0))
        events = stack.enter_context(closing(_Events(bpf.map_fd("events"))))
        with libbpf.closing(os.open(control_group, os.O_RDONLY | os.O_DIRECTORY)) as directory:
            for name, kind in _PROGRAMS.items():
                stack.callback(os.close, libbpf.attach(bpf.program_fd(name), directory, kind))
        yield _Program(pins, live.id, sockets, groups, events)


def _groups(record: Record, service: str, wanted: Sequence[Wanted]) -> Iterator[tuple[Wanted, int]]:
    """Iterate over the sockets to follow and the indexes of their slots; none if there is no such service."""
    if service in record.services:
        for kind, (address, port) in wanted:
            yield (kind, (address, port)), group(record.services[service], kind, address.version)


def _target(wanted: Wanted) -> bytes:
    kind, (address, port) = wanted
    return _TARGET.pack(address.packed, FAMILY_NUMBERS[address.version], PROTOCOL_NUMBERS[kind], port, 0)


class _Program:
    """The attached program, for the generation `live` (the id of its record)."""

    def __init__(
        self, pins: Pins, live: int, sockets: int, groups: Mapping[Wanted, int], events: _Events
    ) -> None:
        self._pins = pins
        self._live = live
        self._sockets = sockets
        self._groups = groups
        self.events = events.fd
        self.drain = events.drain

    def outdated(self) -> bool:
        """Whether another generation is live: the service may have another id, or the map may be another."""
        directory = self._pins.live()
        return directory is not None and record_id(directory) not in (None, self._live)

    def first_slot_is_empty(self) -> bool:
        """Whether a group has sockets in other slots only, which look-ups find later."""
        for number in set(self._groups.values()):
            first, *others = self._cookies(number)
            if not first and any(others):
                return True
        return False

    def add(self, pid: int, protocols: Sequence[Protocol]) -> None:
        """Give each socket of the process two slots, if empty: the first one, and one that it keeps.

        The program replaces the socket in the first slot by each newer one.
        """
        wanted = [each for each in self._groups if each[0] in protocols]
        with ExitStack() as stack, suppress(MissingError, BusyError):
            found, _ = gather(pid, wanted, stack)
            stack.enter_context(self._pins.guarded(_GUARD_TIMEOUT))
            directory = self._pins.live()
            if directory is None or self.outdated():
                return
            groups = {self._groups[each] for each in found}
            slots = [number * SOCKET_SLOTS + slot for number in groups for slot in range(SOCKET_SLOTS)]
            stack.enter_context(hints.filling(directory, self._sockets, groups, slots))
            for each, members in found.items():
                start = self._groups[each] * SOCKET_SLOTS
                _, *others = self._cookies(self._groups[each])
                for cookie, descriptor in members.items():
                    libbpf.add(self._sockets, KEY.pack(start), DESCRIPTOR.pack(descriptor))
                    if cookie not in others:
                        self._fill(range(start + 1, start + SOCKET_SLOTS), descriptor)

    def _cookies(self, number: int) -> list[int]:
        """Return the cookies of the sockets in the slots of a group, 0 for none."""
        start = number * SOCKET_SLOTS
        values = (libbpf.lookup(self._sockets, KEY.pack(start + n), COOKIE.size) for n in range(SOCKET_SLOTS))
        return [int.from_bytes(value or b"", sys.byteorder) for value in values]

    def _fill(self, slots: Iterable[int], descriptor: int) -> None:
        for slot in slots:
            if libbpf.add(self._sockets, KEY.pack(slot), DESCRIPTOR.pack(descriptor)):
                return


class _Events:
    """A ring buffer of events, whose content does not matter (Documentation/bpf/ringbuf.rst)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # The kernel's position is on the page after the reader's.
        self._read = mmap.mmap(fd, mmap.PAGESIZE)
        self._written = mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)

    def close(self) -> None:
        """Unmap it."""
        self._read.close()
        self._written.close()

    def drain(self) -> bool:
        """Discard all events. Returns whether there were any."""
        if self._read[:8] == self._written[:8]:
            return False
        self._read[:8] = self._written[:8]
        return True
