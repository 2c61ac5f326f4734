"""Worker processes of the activation service, which receive and close the descriptors of clients.

Closing the last copy of a TCP socket with SO_LINGER, or any copy of a file of a FUSE file system, blocks for
as long as its owner likes. So does closing a connection with such a descriptor in its queue. The service
therefore passes each connection to a worker, and closes its own copy only when the queue is empty or another
copy exists. A worker that is blocked by a descriptor is killed, and counts against the user who sent it.

A worker exits instead of closing descriptors that may block: at exit the kernel ignores SO_LINGER.
"""

from __future__ import annotations

import gc
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Maximum of workers at a time: for root, for another user, for all other users, and for closing only.
MAX_OF_ROOT = 8
MAX_OF_USER = 2
MAX_OF_USERS = 8
MAX_DISCARDING = 2
#: Stands for the user id where connections are only closed.
DISCARD = -1
#: Maximum of connections in one message (SCM_MAX_FD).
MAX_PASSED = 253

#: Seconds for a worker to start or to finish its connections; longer than a client waits.
TIMEOUT = 20.0
#: Seconds after which another worker is started beside one that has not started, and their maximum.
_START_SOON = 1.0
_MAX_STARTING = 4
_MAX_IDLE = 1
_FIRST_DESCRIPTOR = 3

_HANDLE, _CLOSE = b"h", b"c"
#: Sent after _CLOSE once the service has closed its own copies.
_GO = b"g"
#: Reports of a worker: ready (the last queue is empty), or ready with descriptors left in the last queue.
_READY, _LEFT = b"r", b"l"

#: Handles a connection; returns False when descriptors are left in its queue. It may exit the process.
Task = Callable[[socket.socket], bool]


@dataclass(eq=False, slots=True)
class Worker:
    """A child process.

    `user` is the id of the user whose request it handles, None while it starts or is idle. `connection` is
    the service's copy of that connection, `deadline` a time of the monotonic clock.
    """

    pid: int
    channel: socket.socket | None
    deadline: float | None
    user: int | None = None
    connection: socket.socket | None = None
    killed: bool = False


