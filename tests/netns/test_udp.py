"""A UDP server on a whole prefix gets the dialled address, and replies from it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.sockets import Bed
from unmoor import udp

DNS = {"label": "dns", "ports": [5300], "protocols": ["udp"]}


@pytest.fixture
def bed(bed: Bed) -> Bed:
    bed.load(DNS)
    return bed


@contextmanager
def server(address: str, dual: bool = False) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        udp.prepare(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        sock.bind((address, 5300))

        def serve() -> None:
            while True:
                datagram = udp.receive(sock)
                if datagram.data == b"stop":
                    return
                udp.reply(sock, datagram, f"{datagram.address} {datagram.port} ".encode() + datagram.data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield sock
        with socket.socket(family, socket.SOCK_DGRAM) as stopper:
            stopper.sendto(b"stop", sock.getsockname())
        thread.join(5)


def ask(address: str) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((address, 5300))  # so that a reply from any other address is not heard
        client.send(b"hello")
        return client.recv(100)


@pytest.mark.parametrize("address", ["198.18.0.0", "198.18.7.9", "198.18.15.255"])
def test_ipv4(bed: Bed, address: str) -> None:
    with server("127.0.0.1") as sock:
        bed.register("dns", sock)
        assert ask(address) == f"{address} 5300 hello".encode()
    assert bed.count("dns", "udp").counters["lookups"] == 1


@pytest.mark.parametrize("address", ["2001:db8::", "2001:db8:f:1:2:3:4:5"])
def test_ipv6(bed: Bed, address: str) -> None:
    with server("::1") as sock:
        bed.register("dns", sock)
        assert ask(address) == f"{address} 5300 hello".encode()


def test_a_dual_stack_socket_serves_both(bed: Bed) -> None:
    with server("::", dual=True) as sock:
        bed.register("dns", sock)
        assert ask("2001:db8::7") == b"2001:db8::7 5300 hello"
        assert ask("198.18.7.9") == b"198.18.7.9 5300 hello"


def test_a_socket_that_was_not_prepared_is_refused(bed: Bed) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock, socket.socket(type=socket.SOCK_DGRAM) as client:
        sock.bind(("127.0.0.1", 5300))
        client.sendto(b"hello", ("127.0.0.1", 5300))
        with pytest.raises(ValueError, match="call prepare"):
            udp.receive(sock)
