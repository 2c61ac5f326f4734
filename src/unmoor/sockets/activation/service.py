"""The activation service: listeners send it their sockets, and it registers them.

One thread accepts connections and never blocks on a client or a descriptor: a connection with a request is
passed to a worker process (`workers`), which answers it (`handler`). The service has no state in memory, so
it can be killed and restarted at any time without effect on packets.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from unmoor import systemd
from unmoor.sockets.activation.handler import Handler, discard, read_user
from unmoor.sockets.activation.registrar import Registrar
from unmoor.sockets.activation.workers import MAX_PASSED, Worker, Workers

#: Seconds in which a client must send its request.
TIMEOUT = 5.0
#: Maximum of connections without a worker: of one user other than root, and of all.
MAX_OF_USER = 64
MAX_CLIENTS = 512
#: Maximum of connections that wait to be closed; beyond it, none is accepted.
MAX_LEFT = 512
MAX_ACCEPTED = 128  # in one round
_BACKLOG = 1024  # clients wait there while the service is restarted
_INTERVAL = 1.0
_DISCARD_INTERVAL = 0.1  # in batches: a worker that closes descriptors exits, and another must start
_PAUSE = 0.1
_MAX_SIGNALS = 4096  # read at once, a byte each


@dataclass(eq=False, slots=True)
class _Client:
    """A connection without a worker; `ready` once its request or its end can be read."""

    sock: socket.socket
    user: int
    deadline: float
    ready: bool = False


class Activation:
    """The service on a listening UNIX socket."""

    def __init__(self, registrar: Registrar, listener: socket.socket) -> None:
        self._registrar = registrar
        self._listener = listener
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._clients: dict[socket.socket, _Client] = {}  # the oldest first
        self._numbers: Counter[int] = Counter()  # of clients of each user
        self._next_discard = time.monotonic()
        self._workers = Workers(self._selector, Handler(registrar).handle, discard)
        self._stopping = False
        self._accepting = False
        self._watchdog = systemd.Watchdog()

    def serve(self) -> None:
        """Answer clients until SIGTERM or SIGINT. Ends the process."""
        waker, wakee = socket.socketpair()
        wakee.setblocking(False)
        signal.set_wakeup_fd(wakee.fileno())
        waker.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, _wake)
        self._selector.register(waker, selectors.EVENT_READ)
        self._registrar.renew_hints()
        self._workers.start()
        systemd.notify("READY=1", "STATUS=Waiting for listeners")
        while not self._stopping:
            self._accept_if(len(self._workers.left) < MAX_LEFT)
            self.step()
        systemd.notify("STOPPING=1")
        self._finish()
        self._registrar.withdraw_hints()
        os._exit(0)  # the exit closes what is in the queues of connections: see `workers`

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _finish(self) -> None:
        """Finish the requests that were accepted; the next service accepts the rest."""
        self._accept_if(False)
        end = time.monotonic() + TIMEOUT
        while self._is_busy() and time.monotonic() < end:
            self.step()

    def _is_busy(self) -> bool:
        return self._workers.busy or any(client.ready for client in self._clients.values())

    def _accept_if(self, wanted: bool) -> None:
        if wanted and not self._accepting:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif self._accepting and not wanted:
            self._selector.unregister(self._listener)
        self._accepting = wanted

    def step(self) -> None:
        """Wait for events for at most a second, and handle them."""
        timeout = _DISCARD_INTERVAL if self._workers.left else _INTERVAL
        for key, _ in self._selector.select(min(timeout, self._watchdog.interval / 3)):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, Worker):
                self._workers.report(key.data)
            elif isinstance(key.data, _Client) and key.data.sock in self._clients:
                key.data.ready = True
                self._selector.unregister(key.data.sock)
            elif key.data is None and isinstance(key.fileobj, socket.socket):
                key.fileobj.recv(_MAX_SIGNALS)
        now = time.monotonic()
        for client in [each for each in self._clients.values() if each.deadline <= now and not each.ready]:
            self._remove(client)
            self._workers.left.append(client.sock)
        self._workers.tend()
        self._hand_over()
        self._watchdog.ping()

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTED):
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    time.sleep(_PAUSE)  # clients wait in the backlog
                return
            user = read_user(sock)
            if user and self._numbers[user] >= MAX_OF_USER:
                self._workers.left.append(sock)
                continue
            client = _Client(sock, user, time.monotonic() + TIMEOUT)
            self._clients[sock] = client
            self._numbers[user] += 1
            self._selector.register(sock, selectors.EVENT_READ, client)
            if len(self._clients) > MAX_CLIENTS:
                self._make_room()

    def _make_room(self) -> None:
        """Drop the oldest connection of the user with the most, root last: no user keeps others out."""
        user = max(self._numbers, key=lambda each: (each != 0, self._numbers[each]))
        client = next(client for client in self._clients.values() if client.user == user)
        self._remove(client)
        self._workers.left.append(client.sock)

    def _remove(self, client: _Client) -> None:
        del self._clients[client.sock]
        self._numbers[client.user] -= 1
        if not self._numbers[client.user]:
            del self._numbers[client.user]
        if not client.ready:
            self._selector.unregister(client.sock)

    def _hand_over(self) -> None:
        ready = [client for client in self._clients.values() if client.ready]
        for client in sorted(ready, key=lambda each: each.user != 0):
            worker = self._workers.take(client.user)
            if worker and self._workers.handle(worker, client.user, client.sock):
                self._remove(client)
        now = time.monotonic()
        if now >= self._next_discard or len(self._workers.left) >= MAX_PASSED:
            self._next_discard = now + _DISCARD_INTERVAL
            self._workers.discard()


def _wake(_number: int, _frame: object) -> None:
    """Handle SIGCHLD: by the wakeup descriptor it ends the wait of `step`."""


def open_listener(path: Path) -> socket.socket:
    """Return systemd's listening socket, or a new one at `path` that every user may connect to.

    Raises OSError when it cannot listen there.
    """
    passed = systemd.listen_descriptors()
    if passed:
        return socket.socket(fileno=passed[0])
    with suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(os.fspath(path))
    path.chmod(0o666)  # SO_PEERCRED decides who may register what
    listener.listen(_BACKLOG)
    return listener
