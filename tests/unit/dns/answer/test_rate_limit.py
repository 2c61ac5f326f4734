"""Response rate limiting: what is limited, by how much, and what is not."""

from __future__ import annotations

import select
import socket
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.query
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.dns_document import document
from support.dns_local import Local
from support.dns_server import Running, running
from unmoor.dns.answer import rate_limit
from unmoor.dns.answer.fast_path import answerer
from unmoor.dns.answer.rate_limit import Limiter, counted, shared_table
from unmoor.dns.counters.counters import Event
from unmoor.dns.protocol import message
from unmoor.dns.protocol.edns import Options

CLIENT = bytes(range(8))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(rate_limit, "monotonic", lambda: now[0])
    return now


class Limited(Local):
    """The answering half behind a limit of five a second."""

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        super().__init__(data or document())
        self.options = Options(self.snapshot.document)
        limiter = Limiter(counted(5, shared_table()), self.options, self.counts)
        self.answer = answerer(self.snapshot, self.counts, self.options, limiter=limiter)

    def flow(self, *questions: tuple[str, str], address: str = "198.51.100.7") -> Counter[str]:
        """Send queries, each a name of example.com and a type."""
        found: Counter[str] = Counter()
        for name, rtype in questions:
            query = dns.message.make_query(f"{name}.example.com" if name else "example.com", rtype)
            found += self.outcomes(1, query.to_wire(), address)
        return found

    def outcomes(self, count: int, packet: bytes, address: str = "198.51.100.7") -> Counter[str]:
        found: Counter[str] = Counter()
        for _ in range(count):
            reply = self.answer(packet, 1232, address)
            truncated = reply is not None and reply[2] & message.TC >> 8
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
    # Different networks share a slot of the table with a probability of 1 in 65,536.
    assert (rate_limit._network(one) == rate_limit._network(other)) == together
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
    local.outcomes(5, bytes(12))
    assert local.outcomes(10, packet) == {"silence": 10}


#: Questions that are one flow each, however their names and types vary.
FLOWS = {
    "one name": [("host0", "A")] * 20,
    "one name, spelt differently": [(name, "A") for name in ("host0", "HOST0", "hOst0", "HosT0")] * 5,
    "below a wildcard": [(f"n{at}.wild", "TXT") for at in range(20)],
    "below a DNAME": [(f"n{at}.old", "A") for at in range(20)],
    "names that do not exist": [(f"nothing{at}", "A") for at in range(20)],
    "types that a name lacks": [
        (f"host{at}", rtype) for at in range(5) for rtype in ("MX", "SRV", "NAPTR", "LOC")
    ],
    "below a delegation": [(f"n{at}.sub", "A") for at in range(20)],
    "an alias, by any type": [("alias", rtype) for rtype in ("MX", "SRV", "NAPTR", "LOC", "TXT")] * 4,
}


@pytest.mark.parametrize("questions", FLOWS.values(), ids=FLOWS.keys())
def test_what_is_one_flow(clock: list[float], questions: list[tuple[str, str]]) -> None:
    local = Limited()
    assert local.flow(*questions)["whole"] == 5
    # No other flow is touched, and none of them by another.
    assert local.flow(("host9", "A")) == {"whole": 1}
    for others in FLOWS.values():
        if others is not questions and "host0" not in others[0][0]:
            assert local.flow(others[0]) == {"whole": 1}


def test_errors_are_counted_by_code(clock: list[float]) -> None:
    local = Limited()
    outside = [dns.message.make_query(f"n{at}.example.org", "A").to_wire() for at in range(20)]
    assert sum((local.outcomes(1, each) for each in outside), Counter())["whole"] == 5
    malformed = bytes(12)
    assert local.outcomes(20, malformed) == {"whole": 5, "silence": 15}
    assert local.counts.event(Event.RATE_LIMITED) == 30
    # Replies that were not sent are not counted.
    assert (local.counts.rcode(message.REFUSED), local.counts.rcode(message.FORMERR)) == (5, 5)


def test_addresses_with_names_of_their_own_are_one_flow(clock: list[float]) -> None:
    data = document()
    data["pools"]["free"]["ptr"] = "ip-{address}.example.com"
    data["zones"].append({"name": "18.198.in-addr.arpa", "records": REVERSE})
    data["zones"].append({"name": "8.b.d.0.1.0.0.2.ip6.arpa", "records": REVERSE})
    local = Limited(data)
    queries = [dns.message.make_query(f"{at}.0.18.198.in-addr.arpa", "PTR").to_wire() for at in range(20)]
    assert sum((local.outcomes(1, each) for each in queries), Counter())["whole"] == 5


