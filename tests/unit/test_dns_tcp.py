"""The bounds on TCP connections, with a clock that the test moves."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from dns_support import Local

from unmoor.dns import tcp
from unmoor.dns.answering import IDLE
from unmoor.dns.tcp import Connections

QUERY = b"\x12\x34\0\0\0\1\0\0\0\0\0\0\5host0\7example\3com\0\0\1\0\1"


class Bench:
    """Connections without an event loop: the test says when something happened."""

    def __init__(self) -> None:
        local = Local()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.connections = Connections(local.answer, local.counts, self._watch, self.handlers.pop)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.clients: list[socket.socket] = []

    def _watch(self, descriptor: int, _events: int, handler: Callable[[int], None]) -> None:
        self.handlers[descriptor] = handler

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.listener.getsockname(), timeout=5)
        self.clients.append(client)
        self.connections.accept(self.listener)
        return client

    def readable(self) -> None:
        for handler in list(self.handlers.values()):
            handler(1)

    def close(self) -> None:
        for each in (self.listener, *self.clients):
            each.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(tcp.time, "monotonic", lambda: now[0])
    return now


def closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def ask(bench: Bench, client: socket.socket) -> None:
    client.sendall(struct.pack("!H", len(QUERY)) + QUERY)
    bench.readable()
    assert client.recv(4096)[2:4] == QUERY[:2]


def test_who_asks_nothing_is_closed(bench: Bench, clock: list[float]) -> None:
    silent = bench.connect()
    clock[0] += IDLE - 1
    assert bench.connections.expire() == 1
    busy = bench.connect()
    clock[0] += 1
    assert bench.connections.expire() == IDLE - 1
    assert closed(silent)
    assert not closed(busy)


def test_a_question_buys_time_and_a_part_of_one_does_not(bench: Bench, clock: list[float]) -> None:
    asking, trickling = bench.connect(), bench.connect()
    for _ in range(3):
        clock[0] += IDLE / 2
        ask(bench, asking)
        trickling.sendall(b"\0" * 2)
        bench.readable()
        bench.connections.expire()
    assert not closed(asking)
    assert closed(trickling)


def test_one_too_many_closes_the_idlest(
    bench: Bench, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "MAX_CONNECTIONS", 3)
    clients = [bench.connect() for _ in range(3)]
    clock[0] += 1
    ask(bench, clients[0])
    bench.connect()
    assert [closed(client) for client in clients] == [False, True, False]


def test_nothing_is_kept_of_connections_that_ended(bench: Bench) -> None:
    for _ in range(300):  # more than one client may hold at once
        bench.connect().close()
        bench.readable()
    assert bench.handlers == {}
    ask(bench, bench.connect())


def test_clients_are_told_apart_by_address_and_network() -> None:
    assert tcp._client(socket.AF_INET, "198.18.0.1") != tcp._client(socket.AF_INET, "198.18.0.2")
    one, same, other = "2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"
    assert tcp._client(socket.AF_INET6, one) == tcp._client(socket.AF_INET6, same)
    assert tcp._client(socket.AF_INET6, one) != tcp._client(socket.AF_INET6, other)
    assert tcp._client(socket.AF_INET6, "fe80::1%lo") == tcp._client(socket.AF_INET6, "fe80::2")
