"""Control groups: one tree for each host in every mounted hierarchy (version 1, 2 or both).

The trees separate the systemd instances of guests, and list every process of a host, so that all can be
killed whatever state the lab is in.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from unmoor.errors import UnmoorError

#: Leaves below a host's group. Processes live in leaves only (cgroup v2: no internal processes).
GUEST, SUPERVISOR, EXEC = "guest", "supervisor", "exec"

_TIMEOUT = 60.0  # seconds for killed processes to be gone


@cache
def hierarchies() -> tuple[Path, ...]:
    """Return the mount points of all hierarchies."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    fields = (line.split() for line in mounts)
    return tuple(dict.fromkeys(Path(field[1]) for field in fields if field[2] in ("cgroup", "cgroup2")))


def create(group: Path) -> None:
    """Create a host's group and its leaves in every hierarchy, with all controllers enabled."""
    for root in hierarchies():
        for leaf in (GUEST, SUPERVISOR, EXEC):
            parent = root
            for part in (*group.parts, leaf):
                _pass_down(parent)
                child = parent / part
                child.mkdir(exist_ok=True)
                _fill_cpuset(parent, child)
                parent = child


def enter(group: Path) -> None:
    """Move this process into `group` in every hierarchy."""
    for root in hierarchies():
        (root / group / "cgroup.procs").write_text(f"{os.getpid()}\n", encoding="ascii")


def processes(group: Path) -> set[int]:
    """Return the ids of all processes below `group`, in any hierarchy."""
    found: set[int] = set()
    for directory in _tree(group):
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in (directory / "cgroup.procs").read_text(encoding="ascii").split()}
    return found


def kill(group: Path) -> None:
    """Kill every process below `group`, and wait until they are gone. Raises UnmoorError on a timeout."""
    deadline = time.monotonic() + _TIMEOUT
    while pids := _kill(group):
        if time.monotonic() > deadline:
            raise UnmoorError(f"processes of {group} do not end: {sorted(pids)}; see 'ps -o stat,wchan,args'")
        time.sleep(0.02)


def remove(group: Path) -> None:
    """Kill the processes of `group`, and remove it in every hierarchy, with its parent if that is empty.

    Raises UnmoorError on a timeout.
    """
    deadline = time.monotonic() + _TIMEOUT
    while left := list(_tree(group)):
        _kill(group)
        for directory in left:
            # EBUSY for a moment after the last process ended; the next iteration tries again.
            with contextlib.suppress(OSError):
                directory.rmdir()
        if time.monotonic() > deadline:
            raise UnmoorError(f"the control group {left[-1]} cannot be removed: {sorted(processes(group))}")
        time.sleep(0.01)
    for root in hierarchies():
        with contextlib.suppress(OSError):
            (root / group.parent).rmdir()


def _kill(group: Path) -> set[int]:
    pids = processes(group) - {os.getpid()}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def _tree(group: Path) -> Iterator[Path]:
    """Yield every directory of `group` in every hierarchy, the deepest first."""
    for root in hierarchies():
        for directory, _, _ in os.walk(root / group, topdown=False):
            yield Path(directory)


def _pass_down(parent: Path) -> None:
    """Version 2: enable the controllers of `parent` for its children, where possible."""
    control = parent / "cgroup.subtree_control"
    if control.exists():
        for name in (parent / "cgroup.controllers").read_text(encoding="ascii").split():
            with contextlib.suppress(OSError):
                control.write_text(f"+{name}", encoding="ascii")


def _fill_cpuset(parent: Path, child: Path) -> None:
    """Version 1: give a new cpuset CPUs and memory nodes, without which no process can enter it."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (child / name).exists() and not (child / "cgroup.controllers").exists():
            value = (parent / name).read_text(encoding="ascii")
            if not (child / name).read_text(encoding="ascii").strip():
                (child / name).write_text(value, encoding="ascii")
