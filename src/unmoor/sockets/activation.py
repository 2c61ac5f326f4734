"""The activation service: takes sockets from listeners and puts them where the dispatch program finds them.

One thread, no client waited for: a connection has a short time to say what it wants and gets one answer.
The service keeps nothing in memory, so it may be killed and restarted at any moment; packets never notice.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from unmoor import systemd
from unmoor.sockets import protocol
from unmoor.sockets.registry import Peer, RefusedError, Registry

#: Seconds that a client gets, and how many are waited for at the same time.
PATIENCE = 5.0
MOST_CLIENTS = 64
_PAUSE = 0.1
_MORE_DESCRIPTORS = 253  # SCM_MAX_FD: the kernel passes no more with one message

_SO_PEERGROUPS = 59  # from <asm-generic/socket.h>
_MOST_GROUPS = 1024 // 4  # socket.getsockopt takes no more bytes
_CREDENTIALS = struct.Struct("=iII")


@dataclass(slots=True)
class _Client:
    peer: Peer
    end: float
    text: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)
    reply: bytes = b""


class Activation:
    """Serves a listening UNIX socket until stopped."""

    def __init__(self, registry: Registry, door: socket.socket) -> None:
        self._registry = registry
        self._door = door
        self._door.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._clients: dict[socket.socket, _Client] = {}
        self._selector.register(door, selectors.EVENT_READ)
        self._stopping = False

    def serve(self) -> None:
        """Answer clients until SIGTERM or SIGINT."""
        waker, wakee = socket.socketpair()
        wakee.setblocking(False)
        signal.set_wakeup_fd(wakee.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._selector.register(waker, selectors.EVENT_READ)
        systemd.notify("READY=1", "STATUS=Waiting for listeners")
        while not self._stopping:
            self.step(PATIENCE)
        systemd.notify("STOPPING=1")
        for sock in list(self._clients):
            self._drop(sock)

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def step(self, timeout: float) -> None:
        """Wait for at most `timeout` seconds, and deal with whoever is there."""
        for key, events in self._selector.select(timeout):
            sock = key.fileobj
            if sock is self._door:
                self._accept()
            elif isinstance(sock, socket.socket) and sock in self._clients:
                self._attend(sock, self._clients[sock], events)
        now = time.monotonic()
        for sock in [sock for sock, client in self._clients.items() if client.end <= now]:
            self._drop(sock)

    def _accept(self) -> None:
        try:
            sock, _ = self._door.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                time.sleep(_PAUSE)  # the backlog holds the others meanwhile
            return
        try:
            sock.setblocking(False)
            client = _Client(_peer(sock), time.monotonic() + PATIENCE)
        except OSError:
            sock.close()
            return
        self._clients[sock] = client
        self._selector.register(sock, selectors.EVENT_READ)
        if len(self._clients) > MOST_CLIENTS:
            self._drop(self._crowd())

    def _crowd(self) -> socket.socket:
        """The oldest client of the user who has the most: no user can keep another out."""
        numbers = Counter(client.peer.uid for client in self._clients.values())
        user, _ = numbers.most_common(1)[0]
        return next(sock for sock, client in self._clients.items() if client.peer.uid == user)

    def _drop(self, sock: socket.socket) -> None:
        client = self._clients.pop(sock)
        _close(client.descriptors)
        self._selector.unregister(sock)
        sock.close()

    def _attend(self, sock: socket.socket, client: _Client, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE or client.reply:
                sock.send(client.reply)
                self._drop(sock)
            else:
                self._read(sock, client)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(sock)

    def _read(self, sock: socket.socket, client: _Client) -> None:
        data, descriptors, flags, _ = socket.recv_fds(
            sock, protocol.MOST_BYTES, _MORE_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        client.descriptors += descriptors
        client.text += data
        if flags & socket.MSG_CTRUNC:
            return self._answer(sock, client, _refusal("this computer is out of descriptors"))
        if len(client.descriptors) > protocol.MOST_DESCRIPTORS:
            return self._answer(
                sock, client, _refusal(f"more than {protocol.MOST_DESCRIPTORS} sockets in one request")
            )
        text, end, rest = bytes(client.text).partition(b"\n")
        if rest or len(text) > protocol.MOST_BYTES:
            return self._answer(sock, client, _refusal("more than one line"))
        if end:
            return self._answer(sock, client, self._handle(client, text))
        if not data:
            return self._drop(sock)
        return None

    def _handle(self, client: _Client, text: bytes) -> protocol.Reply:
        label = ""
        try:
            request = protocol.parse_request(text)
            label = request.service
            reply = protocol.Reply(True, "", self._registry.handle(request, client.descriptors, client.peer))
        except (protocol.ProtocolError, RefusedError) as error:
            reply = _refusal(str(error))
        except OSError as error:
            reply = _refusal(f"the kernel says: {os.strerror(error.errno or 0)}")
        _log(label, client.peer, reply)
        return reply

    def _answer(self, sock: socket.socket, client: _Client, reply: protocol.Reply) -> None:
        _close(client.descriptors)
        client.reply = reply.encode()
        self._selector.modify(sock, selectors.EVENT_WRITE)


def _refusal(why: str) -> protocol.Reply:
    return protocol.Reply(False, why)


def _close(descriptors: list[int]) -> None:
    while descriptors:
        with suppress(OSError):
            os.close(descriptors.pop())


def _log(label: str, peer: Peer, reply: protocol.Reply) -> None:
    """One line for the journal; JSON keeps what a client sent from breaking it."""
    what = f"now {', '.join(reply.sockets) or 'without sockets'}" if reply.ok else f"refused: {reply.why}"
    print(
        f"service {json.dumps(label)} (pid {peer.pid}, user id {peer.uid}): {json.dumps(what)}",
        file=sys.stderr,
        flush=True,
    )


def _peer(sock: socket.socket) -> Peer:
    size = _CREDENTIALS.size
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    try:
        groups = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS * 4)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        groups = b""  # a member of more groups than that is known by the first alone
    members = struct.unpack(f"={len(groups) // 4}I", groups)
    return Peer(pid, uid, frozenset((gid, *members)))


def open_door(path: Path) -> socket.socket:
    """The socket to serve: systemd's, or a new one at `path` that every user may connect to."""
    passed = systemd.listen_descriptors()
    if passed:
        return socket.socket(fileno=passed[0])
    with suppress(FileNotFoundError):
        path.unlink()
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.bind(os.fspath(path))
    path.chmod(0o666)  # SO_PEERCRED decides who may register what
    door.listen(1024)
    return door
