"""One request of the activation service, from a connection to its reply; run by a worker process.

Nobody's descriptors are received before it is known that he may register: the request is first read with
MSG_PEEK and no room for descriptors, which leaves them where they are.
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

from unmoor.sockets.activation import protocol
from unmoor.sockets.activation.registrar import Peer, RefusedError, Registry

_MAX_DESCRIPTORS = 253  # SCM_MAX_FD: the kernel passes no more with one message
_MAX_REASON = 200  # characters of an unexpected exception in the log

_SO_PEERGROUPS = 59  # from <asm-generic/socket.h>
_MAX_GROUPS = 1024 // 4  # socket.getsockopt takes no more bytes
_CREDENTIALS = struct.Struct("=iII")


def read_user(sock: socket.socket) -> int:
    """The user id of the process that connected."""
    return _credentials(sock)[1]


def read_peer(sock: socket.socket) -> Peer:
    """The process that connected, as the kernel recorded it then (SO_PEERCRED, SO_PEERGROUPS)."""
    pid, uid, gid = _credentials(sock)
    try:
        groups = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS * 4)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        groups = b""  # a member of more groups than that is known by the first alone
    members = struct.unpack(f"={len(groups) // 4}I", groups)
    return Peer(pid, uid, frozenset((gid, *members)))


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(data)
    return pid, uid, gid


def discard(sock: socket.socket) -> bool:
    """End a connection, and empty its queue so that it can be closed.

    False when descriptors are in the queue: who closes the connection closes them, and may block.
    """
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # from here on the peer can add nothing
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
    """What can be read, up to the first message with descriptors; MSG_CTRUNC if there is one."""
    return sock.recvmsg(protocol.MOST_BYTES + 1, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)


class Handler:
    """Answers requests for the sockets of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def handle(self, sock: socket.socket) -> bool:
        """Answer the request of a connection. False when descriptors are left in its queue.

        Exits if closing what was received may block.
        """
        descriptors: list[int] = []
        reply = self._answer(sock, descriptors)
        if reply is not None:
            with suppress(OSError):
                sock.send(reply.encode(), socket.MSG_DONTWAIT)
        if descriptors and not (reply and reply.ok):
            os._exit(0)
        for descriptor in descriptors:  # sockets that listen, or UDP: none of these lingers
            os.close(descriptor)
        return discard(sock)

    def _answer(self, sock: socket.socket, descriptors: list[int]) -> protocol.Reply | None:
        """Do what is asked; None when nothing is. Puts what it receives into `descriptors`."""
        label, peer = "", None
        try:
            peer = read_peer(sock)
            text = _read_line(sock)
            if text is None:
                return None
            request = protocol.parse_request(text)
            if isinstance(request, protocol.Question):
                return protocol.Reply(True, answer=self._registry.explain(request, peer))
            label = request.service
            self._registry.authorize(request, peer)
            _receive(sock, descriptors)
            infos = self._registry.handle(request, descriptors, peer)
            reply = protocol.Reply(
                True, "", tuple(map(str, infos)), tuple(info.warning for info in infos if info.warning)
            )
        except (protocol.ProtocolError, RefusedError) as error:
            reply = protocol.Reply(False, str(error))
        except OSError as error:
            reply = protocol.Reply(False, f"the kernel reports: {os.strerror(error.errno or 0)}")
        except Exception as error:  # a defect costs this request, not the service
            _log(label, peer, f"internal error: {type(error).__name__}: {error}"[:_MAX_REASON])
            return protocol.Reply(False, "internal error: see journalctl -u unmoor-activation.service")
        _log(label, peer, _summary(reply))
        return reply


def _read_line(sock: socket.socket) -> bytes | None:
    """The request, which stays in the queue; None when the peer closed without one."""
    try:
        data, _, _, _ = _peek(sock)
    except (BlockingIOError, ConnectionResetError):
        return None
    if not data:
        return None
    text, end, rest = data.partition(b"\n")
    if rest or len(text) > protocol.MOST_BYTES:
        raise protocol.ProtocolError("more than one line")
    if not end:
        raise protocol.ProtocolError("no whole line: send the request in one message")
    return text


def _receive(sock: socket.socket, descriptors: list[int]) -> None:
    _, received, flags, _ = socket.recv_fds(
        sock, protocol.MOST_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    )
    descriptors += received
    if flags & socket.MSG_CTRUNC:
        raise RefusedError("file descriptor limit reached")
    if len(received) > protocol.MOST_DESCRIPTORS:
        raise RefusedError(f"more than {protocol.MOST_DESCRIPTORS} sockets in one request")


def _summary(reply: protocol.Reply) -> str:
    if not reply.ok:
        return f"refused: {reply.why}"
    return "; ".join((f"now {', '.join(reply.sockets) or 'without sockets'}", *reply.warnings))


def _log(label: str, peer: Peer | None, text: str) -> None:
    """One line for the journal; JSON keeps what a client sent from breaking it."""
    sender = f"pid {peer.pid}, user id {peer.uid}" if peer else "unknown peer"
    print(f"service {json.dumps(label)} ({sender}): {json.dumps(text)}", file=sys.stderr, flush=True)
