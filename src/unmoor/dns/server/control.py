"""The control socket: one request and one reply, a line of JSON each, over a UNIX stream."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from unmoor import jsontext, paths
from unmoor.errors import UnmoorError

_ADVICE = f"is the server running (systemctl status {paths.DNS_UNIT}), and do you run as root?"

Command = Literal["reload", "status", "addresses", "document", "upgrade", "sockets"]

#: Seconds. A client must send its request at once; the reload of a large document takes long.
_REQUEST_TIMEOUT = 1.0
_REPLY_TIMEOUT = 120.0
_MAX_REQUEST = 8192
#: Descriptors that one message may carry (SCM_MAX_FD is 253).
_MAX_DESCRIPTORS = 200


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request; `program` is the new release's for `upgrade`."""

    command: str
    program: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """Whether the request was carried out, lines for the operator, and data for programs."""

    done: bool
    lines: tuple[str, ...] = ()
    data: Any = None


def ask(path: Path, command: Command, program: str = "") -> Reply:
    """Send a request to the server at `path`. Raises UnmoorError if there is none or it does not reply."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_REPLY_TIMEOUT)
        try:
            sock.connect(str(path))
            sock.sendall(json.dumps(asdict(Request(command, program))).encode() + b"\n")
            with sock.makefile("rb") as stream:
                found = jsontext.parse(stream.readline())
            return Reply(found["done"], tuple(found["lines"]), found["data"])
        except TimeoutError:
            raise UnmoorError(f"{path}: no reply within {_REPLY_TIMEOUT:.0f} s; see its journal") from None
        except OSError as error:
            raise UnmoorError(f"{path}: {error.strerror}; {_ADVICE}") from None
        except (ValueError, KeyError, TypeError):
            raise UnmoorError(f"{path}: the server closed the connection; see its journal") from None


def borrow(path: Path) -> list[socket.socket]:
    """Get the UDP sockets of the server at `path`. Raises UnmoorError as `ask` does."""
    received, descriptors = b"", list[int]()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_REPLY_TIMEOUT)
        try:
            sock.connect(str(path))
            sock.sendall(json.dumps(asdict(Request("sockets"))).encode() + b"\n")
            while not received.endswith(b"\n"):
                data, passed, _, _ = socket.recv_fds(sock, _MAX_REQUEST, _MAX_DESCRIPTORS)
                descriptors += passed
                received += data
                if not data:
                    raise UnmoorError(f"{path}: the server does not pass its sockets; is its release older?")
        except OSError as error:
            raise UnmoorError(f"{path}: {error.strerror or 'no reply'}; {_ADVICE}") from None
    return [socket.socket(fileno=each) for each in descriptors]


def lend(sock: socket.socket, descriptors: list[int]) -> None:
    """Reply with descriptors: up to _MAX_DESCRIPTORS with each blank, then a line of JSON."""
    with suppress(OSError):
        for at in range(0, len(descriptors), _MAX_DESCRIPTORS):
            socket.send_fds(sock, [b" "], descriptors[at : at + _MAX_DESCRIPTORS])
        reply(sock, Reply(done=True))


def listen(path: Path) -> socket.socket:
    """Open the control socket, for this user and root alone. Raises UnmoorError."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        old_mask = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(old_mask)
        sock.listen(16)
    except OSError as error:
        sock.close()
        raise UnmoorError(
            f"cannot make the control socket {path}: {error.strerror}; "
            "its directory must exist and belong to the server (RuntimeDirectory= of the unit); "
            "--control names another"
        ) from None
    return sock


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that has ended. Raises UnmoorError if a server listens on it."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UnmoorError(f"{path} exists and is no socket; remove it, or name another by --control")
        with socket.socket(socket.AF_UNIX) as sock:
            if sock.connect_ex(str(path)) == 0:
                raise UnmoorError(f"another server answers on {path}; stop it, or name another by --control")
        path.unlink()


def receive(sock: socket.socket) -> Request | None:
    """Read one request; None if it is malformed, or if the client is neither root nor the server's user."""
    sock.settimeout(_REQUEST_TIMEOUT)
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    if user not in (0, os.geteuid()):
        return None
    try:
        with sock.makefile("rb") as stream:
            request = jsontext.parse(stream.readline(_MAX_REQUEST))
        command, program = request["command"], request.get("program", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Request(command, program) if isinstance(command, str) and isinstance(program, str) else None


def reply(sock: socket.socket, answer: Reply) -> None:
    """Send the reply, unless the client has closed the connection."""
    with suppress(OSError):
        sock.sendall(json.dumps(asdict(answer)).encode() + b"\n")
