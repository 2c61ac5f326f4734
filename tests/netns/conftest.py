"""A fresh network namespace and a BPF file system of its own for each test that asks for them."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from unmoor.sockets.compiler import compile_program
from unmoor.sockets.pins import Pins

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def netns() -> Iterator[None]:
    """This process is in a network namespace of its own, its loopback up; afterwards back where it was."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    _call(_libc.unshare(_CLONE_NEWNET))
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        _call(_libc.setns(home, _CLONE_NEWNET))
        os.close(home)


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Pins]:
    """An empty directory of pins on a BPF file system of its own."""
    mount = tmp_path / "bpf"
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "-o", "mode=0711", "bpf", str(mount)], check=True)
    try:
        yield Pins(mount / "unmoor")
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The dispatch program, compiled."""
    output = tmp_path_factory.mktemp("program") / "dispatch.o"
    compile_program(output)
    return output.read_bytes()
