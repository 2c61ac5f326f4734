"""Telling systemd how the service is doing (sd_notify(3)); silent when systemd does not listen."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress


def notify(*assignments: str) -> None:
    """Send assignments such as 'READY=1'. A lost message is no reason to stop serving."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door, suppress(OSError):
        door.sendto("\n".join(assignments).encode(), address)


def reloading() -> None:
    """Say that a reload begins; READY=1 ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
