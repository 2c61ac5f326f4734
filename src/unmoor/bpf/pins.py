"""The directory of pins: the only state of the sockets half.

    <pins>/link                     the attached link; the program that it runs identifies the live generation
    <pins>/sockets counters ...     maps that all generations share
    <pins>/registry                 the map `sockets` again, writable for the activation service's user
    <pins>/current/ previous/       a generation each: its programs, its table, its record
    <pins>/new/                     a generation that is being built
    <pins>/lock/                    a directory to lock, which only root may open
    <pins>/guard/                   a directory to lock, which root and the activation service may open

A change switches the link first and renames the directories after it. After an interruption at any point,
`settle` makes the names agree with the link, so a crash leaves the old or the new generation, complete.

Lock order: `lock`, for a whole load, rollback or unload; then `guard`, for the switch. A registration holds
`guard` while it checks that the generation is still the same and writes the sockets, so it never writes to
the ids of another generation. Both are flock(2) locks: the kernel releases them when the holder exits.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from unmoor import paths
from unmoor.bpf import libbpf
from unmoor.errors import UnmoorError

ACCOUNT = "unmoor"
SHARED = ("sockets", "counters", "addresses", "seen")
TABLE = ("ports", "nodes", "leaves", "answers")
PROGRAMS = ("dispatch", "explain")
_BPF_FS_MAGIC = "bpf"

_READABLE = (0o640, "root", ACCOUNT)
_READABLE_DIRECTORY = (0o750, "root", ACCOUNT)
#: Mode, owner and group by the name of a pin; only root may access the rest. The group may never read a
#: program: a descriptor opened for reading is enough to attach it, without any capability. Group root is for
#: the loader, which runs without CAP_DAC_OVERRIDE.
_ACCESS = {
    **dict.fromkeys((*SHARED, "ports", "nodes", "leaves", "record"), _READABLE),
    **dict.fromkeys(("current", "previous", "new"), _READABLE_DIRECTORY),
    "link": (0o600, "root", "root"),
    "dispatch": (0o600, "root", "root"),
    "explain": (0o600, ACCOUNT, "root"),
    "answers": (0o660, ACCOUNT, "root"),
    "registry": (0o640, ACCOUNT, "root"),
    "lock": (0o700, "root", "root"),
    "guard": (0o750, ACCOUNT, "root"),
}

#: Seconds that a load waits for a registration to end, and between two attempts to take a lock.
GUARD_TIMEOUT = 10.0
_LOCK_PAUSE = 0.001
#: How often a load creates the directory again when others remove it meanwhile.
_MAX_TRIES = 1000


class NothingLoadedError(UnmoorError):
    """The directory of pins does not exist."""


class BusyError(UnmoorError):
    """Another process held the guard for longer than the timeout."""


@dataclass(frozen=True, slots=True)
class Pins:
    """Paths below one directory of pins."""

    root: Path = paths.PINS

    @property
    def link(self) -> Path:
        """The link that attaches the live program."""
        return self.root / "link"

    @property
    def registry(self) -> Path:
        """The pin of the map of sockets that the activation service may write."""
        return self.root / "registry"

    @property
    def current(self) -> Path:
        """The live generation."""
        return self.root / "current"

    @property
    def previous(self) -> Path:
        """The generation that was live before the current one."""
        return self.root / "previous"

    @property
    def new(self) -> Path:
        """The generation that is being built."""
        return self.root / "new"

    @property
    def displaced(self) -> Path:
        """The generation that a rollback replaces, while it is renamed."""
        return self.root / "displaced"

    @property
    def _lock(self) -> Path:
        return self.root / "lock"

    @property
    def _guard(self) -> Path:
        return self.root / "guard"

    @contextmanager
    def created(self) -> Iterator[None]:
        """Take the lock for the length of a block, and create the directory if it is missing.

        Raises UnmoorError when `root` is not on a bpffs, or the caller may not write there.
        """
        if not _on_bpffs(self.root):
            raise UnmoorError(
                f"{self.root} is not on a BPF file system: "
                f"mount -t bpf -o nosuid,nodev,noexec bpf {paths.BPF_FS}"
            )
        with _held(self._create()):
            yield

    def _create(self) -> int:
        """Create the directory and lock it; returns the lock's descriptor."""
        for _ in range(_MAX_TRIES):
            try:
                self.root.mkdir(mode=0o750, exist_ok=True)
                _set_access(self.root, *_READABLE_DIRECTORY)
                for path in (self._lock, self._guard):
                    path.mkdir(mode=0o700, exist_ok=True)
                    protect(path)
                return _lock(self._lock)
            except FileNotFoundError:
                continue  # an unload has removed it meanwhile
            except PermissionError:
                raise UnmoorError(
                    f"{self.root}: no permission to change the pins\n    fix: run this as root"
                ) from None
        raise UnmoorError(f"{self.root}: other processes keep removing it\n    fix: stop them, then load")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Take the lock that every change of the pins holds, for the length of a block. Waits for it.

        Raises NothingLoadedError when there are no pins, UnmoorError when the caller may not change them.
        """
        try:
            fd = _lock(self._lock)
        except PermissionError:
            raise UnmoorError(
                f"{self.root}: no permission to change the pins\n    fix: run this as root"
            ) from None
        except FileNotFoundError:
            raise NothingLoadedError(f"nothing is loaded at {self.root}: run unmoor sockets load") from None
        with _held(fd):
            yield

    @contextmanager
    def guarded(self, timeout: float = GUARD_TIMEOUT) -> Iterator[None]:
        """Take the guard, which excludes registrations from switches, for the length of a block.

        Raises BusyError when it is not free within `timeout` seconds, and PermissionError when the caller is
        neither root nor the activation service.
        """
        try:
            fd = _lock(self._guard, timeout)
        except FileNotFoundError:
            # Nothing is loaded, or a release without a guard loaded it; the next load creates the guard.
            yield
            return
        except TimeoutError:
            raise BusyError(
                f"{self._guard}: another process has held this lock for {timeout:g} s\n"
                "    fix: try again; what runs is shown by "
                f"systemctl status {paths.SOCKETS_UNIT} {paths.ACTIVATION_UNIT}"
            ) from None
        with _held(fd):
            yield

    def protect(self) -> None:
        """Set mode and owner of every pin, also of an earlier release's. The caller holds the lock."""
        generations = [each for each in (self.current, self.previous, self.new) if each.is_dir()]
        for directory in (self.root, *generations):
            for path in directory.iterdir():
                protect(path)

    def live_program(self) -> int | None:
        """Return the id of the program that the link runs; None when nothing is attached."""
        try:
            with libbpf.opened(self.link, "link") as link:
                info = libbpf.link_info(link)
        except FileNotFoundError:
            return None
        return info.program if info.netns else None

    def live(self) -> Path | None:
        """Return the directory of the live generation, also after an interrupted change, or None.

        A caller that may not open the link (an open link can be changed) gets the result by the names alone.
        """
        try:
            program = self.live_program()
        except PermissionError:
            return next((each for each in (self.current, self.new, self.previous) if each.exists()), None)
        if program is None:
            return None
        generations = (self.current, self.new, self.previous, self.displaced)
        return next((each for each in generations if _runs(each, program)), None)

    def settle(self) -> None:
        """Finish or undo an interrupted change. The caller holds the lock."""
        live = self.live_program()
        if live is not None and _runs(self.new, live):
            if self.current.exists():
                remove(self.previous)
                self.current.rename(self.previous)
            self.new.rename(self.current)
        if live is not None and _runs(self.previous, live):
            if self.current.exists():
                self.current.rename(self.displaced)
            self.previous.rename(self.current)
        if self.displaced.exists():
            if self.previous.exists():
                remove(self.displaced)
            else:
                self.displaced.rename(self.previous)
        remove(self.new)

    def clear(self) -> None:
        """Unpin everything. The caller holds the lock and the guard.

        The directories that others wait to lock are removed last, so that nobody finds a partial state.
        """
        for path in self.root.iterdir():
            if path not in (self._lock, self._guard):
                remove(path)
        for path in (self._guard, self._lock, self.root):
            remove(path)


