"""What a lab needs of the computer: root, programs, and the kernel's limits."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from unmoor.errors import UnmoorError
from unmoor.process import PACKAGES

#: Programs that the lab runs.
_PROGRAMS = (
    "apt-ftparchive",
    "apt-get",
    "ip",
    "mmdebstrap",
    "mount",
    "nsenter",
    "setpriv",
    "setsid",
    "socat",
    "ssh",
    "ssh-keygen",
    "sysctl",
    "systemd-nspawn",
    "unshare",
)
#: inotify instances of one user that the kernel allows, in all hosts together (inotify(7)).
_INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
_INOTIFY = Path("anon_inode:inotify")
#: Of a booted host's systemd and systemd-logind; dbus-daemon has one more, as another user.
_INSTANCES_OF_HOST = 4
#: What a program logs when the limit is reached, or that of descriptors.
_EMFILE = os.strerror(errno.EMFILE)


def require_root() -> None:
    """Raise UnmoorError unless this is root."""
    if os.geteuid() != 0:
        raise UnmoorError("a lab needs root (namespaces, mounts, control groups)\n    fix: run this as root")


def require_programs() -> None:
    """Raise UnmoorError with the packages to install if a program is missing."""
    missing = {PACKAGES[program] for program in _PROGRAMS if not shutil.which(program)}
    if missing:
        raise UnmoorError(
            f"the lab needs more Debian packages\n    fix: apt-get install {' '.join(sorted(missing))}"
        )


def require_inotify(hosts: int) -> None:
    """Raise UnmoorError if this many more hosts would exceed the computer's limit of inotify instances."""
    limit, used, more = _inotify_limit(), inotify_instances(), hosts * _INSTANCES_OF_HOST
    if hosts and used + more > limit:
        raise UnmoorError(
            f"{_INOTIFY_LIMIT} = {limit}: {hosts} more hosts need {more} inotify instances, "
            f"and {used} are in use\n    fix: {_more_inotify(used + more)}"
        )


def inotify_advice(log: str) -> str:
    """Return how to raise the limit of inotify instances if a host's log or the use of them suggests it."""
    limit, used = _inotify_limit(), inotify_instances()
    if _EMFILE not in log and used + _INSTANCES_OF_HOST <= limit:
        return ""
    return f"\n    fix: {_more_inotify(used)}; {used} of {limit} inotify instances are in use"


def inotify_instances() -> int:
    """Return how many inotify instances the processes of this user that it can see have open."""
    return sum(1 for process in _own_processes() for _ in inotify_descriptors(process))


def inotify_descriptors(process: Path) -> Iterator[Path]:
    """Yield the open inotify instances of a process, a directory of /proc."""
    with suppress(OSError):  # it has ended
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                if descriptor.readlink() == _INOTIFY:
                    yield descriptor


def _own_processes() -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.stat().st_uid == os.geteuid():
                yield process


def _inotify_limit() -> int:
    return int(_INOTIFY_LIMIT.read_text(encoding="ascii"))


def _more_inotify(needed: int) -> str:
    """Return the command that raises the limit to twice what is needed, a power of two."""
    return f"sysctl fs.inotify.max_user_instances={1 << max(2 * needed - 1, 1023).bit_length()}"
