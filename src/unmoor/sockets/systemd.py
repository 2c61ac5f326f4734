"""What systemd hands to a service and wants to hear from it: LISTEN_FDS and NOTIFY_SOCKET (sd_listen_fds(3),
sd_notify(3)).
"""

from __future__ import annotations

import os
import socket

FIRST_DESCRIPTOR = 3


def listen_descriptors() -> list[int]:
    """The descriptors passed to this process; empty when none were. Children do not inherit them."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    descriptors = list(range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + count))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return descriptors


def notify(state: str) -> None:
    """Tell systemd `state`, such as READY=1; does nothing when nobody asked for it."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
        door.connect("\0" + path[1:] if path.startswith("@") else path)
        door.sendall(state.encode())
