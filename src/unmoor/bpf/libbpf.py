"""The door to BPF in the kernel: libbpf's stable C API (libbpf.so.1), through ctypes.

Nothing outside this module knows about pointers. Descriptors are owned by the caller. A call that fails
raises OSError with the kernel's errno; a program that the verifier refuses raises UnmoorError with the end
of its log.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_bool,
    c_char_p,
    c_int,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
    create_string_buffer,
    sizeof,
)
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from unmoor.errors import UnmoorError

#: enum bpf_attach_type BPF_SK_LOOKUP and enum bpf_map_type BPF_MAP_TYPE_*, from <linux/bpf.h>.
ATTACH_SK_LOOKUP = 36
MAP_HASH = 1
MAP_ARRAY = 2
MAP_SOCKMAP = 15
#: Map flags, and the flags of bpf_map_update_elem.
F_NO_PREALLOC = 1 << 0
F_RDONLY = 1 << 3
F_MMAPABLE = 1 << 10
UPDATE_ANY = 0

#: enum bpf_cmd BPF_OBJ_GET, and the number of bpf(2) by machine.
_OBJ_GET = 7
_SYSCALL_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}

_LOG_SIZE = 1 << 20
_MAX_PROGRAM_MAPS = 64  # MAX_USED_MAPS of the kernel

#: What a pin can be. A descriptor of /proc/self/fd shows which: "anon_inode:bpf-map" and so on.
Kind = Literal["map", "program", "link"]
_KINDS: dict[str, Kind] = {"bpf-map": "map", "bpf-prog": "program", "bpf_link": "link", "bpf-link": "link"}


class _OpenOptions(Structure):
    """`struct bpf_object_open_opts` up to the verifier's log (libbpf 1.0)."""

    _fields_ = (
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", c_bool),
        ("pin_root_path", c_char_p),
        ("reserved", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
        ("kernel_log_buf", c_void_p),
        ("kernel_log_size", c_size_t),
        ("kernel_log_level", c_uint32),
    )


class _MapOptions(Structure):
    """`struct bpf_map_create_opts` up to the flags."""

    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
    )


class _ObjectGet(Structure):
    """`union bpf_attr` for BPF_OBJ_GET: the libbpf of Debian 12 has no call that takes `file_flags`."""

    _fields_ = (("pathname", c_uint64), ("bpf_fd", c_uint32), ("file_flags", c_uint32))


class _TestRunOptions(Structure):
    """`struct bpf_test_run_opts`."""

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class _MapInfo(Structure):
    """`struct bpf_map_info` up to its name."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_uint8 * 16),
    )


class _ProgramInfo(Structure):
    """`struct bpf_prog_info` up to the ids of its maps."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
    )


