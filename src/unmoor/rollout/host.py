"""The host below a generation: its files, units and kernel settings, and the commands that act on them."""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from unmoor import process
from unmoor.errors import UnmoorError
from unmoor.rollout.manifest import Absent, Command, Entry, File, Link
from unmoor.rollout.store import sync

#: Seconds after which a command counts as failed. A DNS server with a million records reloads in two minutes.
COMMAND_TIMEOUT = 300
#: Temporary files begin with this. Programs that read whole directories skip names with a leading dot.
TEMPORARY = ".unmoor-"
_UNIT_FOLDERS = ("/etc/systemd/", "/run/systemd/", "/usr/lib/systemd/")


class HostError(UnmoorError):
    """The host refused a change: a file that cannot be written, or a command that failed."""


@dataclass(frozen=True, slots=True)
class UnitState:
    """The state of a systemd unit; `ready` is false while it starts, reloads or stops."""

    exists: bool
    enabled: bool
    active: bool
    ready: bool = True
    stale: bool = False  # systemd has another version of its files in memory


def current(path: str) -> Entry:
    """Return what is at `path`. Raises HostError if it can be none of a generation's, such as a directory."""
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return Link(path, str(Path(path).readlink()))
        if not stat.S_ISREG(status.st_mode):
            raise HostError(f"{path}: is neither a file nor a link\n    fix: move it away and run this again")
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return Absent(path)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from None
    return File(path, digest, stat.S_IMODE(status.st_mode), _user(status.st_uid), _group(status.st_gid))


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


@contextmanager
def staged(entries: Iterable[Entry], blob: Callable[[str], bytes]) -> Iterator[Callable[[], None]]:
    """Write files and links beside their places; yield the function that puts them in place.

    Everything that may fail for want of space, a user or a directory fails here, before any file is
    replaced. Raises HostError. Temporary files are removed in any case.
    """
    written: dict[str, str] = {}
    wanted = tuple(entries)
    try:
        for entry in wanted:
            if not isinstance(entry, Absent):
                written[entry.path] = _write_beside(entry, blob)
        yield lambda: _place(wanted, written)
    finally:
        for name in written.values():
            Path(name).unlink(missing_ok=True)


def _write_beside(entry: File | Link, blob: Callable[[str], bytes]) -> str:
    folder, name = Path(entry.path).parent, None
    content = blob(entry.digest) if isinstance(entry, File) else b""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if isinstance(entry, Link):
            Path(name).unlink()
            Path(name).symlink_to(entry.target)
            return name
        shutil.chown(name, _number_or_name(entry.owner), _number_or_name(entry.group))
        Path(name).chmod(entry.mode)
    except (OSError, LookupError) as error:
        if name:
            Path(name).unlink(missing_ok=True)
        raise HostError(_why(entry.path, len(content), error)) from None
    return name


def _number_or_name(owner: str) -> str | int:
    return int(owner) if owner.isdigit() else owner


def _why(path: str, needed: int, error: OSError | LookupError) -> str:
    if isinstance(error, LookupError):
        return f"{path}: {error.args[0]}\n    fix: create the user and group before this part is applied"
    text = f"{path}: cannot be written: {error.strerror}"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return text
    status = os.statvfs(Path(path).parent)
    free = f"{status.f_bavail * status.f_frsize} bytes"
    return (
        f"{text}: it has {needed} bytes, and its file system has {free} and {status.f_favail} inodes free\n"
        "    fix: free space there and run this again; what was in place is unchanged"
    )


def _place(entries: Iterable[Entry], written: dict[str, str]) -> None:
    folders = set()
    for entry in entries:
        path = Path(entry.path)
        try:
            if isinstance(entry, Absent):
                path.unlink()
            else:
                Path(written[entry.path]).rename(path)
                del written[entry.path]
        except FileNotFoundError:
            if not isinstance(entry, Absent):
                raise
            continue
        except OSError as error:
            raise HostError(f"{entry.path}: cannot be replaced: {error.strerror}") from None
        folders.add(path.parent)
    for folder in folders:
        sync(folder)


def missing_folders(path: str) -> list[str]:
    """Return the directories of `path` that do not exist."""
    return [str(folder) for folder in Path(path).parents if not folder.exists()]


def remove_folders(folders: Iterable[str]) -> None:
    """Remove those of these directories that are empty, the deepest first."""
    for folder in sorted(folders, key=len, reverse=True):
        with suppress(OSError):
            Path(folder).rmdir()


def remove_stale(paths: Iterable[str]) -> None:
    """Remove temporary files of a killed process beside these paths; the caller holds the lock."""
    for folder in {Path(path).parent for path in paths}:
        for path in folder.glob(f"{TEMPORARY}*") if folder.is_dir() else ():
            if path.is_symlink() or path.is_file():
                path.unlink()


def is_unit_file(path: str) -> bool:
    """Whether systemd has to reload its configuration when this file changes."""
    return path.startswith(_UNIT_FOLDERS)


def run(command: Sequence[str], timeout: float = COMMAND_TIMEOUT) -> tuple[int, str]:
    """Run a command; return its exit status and output. One that cannot run, or does not end, has 127."""
    try:
        done = process.run(command, timeout=timeout, check=False)
    except process.ProcessError as error:
        return 127, error.why
    return done.status, (done.stderr + done.stdout).strip()


def must(command: Command | Sequence[str]) -> None:
    """Run a command. Raises HostError, with the end of what it printed, if it fails."""
    status, output = run(command)
    if status:
        raise HostError(f"{' '.join(command)}: {tail(output) or f'exit status {status}'}")


def tail(output: str, lines: int = 6) -> str:
    """Return the last lines of a command's output."""
    return "\n".join(output.splitlines()[-lines:])


def unit_states(names: Sequence[str]) -> dict[str, UnitState]:
    """Return the state of each unit, by one call of systemctl(1)."""
    if not names:
        return {}
    properties = "Id,Names,LoadState,ActiveState,UnitFileState,NeedDaemonReload"
    command = ["/usr/bin/systemctl", "show", f"--property={properties}", "--", *names]
    done = process.run(command, timeout=COMMAND_TIMEOUT, check=False)
    shown = done.stdout.strip().split("\n\n")
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown]
    if done.status or len(blocks) != len(names):
        raise HostError(f"systemctl show {' '.join(names)}: {tail(done.stderr)}")
    return {name: _unit_state(block) for name, block in zip(names, blocks, strict=True)}


def _unit_state(shown: dict[str, str]) -> UnitState:
    active = shown["ActiveState"]
    return UnitState(
        exists=shown["LoadState"] != "not-found",
        enabled=shown["UnitFileState"] in ("enabled", "enabled-runtime"),
        active=active in ("active", "reloading", "activating", "refreshing"),
        ready=active in ("active", "inactive", "failed"),
        stale=shown["NeedDaemonReload"] == "yes",
    )


def sysctl(name: str) -> str:
    """Return a kernel setting, with single spaces between its words. Raises HostError if there is none."""
    try:
        return " ".join(_sysctl_path(name).read_text(encoding="ascii").split())
    except OSError as error:
        raise HostError(f"{name}: cannot be read: {error.strerror}: this kernel does not have it") from None


def set_sysctl(name: str, value: str) -> None:
    """Set a kernel setting. Raises HostError if the kernel refuses it."""
    try:
        _sysctl_path(name).write_text(value, encoding="ascii")
    except OSError as error:
        raise HostError(f"{name} = {value}: {error.strerror}") from None


def _sysctl_path(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def boot_id() -> str:
    """Return the id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def started(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if there is no such process (proc(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])
