"""The client of the activation service: finds a listener's sockets and sends them.

A running process is asked for copies of its descriptors (pidfd_getfd, Linux 5.6), so the program needs no
change; that takes the right to trace it, which root has and the activation service need not have.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from unmoor.bpf.layout import SOCKET_SLOTS
from unmoor.errors import UnmoorError
from unmoor.model import Protocol
from unmoor.sockets.activation import protocol
from unmoor.sockets.activation.descriptors import (
    MPTCP,
    MPTCP_REFUSED,
    SocketInfo,
    UnsuitableError,
    describe,
    inspect,
)

Endpoint = tuple[IPv4Address | IPv6Address, int]

_SYS_PIDFD_GETFD = 438  # the same on every architecture
_TIMEOUT = 15
_PAUSE = 0.05
_MAX_SHOWN = 16  # sockets listed in an error
_TIMEVAL = struct.Struct("@ll")

_libc = ctypes.CDLL(None, use_errno=True)


class MissingError(Exception):
    """The process has no such socket (yet); says which, and which sockets it `has`."""

    def __init__(self, why: str, has: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.why = why
        self.has = tuple(has)

    def __str__(self) -> str:
        """One screen at most."""
        shown = self.has[:_MAX_SHOWN]
        lines = [self.why, *(f"    it has  {text}" for text in shown)]
        if len(self.has) > len(shown):
            lines.append(f"    ... and {len(self.has) - len(shown)} more")
        if any(text.startswith(f"{MPTCP} ") for text in self.has):
            lines.append(f"    {MPTCP} is {MPTCP_REFUSED}")
        return "\n".join(lines)


def send(
    path: Path, request: protocol.Request | protocol.Question, descriptors: Sequence[int] = ()
) -> protocol.Reply:
    """Send one request to the activation service and wait for its answer.

    Raises UnmoorError when nobody answers at `path`.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            # The kernel's timeouts: with Python's, connect fails at once while the service's backlog is full.
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                door.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(_TIMEOUT, 0))
            door.connect(os.fspath(path))
            if descriptors:
                socket.send_fds(door, [request.encode()], descriptors)
            else:
                door.sendall(request.encode())
            text = b""
            while not text.endswith(b"\n") and (more := door.recv(protocol.MOST_BYTES)):
                text += more
        return protocol.parse_reply(text)
    except (OSError, protocol.ProtocolError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise UnmoorError(
            f"no answer from the activation service at {path} ({reason}): "
            "is unmoor-activation.service running?"
        ) from None


def wait_for_sockets(
    pid: int | None,
    pidfile: Path | None,
    listen: Sequence[Endpoint],
    kind: Protocol,
    patience: float,
) -> list[int]:
    """Copies of the sockets of a process, and of its children, that listen at each of these addresses.

    They may take `patience` seconds to appear, since a server forks while it starts. Raises MissingError when
    one does not. The caller closes the descriptors.
    """
    end = time.monotonic() + patience
    while True:
        try:
            return _collect(_read_pid(pid, pidfile), listen, kind)
        except MissingError as error:
            if time.monotonic() >= end:
                raise MissingError(f"{error.why} (waited {patience:g} s)", error.has) from None
            time.sleep(_PAUSE)


def _read_pid(pid: int | None, pidfile: Path | None) -> int:
    if pid is not None:
        return pid
    if pidfile is None:
        raise UnmoorError("name a process: --pid or --pidfile")
    try:
        return int(pidfile.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        raise MissingError(f"{pidfile} does not exist") from None
    except ValueError:
        raise MissingError(f"{pidfile} holds no process id") from None


def _collect(pid: int, listen: Sequence[Endpoint], kind: Protocol) -> list[int]:
    found: dict[Endpoint, dict[int, int]] = {endpoint: {} for endpoint in listen}
    has: dict[str, None] = {}  # each once, in order
    try:
        for descriptor in _sockets(_family_tree(pid)):
            info = _suitable(descriptor)
            text = str(info) if info else describe(descriptor)
            if text:
                has[text] = None
            members = found.get((info.address, info.port)) if info and info.protocol == kind else None
            if info is None or members is None or info.cookie in members or len(members) >= SOCKET_SLOTS:
                os.close(descriptor)
            else:
                members[info.cookie] = descriptor
        _check_complete(found, pid, kind, list(has))
    except BaseException:
        for descriptor in (each for members in found.values() for each in members.values()):
            os.close(descriptor)
        raise
    return [descriptor for members in found.values() for descriptor in members.values()]


def _check_complete(
    found: dict[Endpoint, dict[int, int]], pid: int, kind: Protocol, has: Sequence[str]
) -> None:
    for (address, port), members in found.items():
        if not members:
            raise MissingError(
                f"process {pid} has no {kind} socket that listens at {address} port {port}",
                has or [f"none that waits for clients, nor have its children: is {pid} the right process?"],
            )


def _suitable(descriptor: int) -> SocketInfo | None:
    try:
        return inspect(descriptor)
    except UnsuitableError:
        return None


def _family_tree(pid: int) -> Iterator[int]:
    """A process and all below it: a server's workers may have sockets of their own."""
    if not Path(f"/proc/{pid}").exists():
        raise MissingError(f"there is no process {pid}")
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                with suppress(MissingError):
                    yield from _family_tree(int(child))


def _sockets(pids: Iterable[int]) -> Iterator[int]:
    """A copy of each socket of these processes."""
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
        raise UnmoorError(f"may not look into process {pid}: run this as root") from None
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
    if ctypes.get_errno() == 1:
        raise UnmoorError(f"may not copy the sockets of process {pid}: run this as root (CAP_SYS_PTRACE)")
    return None  # closed meanwhile