class _LinkInfo(Structure):
    """`struct bpf_link_info` with the part for network namespaces."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("padding", c_uint32),
        ("netns_ino", c_uint32),
        ("attach_type", c_uint32),
    )


@dataclass(frozen=True, slots=True)
class MapInfo:
    """The shape of a map in the kernel; sizes in bytes."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A link's program, and the inode of its network namespace: 0 when that namespace is gone."""

    id: int
    program: int
    netns: int


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a test run gave: the verdict, the context afterwards, and ns for each repetition."""

    verdict: int
    context: bytes
    nanoseconds: int


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "libbpf_set_print": (c_void_p, (c_void_p,)),
    "libbpf_num_possible_cpus": (c_int, ()),
    "bpf_object__open_mem": (c_void_p, (c_char_p, c_size_t, POINTER(_OpenOptions))),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__set_initial_value": (c_int, (c_void_p, c_void_p, c_size_t)),
    "bpf_map__reuse_fd": (c_int, (c_void_p, c_int)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_link_create": (c_int, (c_int, c_int, c_int, c_void_p)),
    "bpf_link_update": (c_int, (c_int, c_int, c_void_p)),
    "bpf_link_detach": (c_int, (c_int,)),
    "bpf_obj_pin": (c_int, (c_int, c_char_p)),
    "bpf_obj_get": (c_int, (c_char_p,)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, POINTER(c_uint32))),
    "bpf_map_create": (
        c_int,
        (c_int, c_char_p, c_uint32, c_uint32, c_uint32, POINTER(_MapOptions)),
    ),
    "bpf_map_freeze": (c_int, (c_int,)),
    "bpf_map_lookup_elem": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_map_update_elem": (c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    "bpf_map_delete_elem": (c_int, (c_int, c_void_p)),
    "bpf_map_get_next_key": (c_int, (c_int, c_void_p, c_void_p)),
    "bpf_prog_test_run_opts": (c_int, (c_int, POINTER(_TestRunOptions))),
    "bpf_prog_query": (
        c_int,
        (c_int, c_int, c_uint32, POINTER(c_uint32), POINTER(c_uint32), POINTER(c_uint32)),
    ),
}


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        if os.strerror(errno.EMFILE) in str(error):
            raise
        raise UnmoorError("libbpf.so.1 is missing: install the Debian package libbpf1") from None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.libbpf_set_print(None)  # what it would print is in the error raised
    return library


def _check(result: int, what: str = "") -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), what or None)
    return result


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class BpfObject:
    """A BPF object file: open, sized and linked to maps that exist, then loaded into the kernel."""

    def __init__(self, code: bytes) -> None:
        self._log = create_string_buffer(_LOG_SIZE)
        self._code = code
        options = _OpenOptions(
            sz=sizeof(_OpenOptions),
            object_name=b"unmoor",
            kernel_log_buf=ctypes.addressof(self._log),
            kernel_log_size=_LOG_SIZE,
            kernel_log_level=0,
        )
        self._pointer = _library().bpf_object__open_mem(code, len(code), byref(options))
        if not self._pointer:
            raise UnmoorError("this is no BPF object; compile it anew: unmoor sockets compile")

    def close(self) -> None:
        """Close the object and every descriptor of it."""
        _library().bpf_object__close(self._pointer)

    def _map(self, name: str) -> int:
        found: int | None = _library().bpf_object__find_map_by_name(self._pointer, name.encode())
        if not found:
            raise UnmoorError(f"the BPF object has no map {name!r}; compile it anew: unmoor sockets compile")
        return found

    def resize(self, name: str, entries: int) -> None:
        """Give a map of the object room for so many entries."""
        _check(_library().bpf_map__set_max_entries(self._map(name), entries), name)

    def initialise(self, name: str, value: bytes) -> None:
        """Set the content of a data section, such as `.rodata`."""
        _check(_library().bpf_map__set_initial_value(self._map(name), value, len(value)), name)

    def share(self, name: str, fd: int) -> None:
        """Use the existing map `fd` in place of the object's own. Raises OSError when shapes differ."""
        _check(_library().bpf_map__reuse_fd(self._map(name), fd), name)

    def leave_out(self, program: str) -> None:
        """Do not load this program of the object."""
        _check(_library().bpf_program__set_autoload(self._program(program), False), program)

    def load(self) -> None:
        """Create maps and programs. Raises UnmoorError with the verifier's last words."""
        result = _library().bpf_object__load(self._pointer)
        if -result in (errno.EMFILE, errno.ENFILE):
            _check(result)
        if result < 0:
            log = self._log.value.decode(errors="replace").strip().splitlines()
            detail = "\n    ".join(["", *log[-12:]])
            raise UnmoorError(f"the kernel refuses the program: {os.strerror(-result)}{detail}")

    def map_fd(self, name: str) -> int:
        """The descriptor of a map; the object's, closed with it."""
        return _check(_library().bpf_map__fd(self._map(name)), name)

    def program_fd(self, name: str) -> int:
        """The descriptor of a program; the object's, closed with it."""
        return _check(_library().bpf_program__fd(self._program(name)), name)

    def _program(self, name: str) -> int:
        found: int | None = _library().bpf_object__find_program_by_name(self._pointer, name.encode())
        if not found:
            raise UnmoorError(
                f"the BPF object has no program {name!r}; compile it anew: unmoor sockets compile"
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
    """Load `code` with maps of these sizes, shared maps and initial values; close it at the end.

    The programs named in `without` are left out.
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
    """How many values an entry of a per-CPU map has."""
    return _check(_library().libbpf_num_possible_cpus())


def pin(fd: int, path: Path) -> None:
    """Give a map, program or link a name in a bpffs."""
    _check(_library().bpf_obj_pin(fd, os.fsencode(path)), str(path))


def open_pin(path: Path, kind: Kind | None = None) -> int:
    """A descriptor to read and write what is pinned at `path`. Raises UnmoorError when it is no `kind`."""
    return _of_kind(_check(_library().bpf_obj_get(os.fsencode(path)), str(path)), path, kind)


def open_pin_to_read(path: Path, kind: Kind | None = None) -> int:
    """A descriptor of a pinned map that can only read: needs no more than read permission.

    Raises UnmoorError when it is no `kind`.
    """
    name = c_char_p(os.fsencode(path))
    attributes = _ObjectGet(pathname=ctypes.cast(name, c_void_p).value, file_flags=F_RDONLY)
    number = _SYSCALL_BPF.get(platform.machine())
    if number is None:
        return open_pin(path, kind)
    fd: int = _libc().syscall(number, _OBJ_GET, byref(attributes), c_size_t(sizeof(attributes)))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return _of_kind(fd, path, kind)


def _of_kind(fd: int, path: Path, kind: Kind | None) -> int:
    """The descriptor, if it is of this kind: the kernel would read one's information as the other's."""
    if kind is None:
        return fd
    found = _KINDS.get(str(Path(f"/proc/self/fd/{fd}").readlink()).removeprefix("anon_inode:").strip("[]"))
    if found == kind:
        return fd
    os.close(fd)
    raise UnmoorError(
        f"{path}: this pin is a {found}, not a {kind}\n"
        "    fix: remove it, then run unmoor sockets load, which makes it again"
    )


@contextmanager
def opened(path: Path, kind: Kind | None = None) -> Iterator[int]:
    """What is pinned at `path`, for the length of a block. Raises UnmoorError when it is no `kind`."""
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
    """Create a map; sizes in bytes."""
    options = _MapOptions(sz=sizeof(_MapOptions), map_flags=flags)
    return _check(
        _library().bpf_map_create(kind, name.encode(), key_size, value_size, entries, byref(options)), name
    )


def freeze(fd: int) -> None:
    """Nobody can change the map from user space from now on."""
    _check(_library().bpf_map_freeze(fd))


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of `key`, or None. `value_size` counts all CPUs of a per-CPU map."""
    value = create_string_buffer(value_size)
    try:
        _check(_library().bpf_map_lookup_elem(fd, key, value))
    except FileNotFoundError:
        return None
    return value.raw


def update(fd: int, key: bytes, value: bytes) -> None:
    """Set the value of `key`."""
    _check(_library().bpf_map_update_elem(fd, key, value, UPDATE_ANY))


def delete(fd: int, key: bytes) -> bool:
    """Delete `key`; False when it was not there."""
    try:
        _check(_library().bpf_map_delete_elem(fd, key))
    except (FileNotFoundError, ValueError):
        return False
    except OSError as error:
        # A SOCKMAP says EINVAL of an empty entry.
        if error.errno == 22:
            return False
        raise
    return True


def keys(fd: int, key_size: int) -> Iterator[bytes]:
    """Every key of a hash map."""
    following = create_string_buffer(key_size)
    previous: bytes | None = None
    while True:
        try:
            _check(_library().bpf_map_get_next_key(fd, previous, following))
        except FileNotFoundError:
            return
        previous = following.raw
        yield previous


def _info(fd: int, info: Structure) -> None:
    size = c_uint32(sizeof(info))
    _check(_library().bpf_obj_get_info_by_fd(fd, byref(info), byref(size)))


def map_info(fd: int) -> MapInfo:
    """The shape of a map."""
    info = _MapInfo()
    _info(fd, info)
    return MapInfo(info.type, info.id, info.key_size, info.value_size, info.max_entries, info.map_flags)


def program_id(fd: int) -> int:
    """The kernel's number of a program."""
    info = _ProgramInfo()
    _info(fd, info)
    return int(info.id)


def program_maps(fd: int) -> frozenset[int]:
    """The ids of the maps that a program uses."""
    ids = (c_uint32 * _MAX_PROGRAM_MAPS)()
    info = _ProgramInfo(nr_map_ids=_MAX_PROGRAM_MAPS, map_ids=ctypes.addressof(ids))
    _info(fd, info)
    return frozenset(ids[: info.nr_map_ids])


def link_info(fd: int) -> LinkInfo:
    """Which program a link attaches to which network namespace."""
    info = _LinkInfo()
    _info(fd, info)
    return LinkInfo(info.id, info.prog_id, info.netns_ino)


def attach(program: int, netns: int) -> int:
    """Attach a program to the network namespace `netns`: a link, which ends when it is closed unpinned."""
    return _check(_library().bpf_link_create(program, netns, ATTACH_SK_LOOKUP, None), "attach")


def switch(link: int, program: int) -> None:
    """Make `link` run another program, atomically."""
    _check(_library().bpf_link_update(link, program, None), "link update")


def attached(netns: int) -> tuple[int, ...]:
    """The numbers of the sk_lookup programs of a network namespace, in the order in which they run."""
    count = c_uint32(64)
    flags = c_uint32(0)
    numbers = (c_uint32 * 64)()
    _check(
        _library().bpf_prog_query(netns, ATTACH_SK_LOOKUP, 0, byref(flags), numbers, byref(count)), "query"
    )
    return tuple(numbers[: count.value])


# The kernel hands back its own structure, which may be longer than the context that it takes.
_context_out = create_string_buffer(128)


def run_test(program: int, context: bytes, repeat: int = 1) -> TestRun:
    """Run a program with this context (BPF_PROG_TEST_RUN)."""
    out = _context_out
    options = _TestRunOptions(
        sz=sizeof(_TestRunOptions),
        ctx_in=ctypes.cast(c_char_p(context), c_void_p),
        ctx_out=ctypes.addressof(out),
        ctx_size_in=len(context),
        ctx_size_out=sizeof(out),
        repeat=repeat,
    )
    _check(_library().bpf_prog_test_run_opts(program, byref(options)), "test run")
    return TestRun(options.retval, out.raw, options.duration)
