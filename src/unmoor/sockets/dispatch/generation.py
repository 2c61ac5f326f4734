"""Generations of the dispatch table: built beside the running one, verified, switched by a link update."""

from __future__ import annotations

import gc
import hashlib
import mmap
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from unmoor.bpf import libbpf
from unmoor.bpf.kernel import require_kernel
from unmoor.bpf.layout import (
    ADDRESS_CHUNK,
    ADDRESS_CHUNKS,
    ANY_ROOTS,
    COUNTERS_STRUCT,
    DESCRIPTOR,
    GROUPS_PER_SERVICE,
    KEY,
    LEAF,
    MAX_SERVICES,
    NODE,
    SEEN,
    SEEN_SETS,
    SEEN_WAYS,
    SOCKET_SLOTS,
)
from unmoor.bpf.pins import (
    ACCOUNT,
    PROGRAMS,
    SHARED,
    TABLE,
    NothingLoadedError,
    Pins,
    protect,
    remove,
)
from unmoor.errors import UnmoorError
from unmoor.model import EdgeDocument
from unmoor.sockets.dispatch import hints
from unmoor.sockets.dispatch.address_counters import begins
from unmoor.sockets.dispatch.repair import check_rollback, missing, repair
from unmoor.sockets.dispatch.verify import ROOM, claims, prove, rehearse
from unmoor.sockets.table import table
from unmoor.sockets.table.allocation import allocate_counters, allocate_ids
from unmoor.sockets.table.packed import Packed
from unmoor.sockets.table.record import Record, decode
from unmoor.sockets.table.rules import Lines, Rule, difference

#: The network namespace of the calling thread.
OWN_NETNS = Path("/proc/thread-self/ns/net")

# A rename leaves the live generation without a name for some microseconds.
_READ_TRIES = 20
_READ_PAUSE = 0.01

#: The maps that a load writes and freezes.
_WRITTEN = ("ports", "nodes", "leaves")
_GROUPS = MAX_SERVICES * GROUPS_PER_SERVICE
#: (size of a value in bytes, entries) of the shared maps.
_SHAPES = {
    "sockets": (DESCRIPTOR.size, _GROUPS * SOCKET_SLOTS),
    "counters": (COUNTERS_STRUCT.size, _GROUPS),
    "addresses": (ADDRESS_CHUNK * 8, ADDRESS_CHUNKS),
    "seen": (SEEN.size * SEEN_WAYS, SEEN_SETS),
}


@dataclass(frozen=True, slots=True)
class Change:
    """What a load changes: bindings, the program, anything else in the document, and missing pins."""

    added: Lines
    removed: Lines
    new_program: bool
    others: bool
    repairs: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether a load has anything to change."""
        return bool(self.added or self.removed or self.new_program or self.others or self.repairs)


class Live(NamedTuple):
    """The live generation: its directory, its record, and the id of the record's map.

    The directory may be renamed at any time; the id identifies the generation for good.
    """

    directory: Path
    record: Record
    id: int


def read_record(generation: Path) -> Record | None:
    """Return the record of the generation pinned at `generation`; None if there is none."""
    with _opened_record(generation) as fd:
        return None if fd is None else _decoded(fd)


def record_id(generation: Path) -> int | None:
    """Return the id of the map of the generation's record; None if there is none."""
    with _opened_record(generation) as fd:
        return None if fd is None else libbpf.map_info(fd).id


@contextmanager
def _opened_record(generation: Path) -> Iterator[int | None]:
    path = generation / "record"
    try:
        fd = libbpf.open_pin_to_read(path, "map")
    except FileNotFoundError:
        yield None
        return
    except PermissionError:
        raise UnmoorError(
            f"{path}: no permission to read this pin\n"
            f"    fix: run this as root or as a member of group {ACCOUNT}"
        ) from None
    with libbpf.closing(fd):
        yield fd


def _decoded(fd: int) -> Record:
    return decode(libbpf.lookup(fd, KEY.pack(0), libbpf.map_info(fd).value_size) or b"")


def find_live(pins: Pins, known: Live | None = None) -> Live | None:
    """Return the live generation; None when nothing is loaded. Waits while a load renames it.

    If it is `known`, its record is not read again: a generation is immutable.
    Raises UnmoorError when the caller may not read it, or another version of Unmoor has loaded it.
    """
    for _ in range(_READ_TRIES):
        directory = pins.live()
        if directory:
            with _opened_record(directory) as fd:
                if fd is not None:
                    number = libbpf.map_info(fd).id
                    record = known.record if known and known.id == number else _decoded(fd)
                    return Live(directory, record, number)
        if not pins.link.exists():
            return None
        time.sleep(_READ_PAUSE)
    return None


def read_current(pins: Pins) -> Record | None:
    """Return the record of the live generation; None when nothing is loaded."""
    found = find_live(pins)
    return found.record if found else None


