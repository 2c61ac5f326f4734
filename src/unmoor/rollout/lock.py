"""The lock of an edge: one process changes it at a time."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from unmoor.errors import UnmoorError
from unmoor.rollout.store import Store


class LockedError(UnmoorError):
    """Another process changes this edge."""


@contextmanager
def held(store: Store, what: str, wait: float = 0) -> Iterator[None]:
    """Hold the lock; `what` is the purpose, for the messages of others.

    Raises LockedError, with the holder, after `wait` seconds.
    """
    store.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(store.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = time.monotonic() + wait
        while not _try(handle):
            if time.monotonic() >= end:
                raise LockedError(
                    f"this edge is being changed by {_holder(handle)}\n    fix: run this again later"
                )
            time.sleep(0.1)
        note = json.dumps({"what": what, "pid": os.getpid(), "since": time.time()})
        os.ftruncate(handle, 0)
        os.pwrite(handle, note.encode(), 0)
        yield
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _try(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(handle: int) -> str:
    try:
        note = json.loads(os.pread(handle, 4096, 0))
        when = time.strftime("%H:%M:%S", time.localtime(note["since"]))
        return f"process {note['pid']} ({note['what']}) since {when}"
    except (ValueError, KeyError):
        return "another process"
