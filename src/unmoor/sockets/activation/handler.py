"""One request of the activation service, from connection to reply, in a worker process.

Descriptors of a peer are received only after it has been authorized: the request is first read with MSG_PEEK
and no room for descriptors, which leaves them in the queue.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

from unmoor import paths
from unmoor.sockets.activation import protocol
from unmoor.sockets.activation.registrar import Peer, RefusedError, Registrar

_MAX_DESCRIPTORS = 253  # SCM_MAX_FD: the kernel passes no more with one message
_MAX_REASON = 200  # characters of an unexpected exception in the log

_SO_PEERGROUPS = 59  # from <asm-generic/socket.h>
_MAX_GROUPS = 1024 // 4  # socket.getsockopt takes no more bytes
_CREDENTIALS = struct.Struct("=iII")


def read_user(sock: socket.socket) -> int:
    """Return the user id of the connected process (SO_PEERCRED)."""
    return _credentials(sock)[1]


def read_peer(sock: socket.socket) -> Peer:
    """Return the connected process, as recorded by the kernel at connect(2) (SO_PEERCRED, SO_PEERGROUPS)."""
    pid, uid, gid = _credentials(sock)
    try:
        groups = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS * 4)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        groups = b""  # of a member of more groups, only the primary group is used
    members = struct.unpack(f"={len(groups) // 4}I", groups)
    return Peer(pid, uid, frozenset((gid, *members)))


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(data)
    return pid, uid, gid


def discard(sock: socket.socket) -> bool:
    """Shut a connection down and empty its queue.

    Returns False when descriptors are left in the queue: closing the connection closes them too, which may
    block.
    """
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # the peer can send nothing more
    with suppress(OSError):
        while True:
            data, _, flags, _ = _peek(sock)
            if flags & socket.MSG_CTRUNC:
                return False
            if not data:
                break
            sock.recv(len(data))
    return True


def _peek(sock: socket.socket) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
    """Peek at the queue, up to the first message with descriptors; MSG_CTRUNC shows that there is one."""
    return sock.recvmsg(protocol.MAX_BYTES + 1, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)


class Handler:
    """Answers the requests of connections by a registrar."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar

    def handle(self, sock: socket.socket) -> bool:
        """Answer the request of a connection. Returns False when descriptors are left in its queue.

        Exits the process if closing the received descriptors may block.
        """
        descriptors: list[int] = []
        reply = self._answer(sock, descriptors)
        if reply is not None:
            with suppress(OSError):
                sock.send(reply.encode(), socket.MSG_DONTWAIT)
        if descriptors and not (reply and reply.ok):
            os._exit(0)
        for descriptor in descriptors:  # listening or UDP sockets: SO_LINGER does not apply
            os.close(descriptor)
        return discard(sock)

    def _answer(self, sock: socket.socket, descriptors: list[int]) -> protocol.Reply | None:
        """Carry out the request, if there is one. Appends received descriptors to `descriptors`."""
        label, peer = "", None
        try:
            peer = read_peer(sock)
            text = _read_line(sock)
            if text is None:
                return None
            request = protocol.parse_request(text)
            if isinstance(request, protocol.Question):
                return protocol.Reply(True, answer=self._registrar.explain(request, peer))
            label = request.service
            self._registrar.authorize(request, peer)
            _receive(sock, descriptors)
            infos = self._registrar.handle(request, descriptors, peer)
            reply = protocol.Reply(
                True, "", tuple(map(str, infos)), tuple(info.warning for info in infos if info.warning)
            )
        except (protocol.ProtocolError, RefusedError) as error:
            reply = protocol.Reply(False, str(error))
        except OSError as error:
            reply = protocol.Reply(False, f"the kernel reports: {os.strerror(error.errno or 0)}")
        except Exception as error:  # a bug fails this request, not the service
            _log(label, peer, f"internal error: {type(error).__name__}: {error}"[:_MAX_REASON])
            return protocol.Reply(False, f"internal error: see journalctl -u {paths.ACTIVATION_UNIT}")
        _log(label, peer, _summary(reply))
        return reply


def _read_line(sock: socket.socket) -> bytes | None:
    """Return the request and leave it in the queue; None when the peer closed without one."""
    try:
        data, _, _, _ = _peek(sock)
    except (BlockingIOError, ConnectionResetError):
        return None
    if not data:
        return None
    text, end, rest = data.partition(b"\n")
    if rest or len(text) > protocol.MAX_BYTES:
        raise protocol.ProtocolError("more than one line")
    if not end:
        raise protocol.ProtocolError("incomplete line: send the request in one message")
    return text


def _receive(sock: socket.socket, descriptors: list[int]) -> None:
    _, received, flags, _ = socket.recv_fds(
        sock, protocol.MAX_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    )
    descriptors += received
    if flags & socket.MSG_CTRUNC:
        raise RefusedError("file descriptor limit reached")
    if len(received) > protocol.MAX_DESCRIPTORS:
        raise RefusedError(f"more than {protocol.MAX_DESCRIPTORS} sockets in one request")


def _summary(reply: protocol.Reply) -> str:
    if not reply.ok:
        return f"refused: {reply.why}"
    return "; ".join((f"now {', '.join(reply.sockets) or 'without sockets'}", *reply.warnings))


def _log(label: str, peer: Peer | None, text: str) -> None:
    """Write one line to the journal. JSON escapes what the client sent."""
    sender = f"pid {peer.pid}, user id {peer.uid}" if peer else "unknown peer"
    print(f"service {json.dumps(label)} ({sender}): {json.dumps(text)}", file=sys.stderr, flush=True)