def plan(edge: EdgeDocument, code: bytes | None, pins: Pins, netns: Path = OWN_NETNS) -> Change:
    """Return what `load` would change, and change nothing. Without `code`, programs are not compared."""
    running = read_current(pins)
    change = _difference(running, _Wanted(edge, netns), code)
    lacking = missing(pins) if running else ()
    return replace(change, repairs=tuple(f"the pin {name} is missing" for name in lacking))


class _Wanted:
    """A document in the forms that a load needs."""

    def __init__(self, edge: EdgeDocument, netns: Path) -> None:
        self.edge = edge
        packed = Packed.of(edge)
        self.rules = packed.rules
        self.document = packed.encode()
        self.interfaces = _interfaces(edge, netns)


def load(edge: EdgeDocument, code: bytes, pins: Pins, netns: Path = OWN_NETNS) -> Change:
    """Load the document `edge` with the program `code` (an object file) into a network namespace, atomically.

    Raises InvalidInputError, UnmoorError or OSError with nothing changed.
    """
    require_kernel()
    with pins.created(), _opened_netns(netns) as namespace, _without_collector():
        pins.protect()
        _check_namespace(pins, namespace)
        with pins.guarded():
            pins.settle()
            repairs = repair(pins)
        attached = pins.live_program() is not None
        running = read_record(pins.current)
        wanted = _Wanted(edge, netns)
        change = replace(
            _difference(running if attached else None, wanted, code), repairs=repairs if attached else ()
        )
        if not change.changed:
            return change
        earlier = [record for record in (running, read_record(pins.previous)) if record]
        with ExitStack() as stack:
            try:
                unused = _build(wanted, code, namespace, pins, earlier)
                stack.enter_context(pins.guarded())
            except BaseException:
                remove(pins.new)
                raise
            _clear(pins, unused)
            if attached:
                hints.carry_over(pins.current, pins.new)
            _switch(pins, namespace)
            hints.withdraw(pins.current)
            pins.settle()
        return change


def rollback(pins: Pins) -> Record:
    """Exchange the current and the previous generation. Returns the record of the one that is live now."""
    with pins.locked(), pins.guarded():
        pins.settle()
        record = read_record(pins.previous)
        if record is None or pins.live_program() is None:
            raise UnmoorError(f"there is no previous generation at {pins.root}")
        check_rollback(pins)
        hints.carry_over(pins.current, pins.previous)
        with (
            libbpf.opened(pins.link, "link") as link,
            libbpf.opened(pins.previous / "dispatch", "program") as program,
        ):
            libbpf.switch(link, program)
        hints.withdraw(pins.current)
        pins.settle()
        return record


def unload(pins: Pins) -> bool:
    """Detach and unpin everything. Returns False when nothing was loaded."""
    try:
        with pins.locked(), pins.guarded():
            pins.clear()
    except NothingLoadedError:
        return False
    return True


def _difference(running: Record | None, wanted: _Wanted, code: bytes | None) -> Change:
    if running is None:
        return Change(Lines(wanted.rules), Lines(), code is not None, True)
    same = running.document == wanted.document
    return Change(
        *((Lines(), Lines()) if same else difference(wanted.rules, running.rules)),
        code is not None and running.program != digest(code),
        not same or running.interfaces != wanted.interfaces,
    )


def digest(code: bytes) -> str:
    """Return the SHA-256 of an object file, which identifies the program; its tag varies between kernels."""
    return hashlib.sha256(code).hexdigest()


def _interfaces(edge: EdgeDocument, netns: Path) -> dict[str, int]:
    names = {service.interface for service in edge.services if service.interface}
    if names and netns != OWN_NETNS:
        raise UnmoorError("bindings to an interface cannot be loaded into another network namespace")
    try:
        return {name: socket.if_nametoindex(name) for name in sorted(names)}
    except OSError:
        known = ", ".join(name for _, name in socket.if_nameindex())
        raise UnmoorError(
            f"edge.json: an interface of the services does not exist ({', '.join(sorted(names))})\n"
            f"    fix: use one of {known}"
        ) from None


