"""Batches of datagrams over real sockets: each reply goes to its client, and none delays another."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from unmoor.dns.server.udp_batch import BATCH, MAX_PACKET, Datagrams

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
ROOM = 1232


class Served:
    """A served socket, the queries that it got, and the number of replies that were refused."""

    def __init__(self, family: socket.AddressFamily) -> None:
        self.family = family
        self.socket = bound(family)
        self.asked: list[tuple[bytes, int, str]] = []
        self.unsent = 0
        self.drain = Datagrams(family, ROOM, self._count).drain(self.socket, self._answer)

    def _count(self) -> None:
        self.unsent += 1

    def _answer(self, packet: bytes, limit: int, address: str) -> bytes | None:
        self.asked.append((packet, limit, address))
        return None if packet.startswith(b"silence") else b"re: " + packet[:1000]


def bound(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((LOOPBACK[family], 0))
    sock.settimeout(5)
    return sock


@pytest.fixture(params=list(LOOPBACK), ids=["ipv4", "ipv6"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    made = Served(request.param)
    yield made
    made.socket.close()


def all_drained(served: Served) -> None:
    while served.drain():
        pass


def test_nothing_waits(served: Served) -> None:
    assert not served.drain()
    assert not served.asked


def test_each_client_gets_its_own_reply(served: Served) -> None:
    clients = [bound(served.family) for _ in range(5)]
    # More than one batch, some queries without a reply: then a reply has another place in the batch.
    for turn in range(30):
        for number, client in enumerate(clients):
            word = "silence" if (turn + number) % 4 == 0 else "word"
            client.sendto(f"{word} {turn} {number}".encode(), served.socket.getsockname())
    assert served.drain()
    assert len(served.asked) == BATCH
    all_drained(served)
    for number, client in enumerate(clients):
        expected = [f"re: word {turn} {number}".encode() for turn in range(30) if (turn + number) % 4]
        assert [client.recvfrom(2000) for _ in expected] == [
            (reply, served.socket.getsockname()) for reply in expected
        ]
        client.close()
    assert {(limit, address) for _, limit, address in served.asked} == {(ROOM, LOOPBACK[served.family])}
    assert not served.unsent


@pytest.mark.parametrize("size", [0, 1, 1231, MAX_PACKET, MAX_PACKET + 1, 9000])
def test_packets_of_every_size(served: Served, size: int) -> None:
    with bound(served.family) as client:
        # A long one first: a short one after it must not contain octets of it.
        for packet in (b"\xff" * MAX_PACKET, bytes(size), b"short"):
            client.sendto(packet, served.socket.getsockname())
            all_drained(served)
            assert client.recv(2000) == b"re: " + packet[:1000]
    assert [packet for packet, _, _ in served.asked] == [
        b"\xff" * MAX_PACKET,
        bytes(min(size, MAX_PACKET)),
        b"short",
    ]


def test_more_clients_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmoor.dns.server.udp_batch._MAX_KNOWN", 3)
    served = Served(socket.AF_INET)
    for last in range(1, 20):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((f"127.0.0.{last}", 0))
            client.sendto(b"x", served.socket.getsockname())
            assert not served.drain()
            assert client.recv(100) == b"re: x"
    assert [address for _, _, address in served.asked] == [f"127.0.0.{last}" for last in range(1, 20)]
    served.socket.close()


def test_a_reply_that_cannot_be_sent_holds_up_no_other() -> None:
    served = Served(socket.AF_INET)
    where = served.socket.getsockname()
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.skip("packets from port 0 need root")
    with raw, bound(socket.AF_INET) as client:
        from_port_0 = struct.pack("!4H", 0, where[1], 12, 0) + b"lost"
        for packet in (b"one", None, b"two", None, None, b"three", None):
            if packet:
                client.sendto(packet, where)
            else:
                raw.sendto(from_port_0, where)
        assert not served.drain()
        assert [client.recv(100) for _ in range(3)] == [b"re: one", b"re: two", b"re: three"]
    assert len(served.asked) == 7
    assert served.unsent == 4
    served.socket.close()
