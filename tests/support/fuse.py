"""A FUSE file system with one file on which fstat(2) and close(2) block."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOKUP, _FORGET, _GETATTR, _OPEN, _FLUSH, _INIT = 1, 2, 3, 14, 25, 26
_REQUEST = struct.Struct("<IIQQIIIHH")
_REPLY = struct.Struct("<IiQ")
_MAX_REQUEST = 1 << 17 | 4096
_FILE = 2  # the number of its node
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def unanswered_file(directory: Path) -> Iterator[Path]:
    """The file, which every user may open. Removal of the file system ends all blocked calls."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if _libc.mount(b"fuse", os.fsencode(directory), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), f"cannot mount at {directory}")
    pid = os.fork()
    if pid == 0:
        try:
            while _serve(device):
                pass
        finally:
            os._exit(1)
    os.close(device)
    try:
        yield directory / "file"
    finally:
        os.kill(pid, signal.SIGKILL)  # it had the last descriptor of /dev/fuse: the kernel ends blocked calls
        os.waitpid(pid, 0)
        _libc.umount2(os.fsencode(directory), 2)  # MNT_DETACH


def _serve(device: int) -> bool:
    request = os.read(device, _MAX_REQUEST)
    _, code, unique, node, *_ = _REQUEST.unpack(request[: _REQUEST.size])
    if code == _INIT:
        _reply(device, unique, struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 8, 8, 65536, 1, 16, 0, *[0] * 8))
    elif code == _LOOKUP:
        _reply(device, unique, struct.pack("<4Q2I", _FILE, 0, 3600, 0, 0, 0) + _attributes(_FILE, 0o100666))
    elif code == _GETATTR and node != _FILE:
        _reply(device, unique, struct.pack("<Q2I", 3600, 0, 0) + _attributes(node, 0o40755))
    elif code == _OPEN:
        _reply(device, unique, struct.pack("<Q2I", 1, 0, 0))
    elif code not in (_FORGET, _GETATTR, _FLUSH):
        os.write(device, _REPLY.pack(_REPLY.size, -38, unique))  # ENOSYS
    return True


def _attributes(node: int, mode: int) -> bytes:
    return struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _reply(device: int, unique: int, data: bytes) -> None:
    os.write(device, _REPLY.pack(_REPLY.size + len(data), 0, unique) + data)
