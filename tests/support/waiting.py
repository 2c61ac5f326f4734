"""Waiting for a condition: polling, with a bound that a busy machine does not reach."""

from __future__ import annotations

import time
from collections.abc import Callable

_INTERVAL = 0.02  # seconds


def wait_until(condition: Callable[[], object], what: str = "the condition", seconds: float = 120) -> None:
    """Return once `condition` holds. Fails the test, naming `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(_INTERVAL)


def wait_for(read: Callable[[], object], wanted: object, seconds: float = 120) -> None:
    """Return once `read` has given `wanted` six times in a row: the workers of a server change one by one."""
    deadline, agreed = time.monotonic() + seconds, 0
    while agreed < 6:
        found = read()
        agreed = agreed + 1 if found == wanted else 0
        assert time.monotonic() < deadline, found
        time.sleep(_INTERVAL)
