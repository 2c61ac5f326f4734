"""What systemd hands to a service and wants to hear from it: LISTEN_FDS and NOTIFY_SOCKET (sd_listen_fds(3),
sd_notify(3)).
"""

from __future__ import annotations

import math
import os
import select
import socket
import time
from contextlib import suppress

FIRST_DESCRIPTOR = 3
#: Milliseconds that systemd may take to read what it was told.
_BARRIER_PATIENCE = 2000


def listen_descriptors() -> list[int]:
    """The descriptors passed to this process; empty when none were. Children do not inherit them."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    descriptors = list(range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + count))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return descriptors


def stored_descriptors() -> list[tuple[str, int]]:
    """The descriptors passed to this process, each with its name; of those without, the name is empty."""
    descriptors = listen_descriptors()
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return list(zip([*names, *[""] * len(descriptors)], descriptors, strict=False))


def store(name: str, descriptor: int) -> None:
    """Have systemd keep a descriptor for the next start of the service (FileDescriptorStoreMax=)."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    # Without FDPOLL=0 systemd drops a socket once it has an error to report.
    message = f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}".encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.settimeout(_BARRIER_PATIENCE / 1000)
        sock.connect(_address(path))
        socket.send_fds(sock, [message], [descriptor])


def unstore(name: str) -> None:
    """Have systemd close the descriptor that it keeps by this name."""
    notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def notify(*assignments: str) -> None:
    """Send assignments such as 'READY=1'; silent when systemd does not listen.

    A lost message is no reason to stop serving.
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door, suppress(OSError):
        door.sendto("\n".join(assignments).encode(), _address(path))


def hand_over(pid: int, *assignments: str) -> None:
    """Say that process `pid` is the service from now on, and wait until systemd knows."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    notify(f"MAINPID={pid}", "READY=1", *assignments)
    # sd_notify_barrier(3): systemd closes the descriptor when it has read everything before it.
    here, there = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door, suppress(OSError):
            door.connect(_address(path))
            socket.send_fds(door, [b"BARRIER=1"], [there])
    finally:
        os.close(there)
    poll = select.poll()
    poll.register(here, 0)  # POLLHUP is always told
    poll.poll(_BARRIER_PATIENCE)
    os.close(here)


def _address(path: str) -> str:
    return "\0" + path[1:] if path.startswith("@") else path


def reloading() -> None:
    """Say that a reload begins; READY=1 ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


class Watchdog:
    """Reports to systemd that the service is alive (sd_watchdog_enabled(3)).

    `interval` is WatchdogSec= in seconds, infinite where the unit has none.
    """

    def __init__(self) -> None:
        wanted = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = int(os.environ.get("WATCHDOG_USEC", "0")) if wanted else 0
        self.interval = microseconds / 1_000_000 or math.inf
        self._next = time.monotonic()

    def ping(self) -> None:
        """Report if it is time to; call it more often than `interval`."""
        now = time.monotonic()
        if now >= self._next and self.interval < math.inf:
            self._next = now + self.interval / 3
            notify("WATCHDOG=1")
