"""Many datagrams in one system call: recvmmsg(2) and sendmmsg(2), which the standard library lacks.

Besides system calls, this saves the conversion of each address to and from Python: the kernel writes a
client's address where the reply's header points to.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
from collections.abc import Callable

from unmoor.dns.answer.fast_path import Answerer
from unmoor.dns.observe.sampling import Observer

#: Packets received with one call, and lost at most if the worker dies.
BATCH = 32
#: Octets of a packet. The kernel truncates a longer one, which is then malformed: no honest query is as long.
MAX_PACKET = 4096
#: Clients whose addresses are kept as text.
_MAX_KNOWN = 4096

# struct sockaddr_in and sockaddr_in6: size, and begin and end of the address.
_ADDRESS: dict[int, tuple[int, int, int]] = {socket.AF_INET: (16, 4, 8), socket.AF_INET6: (28, 8, 24)}
_SLOT = 32
_DONTWAIT = int(socket.MSG_DONTWAIT)


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
    """struct mmsghdr: `size` is the number of octets received or sent."""

    _fields_ = (("message", _Message), ("size", ctypes.c_uint))


_libc = ctypes.CDLL(None, use_errno=True)
_receive, _send = _libc.recvmmsg, _libc.sendmmsg
_receive.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_send.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)

# The structures are read and written as arrays of numbers, which is faster than by fields: the numbers of a
# structure, and the index of each field.
_HEADER_SIZE, _VECTOR_SIZE = ctypes.sizeof(_Header), ctypes.sizeof(_Vector)
_WORD = ctypes.sizeof(ctypes.c_void_p)
_HEADER_WORDS, _VECTOR_WORDS = _HEADER_SIZE // _WORD, _VECTOR_SIZE // _WORD
_HEADER_HALVES, _RECEIVED = _HEADER_SIZE // 4, _Header.size.offset // 4
_LENGTH = _Vector.size.offset // _WORD


def _memory(size: int) -> mmap.mmap:
    """Return memory that slices to bytes with one copy. Private: forks must not share clients' packets."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class _Packets:
    """Room for a batch of packets of `room` octets, and the headers that describe it to the kernel.

    The addresses are at `names`, in slots of `_SLOT` octets.
    """

    def __init__(self, room: int, names: int, name_size: int) -> None:
        self.data = _memory(BATCH * room)
        data, each = _address(self.data), range(BATCH)
        self._vectors = (_Vector * BATCH)(*(_Vector(data + at * room, room) for at in each))
        vectors = ctypes.addressof(self._vectors)
        messages = (_Message(names + at * _SLOT, name_size, vectors + at * _VECTOR_SIZE, 1) for at in each)
        self._headers = (_Header * BATCH)(*(_Header(message) for message in messages))
        self.headers = ctypes.addressof(self._headers)
        self.lengths = memoryview(self._vectors).cast("B").cast("L")[_LENGTH::_VECTOR_WORDS]
        self.names = memoryview(self._headers).cast("B").cast("L")[::_HEADER_WORDS]
        self.received = memoryview(self._headers).cast("B").cast("I")[_RECEIVED::_HEADER_HALVES]


class Datagrams:
    """Answers the packets in sockets of one address family, a batch at a time. Not thread-safe.

    `reply_size` is the maximum size of a reply, octets. `unsent` is called for each reply that the kernel
    refuses to send.
    """

    def __init__(self, family: int, reply_size: int, unsent: Callable[[], None]) -> None:
        self._family, self._reply_size, self._unsent = family, reply_size, unsent
        size, self._begin, self._end = _ADDRESS[family]
        self._names = _memory(BATCH * _SLOT)
        self._queries = _Packets(MAX_PACKET, _address(self._names), size)
        self._replies = _Packets(reply_size, _address(self._names), size)
        self._known: dict[bytes, str] = {}

    def drain(
        self, sock: socket.socket, answer: Answerer, observer: Observer | None = None
    ) -> Callable[[], bool]:
        """Return a function that answers one batch and returns whether more packets may be waiting.

        A batch with a query that `observer` samples is answered by the observer.

        A reply for which the send buffer has no room is dropped. Waiting would let anyone stall the server:
        replies to neighbours that do not resolve keep the buffer full for seconds.
        """
        descriptor, limit = sock.fileno(), self._reply_size
        queries, headers, sizes = self._queries.data, self._queries.headers, self._queries.received
        replies, lengths, pointers = self._replies.data, self._replies.lengths, self._replies.names
        names, known, text, send = self._names, self._known, self._text, self._send
        # Where each packet begins, where its client's address is, and what points to that.
        slots = [
            (at, at * MAX_PACKET, slice(at * _SLOT + self._begin, at * _SLOT + self._end), pointer)
            for at, pointer in enumerate(self._queries.names)
        ]

        def drain() -> bool:
            received: int = _receive(descriptor, headers, BATCH, _DONTWAIT, None)
            ready, reply_to = 0, answer
            looks = observer is not None and received > observer.left
            if observer is not None and received > 0:
                if looks:
                    observer.begin()
                    reply_to = observer.each
                else:
                    observer.left -= received
            for at, start, where, pointer in slots[: max(0, received)]:
                client = names[where]
                packet = queries[start : start + sizes[at]]
                reply = reply_to(packet, limit, known.get(client) or text(client))
                if reply is not None:
                    begin, length = ready * limit, len(reply)
                    replies[begin : begin + length] = reply
                    lengths[ready] = length
                    pointers[ready] = pointer
                    ready += 1
            if ready:
                send(descriptor, ready)
            if looks and observer is not None:
                observer.end()
            return received == BATCH

        return drain

    def _text(self, packed: bytes) -> str:
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[packed] = text = socket.inet_ntop(self._family, packed)
        return text

    def _send(self, descriptor: int, ready: int) -> None:
        """Send the first `ready` replies, and skip those that cannot be sent."""
        done = 0
        while done < ready:
            sent = _send(descriptor, self._replies.headers + done * _HEADER_SIZE, ready - done, _DONTWAIT)
            if sent > 0:
                done += sent
            elif ctypes.get_errno() != errno.EINTR:
                self._unsent()
                done += 1