REVERSE = "$TTL 60\n@ SOA ns.example.net. h 1 2 3 4 5\n@ NS ns.example.net.\n"
ADDRESSES = ("198.51.100.1", "198.51.100.2", "198.51.101.1", "2001:db8::1", "2001:db8:0:100::1")
NAMES = (b"\1a\0", b"\1b\0", b"\1c\0")
KINDS = (b"\0\1\0\1", b"\3")


@given(
    st.integers(0, 6),
    st.lists(
        st.tuples(
            st.sampled_from(ADDRESSES),
            st.sampled_from(NAMES),
            st.sampled_from(KINDS),
            st.sampled_from((0.0, 0.4, 7.0)),
        ),
        max_size=60,
    ),
)
def test_flows_are_counted_by_the_second(
    per_second: int, replies: list[tuple[str, bytes, bytes, float]]
) -> None:
    now, counts = 1000.25, Counter[tuple[bytes, bytes, bytes]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rate_limit, "monotonic", lambda: now)
        # As two workers that share the counters.
        table = shared_table()
        workers = [counted(per_second, table) for _ in range(2)]
        for number, (address, name, kind, later) in enumerate(replies):
            if int(now + later) != int(now):
                counts.clear()
            now += later
            flow = rate_limit._network(address), name, kind
            counts[flow] += 1
            found = workers[number % 2](address, name, kind)
            # Two flows share a counter with a probability of 1 in 262,144, and then only in one direction.
            slots = {hash((hash(each[0]), *each[1:])) & rate_limit._SLOT_MASK for each in counts}
            if len(slots) == len(counts):
                assert found == max(0, counts[flow] - per_second)


def limiters(per_second: int, workers: int = 1) -> list[Limiter]:
    """Those of workers that share their counters."""
    local, table = Local(), shared_table()
    options = Options(local.snapshot.document)
    return [Limiter(counted(per_second, table), options, local.counts) for _ in range(workers)]


def whole(workers: list[Limiter], replies: int, address: str = ADDRESSES[0], name: bytes = NAMES[0]) -> int:
    """Count replies of one flow, by turns, and return how many of them are sent in full."""
    return sum(not workers[at % len(workers)].over(b"", address, name, KINDS[0]) for at in range(replies))


def test_networks_are_remembered_up_to_a_bound(clock: list[float]) -> None:
    counter = counted(1, shared_table())
    kept = []
    for number in range(5000):
        counter(f"198.{number >> 8}.{number & 255}.1", NAMES[0], KINDS[0])
        kept.append(len(counter._networks))
    # As many as fit are kept, then all are dropped; what was counted of them is not.
    assert max(kept) == 4096
    assert kept[4096] == 1
    assert counter("198.0.0.1", NAMES[0], KINDS[0]) == 1


def test_memory_does_not_grow_with_clients(clock: list[float]) -> None:
    counter = counted(1, shared_table())
    for number in range(5000):
        counter(f"198.0.{number >> 8}.{number & 255}", NAMES[0], KINDS[0])
    tracemalloc.start()
    try:
        for number in range(50_000):
            counter(f"198.1.{number >> 8}.{number & 255}", NAMES[0], KINDS[0])
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # 4,096 addresses and hashes take 0.5 MB; all of them would take 6.
    assert grown < 1 << 20


@pytest.mark.parametrize("per_second", [1, 2, 63])
def test_the_reply_at_the_limit_is_the_last_in_full(clock: list[float], per_second: int) -> None:
    counter = counted(per_second, shared_table())
    excess = [counter(ADDRESSES[0], NAMES[0], KINDS[0]) for _ in range(per_second + 3)]
    assert excess == [0] * per_second + [1, 2, 3]


def filled(table: memoryview, used: int) -> None:
    """Set the counters in use to `used` replies."""
    for at in [at for at, value in enumerate(table) if value]:
        table[at] = (table[at] >> rate_limit._COUNT_BITS << rate_limit._COUNT_BITS) + used


def test_a_full_counter_keeps_its_second(clock: list[float]) -> None:
    table = shared_table()
    counter = counted(10**9, table)
    full = (1 << 20) - 1
    for _ in range(2):  # a sample first, then a reply that is counted
        assert counter(ADDRESSES[0], NAMES[0], KINDS[0]) == 0
        filled(table, full - 3)
    # The highest limit is one less than a counter holds, so that a flow can exceed it.
    assert [counter(ADDRESSES[0], NAMES[0], KINDS[0]) for _ in range(5)] == [0, 0, 1, 1, 1]
    clock[0] += 1
    assert counter(ADDRESSES[0], NAMES[0], KINDS[0]) == 0


