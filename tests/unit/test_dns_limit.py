"""Response rate limiting: who is limited, by how much, and who is not."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path

import dns.edns
import dns.message
import dns.query
import pytest
from dns_support import Local, document, running

from unmoor.dns import limit, wire
from unmoor.dns.counters import Event
from unmoor.dns.limit import RateLimit, limited
from unmoor.dns.options import Options

CLIENT = bytes(range(8))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(limit.time, "monotonic", lambda: now[0])
    return now


class Limited(Local):
    """The answering half behind a limit of five a second."""

    def __init__(self) -> None:
        super().__init__(document())
        self.options = Options(self.snapshot.document)
        self.answer = limited(self.answer, RateLimit(5), self.options, self.counts)

    def outcomes(self, count: int, packet: bytes, address: str = "198.51.100.7") -> Counter[str]:
        found: Counter[str] = Counter()
        for _ in range(count):
            reply = self.answer(packet, 1232, address)
            truncated = reply is not None and reply[2] & wire.TC >> 8
            found["silence" if reply is None else "truncated" if truncated else "whole"] += 1
        return found


QUERY = dns.message.make_query("host0.example.com", "A", use_edns=0).to_wire()


def test_half_of_the_excess_gets_a_truncated_reply(clock: list[float]) -> None:
    local = Limited()
    assert local.outcomes(25, QUERY) == {"whole": 5, "truncated": 10, "silence": 10}
    assert local.counts.event(Event.RATE_LIMITED) == 20
    clock[0] += 1
    assert local.outcomes(5, QUERY) == {"whole": 5}


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("198.51.100.7", "198.51.100.200", True),
        ("198.51.100.7", "198.51.101.7", False),
        ("2001:db8:0:100::1", "2001:db8:0:1ff::2", True),
        ("2001:db8:0:100::1", "2001:db8:0:200::1", False),
    ],
)
def test_networks_are_counted_together(clock: list[float], one: str, other: str, together: bool) -> None:
    # Networks that differ may still share a slot of the table, by a chance of one in 65536.
    assert (limit._network(one) == limit._network(other)) == together
    local = Limited()
    local.outcomes(5, QUERY, one)
    if together:
        assert local.outcomes(1, QUERY, other)["whole"] == 0


def test_a_truncated_reply_is_no_larger_than_the_query(clock: list[float]) -> None:
    local = Limited()
    local.outcomes(5, QUERY)
    reply = local.answer(QUERY, 1232, "198.51.100.7")
    assert reply is not None
    assert len(reply) <= len(QUERY)
    message = dns.message.from_wire(reply)
    assert message.question[0].name.to_text() == "host0.example.com."
    assert not message.answer


def test_a_cookie_of_ours_lifts_the_limit(clock: list[float]) -> None:
    local = Limited()
    first = dns.message.make_query(
        "host0.example.com", "A", use_edns=0, options=[dns.edns.GenericOption(10, CLIENT)]
    )
    reply = local.answer(first.to_wire(), 1232, "198.51.100.7")
    assert reply is not None
    cookie = dns.message.from_wire(reply).options[0].to_wire()
    assert isinstance(cookie, bytes)

    def with_cookie(data: bytes) -> bytes:
        option = dns.edns.GenericOption(10, data)
        return dns.message.make_query("host0.example.com", "A", use_edns=0, options=[option]).to_wire()

    assert local.outcomes(50, with_cookie(cookie)) == {"whole": 50}
    # Another's cookie, a forged one, or none of the server's, are no proof.
    for data, address in (
        (cookie, "198.51.100.8"),
        (cookie[:-1] + bytes((cookie[-1] ^ 1,)), "198.51.100.7"),
        (CLIENT, "198.51.100.7"),
    ):
        assert local.outcomes(10, with_cookie(data), address)["whole"] == 0


@pytest.mark.parametrize("packet", [b"", bytes(11), b"\0\0\x80" + bytes(9), bytes(12), b"\xff" * 50])
def test_over_the_limit_what_is_malformed_gets_silence(clock: list[float], packet: bytes) -> None:
    local = Limited()
    local.outcomes(5, QUERY)
    assert local.outcomes(10, packet) == {"silence": 10}


def test_the_server_limits_udp_and_not_tcp(tmp_path: Path) -> None:
    with running(tmp_path, rate_limit=10, workers=1) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
            door.settimeout(0.5)
            for _ in range(200):
                door.sendto(QUERY, ("127.0.0.1", server.port))
            whole = truncated = 0
            try:
                while True:
                    if door.recv(4096)[2] & wire.TC >> 8:
                        truncated += 1
                    else:
                        whole += 1
            except TimeoutError:
                pass
        # Ten in each second that the burst may have touched.
        assert 10 <= whole <= 40
        assert truncated
        assert whole + truncated < 200
        assert server.status()["events"]["rate_limited"] == 200 - whole
        query = dns.message.make_query("host0.example.com", "A")
        with socket.create_connection(("127.0.0.1", server.port)) as stream:
            stream.settimeout(5)
            for _ in range(50):
                dns.query.send_tcp(stream, query)
                assert dns.query.receive_tcp(stream)[0].answer
