"""A stop flag set by signals, so that a signal does not interrupt the clean-up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """A flag that a signal sets; loops check it several times a second."""

    def __init__(self) -> None:
        self.requested = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """While the context is open, SIGINT, SIGTERM and SIGHUP set `requested` of its value."""
    stop = Stop()
    before = {number: signal.signal(number, stop._on_signal) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
