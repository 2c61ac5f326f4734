"""A fresh network namespace and BPF file system for each test that requests them."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest

from support import control_group
from support.checkout import ROOT
from support.sockets import Bed, make_local
from support.waiting import wait_until
from unmoor.bpf.compiler import compile_program
from unmoor.bpf.pins import Pins

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def netns() -> Iterator[None]:
    """Move this process to a new network namespace with its loopback up, and back afterwards."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    _call(_libc.unshare(_CLONE_NEWNET))
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        _call(_libc.setns(home, _CLONE_NEWNET))
        os.close(home)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other users may enter; pytest closes the one above `tmp_path` to them."""
    with tempfile.TemporaryDirectory(prefix="unmoor-") as name:
        path = Path(name)
        path.chmod(0o711)
        yield path


@pytest.fixture
def pins(open_path: Path) -> Iterator[Pins]:
    """An empty directory of pins on a new BPF file system."""
    mount = open_path / "bpf"
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


@pytest.fixture
def bed(netns: None, pins: Pins, code: bytes) -> Bed:
    """An empty directory of pins, in a network namespace whose loopback has the prefixes.

    Modules override it to load a table.
    """
    make_local()
    return Bed(pins, code)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group (version 2)."""
    path = control_group.root() / f"unmoor-test-{os.getpid()}"
    path.mkdir()
    yield path
    wait_until(lambda: not (path / "cgroup.procs").read_text())
    path.rmdir()


@pytest.fixture(scope="session")
def unmoor_for_others() -> Iterator[list[str]]:
    """The command `unmoor` for users who cannot read this checkout: a copy with its dependencies."""
    with tempfile.TemporaryDirectory(prefix="unmoor-") as name:
        directory = Path(name)
        shutil.copytree(ROOT / "src" / "unmoor", directory / "unmoor")
        for package in re.findall(r"^([\w-]+)==", (ROOT / "requirements/edge.txt").read_text(), re.MULTILINE):
            with suppress(metadata.PackageNotFoundError):  # of other systems
                _copy_package(package, directory)
        subprocess.run(["chmod", "--recursive", "a+rX", directory], check=True)
        run = f"import sys; sys.path.insert(0, {name!r}); from unmoor.commands import main; main()"
        yield ["/usr/bin/python3", "-c", run]


def _copy_package(name: str, directory: Path) -> None:
    for file in metadata.files(name) or ():
        if ".." not in file.parts:  # of the environment's bin
            target = directory / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file.locate(), target)  # with its time: compiled files stay valid
