"""The client of the activation service: copies a listener's sockets and sends them.

Copies are made by pidfd_getfd(2) (Linux 5.6), so the listener need not be changed. That takes the right to
trace it, which root has; the activation service does not need it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

from unmoor import paths
from unmoor.bpf.layout import SOCKET_SLOTS
from unmoor.errors import UnmoorError
from unmoor.sockets.activation import protocol
from unmoor.sockets.activation.descriptors import (
    SocketInfo,
    UnsuitableError,
    describe,
    inspect,
)
from unmoor.sockets.activation.process import MissingError, retry

if TYPE_CHECKING:  # pydantic takes long to import, and a listener's unit needs none of it
    from unmoor.model import Protocol

Endpoint = tuple[IPv4Address | IPv6Address, int]
Wanted = tuple["Protocol", Endpoint]  # a socket of a process

_SYS_PIDFD_GETFD = 438  # the same on every architecture
_TIMEOUT = 15
_TIMEVAL = struct.Struct("@ll")

_libc = ctypes.CDLL(None, use_errno=True)


class NotRegisteredError(Exception):
    """A service's sockets were not registered; the message is the reason."""


def send(
    path: Path, request: protocol.Request | protocol.Question, descriptors: Sequence[int] = ()
) -> protocol.Reply:
    """Send one request with descriptors to the activation service at `path`, and return its reply.

    Raises UnmoorError when no valid reply comes within 15 seconds.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            # The kernel's timeouts, not Python's: with those, connect fails at once when the backlog is full.
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(_TIMEOUT, 0))
            sock.connect(os.fspath(path))
            if descriptors:
                socket.send_fds(sock, [request.encode()], descriptors)
            else:
                sock.sendall(request.encode())
            text = b""
            while not text.endswith(b"\n") and (more := sock.recv(protocol.MAX_BYTES)):
                text += more
        return protocol.parse_reply(text)
    except (OSError, protocol.ProtocolError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise UnmoorError(
            f"no answer from the activation service at {path} ({reason}): is {paths.ACTIVATION_UNIT} running?"
        ) from None


def wait_for_sockets(find: Callable[[], int], wanted: Sequence[Wanted], timeout: float) -> list[int]:
    """Copy the sockets of a process and its descendants that listen at each of these addresses.

    `find` returns the process id. Waits for at most `timeout` seconds until all exist, since a server may
    fork while it starts; then MissingError is raised. Raises UnmoorError when the caller may not trace the
    process. Returns descriptors, which the caller closes.
    """
    return retry(lambda: _collect(find(), wanted), timeout)


def _collect(pid: int, wanted: Sequence[Wanted]) -> list[int]:
    with ExitStack() as stack:
        found, has = gather(pid, wanted, stack)
        _check_complete(found, pid, has)
        stack.pop_all()
    return [descriptor for members in found.values() for descriptor in members.values()]


def gather(
    pid: int, wanted: Sequence[Wanted], stack: ExitStack
) -> tuple[dict[Wanted, dict[int, int]], list[str]]:
    """Copy those of these sockets that exist, at most as many of each as there are slots.

    Returns the descriptors by cookie, which `stack` closes, and all listening sockets as text.
    """
    found: dict[Wanted, dict[int, int]] = {each: {} for each in wanted}
    has: dict[str, None] = {}  # each once, in order
    for descriptor in _sockets(_family_tree(pid)):
        info = _suitable(descriptor)
        text = str(info) if info else describe(descriptor)
        if text:
            has[text] = None
        members = found.get((info.protocol, (info.address, info.port))) if info else None
        if info is None or members is None or info.cookie in members or len(members) >= SOCKET_SLOTS:
            os.close(descriptor)
        else:
            stack.callback(os.close, descriptor)
            members[info.cookie] = descriptor
    return found, list(has)


def _check_complete(found: dict[Wanted, dict[int, int]], pid: int, has: Sequence[str]) -> None:
    for (kind, (address, port)), members in found.items():
        if not members:
            raise MissingError(
                f"process {pid} has no {kind} socket that listens at {address} port {port}",
                has or [f"no listening socket, in its children neither: is {pid} the right process?"],
            )


def _suitable(descriptor: int) -> SocketInfo | None:
    try:
        return inspect(descriptor)
    except UnsuitableError:
        return None


def _family_tree(pid: int) -> Iterator[int]:
    """Iterate over a process and its descendants: workers of a server may have sockets of their own."""
    if not Path(f"/proc/{pid}").exists():
        raise MissingError(f"there is no process {pid}")
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                with suppress(MissingError):
                    yield from _family_tree(int(child))


def _sockets(pids: Iterable[int]) -> Iterator[int]:
    """Copy each socket of these processes; yields descriptors."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            for number in _socket_numbers(pid):
                copy = _copy(pidfd, number, pid)
                if copy is not None:
                    yield copy
        finally:
            os.close(pidfd)


def _socket_numbers(pid: int) -> Iterator[int]:
    try:
        entries = sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda path: int(path.name))
    except PermissionError:
        raise UnmoorError(f"no permission to list the sockets of process {pid}: run this as root") from None
    except OSError:
        return
    for entry in entries:
        with suppress(OSError):
            if str(entry.readlink()).startswith("socket:"):
                yield int(entry.name)


def _copy(pidfd: int, number: int, pid: int) -> int | None:
    copy: int = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
    if copy >= 0:
        return copy
    if ctypes.get_errno() == errno.EPERM:
        raise UnmoorError(
            f"no permission to copy the sockets of process {pid}: run this as root (CAP_SYS_PTRACE)"
        )
    return None  # the process has closed it
