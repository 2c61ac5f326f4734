"""BPF objects, maps, programs, links and pins, by libbpf's C API (`capi`).

No pointers in any signature. The caller owns the descriptors that functions return, unless stated otherwise.
A call that fails raises OSError with the kernel's errno; loading a program that the verifier rejects raises
UnmoorError with the end of its log.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ctypes import Structure, byref, c_char_p, c_size_t, c_uint32, c_void_p, create_string_buffer, sizeof
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unmoor.bpf import capi
from unmoor.errors import UnmoorError

#: enum bpf_attach_type BPF_SK_LOOKUP, BPF_CGROUP_* and enum bpf_map_type BPF_MAP_TYPE_*, from <linux/bpf.h>.
ATTACH_SK_LOOKUP = 36
ATTACH_CGROUP_SOCK_OPS = 3
ATTACH_CGROUP_POST_BIND4 = 12
ATTACH_CGROUP_POST_BIND6 = 13
MAP_HASH = 1
MAP_ARRAY = 2
MAP_SOCKMAP = 15
#: Map flags, and the flags of bpf_map_update_elem.
F_NO_PREALLOC = 1 << 0
F_RDONLY = 1 << 3
F_MMAPABLE = 1 << 10
UPDATE_ANY = 0
UPDATE_NOEXIST = 1

#: enum bpf_cmd BPF_OBJ_GET, and the number of bpf(2) by machine.
_OBJ_GET = 7
_SYSCALL_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}

_LOG_SIZE = 1 << 20
_MAX_PROGRAM_MAPS = 64  # MAX_USED_MAPS of the kernel

#: The kinds of pins, as the links in /proc/self/fd name them: "anon_inode:bpf-map" and so on.
Kind = Literal["map", "program", "link"]
_KINDS: dict[str, Kind] = {"bpf-map": "map", "bpf-prog": "program", "bpf_link": "link", "bpf-link": "link"}


@dataclass(frozen=True, slots=True)
class MapInfo:
    """Type, id, sizes (bytes) and flags of a map (`struct bpf_map_info`)."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """Ids of a link and its program, and the inode of its network namespace, 0 if that no longer exists."""

    id: int
    program: int
    netns: int


@dataclass(frozen=True, slots=True)
class TestRun:
    """The result of a test run: verdict, context afterwards, and nanoseconds per repetition."""

    verdict: int
    context: bytes
    nanoseconds: int


class BpfObject:
    """A BPF object file. Set its sizes, initial values and shared maps, then load it into the kernel.

    Raises UnmoorError when `code` is not a BPF object.
    """

    def __init__(self, code: bytes) -> None:
        self._log = create_string_buffer(_LOG_SIZE)
        self._code = code
        options = capi.OpenOptions(
            sz=sizeof(capi.OpenOptions),
            object_name=b"unmoor",
            kernel_log_buf=ctypes.addressof(self._log),
            kernel_log_size=_LOG_SIZE,
            kernel_log_level=0,
        )
        self._pointer = capi.library().bpf_object__open_mem(code, len(code), byref(options))
        if not self._pointer:
            raise UnmoorError("not a BPF object; compile it again: unmoor sockets compile")

    def close(self) -> None:
        """Close the object and all its descriptors."""
        capi.library().bpf_object__close(self._pointer)

    def _map(self, name: str) -> int:
        found: int | None = capi.library().bpf_object__find_map_by_name(self._pointer, name.encode())
        if not found:
            raise UnmoorError(f"the BPF object has no map {name!r}; compile it again: unmoor sockets compile")
        return found

    def resize(self, name: str, entries: int) -> None:
        """Set the maximum number of entries of a map."""
        capi.check(capi.library().bpf_map__set_max_entries(self._map(name), entries), name)

    def initialise(self, name: str, value: bytes) -> None:
        """Set the content of a data section, such as `.rodata`."""
        capi.check(capi.library().bpf_map__set_initial_value(self._map(name), value, len(value)), name)

    def share(self, name: str, fd: int) -> None:
        """Use the existing map `fd` instead of creating one. Raises OSError when their definitions differ."""
        capi.check(capi.library().bpf_map__reuse_fd(self._map(name), fd), name)

    def leave_out(self, program: str) -> None:
        """Exclude a program from loading."""
        capi.check(capi.library().bpf_program__set_autoload(self._program(program), False), program)

    def load(self) -> None:
        """Create the maps and load the programs. Raises UnmoorError with the end of the verifier's log."""
        result = capi.library().bpf_object__load(self._pointer)
        if -result in (errno.EMFILE, errno.ENFILE):
            capi.check(result)
        if result < 0:
            log = self._log.value.decode(errors="replace").strip().splitlines()
            detail = "\n    ".join(["", *log[-12:]])
            raise UnmoorError(f"the kernel rejects the program: {os.strerror(-result)}{detail}")

    def map_fd(self, name: str) -> int:
        """Return the descriptor of a map; the object owns and closes it."""
        return capi.check(capi.library().bpf_map__fd(self._map(name)), name)

    def program_fd(self, name: str) -> int:
        """Return the descriptor of a program; the object owns and closes it."""
        return capi.check(capi.library().bpf_program__fd(self._program(name)), name)

    def _program(self, name: str) -> int:
        found: int | None = capi.library().bpf_object__find_program_by_name(self._pointer, name.encode())
        if not found:
            raise UnmoorError(
                f"the BPF object has no program {name!r}; compile it again: unmoor sockets compile"
            )
        return found