@contextmanager
def opened_shared(pins: Pins, name: str) -> Iterator[int]:
    """Open a map that generations share, read-only, for the length of a block.

    Raises UnmoorError when it is not pinned.
    """
    path = pins.root / name
    try:
        fd = libbpf.open_pin_to_read(path, "map")
    except FileNotFoundError:
        raise missing_pin(path) from None
    with libbpf.closing(fd):
        yield fd


def missing_pin(path: Path) -> UnmoorError:
    """Return the error about a pin that was removed by hand."""
    return UnmoorError(
        f"{path}: this pin is missing\n    fix: run unmoor sockets load, which creates it again"
    )


def _runs(generation: Path, program: int) -> bool:
    try:
        with libbpf.opened(generation / "dispatch", "program") as fd:
            return libbpf.program_id(fd) == program
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Unpin a pin, or everything in a directory. The kernel keeps objects that are in use."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for each in path.iterdir():
        remove(each)
    with suppress(OSError):  # it is a mount point of a unit that may write here
        path.rmdir()


def protect(path: Path) -> None:
    """Set mode and owner of a pin by its name; without an account `unmoor`, root owns it."""
    default = (0o700 if path.is_dir() else 0o600, "root", "root")
    _set_access(path, *_ACCESS.get(path.name, default))


def _set_access(path: Path, mode: int, owner: str, group: str) -> None:
    path.chmod(mode)
    try:
        os.chown(path, pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
    except KeyError:
        os.chown(path, 0, 0)


def _lock(directory: Path, timeout: float | None = None) -> int:
    """Lock a directory and return the descriptor that holds the lock; without a timeout (seconds), wait.

    Raises FileNotFoundError when the directory does not exist, TimeoutError after the timeout.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _flock(fd, end)
            # The previous holder may have removed the directory, and others may have created it again.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), directory.stat()):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _flock(fd: int, end: float | None) -> None:
    if end is None:
        return fcntl.flock(fd, fcntl.LOCK_EX)
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise TimeoutError from None
            time.sleep(_LOCK_PAUSE)


@contextmanager
def _held(fd: int) -> Iterator[None]:
    """Release a lock at the end of a block, even if a child process has inherited its descriptor."""
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _on_bpffs(path: Path) -> bool:
    """Whether `path` is on a bpffs."""
    best, kind = "", ""
    text = os.path.realpath(path)
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, found, *_ = line.split(" ")
        inside = text == mount or text.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind == _BPF_FS_MAGIC
