"""Limits of TCP connections, with a clock that the test sets."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import dns.edns
import dns.message
import dns.query
import pytest

from support.dns_document import document, model
from support.dns_local import Local
from support.dns_server import framed, read_framed, running
from unmoor.dns.server import tcp
from unmoor.dns.server.tcp import Connections, Limits
from unmoor.errors import InvalidInputError

QUERY = b"\x12\x34\0\0\0\1\0\0\0\0\0\0\5host0\7example\3com\0\0\1\0\1"
IDLE = 15


class Bench:
    """Connections without an event loop: the test triggers each event."""

    def __init__(self, limits: Limits) -> None:
        local = Local()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.events: dict[int, int] = {}
        self.connections = Connections(limits, local.answer, local.counts, self._watch, self.handlers.pop)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.clients: list[socket.socket] = []

    def _watch(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        self.handlers[descriptor] = handler
        self.events[descriptor] = events

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.listener.getsockname(), timeout=5)
        self.clients.append(client)
        self.connections.accept(self.listener)
        return client

    def readable(self) -> None:
        for descriptor, handler in list(self.handlers.items()):
            if self.events[descriptor] & select.EPOLLIN:
                handler(select.EPOLLIN)

    def close(self) -> None:
        for each in (self.listener, *self.clients):
            each.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(Limits(512, 128, IDLE))
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


def test_a_connection_without_queries_is_closed(bench: Bench, clock: list[float]) -> None:
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


def test_one_too_many_closes_the_idlest(clock: list[float]) -> None:
    bench = Bench(Limits(3, 128, IDLE))
    clients = [bench.connect() for _ in range(3)]
    clock[0] += 1
    ask(bench, clients[0])
    bench.connect()
    assert [closed(client) for client in clients] == [False, True, False]
    bench.close()


def test_what_is_held_for_all_is_bounded(
    bench: Bench, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that fill it are closed, not those that query and read."""
    monkeypatch.setattr(tcp, "MAX_HELD", 100_000)
    reading = bench.connect()
    filling = [bench.connect() for _ in range(20)]
    for _ in range(4):
        for client in filling:  # a question that never ends
            if not closed(client):
                client.setblocking(True)
                client.sendall(b"\xff" * 4000)
        bench.readable()
        clock[0] += 1
        held = sum(each.held for each in bench.connections._open.values())
        assert held == bench.connections._held <= 100_000
        reading.setblocking(True)
        ask(bench, reading)
    assert 0 < sum(closed(client) for client in filling) < 20
    assert not closed(reading)
    for client in filling:
        client.close()
    bench.readable()
    assert bench.connections._held == 0


def test_a_slow_reader_makes_us_hold_only_so_much(bench: Bench) -> None:
    lazy = bench.connect()
    lazy.setblocking(False)
    big = b"\x12\x34\0\0\0\1\0\0\0\0\0\0\3big\7example\3com\0\0\x10\0\1"
    for _ in range(2000):
        try:
            lazy.send(framed(big) * 100)
        except BlockingIOError:
            break
        bench.readable()
    else:
        pytest.fail("the server went on reading")
    (connection,) = bench.connections._open.values()
    assert connection.held <= 65536 + 65537 + 65537 + 16384
    bench.readable()
    assert not closed(bench.connect())  # others get in


def test_limits_follow_the_document_and_the_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    asked = model(document(tcp_connections=5000, tcp_per_client=30, tcp_idle=4))
    assert Limits.of(asked, 4, 20000) == Limits(1250, 7, 4)
    assert Limits.of(asked, 64, 20000) == Limits(79, 1, 4)
    assert not caplog.records
    assert Limits.of(asked, 1, 900) == Limits(900, 30, 4)
    assert "LimitNOFILE" in caplog.text


@pytest.mark.parametrize("setting", ["tcp_connections", "tcp_per_client", "tcp_idle"])
@pytest.mark.parametrize("value", [0, -1, 65537])
def test_senseless_limits_are_refused(setting: str, value: int) -> None:
    with pytest.raises(InvalidInputError, match=setting):
        model(document(**{setting: value}))


def test_a_connection_of_another_release_that_cannot_be_read_is_closed(bench: Bench) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, theirs = socket.socketpair()
    with one, two, ours:
        socket.send_fds(one, [b"\xff later format"], [theirs.fileno()])
        theirs.close()
        assert bench.connections.adopt(two)
        assert ours.recv(1) == b""
        one.send(b"\1 without a descriptor")
        assert bench.connections.adopt(two)
        one.close()
        assert not bench.connections.adopt(two)