@contextmanager
def open_object(
    code: bytes,
    *,
    entries: Mapping[str, int],
    shared: Mapping[str, int],
    initial: Mapping[str, bytes],
    without: Iterable[str] = (),
) -> Iterator[BpfObject]:
    """Load the object file `code` for the length of a block.

    `entries` holds the maximum number of entries, `shared` the descriptor of an existing map to use, and
    `initial` the content of a data section, each by name. Programs in `without` are not loaded.
    Raises UnmoorError and OSError as the methods of `BpfObject` do.
    """
    bpf = BpfObject(code)
    try:
        for name in without:
            bpf.leave_out(name)
        for name, count in entries.items():
            bpf.resize(name, count)
        for name, fd in shared.items():
            bpf.share(name, fd)
        for name, value in initial.items():
            bpf.initialise(name, value)
        bpf.load()
        yield bpf
    finally:
        bpf.close()


def possible_cpus() -> int:
    """Return the number of possible CPUs: an entry of a per-CPU map has a value for each."""
    return capi.check(capi.library().libbpf_num_possible_cpus())


def pin(fd: int, path: Path) -> None:
    """Pin a map, program or link at a path in a bpffs."""
    capi.check(capi.library().bpf_obj_pin(fd, os.fsencode(path)), str(path))


def open_pin(path: Path, kind: Kind | None = None) -> int:
    """Open a pin for reading and writing. Raises UnmoorError when it is not of this kind."""
    return _of_kind(capi.check(capi.library().bpf_obj_get(os.fsencode(path)), str(path)), path, kind)


def open_pin_to_read(path: Path, kind: Kind | None = None) -> int:
    """Open a pin read-only, which needs read permission alone.

    Raises UnmoorError when it is not of this kind.
    """
    name = c_char_p(os.fsencode(path))
    attributes = capi.ObjectGet(pathname=ctypes.cast(name, c_void_p).value, file_flags=F_RDONLY)
    number = _SYSCALL_BPF.get(platform.machine())
    if number is None:
        return open_pin(path, kind)
    fd: int = capi.libc().syscall(number, _OBJ_GET, byref(attributes), c_size_t(sizeof(attributes)))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return _of_kind(fd, path, kind)


def _of_kind(fd: int, path: Path, kind: Kind | None) -> int:
    """Check the kind of a descriptor: the kernel returns information about any kind without complaint."""
    if kind is None:
        return fd
    found = _KINDS.get(str(Path(f"/proc/self/fd/{fd}").readlink()).removeprefix("anon_inode:").strip("[]"))
    if found == kind:
        return fd
    os.close(fd)
    raise UnmoorError(
        f"{path}: this pin is a {found}, not a {kind}\n"
        "    fix: remove it, then run unmoor sockets load, which creates it again"
    )


