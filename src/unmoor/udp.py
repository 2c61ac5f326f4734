"""UDP servers in Python: the destination of each datagram, and replies from that address.

A TCP server needs no support for prefix sockets: a connection's `getsockname()` returns the address that the
client used. A UDP server has one socket for all clients, so it has to request that address with each
datagram and set it as the source of the reply. Otherwise the kernel chooses a source that the client does not
expect.

    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    prepare(sock)
    sock.bind(("127.0.0.1", 53))
    while True:
        datagram = receive(sock)
        with suppress(OSError):  # no route, or the send buffer is full: the client repeats it
            reply(sock, datagram, answer(datagram.data))

The source *port* of a reply is the socket's own: bind the socket to the service's port.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

# From <linux/in.h> and <linux/in6.h>; the socket module lacks them.
_IP_PKTINFO = 8
_IP_RECVORIGDSTADDR = 20
_IPV6_RECVORIGDSTADDR = 74
_IPV6_FREEBIND = 78
# From asm-generic/socket.h.
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

#: Bytes that `enlarge_buffers` requests in each direction.
BUFFER = 4 << 20

_SOCKADDR_IN = struct.Struct("!2xH4s")
_SOCKADDR_IN6 = struct.Struct("!2xHI16s")
_IN_PKTINFO = struct.Struct("=i4s4s")
_IN6_PKTINFO = struct.Struct("=16si")
_MAX_ANCILLARY = socket.CMSG_SPACE(128)
_MAPPED = bytes(10) + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Datagram:
    """The data that a client sent, its address, and the destination address and port."""

    data: bytes
    client: tuple[str, int] | tuple[str, int, int, int]
    address: IPv4Address | IPv6Address
    port: int


def prepare(sock: socket.socket) -> None:
    """Make the kernel pass the destination address with each datagram, and enlarge the buffers.

    Call this before registering the socket.
    """
    enlarge_buffers(sock)
    sock.setsockopt(socket.SOL_IP, _IP_RECVORIGDSTADDR, 1)  # an IPv6 socket may get IPv4 as well
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)


def enlarge_buffers(sock: socket.socket) -> None:
    """Enlarge a socket's buffers to BUFFER bytes in each direction, or as far as the kernel allows.

    With CAP_NET_ADMIN the kernel grants all of it (SO_RCVBUFFORCE, socket(7)), also for later users of the
    socket; otherwise at most net.core.rmem_max and wmem_max, 212,992 bytes on Debian.
    """
    for forced, ordinary in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
        except PermissionError:
            if _granted(sock, ordinary) < BUFFER:  # never shrink it
                sock.setsockopt(socket.SOL_SOCKET, ordinary, BUFFER)


def buffers(sock: socket.socket) -> tuple[int, int]:
    """Return the sizes of a socket's receive and send buffer in bytes."""
    return _granted(sock, socket.SO_RCVBUF), _granted(sock, socket.SO_SNDBUF)


def _granted(sock: socket.socket, option: int) -> int:
    """Return the size that was granted: the kernel doubles it (socket(7))."""
    return sock.getsockopt(socket.SOL_SOCKET, option) // 2


def receive(sock: socket.socket, size: int = 65535, flags: int = 0) -> Datagram:
    """Receive a datagram of at most `size` bytes; blocks unless `flags` has MSG_DONTWAIT.

    Raises OSError as recvmsg(2) does, and ValueError when the socket was not prepared.
    """
    data, ancillary, _, client = sock.recvmsg(size, _MAX_ANCILLARY, flags)
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_IP, _IP_RECVORIGDSTADDR):
            port, packed = _SOCKADDR_IN.unpack_from(value)
            return Datagram(data, client, ipaddress.IPv4Address(packed), port)
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR):
            port, _, packed = _SOCKADDR_IN6.unpack_from(value)
            return Datagram(data, client, ipaddress.IPv6Address(packed), port)
    raise ValueError("the datagram has no destination address: call prepare(sock) first")


def reply(sock: socket.socket, datagram: Datagram, data: bytes, flags: int = 0) -> int:
    """Send a reply from the destination address without blocking; returns the number of bytes sent.

    Raises OSError as sendmsg(2) does, and BlockingIOError when the send buffer is full: drop the reply then.
    A server that waits for room can be stalled by spoofed clients of its own subnet, since the kernel keeps
    replies to unresolved neighbours for seconds.
    """
    packed = datagram.address.packed
    if sock.family == socket.AF_INET:
        ancillary = (socket.SOL_IP, _IP_PKTINFO, _IN_PKTINFO.pack(0, packed, bytes(4)))
    else:
        source = packed if datagram.address.version == 6 else _MAPPED + packed
        ancillary = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(source, 0))
    return sock.sendmsg([data], [ancillary], flags | socket.MSG_DONTWAIT, datagram.client)