@pytest.mark.parametrize("later", [0.0, 0.999, 1.0, 2.0, 24.0, 500.0, 1023.0])
def test_a_counter_of_another_second_starts_again(clock: list[float], later: float) -> None:
    table = shared_table()
    early = counted(3, table)
    assert [early(ADDRESSES[1], NAMES[1], KINDS[0]) for _ in range(9)] == [0, 0, 0, 1, 2, 3, 4, 5, 6]
    clock[0] += later
    # A worker that has just started, and one whose last reply was then.
    found = [each(ADDRESSES[1], NAMES[1], KINDS[0]) for each in (counted(3, table), early, early, early)]
    assert found == ([7, 8, 9, 10] if later < 1 else [0, 0, 0, 1])


@pytest.mark.parametrize("per_second", [64, 200, 1000, 10_000])
def test_a_flow_below_the_limit_is_never_cut(clock: list[float], per_second: int) -> None:
    workers = limiters(per_second, 3)
    for _ in range(10):
        # Beside a flood, in which replies are sampled at first and counted later.
        for _ in range(per_second):
            assert whole(workers, 1) == 1
            whole(workers, 3, name=NAMES[1])
        clock[0] += 1


@pytest.mark.parametrize(("per_second", "workers"), [(64, 1), (200, 3), (1000, 1), (1000, 4), (10_000, 2)])
def test_a_flood_gets_its_limit(clock: list[float], per_second: int, workers: int) -> None:
    sharing = limiters(per_second, workers)
    for _ in range(3):
        whole(sharing, per_second // 4, name=NAMES[2])  # a calm second, then the flood begins
        clock[0] += 1
        first = whole(sharing, per_second * 5)
        # Half of the limit by an estimate, and the replies that each worker was about to skip.
        assert per_second <= first <= per_second * 2
        for _ in range(3):
            clock[0] += 1
            assert whole(sharing, per_second * 5) == per_second
        clock[0] += 5


def test_most_replies_of_calm_flows_need_no_call(clock: list[float]) -> None:
    (limiter,) = limiters(1000)
    calls, count = [0], limiter.excess

    def excess(address: str, name: bytes, kind: bytes) -> int:
        calls[0] += 1
        return count(address, name, kind)

    limiter.excess = excess  # type: ignore[assignment]  # counts the calls
    for number in range(31_000):
        assert whole([limiter], 1, f"198.{number % 250}.0.1") == 1
    print(f"{calls[0]} of 31,000 replies were samples")
    # One of 31; a standard deviation is 22.
    assert 800 < calls[0] < 1200


@contextmanager
def clients(server: Running, count: int) -> Iterator[list[socket.socket]]:
    """Sockets of one network, which the kernel spreads over the workers."""
    socks = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(count)]
    for sock in socks:
        sock.connect(("127.0.0.1", server.port))
    yield socks
    for sock in socks:
        sock.close()


def heard(socks: list[socket.socket]) -> Counter[str]:
    """Count replies until no more arrive."""
    found: Counter[str] = Counter()
    while ready := select.select(socks, (), (), 0.5)[0]:
        for sock in ready:
            found["truncated" if sock.recv(4096)[2] & message.TC >> 8 else "whole"] += 1
    return found


OTHER = dns.message.make_query("host1.example.com", "A", use_edns=0).to_wire()


def test_a_flood_for_one_name_leaves_others_answered(tmp_path: Path) -> None:
    with running(tmp_path, rate_limit=40, workers=4) as server, clients(server, 21) as (asker, *flood):
        asker.settimeout(2)
        answers = 0
        for _ in range(20):  # over some seconds, at any time within each
            for sock in flood:
                for _ in range(10):
                    sock.send(QUERY)
            asker.send(OTHER)
            with suppress(TimeoutError):
                answers += not asker.recv(4096)[2] & message.TC >> 8
        assert server.status()["events"]["rate_limited"] > 100
        print(f"answers for the other name: {answers} of 20")
        assert answers == 20


def test_workers_count_together(tmp_path: Path) -> None:
    with running(tmp_path, rate_limit=40, workers=4) as server, clients(server, 40) as socks:
        for _ in range(36):  # a flow below the limit, which the kernel assigns to one worker
            socks[0].send(QUERY)
        below = heard(socks[:1])
        print(f"of 36 queries below the limit of 40: {below}")
        assert below == {"whole": 36}
        began = time.monotonic()
        for sock in socks:
            for _ in range(10):
                sock.send(OTHER)
        # Forty in each second in which they may have arrived.
        whole, touched = heard(socks)["whole"], int(time.monotonic() - began) + 2
        assert 40 <= whole <= 40 * touched


def test_the_server_limits_udp_and_not_tcp(tmp_path: Path) -> None:
    with running(tmp_path, rate_limit=10, workers=1) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.5)
            for _ in range(200):
                sock.sendto(QUERY, ("127.0.0.1", server.port))
            whole = truncated = 0
            try:
                while True:
                    if sock.recv(4096)[2] & message.TC >> 8:
                        truncated += 1
                    else:
                        whole += 1
            except TimeoutError:
                pass
        # Ten in each second in which the burst may have arrived.
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