def _build(wanted: _Wanted, code: bytes, namespace: int, pins: Pins, earlier: list[Record]) -> frozenset[int]:
    """Build, verify and pin the new generation at `pins.new`; nothing runs it yet.

    Returns the ids of services that no record in `earlier` uses: their slots and counters may still have
    values of services that were removed.
    """
    counters = allocate_counters(wanted.rules, *(record.counted for record in earlier))
    record = Record(
        generation=1 + max((record.generation for record in earlier), default=0),
        program=digest(code),
        netns=os.fstat(namespace).st_ino,
        document=wanted.document,
        services=allocate_ids(
            (service.label for service in wanted.edge.services), *(record.services for record in earlier)
        ),
        interfaces=wanted.interfaces,
        counted=counters.spans,
    )
    compiled = table.build(wanted.rules, record.services, record.interfaces, record.counted)
    with ExitStack() as stack:
        shared = _shared(pins, stack)
        bpf = stack.enter_context(_loaded(code, compiled, shared))
        for name in _WRITTEN:
            _fill(bpf.map_fd(name), getattr(compiled, name))
        _prove(bpf, record, wanted.rules, code, compiled)
        for name in SHARED:
            if name not in shared:
                libbpf.pin(bpf.map_fd(name), pins.root / name)
        if not pins.registry.exists():
            libbpf.pin(bpf.map_fd("sockets"), pins.registry)
        if earlier:
            record = replace(record, begins=begins(bpf.map_fd("addresses"), counters, earlier))

        pins.new.mkdir(mode=0o750)
        for name in TABLE:
            libbpf.pin(bpf.map_fd(name), pins.new / name)
        for name in PROGRAMS:
            libbpf.pin(bpf.program_fd(name), pins.new / name)
        data = record.encode()
        with libbpf.closing(
            libbpf.create_map(libbpf.MAP_ARRAY, "record", KEY.size, len(data), 1, libbpf.F_MMAPABLE)
        ) as fd:
            _fill(fd, data)
            libbpf.pin(fd, pins.new / "record")
    pins.protect()
    if not shared and not earlier:
        return frozenset()
    used = {number for old in earlier for number in old.services.values()}
    return frozenset(record.services.values()) - used


def _loaded(
    code: bytes, compiled: table.Table, shared: Mapping[str, int], without: Sequence[str] = ()
) -> AbstractContextManager[libbpf.BpfObject]:
    return libbpf.open_object(
        code,
        entries={
            "nodes": len(compiled.nodes) // NODE.size,
            "leaves": len(compiled.leaves) // LEAF.size,
            "questions": ROOM,
        },
        shared=shared,
        initial={".rodata": ANY_ROOTS.pack(*compiled.any_roots)},
        without=without,
    )


def _prove(
    bpf: libbpf.BpfObject, record: Record, rules: Sequence[Rule], code: bytes, compiled: table.Table
) -> None:
    """Verify the new table and program. Raises UnmoorError when any look-up is wrong."""
    checked = list(claims(rules))
    prove(bpf.program_fd("prove"), bpf.map_fd("batches"), bpf.map_fd("questions"), record, checked)
    own_table = {name: bpf.map_fd(name) for name in (*_WRITTEN, "questions")}
    with _loaded(code, compiled, own_table, without=("explain", "prove")) as copy:
        rehearse(copy.program_fd("dispatch"), copy.map_fd("counters"), record, checked)


def _shared(pins: Pins, stack: ExitStack) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in SHARED:
        path = pins.root / name
        if not path.exists():
            continue
        found[name] = stack.enter_context(libbpf.opened(path, "map"))
        info = libbpf.map_info(found[name])
        if (info.value_size, info.max_entries) != _SHAPES[name]:
            raise UnmoorError(
                f"{path} was created by a version of Unmoor with another layout: "
                "run unmoor sockets unload, load again, and restart the listeners"
            )
    return found


def _fill(fd: int, data: bytes) -> None:
    """Write the content of a map, and freeze it."""
    with mmap.mmap(fd, _pages(len(data))) as memory:
        memory[: len(data)] = data
    libbpf.freeze(fd)


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _clear(pins: Pins, ids: frozenset[int]) -> None:
    """Empty the slots and counters of these service ids. The caller holds the guard."""
    if not ids:
        return
    zero = bytes(COUNTERS_STRUCT.size * libbpf.possible_cpus())
    with (
        libbpf.opened(pins.root / "sockets", "map") as sockets,
        libbpf.opened(pins.root / "counters", "map") as counters,
    ):
        for number in ids:
            for group in range(number * GROUPS_PER_SERVICE, (number + 1) * GROUPS_PER_SERVICE):
                libbpf.update(counters, KEY.pack(group), zero)
                for slot in range(group * SOCKET_SLOTS, (group + 1) * SOCKET_SLOTS):
                    libbpf.delete(sockets, KEY.pack(slot))


def _switch(pins: Pins, namespace: int) -> None:
    """Attach the program of the new generation, in place of the current one if there is one."""
    with libbpf.opened(pins.new / "dispatch", "program") as program:
        if pins.live_program() is not None:
            with libbpf.opened(pins.link, "link") as link:
                libbpf.switch(link, program)
            return
        pins.link.unlink(missing_ok=True)  # its network namespace is gone
        with libbpf.closing(libbpf.attach(program, namespace)) as link:
            libbpf.pin(link, pins.link)
        protect(pins.link)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Disable garbage collection: a load has many objects but no garbage, and would spend 25% of its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _opened_netns(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise UnmoorError(f"no network namespace at {path}: {error.strerror}") from None
    with libbpf.closing(fd):
        yield fd


def _check_namespace(pins: Pins, namespace: int) -> None:
    if pins.live_program() is None:
        return
    with libbpf.opened(pins.link, "link") as link:
        attached = libbpf.link_info(link).netns
    if attached != os.fstat(namespace).st_ino:
        raise UnmoorError(
            f"the pins at {pins.root} belong to another network namespace: use another directory (--pins)"
        )