@contextmanager
def opened(path: Path, kind: Kind | None = None) -> Iterator[int]:
    """Open a pin for the length of a block. Raises UnmoorError when it is not of this kind."""
    with closing(open_pin(path, kind)) as fd:
        yield fd


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of a block."""
    try:
        yield fd
    finally:
        os.close(fd)


def create_map(kind: int, name: str, key_size: int, value_size: int, entries: int, flags: int = 0) -> int:
    """Create a map of type `kind` (MAP_*) and return its descriptor; sizes in bytes."""
    options = capi.MapOptions(sz=sizeof(capi.MapOptions), map_flags=flags)
    return capi.check(
        capi.library().bpf_map_create(kind, name.encode(), key_size, value_size, entries, byref(options)),
        name,
    )


def freeze(fd: int) -> None:
    """Make a map read-only for user space, for good."""
    capi.check(capi.library().bpf_map_freeze(fd))


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """Return the value of `key`, or None. For a per-CPU map, `value_size` covers the values of all CPUs."""
    value = create_string_buffer(value_size)
    try:
        capi.check(capi.library().bpf_map_lookup_elem(fd, key, value))
    except FileNotFoundError:
        return None
    return value.raw


def lookup_array(fd: int, first: int, count: int, value_size: int) -> list[bytes]:
    """Return the values of `count` elements of an array from index `first` on, in one call; fewer at its end.

    For a per-CPU array, `value_size` covers the values of all CPUs.
    """
    keys = (c_uint32 * count)()
    values = create_string_buffer(value_size * count)
    # The kernel begins after the key that it is given.
    before = byref(c_uint32(first - 1)) if first else None
    after, found = c_uint32(), c_uint32(count)
    options = capi.BatchOptions(sz=sizeof(capi.BatchOptions))
    with suppress(FileNotFoundError):  # the end of the array
        capi.check(
            capi.library().bpf_map_lookup_batch(
                fd, before, byref(after), keys, values, byref(found), byref(options)
            )
        )
    raw = memoryview(values)
    return [bytes(raw[at : at + value_size]) for at in range(0, found.value * value_size, value_size)]


def update(fd: int, key: bytes, value: bytes) -> None:
    """Set the value of `key`."""
    capi.check(capi.library().bpf_map_update_elem(fd, key, value, UPDATE_ANY))


def add(fd: int, key: bytes, value: bytes) -> bool:
    """Set the value of `key` unless it has one. Returns whether it was set."""
    try:
        capi.check(capi.library().bpf_map_update_elem(fd, key, value, UPDATE_NOEXIST))
    except FileExistsError:
        return False
    return True


def delete(fd: int, key: bytes) -> bool:
    """Delete `key`. Returns False when it was not present."""
    try:
        capi.check(capi.library().bpf_map_delete_elem(fd, key))
    except (FileNotFoundError, ValueError):
        return False
    except OSError as error:
        # A SOCKMAP returns EINVAL for an empty entry.
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def keys(fd: int, key_size: int) -> Iterator[bytes]:
    """Iterate over the keys of a hash map."""
    following = create_string_buffer(key_size)
    previous: bytes | None = None
    while True:
        try:
            capi.check(capi.library().bpf_map_get_next_key(fd, previous, following))
        except FileNotFoundError:
            return
        previous = following.raw
        yield previous


def _info(fd: int, info: Structure) -> None:
    size = c_uint32(sizeof(info))
    capi.check(capi.library().bpf_obj_get_info_by_fd(fd, byref(info), byref(size)))


def map_info(fd: int) -> MapInfo:
    """Return type, id, sizes and flags of a map."""
    info = capi.MapInfo()
    _info(fd, info)
    return MapInfo(info.type, info.id, info.key_size, info.value_size, info.max_entries, info.map_flags)


def program_id(fd: int) -> int:
    """Return the id of a program."""
    info = capi.ProgramInfo()
    _info(fd, info)
    return int(info.id)


def program_maps(fd: int) -> frozenset[int]:
    """Return the ids of the maps that a program uses."""
    ids = (c_uint32 * _MAX_PROGRAM_MAPS)()
    info = capi.ProgramInfo(nr_map_ids=_MAX_PROGRAM_MAPS, map_ids=ctypes.addressof(ids))
    _info(fd, info)
    return frozenset(ids[: info.nr_map_ids])


def link_info(fd: int) -> LinkInfo:
    """Return which program a link attaches to which network namespace."""
    info = capi.LinkInfo()
    _info(fd, info)
    return LinkInfo(info.id, info.prog_id, info.netns_ino)


def attach(program: int, target: int, kind: int = ATTACH_SK_LOOKUP) -> int:
    """Attach a program to a network namespace or a control group (a descriptor).

    Returns the link's descriptor. Unless the link is pinned, closing it detaches the program.
    """
    return capi.check(capi.library().bpf_link_create(program, target, kind, None), "attach")


def switch(link: int, program: int) -> None:
    """Replace the program of `link` atomically."""
    capi.check(capi.library().bpf_link_update(link, program, None), "link update")


def attached(netns: int) -> tuple[int, ...]:
    """Return the ids of the sk_lookup programs of a network namespace, in the order in which they run."""
    count = c_uint32(64)
    flags = c_uint32(0)
    numbers = (c_uint32 * 64)()
    capi.check(
        capi.library().bpf_prog_query(netns, ATTACH_SK_LOOKUP, 0, byref(flags), numbers, byref(count)),
        "query",
    )
    return tuple(numbers[: count.value])


# The kernel returns its own structure, which may be longer than the context that it accepts.
_context_out = create_string_buffer(128)


def run_test(program: int, context: bytes, repeat: int = 1) -> TestRun:
    """Run a program `repeat` times with this context (BPF_PROG_TEST_RUN)."""
    out = _context_out
    options = capi.TestRunOptions(
        sz=sizeof(capi.TestRunOptions),
        ctx_in=ctypes.cast(c_char_p(context), c_void_p),
        ctx_out=ctypes.addressof(out),
        ctx_size_in=len(context),
        ctx_size_out=sizeof(out),
        repeat=repeat,
    )
    capi.check(capi.library().bpf_prog_test_run_opts(program, byref(options)), "test run")
    return TestRun(options.retval, out.raw, options.duration)
