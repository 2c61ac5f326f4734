"""Many datagrams in one call of the kernel: recvmmsg(2) and sendmmsg(2), which the standard library lacks.

Beside the calls it saves what `recvfrom` and `sendto` do for each packet in Python: the kernel writes a
client's address where the reply's header points to, so that nobody reads it for that.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
from collections.abc import Callable

#: Packets taken with one call; what a worker that dies takes with it, at most.
BATCH = 32
#: Room for a packet. A longer one is cut off by the kernel, and so malformed: no honest query is.
MAX_PACKET = 4096
#: Clients whose addresses are kept as text.
_MAX_KNOWN = 4096

# struct sockaddr_in and sockaddr_in6: how long, and where the address stands.
_ADDRESS = {socket.AF_INET: (16, 4, 8), socket.AF_INET6: (28, 8, 24)}
_SLOT = 32


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint32),
        ("vector", ctypes.c_void_p),
        ("vectors", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Header(ctypes.Structure):
    """struct mmsghdr: `size` is how many octets were received, or sent."""

    _fields_ = (("message", _Message), ("size", ctypes.c_uint))


_libc = ctypes.CDLL(None, use_errno=True)
_receive, _send = _libc.recvmmsg, _libc.sendmmsg
_receive.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_send.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


class _Side:
    """Room for a batch of packets, with the headers that describe it; addresses stand in `names`."""

    def __init__(self, room: int, names: int, name_size: int) -> None:
        # Private to the process: a fork must not share what clients sent.
        self.data = mmap.mmap(-1, BATCH * room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.data))
        self._vectors = (_Vector * BATCH)(*(_Vector(base + at * room, room) for at in range(BATCH)))
        vectors = ctypes.addressof(self._vectors)
        self._headers = (_Header * BATCH)(
            *(
                _Header(_Message(names + at * _SLOT, name_size, vectors + at * ctypes.sizeof(_Vector), 1))
                for at in range(BATCH)
            )
        )
        self.headers = ctypes.addressof(self._headers)
        # The same memory as numbers, which are quicker to get at than fields.
        self.vector_words = memoryview(self._vectors).cast("B").cast("L")
        self.header_words = memoryview(self._headers).cast("B").cast("L")
        self.header_halves = memoryview(self._headers).cast("B").cast("I")


class Datagrams:
    """Room for one batch of queries and their replies, of one address family. Not for two threads."""

    def __init__(self, family: int, reply_size: int) -> None:
        self._reply_size = reply_size
        name_size, *self._where = _ADDRESS[socket.AddressFamily(family)]
        self._family = family
        self._names = mmap.mmap(-1, BATCH * _SLOT, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._names_at = ctypes.addressof(ctypes.c_char.from_buffer(self._names))
        self._queries = _Side(MAX_PACKET, self._names_at, name_size)
        self._replies = _Side(reply_size, self._names_at, name_size)
        self._known: dict[bytes, str] = {}

    def text(self, packed: bytes) -> str:
        """Give an address as text."""
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        return self._known.setdefault(packed, socket.inet_ntop(self._family, packed))

    def drain(
        self,
        door: socket.socket,
        answer: Callable[[bytes, int, str], bytes | None],
        unsent: Callable[[], None],
    ) -> Callable[[], bool]:
        """Make the function that answers what waits in a socket, a batch at the most; False: nothing is left.

        `answer` takes a packet, the most octets that its reply may have, and the address that it came from.
        `unsent` is told of each reply that the kernel refuses to send. The socket itself blocks: replies
        wait for room in the queue rather than being dropped.
        """
        descriptor, limit, without_waiting = door.fileno(), self._reply_size, socket.MSG_DONTWAIT
        queries, replies, names, known, text = (
            self._queries.data,
            self._replies.data,
            self._names,
            self._known,
            self.text,
        )
        headers, sizes, lengths = (
            self._queries.headers,
            self._queries.header_halves,
            self._replies.vector_words,
        )
        pointers = self._replies.header_words
        stride, at_size = ctypes.sizeof(_Header) // 4, _Header.size.offset // 4
        pointer_stride, names_at = ctypes.sizeof(_Header) // ctypes.sizeof(ctypes.c_void_p), self._names_at
        begin, end = self._where
        # For each packet: where its octets begin, its client's address, its size, and its sockaddr.
        slots = [
            (
                at * MAX_PACKET,
                slice(at * _SLOT + begin, at * _SLOT + end),
                at * stride + at_size,
                names_at + at * _SLOT,
            )
            for at in range(BATCH)
        ]

        def drain() -> bool:
            received = _receive(descriptor, headers, BATCH, without_waiting, None)
            if received < 1:
                return False
            ready = 0
            for at, where, at_length, name in slots[:received]:
                packed = names[where]
                reply = answer(queries[at : at + sizes[at_length]], limit, known.get(packed) or text(packed))
                if reply is not None:
                    size = len(reply)
                    start = ready * limit
                    replies[start : start + size] = reply
                    lengths[2 * ready + 1] = size
                    pointers[pointer_stride * ready] = name
                    ready += 1
            if ready:
                self._send(descriptor, ready, unsent)
            return bool(received == BATCH)

        return drain

    def _send(self, descriptor: int, ready: int, unsent: Callable[[], None]) -> None:
        """Send so many replies; one that cannot be sent holds up no other."""
        done = 0
        while done < ready:
            sent = _send(descriptor, self._replies.headers + done * ctypes.sizeof(_Header), ready - done, 0)
            if sent > 0:
                done += sent
            elif ctypes.get_errno() != errno.EINTR:
                unsent()
                done += 1