# -- over the running server -----------------------------------------------------------------------------


def test_five_thousand_connections_and_a_reload_in_their_midst(tmp_path: Path) -> None:
    with running(tmp_path, tcp_connections=6000, listen=["127.0.0.1"]) as server, ExitStack() as stack:
        clients = []
        for number in range(5000):
            source = (f"127.0.{1 + number // 50}.1", 0)
            where = ("127.0.0.1", server.port)
            clients.append(stack.enter_context(socket.create_connection(where, 10, source)))
        for _ in range(2):
            for client in clients:
                client.sendall(framed(QUERY))
            for client in clients:
                assert read_framed(client)[2:4] == b"\x84\0"
            server.write({**server.data, "tell_name": not server.data.get("tell_name", False)})
            assert server.reload().done
        for client in clients:
            client.sendall(framed(QUERY))
        for client in clients:
            assert read_framed(client)[:2] == QUERY[:2]
        assert server.status()["restarts"] == 0


def test_a_flood_on_one_connection_does_not_delay_others(tmp_path: Path) -> None:
    with running(tmp_path, workers=1, listen=["127.0.0.1"]) as server:
        flood = socket.create_connection(("127.0.0.1", server.port), 10)
        enough = threading.Event()

        def ask_without_a_pause() -> None:
            while not enough.is_set():
                flood.sendall(framed(QUERY) * 1000)

        def read_without_a_pause() -> None:
            while flood.recv(1 << 16):
                pass

        threads = [threading.Thread(target=each) for each in (ask_without_a_pause, read_without_a_pause)]
        for thread in threads:
            thread.start()
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect(("127.0.0.1", server.port))
            for _ in range(100):
                sock.send(QUERY)
                assert sock.recv(4096)[:2] == QUERY[:2]
                with socket.create_connection(("127.0.0.1", server.port), 5) as other:
                    other.sendall(framed(QUERY))
                    assert read_framed(other)[:2] == QUERY[:2]
        enough.set()
        threads[0].join()
        flood.shutdown(socket.SHUT_WR)
        threads[1].join()
        flood.close()


def test_the_idle_limit_is_the_documents(tmp_path: Path) -> None:
    with running(tmp_path, tcp_idle=1, listen=["127.0.0.1"]) as server:
        where = ("127.0.0.1", server.port)
        with socket.create_connection(where, 10) as silent, socket.create_connection(where, 10) as trickling:
            # One octet now and then is no question: the deadline is that of the whole one.
            trickling.settimeout(0.1)
            said = b"?"
            with suppress(ConnectionError):
                for octet in framed(QUERY):
                    trickling.sendall(bytes((octet,)))
                    with suppress(TimeoutError):
                        said = trickling.recv(1)
                        break
            assert said in (b"", b"?")
            assert closed(trickling)
            assert silent.recv(1) == b""


def test_the_keepalive_option_has_the_idle_limit(tmp_path: Path) -> None:
    keepalive = dns.edns.GenericOption(11, b"")
    query = dns.message.make_query("host0.example.com", "A", options=[keepalive])
    with running(tmp_path, tcp_idle=7, listen=["127.0.0.1"]) as server:
        reply = dns.query.tcp(query, "127.0.0.1", 5, server.port)
    assert [option.to_wire() for option in reply.options] == [struct.pack("!H", 70)]


def test_nothing_is_kept_of_connections_that_ended(bench: Bench) -> None:
    for _ in range(300):  # more than the limit of one client
        bench.connect().close()
        bench.readable()
    assert bench.handlers == {}
    ask(bench, bench.connect())


def test_clients_are_distinguished_by_address_and_network() -> None:
    assert tcp._client(socket.AF_INET, "198.18.0.1") != tcp._client(socket.AF_INET, "198.18.0.2")
    one, same, other = "2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"
    assert tcp._client(socket.AF_INET6, one) == tcp._client(socket.AF_INET6, same)
    assert tcp._client(socket.AF_INET6, one) != tcp._client(socket.AF_INET6, other)
    assert tcp._client(socket.AF_INET6, "fe80::1%lo") == tcp._client(socket.AF_INET6, "fe80::2")