class Workers:
    """The pool of worker processes.

    Registers the workers' channels in `selector`, with the worker as data. The caller calls `report` when one
    is readable, and `tend` every few seconds.
    """

    def __init__(self, selector: selectors.BaseSelector, handle: Task, discard: Task) -> None:
        self._selector = selector
        self._tasks = {_HANDLE: handle, _CLOSE: discard}
        self._workers: list[Worker] = []
        self._idle: list[Worker] = []
        #: Connections for `discard`, which only a worker may close.
        self.left: list[socket.socket] = []

    @property
    def busy(self) -> bool:
        """Whether any worker that was not killed has connections."""
        return any(worker.user is not None and not worker.killed for worker in self._workers)

    def take(self, user: int) -> Worker | None:
        """Return an idle worker for a connection of this user, or None; then start one if that is allowed."""
        if not self._may_have_more(user):
            return None
        if self._idle:
            return self._idle.pop()
        starting = [worker for worker in self._workers if worker.user is None and worker.channel]
        soon = time.monotonic() + TIMEOUT - _START_SOON
        if len(starting) < _MAX_STARTING and all((each.deadline or soon) < soon for each in starting):
            self.start()
        return None

    def _may_have_more(self, user: int) -> bool:
        users = [worker.user for worker in self._workers if worker.user is not None]
        if user in (0, DISCARD):
            return users.count(user) < (MAX_DISCARDING if user else MAX_OF_ROOT)
        others = sum(each not in (0, DISCARD) for each in users)
        return users.count(user) < MAX_OF_USER and others < MAX_OF_USERS

    def start(self) -> None:
        """Start a worker, which reports when it is ready. Does nothing when resources are exhausted."""
        try:
            here, there = socket.socketpair()
        except OSError:
            return
        gc.freeze()  # a garbage collection in the child would copy all pages
        with there:
            try:
                pid = os.fork()
            except OSError:
                here.close()
                return
            if pid == 0:
                _be_worker(there, self._tasks)
        here.setblocking(False)
        worker = Worker(pid, here, time.monotonic() + TIMEOUT)
        self._workers.append(worker)
        self._selector.register(here, selectors.EVENT_READ, worker)

    def handle(self, worker: Worker, user: int, connection: socket.socket) -> bool:
        """Pass a connection to a worker from `take`. Returns False when the worker has died meanwhile."""
        if not self._send(worker, _HANDLE, [connection]):
            return False
        worker.user, worker.connection = user, connection
        return True

    def discard(self) -> None:
        """Pass connections in `left` to workers to close, while workers are available."""
        while self.left:
            some = self.left[:MAX_PASSED]
            worker = self.take(DISCARD)
            if not worker or not self._send(worker, _CLOSE, some):
                return
            worker.user = DISCARD
            del self.left[: len(some)]
            for connection in some:
                connection.close()  # not the last copy: the worker keeps its own until it has _GO
            self._go(worker)

    def _go(self, worker: Worker) -> None:
        if worker.channel:
            try:
                worker.channel.send(_GO)
            except OSError:
                self._kill(worker)

    def _send(self, worker: Worker, kind: bytes, connections: Sequence[socket.socket]) -> bool:
        if worker.channel is None:
            return False
        try:
            socket.send_fds(worker.channel, [kind], [each.fileno() for each in connections])
        except OSError:
            self._kill(worker)
            return False
        worker.deadline = time.monotonic() + TIMEOUT
        return True

    def report(self, worker: Worker) -> None:
        """Handle a report of a worker, or its end."""
        if worker.channel is None:
            return
        try:
            text = worker.channel.recv(1)
        except BlockingIOError:
            return
        except OSError:
            text = b""
        if text == _READY and worker.connection:
            worker.connection.close()
            worker.connection = None
        if not text or len(self._idle) >= _MAX_IDLE:
            self._close(worker)
        else:
            self._release(worker)
            worker.user = worker.deadline = None
            self._idle.append(worker)

    def _release(self, worker: Worker) -> None:
        if worker.connection:
            self.left.append(worker.connection)
            worker.connection = None

    def _close(self, worker: Worker) -> None:
        """Close the channel, which makes the worker exit. It counts until `tend` has reaped it."""
        self._release(worker)
        if worker.channel:
            self._selector.unregister(worker.channel)
            worker.channel.close()
            worker.channel = None
        if worker in self._idle:
            self._idle.remove(worker)
        worker.deadline = worker.deadline or time.monotonic() + TIMEOUT

    def tend(self) -> None:
        """Kill workers that are past their deadline, and reap those that have exited."""
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.deadline is not None and worker.deadline <= now and not worker.killed:
                whose = "" if worker.user in (None, DISCARD) else f" with a request of user id {worker.user}"
                print(f"worker {worker.pid}{whose} is blocked: killed", file=sys.stderr, flush=True)
                self._kill(worker)
            # Do not block here: even a killed process may take long to close its files.
            if worker.channel is None and os.waitpid(worker.pid, os.WNOHANG)[0]:
                self._workers.remove(worker)

    def _kill(self, worker: Worker) -> None:
        worker.killed = True
        os.kill(worker.pid, signal.SIGKILL)  # not reaped yet, so the id cannot be another process's
        self._close(worker)


def _be_worker(channel: socket.socket, tasks: dict[bytes, Task]) -> None:
    """Run a worker. Does not return."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a worker finishes its request; the service waits for it
        _close_others(channel.fileno())
        state: bytes | None = _READY
        while state:
            state = _work(channel, tasks, state)
    finally:
        os._exit(0)  # the exit closes all descriptors, and SO_LINGER cannot delay it


def _close_others(kept: int) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.closerange(_FIRST_DESCRIPTOR, kept)
    os.closerange(kept + 1, limit)


def _work(channel: socket.socket, tasks: dict[bytes, Task], state: bytes) -> bytes | None:
    """Report `state` and handle the next connections. Returns the next report, or None to exit."""
    try:
        channel.send(state)
        kind, descriptors, _, _ = socket.recv_fds(channel, 1, MAX_PASSED, socket.MSG_CMSG_CLOEXEC)
        if not kind or (kind == _CLOSE and channel.recv(1) != _GO):
            return None
    except OSError:
        return None
    state = _READY
    for descriptor in descriptors:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
        if not tasks[kind](connection):
            if kind == _CLOSE:
                return None  # the exit closes this and all others
            state = _LEFT
        connection.close()
    return state
