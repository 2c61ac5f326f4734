"""What a socket is: asked of the kernel by its descriptor."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from unmoor.model import Protocol

# From <asm-generic/socket.h> and <linux/sockios.h>; the socket module lacks them.
_SO_PROTOCOL = 38
_SO_COOKIE = 57
_SIOCGSKNS = 0x894C

_FAMILIES = {socket.AF_INET: 4, socket.AF_INET6: 6}
_PROTOCOLS: dict[tuple[int, int], Protocol] = {
    (socket.SOCK_STREAM, socket.IPPROTO_TCP): "tcp",
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP): "udp",
}


@dataclass(frozen=True, slots=True)
class SocketInfo:
    """A socket that can take packets: listening TCP, or bound and unconnected UDP.

    `family` is 4 or 6; `cookie` is the kernel's number for it; `netns` the inode of its network namespace.
    """

    protocol: Protocol
    family: int
    address: IPv4Address | IPv6Address
    port: int
    cookie: int
    reuseport: bool
    netns: int

    def __str__(self) -> str:
        """As people write it: tcp 127.0.0.1:80."""
        host = f"[{self.address}]" if self.family == 6 else str(self.address)
        return f"{self.protocol} {host}:{self.port}"


class UnsuitableError(Exception):
    """The descriptor is none that a service can be given; says why."""


def inspect(descriptor: int) -> SocketInfo:
    """Tell what `descriptor` is. Raises UnsuitableError unless it can take packets for a service."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise UnsuitableError("this descriptor is not a socket")
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        family = _FAMILIES.get(sock.family)
        if family is None:
            raise UnsuitableError("wrong family: the socket is neither IPv4 nor IPv6")
        kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        protocol = _PROTOCOLS.get((kind, sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL)))
        if protocol is None:
            raise UnsuitableError("wrong protocol: the socket is neither TCP nor UDP")
        host, port, *_ = sock.getsockname()
        _check_state(sock, protocol, port)
        return SocketInfo(
            protocol,
            family,
            ipaddress.ip_address(host.partition("%")[0]),
            port,
            int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little"),
            bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)),
            _namespace(sock),
        )


def _check_state(sock: socket.socket, protocol: Protocol, port: int) -> None:
    try:
        sock.getpeername()
    except OSError:
        pass
    else:
        raise UnsuitableError("the socket is connected: register the one that waits for clients")
    if protocol == "tcp" and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise UnsuitableError("the socket is not listening: call listen() before it is registered")
    if protocol == "udp" and not port:
        raise UnsuitableError("the socket is not bound: call bind() before it is registered")


def _namespace(sock: socket.socket) -> int:
    descriptor = fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
    try:
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)
