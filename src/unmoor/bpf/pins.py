"""The directory of pins: the only state of the sockets half.

    <pins>/link                     what is attached; the program that it runs says which generation is live
    <pins>/sockets counters ...     shared by all generations
    <pins>/registry                 `sockets` once more, for the activation service's user to write
    <pins>/current/ previous/       a generation each: its programs, its table, its record
    <pins>/new/                     one that is being built
    <pins>/lock/                    a directory to lock, which root alone may open
    <pins>/guard/                   one that root and the activation service may open, and readers may not

The link is switched first and the directories are renamed after it. Wherever that was cut short, `settle`
brings the names in line with the link; so a crash leaves the old or the new generation, whole.

Locks are taken in this order: `lock`, for a whole load, rollback or unload; then `guard`, for the moment of
the switch. A registration holds `guard` from its last look at the generation until the sockets are written,
so the ids that it writes to are those of the live generation. Both are flock(2) locks: the kernel releases
them when their holder dies.
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

from unmoor.bpf import libbpf
from unmoor.errors import UnmoorError

DEFAULT = Path("/sys/fs/bpf/unmoor")
ACCOUNT = "unmoor"
SHARED = ("sockets", "counters", "addresses", "seen")
TABLE = ("ports", "nodes", "leaves", "answers")
PROGRAMS = ("dispatch", "explain")
_BPF_FS_MAGIC = "bpf"

_READABLE = (0o640, "root", ACCOUNT)
_READABLE_DIRECTORY = (0o750, "root", ACCOUNT)
#: Mode, owner and group by the name of a pin; others are root's alone. A program is never for the group to
#: read: a descriptor that is opened for reading can be attached, which needs no capability. Group root is for
#: the loader, which runs without CAP_DAC_OVERRIDE.
_ACCESS = {
    **dict.fromkeys((*SHARED, "ports", "nodes", "leaves", "record"), _READABLE),
    **dict.fromkeys(("current", "previous", "new"), _READABLE_DIRECTORY),
    "link": (0o600, "root", "root"),
    "dispatch": (0o600, "root", "root"),
    "explain": (0o600, ACCOUNT, "root"),
    "answers": (0o600, ACCOUNT, "root"),
    "registry": (0o640, ACCOUNT, "root"),
    "lock": (0o700, "root", "root"),
    "guard": (0o750, ACCOUNT, "root"),
}

#: Seconds that a load waits for a registration to end, and between two tries of a lock.
GUARD_TIMEOUT = 10.0
_LOCK_PAUSE = 0.001
#: How often a load makes the directory again while others remove it.
_MAX_TRIES = 1000


class NothingLoadedError(UnmoorError):
    """There is no directory of pins."""


class BusyError(UnmoorError):
    """The guard was not free in time."""


@dataclass(frozen=True, slots=True)
class Pins:
    """Paths below one directory of pins."""

    root: Path = DEFAULT

    @property
    def link(self) -> Path:
        """The link that attaches the live program."""
        return self.root / "link"

    @property
    def registry(self) -> Path:
        """The map of sockets, as the activation service may write it."""
        return self.root / "registry"

    @property
    def current(self) -> Path:
        """The generation that is live."""
        return self.root / "current"

    @property
    def previous(self) -> Path:
        """The generation that was live before."""
        return self.root / "previous"

    @property
    def new(self) -> Path:
        """The generation that is being built."""
        return self.root / "new"

    @property
    def displaced(self) -> Path:
        """The generation that a rollback takes out of service, while its name changes."""
        return self.root / "displaced"

    @property
    def _lock(self) -> Path:
        return self.root / "lock"

    @property
    def _guard(self) -> Path:
        return self.root / "guard"

    @contextmanager
    def created(self) -> Iterator[None]:
        """`locked`, with the directory made where it is missing.

        Raises UnmoorError where no bpffs is mounted or the caller may not write.
        """
        if not _on_bpffs(self.root):
            raise UnmoorError(
                f"{self.root} is not on a BPF file system: "
                "mount -t bpf -o nosuid,nodev,noexec bpf /sys/fs/bpf"
            )
        with _held(self._create()):
            yield

    def _create(self) -> int:
        """Make the directory and lock it; returns the lock's descriptor."""
        for _ in range(_MAX_TRIES):
            try:
                self.root.mkdir(mode=0o750, exist_ok=True)
                _set_access(self.root, *_READABLE_DIRECTORY)
                for path in (self._lock, self._guard):
                    path.mkdir(mode=0o700, exist_ok=True)
                    protect(path)
                return _lock(self._lock)
            except FileNotFoundError:
                continue  # an unload removed it meanwhile
            except PermissionError:
                raise UnmoorError(
                    f"{self.root}: no permission to change the pins\n    fix: run this as root"
                ) from None
        raise UnmoorError(f"{self.root}: other processes keep removing it\n    fix: stop them, then load")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from changing the pins; waits for whoever does.

        Raises NothingLoadedError when there are none, UnmoorError when the caller may not change them.
        """
        try:
            fd = _lock(self._lock)
        except PermissionError:
            raise UnmoorError(f"may not change {self.root}: run this as root") from None
        except FileNotFoundError:
            raise NothingLoadedError(f"nothing is loaded at {self.root}: run unmoor sockets load") from None
        with _held(fd):
            yield

    @contextmanager
    def guarded(self, timeout: float = GUARD_TIMEOUT) -> Iterator[None]:
        """Keep registrations and switches apart; waits for at most `timeout` seconds.

        Raises BusyError after that, and PermissionError when the caller is neither root nor the activation
        service.
        """
        try:
            fd = _lock(self._guard, timeout)
        except FileNotFoundError:
            # Nothing is loaded, or a release did that which knows no guard; the next load makes one.
            yield
            return
        except TimeoutError:
            raise BusyError(
                f"{self._guard}: another process has held this lock for {timeout:g} s\n"
                "    fix: try again; systemctl status unmoor-sockets unmoor-activation shows what runs"
            ) from None
        with _held(fd):
            yield

    def protect(self) -> None:
        """Give every pin its mode and owner, also those of an earlier release. Call it with the lock held."""
        generations = [each for each in (self.current, self.previous, self.new) if each.is_dir()]
        for directory in (self.root, *generations):
            for path in directory.iterdir():
                protect(path)

    def live_program(self) -> int | None:
        """The kernel's number of the program that the link runs; None when nothing is attached."""
        try:
            with libbpf.opened(self.link, "link") as link:
                info = libbpf.link_info(link)
        except FileNotFoundError:
            return None
        return info.program if info.netns else None

    def live(self) -> Path | None:
        """The directory of the live generation, also where a change was cut short; None when there is none.

        Who may not open the link (it can be changed by whoever has it open) goes by the names alone.
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
        """Finish or undo what was cut short. Call it with the lock held."""
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
        """Unpin everything. Call it with the lock and the guard held.

        The directories that others may wait for go last: who gets a lock finds nothing half removed.
        """
        for path in self.root.iterdir():
            if path not in (self._lock, self._guard):
                remove(path)
        for path in (self._guard, self._lock, self.root):
            remove(path)


@contextmanager
def opened_shared(pins: Pins, name: str) -> Iterator[int]:
    """A map that generations share, to read, for the length of a block.

    Raises UnmoorError when it is not pinned.
    """
    path = pins.root / name
    try:
        fd = libbpf.open_pin_to_read(path, "map")
    except FileNotFoundError:
        raise UnmoorError(
            f"{path}: this pin is missing\n    fix: run unmoor sockets load, which makes it again"
        ) from None
    with libbpf.closing(fd):
        yield fd


def _runs(generation: Path, program: int) -> bool:
    try:
        with libbpf.opened(generation / "dispatch", "program") as fd:
            return libbpf.program_id(fd) == program
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Unpin a pin, or everything in a directory; what is in use lives on in the kernel."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for each in path.iterdir():
        remove(each)
    with suppress(OSError):  # a unit that may write here has it mounted, and it cannot go
        path.rmdir()


def protect(path: Path) -> None:
    """Give a pin the mode and owner of its name: of the account `unmoor` where this computer has it."""
    default = (0o700 if path.is_dir() else 0o600, "root", "root")
    _set_access(path, *_ACCESS.get(path.name, default))


def _set_access(path: Path, mode: int, owner: str, group: str) -> None:
    path.chmod(mode)
    try:
        os.chown(path, pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
    except KeyError:
        os.chown(path, 0, 0)


def _lock(directory: Path, timeout: float | None = None) -> int:
    """A descriptor that locks the directory at this path; waits for at most `timeout` seconds, if any.

    Raises FileNotFoundError when the directory is gone, TimeoutError when others held the lock for so long.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _flock(fd, end)
            # Whoever held the lock may have removed the directory, and others have made it again.
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
    """Release a lock at the end of a block, also where a child has inherited its descriptor."""
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _on_bpffs(path: Path) -> bool:
    """Whether the nearest mount above `path` is a bpffs."""
    best, kind = "", ""
    text = os.path.realpath(path)
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, found, *_ = line.split(" ")
        inside = text == mount or text.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind == _BPF_FS_MAGIC
