"""Finding the process whose sockets are registered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from unmoor.errors import UnmoorError
from unmoor.sockets.activation.descriptors import MPTCP, MPTCP_REFUSED

_PAUSE = 0.05
_TIMEOUT = 30.0  # seconds for systemctl
_MAX_SHOWN = 16  # sockets listed in an error

_T = TypeVar("_T")


class MissingError(Exception):
    """The process has no such socket (yet). `why` names the missing socket, `has` lists those that exist."""

    def __init__(self, why: str, has: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.why = why
        self.has = tuple(has)

    def __str__(self) -> str:
        """The reason and the sockets that exist, at most one screen."""
        shown = self.has[:_MAX_SHOWN]
        lines = [self.why, *(f"    it has  {text}" for text in shown)]
        if len(self.has) > len(shown):
            lines.append(f"    ... and {len(self.has) - len(shown)} more")
        if any(text.startswith(f"{MPTCP} ") for text in self.has):
            lines.append(f"    {MPTCP} is {MPTCP_REFUSED}")
        return "\n".join(lines)


def retry(function: Callable[[], _T], timeout: float) -> _T:
    """Call a function until it raises no MissingError, for at most `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        try:
            return function()
        except MissingError as error:
            if time.monotonic() >= end:
                raise MissingError(f"{error.why} (waited {timeout:g} s)", error.has) from None
            time.sleep(_PAUSE)


def finder(pid: int | None, pidfile: Path | None, unit: str | None) -> Callable[[], int] | None:
    """Return a function that finds the id of a process, of a file with it or of a unit's main process.

    The function raises MissingError when there is none yet. Returns None when nothing is given. Raises
    UnmoorError when more than one is.
    """
    found: list[Callable[[], int]] = []
    if pid is not None:
        found.append(partial(int, pid))
    if pidfile is not None:
        found.append(partial(_read_pidfile, pidfile))
    if unit is not None:
        found.append(partial(_main_pid, unit))
    if len(found) > 1:
        raise UnmoorError("several processes: give one of --pid, --pidfile and --unit")
    return found[0] if found else None


def _read_pidfile(pidfile: Path) -> int:
    try:
        return int(pidfile.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        raise MissingError(f"{pidfile} does not exist") from None
    except ValueError:
        raise MissingError(f"{pidfile} holds no process id") from None


def _main_pid(unit: str) -> int:
    from unmoor import process  # noqa: PLC0415 - takes long to import, and --pidfile needs none of it

    command = ["systemctl", "show", "--property=MainPID", "--value", "--", unit]
    if not (pid := int(process.run(command, timeout=_TIMEOUT).stdout.strip() or 0)):
        raise MissingError(f"unit {unit} has no main process: is it running?")
    return pid
