"""Inspection of descriptors: whether one is a socket that a service can have.

Uses getsockopt(2) first, which the kernel answers without help. fstat(2) on a file of a FUSE file system may
block for as long as its owner likes.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # see client
    from unmoor.model import Protocol

# From <asm-generic/socket.h> and <linux/sockios.h>; the socket module lacks them.
_SO_PROTOCOL = 38
_SO_DOMAIN = 39
_CLASS = (socket.SO_TYPE, _SO_DOMAIN, _SO_PROTOCOL)
_SO_COOKIE = 57
_SIOCGSKNS = 0x894C
_MAX_NAME = 16  # IFNAMSIZ
_IPPROTO_MPTCP = 262  # IPPROTO_MPTCP from <linux/in.h>

_FAMILIES = {socket.AF_INET: 4, socket.AF_INET6: 6}
_PROTOCOLS: dict[tuple[int, int], Protocol] = {
    (socket.SOCK_STREAM, socket.IPPROTO_TCP): "tcp",
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP): "udp",
}

#: The name of Multipath TCP in lists of sockets, and why such a socket cannot be registered. Go servers use
#: it by default since Go 1.24.
MPTCP = "mptcp"
MPTCP_REFUSED = (
    "Multipath TCP (protocol 262), which the kernel accepts in no socket map; fix: make the server listen "
    "with plain TCP: GODEBUG=multipathtcp=0 in the environment of a Go program, or sysctl net.mptcp.enabled=0"
)


@dataclass(frozen=True, slots=True)
class SocketInfo:
    """A socket that can take packets: listening TCP, or bound and unconnected UDP.

    `family` is 4 or 6, `cookie` its SO_COOKIE, `netns` the inode of its network namespace, and `interface`
    the one that it is bound to (SO_BINDTODEVICE), empty if none.
    """

    protocol: Protocol
    family: int
    address: IPv4Address | IPv6Address
    port: int
    cookie: int
    reuseport: bool
    netns: int
    interface: str = ""

    @property
    def warning(self) -> str:
        """A warning about a socket that can be registered but may not work as expected; else empty."""
        if not self.interface:
            return ""
        return (
            f"{self} is bound to interface {self.interface} (SO_BINDTODEVICE): "
            "replies leave by this interface only, so clients that arrive by another get none"
        )

    def __str__(self) -> str:
        """The socket as in `tcp 127.0.0.1:80`."""
        host = f"[{self.address}]" if self.family == 6 else str(self.address)
        return f"{self.protocol} {host}:{self.port}"


class UnsuitableError(Exception):
    """The descriptor cannot be registered; the message is the reason."""


def inspect(descriptor: int) -> SocketInfo:
    """Describe the socket `descriptor`. Raises UnsuitableError unless it can take packets for a service."""
    with _borrowed(descriptor) as sock:
        family = _FAMILIES.get(sock.family)
        if family is None:
            raise UnsuitableError("wrong family: the socket is neither IPv4 nor IPv6")
        if sock.proto == _IPPROTO_MPTCP:
            raise UnsuitableError(f"the socket at {_endpoint(sock)} is {MPTCP_REFUSED}")
        protocol = _PROTOCOLS.get((sock.type, sock.proto))
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
            _interface(sock),
        )


def describe(descriptor: int) -> str | None:
    """Return a listening socket as text, even if it cannot be registered; None for other descriptors."""
    try:
        with _borrowed(descriptor) as sock:
            name = MPTCP if sock.proto == _IPPROTO_MPTCP else _PROTOCOLS.get((sock.type, sock.proto))
            if sock.family not in _FAMILIES or name is None:
                return None
            _check_state(sock, "udp" if name == "udp" else "tcp", sock.getsockname()[1])
            return f"{name} {_endpoint(sock)}"
    except (UnsuitableError, OSError):
        return None


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Wrap a descriptor in a socket object of its family, type and protocol that does not close it."""
    with _as_socket(descriptor, socket.AF_INET, socket.SOCK_STREAM, 0) as unknown:
        kind, family, number = (unknown.getsockopt(socket.SOL_SOCKET, option) for option in _CLASS)
    with _as_socket(descriptor, family, kind, number) as sock:
        yield sock


@contextmanager
def _as_socket(descriptor: int, family: int, kind: int, number: int) -> Iterator[socket.socket]:
    try:
        sock = socket.socket(family, kind, number, descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOTSOCK, errno.EBADF):  # EBADF: opened with O_PATH
            raise
        raise UnsuitableError("this descriptor is not a socket") from None
    try:
        yield sock
    finally:
        sock.detach()


def _endpoint(sock: socket.socket) -> str:
    host, port, *_ = sock.getsockname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _interface(sock: socket.socket) -> str:
    name = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _MAX_NAME)
    return name.rstrip(b"\0").decode(errors="replace")


def _check_state(sock: socket.socket, protocol: Protocol, port: int) -> None:
    try:
        sock.getpeername()
    except OSError:
        pass
    else:
        raise UnsuitableError("the socket is connected: register the listening socket")
    if protocol == "tcp" and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise UnsuitableError("the socket is not listening: call listen() before registering it")
    if protocol == "udp" and not port:
        raise UnsuitableError("the socket is not bound: call bind() before registering it")


def _namespace(sock: socket.socket) -> int:
    descriptor = fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
    try:
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)
