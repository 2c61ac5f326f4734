"""The directory of pins: the only state of the sockets half.

    <pins>/link                     what is attached; the program that it runs says which generation is live
    <pins>/sockets counters ...     shared by all generations
    <pins>/registry                 `sockets` once more, for the activation service's user to write
    <pins>/current/ previous/       a generation each: its programs, its table, its record
    <pins>/new/                     one that is being built
    <pins>/lock/                    a directory to lock, which root alone may open

The link is switched first and the directories are renamed after it. Wherever that was cut short, `settle`
brings the names in line with the link; so a crash leaves the old or the new generation, whole.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from unmoor.errors import UnmoorError
from unmoor.sockets import libbpf

DEFAULT = Path("/sys/fs/bpf/unmoor")
ACCOUNT = "unmoor"
SHARED = ("sockets", "counters", "addresses", "seen")
TABLE = ("ports", "nodes", "leaves", "answers")
PROGRAMS = ("dispatch", "explain")
_BPF_FS_MAGIC = "bpf"


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

    def create(self) -> None:
        """Make the directory. Raises UnmoorError where no bpffs is mounted or the caller may not write."""
        if not _on_bpffs(self.root):
            raise UnmoorError(
                f"{self.root} is not on a BPF file system: "
                "mount -t bpf -o nosuid,nodev,noexec bpf /sys/fs/bpf"
            )
        try:
            self.root.mkdir(mode=0o750, exist_ok=True)
            (self.root / "lock").mkdir(mode=0o700, exist_ok=True)
        except PermissionError:
            raise UnmoorError(f"may not write {self.root}: run this as root") from None
        own(self.root, 0o750)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from changing the pins; waits for whoever does."""
        try:
            fd = os.open(self.root / "lock", os.O_RDONLY | os.O_DIRECTORY)
        except PermissionError:
            raise UnmoorError(f"may not change {self.root}: run this as root") from None
        except FileNotFoundError:
            raise UnmoorError(f"nothing is loaded at {self.root}: run unmoor sockets load") from None
        with libbpf.closing(fd):
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield

    def live_program(self) -> int | None:
        """The kernel's number of the program that the link runs; None when nothing is attached."""
        if not self.link.exists():
            return None
        with libbpf.opened(self.link) as link:
            info = libbpf.link_info(link)
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


def _runs(generation: Path, program: int) -> bool:
    try:
        with libbpf.opened(generation / "dispatch") as fd:
            return libbpf.program_id(fd) == program
    except FileNotFoundError:
        return False


def remove(directory: Path) -> None:
    """Unpin everything in a directory; what is in use lives on in the kernel."""
    if not directory.exists():
        return
    for path in directory.iterdir():
        if path.is_dir():
            remove(path)
        else:
            path.unlink()
    with suppress(OSError):  # a unit that may write here has it mounted, and it cannot go
        directory.rmdir()


def own(path: Path, mode: int, user: str = "root") -> None:
    """Give a pin to `user` and to the group `unmoor`, where this computer has them."""
    path.chmod(mode)
    try:
        os.chown(path, pwd.getpwnam(user).pw_uid, grp.getgrnam(ACCOUNT).gr_gid)
    except KeyError:
        os.chown(path, 0, 0)


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
