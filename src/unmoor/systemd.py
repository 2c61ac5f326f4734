"""systemd's protocols for services: descriptors (sd_listen_fds(3)), notifications (sd_notify(3)), watchdog.

Functions that send a notification do nothing when systemd does not listen (NOTIFY_SOCKET).
"""

from __future__ import annotations

import math
import os
import select
import socket
import time
from contextlib import suppress

FIRST_DESCRIPTOR = 3
#: Milliseconds to wait until systemd has read a notification.
_BARRIER_TIMEOUT = 2000


def listen_descriptors() -> list[int]:
    """Return the descriptors passed to this process, and make them close-on-exec."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    descriptors = list(range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + count))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return descriptors


def stored_descriptors() -> list[tuple[str, int]]:
    """Return the descriptors passed to this process as (name, descriptor); the name may be empty."""
    descriptors = listen_descriptors()
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return list(zip([*names, *[""] * len(descriptors)], descriptors, strict=False))


def store(name: str, descriptor: int) -> None:
    """Store a descriptor in systemd for the next start of the service (FileDescriptorStoreMax=)."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    # Without FDPOLL=0, systemd removes a socket that has a pending error.
    message = f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}".encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.settimeout(_BARRIER_TIMEOUT / 1000)
        sock.connect(_address(path))
        socket.send_fds(sock, [message], [descriptor])


def unstore(name: str) -> None:
    """Remove the descriptors with this name from systemd's store."""
    notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def notify(*assignments: str) -> None:
    """Send assignments such as 'READY=1'. Errors are ignored: a service works without notifications."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.sendto("\n".join(assignments).encode(), _address(path))


def hand_over(pid: int, *assignments: str) -> None:
    """Make process `pid` the main process of the service, and wait until systemd has read that."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    notify(f"MAINPID={pid}", "READY=1", *assignments)
    # sd_notify_barrier(3): systemd closes the descriptor after it has read all earlier notifications.
    here, there = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
            sock.connect(_address(path))
            socket.send_fds(sock, [b"BARRIER=1"], [there])
    finally:
        os.close(there)
    poll = select.poll()
    poll.register(here, 0)  # POLLHUP is always reported
    poll.poll(_BARRIER_TIMEOUT)
    os.close(here)


def _address(path: str) -> str:
    return "\0" + path[1:] if path.startswith("@") else path


def reloading() -> None:
    """Report that a reload begins; READY=1 ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


class Watchdog:
    """Keep-alive notifications to systemd (sd_watchdog_enabled(3)).

    `interval` is WatchdogSec= in seconds, infinite where the unit has none.
    """

    def __init__(self) -> None:
        wanted = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = int(os.environ.get("WATCHDOG_USEC", "0")) if wanted else 0
        self.interval = microseconds / 1_000_000 or math.inf
        self._next = time.monotonic()

    def ping(self) -> None:
        """Send a notification if one is due. Call this at least three times per `interval`."""
        now = time.monotonic()
        if now >= self._next and self.interval < math.inf:
            self._next = now + self.interval / 3
            notify("WATCHDOG=1")
