"""Stopping when asked to: signals raise a flag, so that clean-up is never cut in two."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Whether a signal asked to stop; loops look at it several times a second."""

    def __init__(self) -> None:
        self.requested = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Let SIGINT, SIGTERM and SIGHUP set `requested` of the value for the length of the block."""
    stop = Stop()
    before = {number: signal.signal(number, stop._on_signal) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
