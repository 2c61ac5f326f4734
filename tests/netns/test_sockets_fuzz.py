"""Nothing that a client sends crashes the activation service, leaks a descriptor, or changes the table."""

from __future__ import annotations

import array
import json
import os
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.sockets import Bed, activation, ask, listener, open_descriptors
from support.waiting import wait_until
from unmoor.sockets.activation import client, protocol
from unmoor.sockets.activation.protocol import Request, parse_reply

WEB = {"label": "web", "ports": [80]}


@pytest.fixture
def bed(bed: Bed) -> Bed:
    bed.load(WEB)
    return bed


class Service:
    """The running service, and checks of what must hold after each attack."""

    def __init__(
        self, bed: Bed, sock_path: Path, process: subprocess.Popen[str], good: socket.socket
    ) -> None:
        self.bed, self.sock_path, self.process, self.good = bed, sock_path, process, good
        self.register()
        self.before = open_descriptors(process.pid)

    def register(self) -> None:
        assert client.send(self.sock_path, Request("register", "web"), [self.good.fileno()]).ok

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(str(self.sock_path))
        return client

    def send(self, data: bytes, descriptors: list[int] | None = None, half_close: bool = False) -> bytes:
        """Return the service's answer; empty if it closed the connection without one."""
        with self.connect() as client:
            try:
                socket.send_fds(client, [data], descriptors or [])
                if half_close:
                    client.shutdown(socket.SHUT_WR)
                text = b""
                while more := client.recv(4096):
                    text += more
            except (BrokenPipeError, ConnectionResetError):
                return b""
            return text

    def check(self) -> None:
        assert self.process.poll() is None
        assert ask("198.18.1.1", 80).startswith("good")
        assert len(self.bed.count("web").sockets) == 1
        assert self.bed.count("web", family=6).sockets == ()
        wait_until(lambda: open_descriptors(self.process.pid) <= self.before)
        self.register()


@pytest.fixture
def service(bed: Bed, tmp_path: Path) -> Iterator[Service]:
    log = (tmp_path / "log").open("w")
    sock_path = tmp_path / "activation.sock"
    with listener(says="good") as good, activation(bed.pins, sock_path, log=log) as process:
        yield Service(bed, sock_path, process, good)
    log.close()


GOOD = Request("register", "web").encode()


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"\0" * 100 + b"\n",
        b"nonsense\n",
        b"[" * 4000 + b"\n",
        b'{"verb": "register", "service": "\xff"}\n',
        b'{"verb": "register", "service": "web"}\n{"verb": "unregister", "service": "web"}\n',
        b'{"verb": "register", "service": ["web"]}\n',
        b"x" * 10_000,
        json.dumps({"verb": "register", "service": "w" * 3000}).encode() + b"\n",
    ],
)
def test_malformed_messages(service: Service, data: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        reply = service.send(data, [other.fileno()])
    assert not reply or not parse_reply(reply).ok
    service.check()


def test_wrong_and_too_many_descriptors(service: Service) -> None:
    read, write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as other, (service.sock_path.parent / "log").open() as file:
        for descriptors in (
            [read],
            [write],
            [file.fileno()],
            [read, other.fileno()],
            [other.fileno(), other.fileno()],
            [other.fileno()] * (protocol.MAX_DESCRIPTORS + 1),
            [other.fileno()] * 253,
        ):
            reply = parse_reply(service.send(GOOD, descriptors))
            assert not reply.ok
            assert reply.why
    os.close(read)
    os.close(write)
    service.check()


def test_descriptors_in_many_pieces(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, service.connect() as client:
        rights = array.array("i", [other.fileno()] * 30)
        try:
            for byte in GOOD[:-1]:
                client.sendmsg([bytes([byte])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except BrokenPipeError:
            pass
        assert b"send the request in one message" in client.recv(4096)
    service.check()


def test_half_closed_and_vanished_peers(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        for data in (b"", b"{", GOOD[:-1]):
            assert b"incomplete line" in service.send(data or b" ", [other.fileno()], half_close=True)
            client = service.connect()
            socket.send_fds(client, [data or b" "], [other.fileno()])
            client.close()
        client = service.connect()
        client.sendall(Request("register", "nope").encode())
        client.close()  # before the answer
    service.check()


def test_random_bytes(service: Service) -> None:
    draw = random.Random(1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        for _ in range(500):
            data = bytearray(GOOD)
            for _ in range(draw.randrange(1, 6)):
                data[draw.randrange(len(data) - 1)] = draw.randrange(256)
            if b"\n" in data[:-1]:
                continue
            count = draw.choice((0, 1, 3))
            reply = service.send(bytes(data), [other.fileno()] * count)
            assert not reply or not parse_reply(reply).ok
    service.check()


def test_ten_thousand_clients_in_a_row(service: Service) -> None:
    for number in range(10_000):
        with service.connect() as client:
            if number % 3:
                client.sendall(b"{}\n" if number % 3 == 1 else b"half")
            if number % 300 == 1:
                assert client.recv(4096)
    service.check()


def test_a_flood_of_silent_clients_does_not_block_others(service: Service) -> None:
    silent = [service.connect() for _ in range(300)]
    for _ in range(5):
        service.register()
    for each in silent:
        each.close()
    service.check()
