"""The query log: which queries are logged, with which fields, and that a receiver never delays an answer."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from itertools import pairwise
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
from unmoor.dns.answer.fast_path import answerer
from unmoor.dns.counters.counters import Counts, Event, RecordingCounts, Transport
from unmoor.dns.observe import dnstap
from unmoor.dns.observe.journald import serialized
from unmoor.dns.observe.query_log import Entry, QueryLogger
from unmoor.dns.observe.sampling import LATENCY_SAMPLE, Observer, gap
from unmoor.dns.protocol import message
from unmoor.dns.protocol.edns import Options
from unmoor.errors import InvalidInputError
from unmoor.model import DnsDocument, validate


class Kept:
    """A receiver that keeps all entries."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def send(self, entry: Entry) -> bool:
        self.entries.append(entry)
        return True

    def close(self) -> None:
        pass


class Logged(Local):
    """The answering half, every query of which is logged."""

    def __init__(self, whole: bool = False, **changes: Any) -> None:
        super().__init__(document(query_log={"sample": 1, "whole_addresses": whole}, **changes))
        self.kept = Kept()
        recording = RecordingCounts(self.counts)
        answer = answerer(self.snapshot, recording, Options(self.snapshot.document))
        logger = QueryLogger(answer, recording, self.kept, self.snapshot, 7)
        self.observer = Observer(self.answer, self.counts, logger)

    def look(self, packet: bytes, client: str = "198.51.100.77") -> dict[str, str]:
        """Send a query; returns its log entry."""
        self.observer.alone(packet, 1232, client)
        return self.kept.entries[-1].fields()


LOGGED = Logged()


def query(name: str, rtype: str = "A", **options: Any) -> bytes:
    return dns.message.make_query(name, rtype, **options).to_wire()


# -- which queries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [1, 2, 64])
def test_each_query_is_chosen_with_the_same_chance(mean: int) -> None:
    gaps = [gap(mean) for _ in range(20000)]
    assert min(gaps) == 1
    # Seven standard deviations of a geometric distribution.
    assert abs(sum(gaps) / len(gaps) - mean) <= 7 * ((mean**2 - mean) / len(gaps)) ** 0.5
    # Gaps are independent: those after long ones are as long as those after short ones.
    after: dict[bool, list[int]] = {True: [], False: []}
    for one, two in pairwise(gaps):
        after[one > mean].append(two)
    if mean > 1:
        assert 0.8 < mean_of(after[True]) / mean_of(after[False]) < 1.25


def mean_of(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)


def test_nothing_is_chosen_for_a_log_that_is_off() -> None:
    assert gap(0) > 10**18


def test_the_latency_of_some_queries_is_taken() -> None:
    counts = Counts.private()
    observer = Observer(lambda *_: b"reply", counts)
    asked = 0
    while sum(counts.latency[:-1]) < 400:
        observer.alone(b"", 1232, "198.51.100.1")
        asked += 1
    assert 0.7 < asked / 400 / LATENCY_SAMPLE < 1.35
    assert counts.latency[-1] > 0


def test_a_batch_is_skipped_only_up_to_the_query_to_log() -> None:
    """Batches of any size log as many queries as single packets, each with the duration of its batch."""
    counts = Counts.private()
    observer = Observer(lambda *_: b"reply", counts)
    asked = looked = 0
    while looked < 400:
        size = asked % 7 + 1
        asked += size
        if size <= observer.left:
            observer.left -= size
            continue
        observer.begin()
        for _ in range(size):
            observer.each(b"", 1232, "198.51.100.1")
        observer.end()
        looked = sum(counts.latency[:-1])
    assert 0.7 < asked / looked / LATENCY_SAMPLE < 1.35


def test_buckets_are_those_of_prometheus() -> None:
    """A bucket's bound belongs to it."""
    counts = Counts.private()
    for took in (1, 1000, 1001, 10**12):
        counts.add_latency(took)
    assert [counts.latency[at] for at in (0, 1, 18)] == [2, 1, 1]
    assert counts.latency[-1] == 10**12 + 2002


# -- fields ----------------------------------------------------------------------------------------------


def test_the_fields() -> None:
    before = datetime.now(UTC)
    found = LOGGED.look(query("HOST3.example.com"))
    assert (
        before <= datetime.fromisoformat(found.pop("time")) <= datetime.now(UTC) + timedelta(milliseconds=1)
    )
    assert ip_address(found.pop("address")) in ip_network("198.18.0.0/20")
    assert float(found.pop("took_us")) > 0
    assert found == {
        "client": "198.51.100.0/24",
        "transport": "udp",
        "name": "host3.example.com",
        "type": "A",
        "class": "IN",
        "rcode": "NOERROR",
        "size": "51",
        "policy": "free",
        "generation": "7",
    }


def test_the_policy_is_the_one_that_answered() -> None:
    before = LOGGED.counts.answers(0)
    assert LOGGED.look(query("biz.example.com"))["policy"] == "business"
    found = LOGGED.look(query("www.example.com", "AAAA"))  # along two CNAMEs: the careful path
    assert found["policy"] == "free"
    assert ip_address(found["address"]) in ip_network("2001:db8::/44")
    assert "policy" not in LOGGED.look(query("mail.example.com"))
    assert LOGGED.counts.answers(0) == before + 1


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (query("nothing.example.com", "TYPE65280"), {"rcode": "NXDOMAIN", "type": "TYPE65280"}),
        (query("example.org", "MX"), {"rcode": "REFUSED", "type": "MX"}),
        (query("host1.example.com", use_edns=3), {"rcode": "BADVERS"}),
        (query("id.server", "TXT", rdclass="CH"), {"rcode": "REFUSED", "class": "CH"}),
        (b"\0\1" + bytes(10), {"rcode": "FORMERR", "size": "12"}),
        (b"\0\1\x80" + bytes(9), {"rcode": "none"}),
        (query("sub.example.com", "NS"), {"rcode": "NOERROR"}),
    ],
    ids=["nothing there", "refused", "version", "chaos", "malformed", "response", "referral"],
)
def test_what_is_no_address(packet: bytes, expected: dict[str, str]) -> None:
    found = LOGGED.look(packet)
    assert found.items() >= expected.items()
    assert not {"address", "policy"} & found.keys()


def test_clients_are_cut_to_networks_unless_configured() -> None:
    packet = query("host1.example.com", use_edns=0, options=[dns.edns.ECSOption("203.0.113.77", 32)])
    found = LOGGED.look(packet, "2001:db8:1:2345::9")
    assert (found["client"], found["ecs"]) == ("2001:db8:1:2300::/56", "203.0.113.0/24")
    assert LOGGED.kept.entries[-1].client.number & 0xFFFF == 0
    found = Logged(whole=True).look(packet, "2001:db8:1:2345::9")
    assert (found["client"], found["ecs"]) == ("2001:db8:1:2345::9", "203.0.113.77/32")


def test_a_name_with_odd_octets_breaks_no_line() -> None:
    name = b"\3a\nb\7example\3com\0"
    packet = query("x.example.com").replace(b"\1x\7example\3com\0", name)
    assert LOGGED.look(packet)["name"] == "a\\010b.example.com"


QUERIES = st.binary() | st.binary(min_size=4).map(
    lambda tail: query("host1.example.com")[: -len(tail)] + tail
)


@given(QUERIES)
def test_anything_that_is_answered_can_be_logged(packet: bytes) -> None:
    LOGGED.look(packet)
    entry = LOGGED.kept.entries.pop()
    assert b"\n\n" not in serialized(entry.fields())
    assert decoded(decoded(dnstap.encoded(entry, b"edge1"))[14][0])[10] == [packet]


# -- receivers -------------------------------------------------------------------------------------------


def datagram_socket(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.settimeout(10)
    return sock


def fields_of(datagram: bytes) -> dict[str, str]:
    """Read the journal's native format."""
    found, at = {}, 0
    while at < len(datagram):
        end = datagram.index(b"\n", at)
        name, equals, value = datagram[at:end].partition(b"=")
        if not equals:
            size = int.from_bytes(datagram[end + 1 : end + 9], "little")
            value, end = datagram[end + 9 : end + 9 + size], end + 9 + size
        found[name.decode()] = value.decode()
        at = end + 1
    return found


def test_the_journals_format() -> None:
    fields = {"ONE": "1", "LINES": "a\nb\n", "TWO": "=2="}
    assert fields_of(serialized(fields)) == fields


def ask(server: Running, name: str, times: int = 1, over: Any = dns.query.udp) -> None:
    for _ in range(times):
        over(dns.message.make_query(name, "A"), "127.0.0.1", 5, server.port)


def test_the_server_logs_to_journald(tmp_path: Path) -> None:
    with datagram_socket(tmp_path / "journal") as journald:
        wanted = {"sample": 1, "socket": str(tmp_path / "journal")}
        with running(tmp_path, query_log=wanted) as server:
            ask(server, "biz.example.com")
            first = fields_of(journald.recv(8192))
            ask(server, "host1.example.com", over=dns.query.tcp)
            second = fields_of(journald.recv(8192))
            events = server.status()["events"]
            assert (events["logged"], events["unlogged"]) == (2, 0)
    address = first["UNMOOR_ADDRESS"]
    assert first["MESSAGE"] == f"biz.example.com A from 127.0.0.0/24: NOERROR {address} by policy business"
    assert (first["SYSLOG_IDENTIFIER"], first["PRIORITY"]) == ("unmoor-dns-query", "6")
    assert (first["UNMOOR_TRANSPORT"], first["UNMOOR_GENERATION"]) == ("udp", "1")
    assert (second["UNMOOR_TRANSPORT"], second["UNMOOR_POLICY"]) == ("tcp", "free")


def test_a_sample_is_about_as_large_as_asked_for(tmp_path: Path) -> None:
    with datagram_socket(tmp_path / "journal") as journald:
        wanted = {"sample": 10, "socket": str(tmp_path / "journal")}
        with running(tmp_path, query_log=wanted, workers=1) as server:
            reader = threading.Thread(target=swallow, args=(journald,))
            reader.start()
            ask(server, "host1.example.com", times=2000)
            events = server.status()["events"]
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.sendto(b"", str(tmp_path / "journal"))
            reader.join()
    assert 110 < events["logged"] + events["unlogged"] < 300


def told(server: Running, total: int) -> dict[str, int]:
    """The events once so many queries are logged or dropped, which happens after their replies."""
    deadline = time.monotonic() + 60
    while True:
        events: dict[str, int] = server.status()["events"]
        if events["logged"] + events["unlogged"] >= total:
            return events
        assert time.monotonic() < deadline, events
        time.sleep(0.02)


def swallow(sock: socket.socket) -> None:
    while sock.recv(8192):
        pass


@pytest.mark.parametrize("listening", [False, True])
def test_a_journal_that_takes_nothing_costs_entries_only(tmp_path: Path, listening: bool) -> None:
    with datagram_socket(tmp_path / ("journal" if listening else "other")):
        wanted = {"sample": 1, "socket": str(tmp_path / "journal")}
        with running(tmp_path, query_log=wanted) as server:
            ask(server, "host1.example.com", times=1500)
            events = told(server, 1500)
    assert events["logged"] + events["unlogged"] == 1500
    assert events["unlogged"] >= (500 if listening else 1500)


class Collector:
    """Receives a dnstap stream as fstrm_capture does."""

    def __init__(self, sock: socket.socket) -> None:
        self.control: list[int] = []
        self.messages: list[bytes] = []
        self.raw = b""
        self._door = sock
        self._door.settimeout(10)

    def accept(self) -> None:
        assert self._take_control() == (dnstap.READY, dnstap.CONTENT_TYPE)
        self._door.sendall(dnstap.control(dnstap.ACCEPT))
        assert self._take_control() == (dnstap.START, dnstap.CONTENT_TYPE)

    def _exactly(self, size: int) -> bytes:
        data = self._door.recv(size, socket.MSG_WAITALL)
        if len(data) < size:
            raise EOFError
        return data

    def _take_control(self) -> tuple[int, bytes]:
        escape, size, kind = struct.unpack("!3I", self._exactly(12))
        rest = self._exactly(size - 4)
        assert escape == 0
        self.raw += struct.pack("!3I", escape, size, kind) + rest
        return kind, rest[8:]

    def message(self) -> bytes | None:
        """One message; None for the end of the stream."""
        (size,) = struct.unpack("!I", self._exactly(4))
        if not size:
            assert self._exactly(8) == struct.pack("!2I", 4, dnstap.STOP)
            self.raw += struct.pack("!3I", 0, 4, dnstap.STOP)
            return None
        data = self._exactly(size)
        self.raw += struct.pack("!I", size) + data
        return data


def decoded(message: bytes) -> dict[int, list[Any]]:
    """Read protobuf: values by field number."""
    found: dict[int, list[Any]] = {}

    def varint(at: int) -> tuple[int, int]:
        number = shift = 0
        while True:
            number |= (message[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if message[at - 1] < 0x80:
                return number, at

    at = 0
    while at < len(message):
        key, at = varint(at)
        if key & 7 == 0:
            value: Any
            value, at = varint(at)
        elif key & 7 == 2:
            size, at = varint(at)
            value, at = message[at : at + size], at + size
        else:
            assert key & 7 == 5
            value, at = int.from_bytes(message[at : at + 4], "little"), at + 4
        found.setdefault(key >> 3, []).append(value)
    assert at == len(message)
    return found


@contextmanager
def dnstap_server(tmp_path: Path) -> Iterator[tuple[Running, socket.socket]]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "tap"))
        listener.listen()
        listener.settimeout(10)
        wanted = {"sample": 1, "to": "dnstap", "socket": str(tmp_path / "tap")}
        with running(tmp_path, query_log=wanted, workers=1) as server:
            yield server, listener


def test_the_server_logs_to_a_dnstap_receiver(tmp_path: Path) -> None:
    with dnstap_server(tmp_path) as (server, listener):
        ask(server, "host1.example.com")  # starts the stream, and is dropped: no receiver has accepted it yet
        with listener.accept()[0] as sock:
            collector = Collector(sock)
            collecting = threading.Thread(target=collector.accept)
            collecting.start()
            while collecting.is_alive():
                ask(server, "host1.example.com")
            while server.status()["events"]["logged"] == 0:
                ask(server, "host1.example.com")
            while collector.message() is None:  # the first of them
                pass
            ask(server, "biz.example.com", over=dns.query.tcp)
            events = server.status()["events"]
            server.stop()
            messages = []
            while (message := collector.message()) is not None:
                messages.append(message)
    assert len(messages) + 1 == events["logged"]
    last = decoded(messages[-1])
    assert (last[1], last[15]) == ([b"edge1"], [1])
    assert last[2][0].startswith(b"unmoor ")
    extra = json.loads(last[3][0])
    assert (extra["policy"], extra["generation"]) == ("business", "1")
    inner = decoded(last[14][0])
    assert (inner[1], inner[2], inner[3]) == ([2], [1], [2])  # AUTH_RESPONSE, IPv4, TCP
    assert inner[4] == [socket.inet_aton("127.0.0.0")]
    reply = dns.message.from_wire(inner[14][0])
    assert reply.answer[0][0].address == extra["address"]
    assert dns.message.from_wire(inner[10][0]).id == reply.id
    assert inner[8][0] <= inner[12][0] <= inner[8][0] + 1
    check_with_dnstap_read(tmp_path, collector.raw)


def check_with_dnstap_read(tmp_path: Path, stream: bytes) -> None:
    """BIND's own reader; it wants a file, which begins with START."""
    ready = len(dnstap.control(dnstap.READY))
    (tmp_path / "file").write_bytes(stream[ready:])
    shown = subprocess.run(
        ["dnstap-read", "-y", str(tmp_path / "file")], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    last = shown.stdout.rsplit("\n---\n", 1)[-1] if "\n---\n" in shown.stdout else shown.stdout
    for line in ("identity: edge1", "type: AUTH_RESPONSE", "socket_protocol: TCP", "'biz.example.com. IN A'"):
        assert line in last, shown.stdout


@pytest.mark.parametrize("accepting", [False, True])
def test_a_dnstap_receiver_that_stalls_costs_entries_only(tmp_path: Path, accepting: bool) -> None:
    with dnstap_server(tmp_path) as (server, listener):
        ask(server, "host1.example.com")
        with listener.accept()[0] as sock:
            if accepting:
                sock.recv(1000)
                sock.sendall(dnstap.control(dnstap.ACCEPT))
            ask(server, "big.example.com", times=2000)
            events = told(server, 2001)
    assert events["logged"] + events["unlogged"] == 2001
    assert events["unlogged"] > 100
    assert (events["logged"] > 0) == accepting


def test_a_dnstap_receiver_may_come_back(tmp_path: Path) -> None:
    with dnstap_server(tmp_path) as (server, listener):
        for _ in range(2):
            before = server.status()["events"]["logged"]
            asking = threading.Thread(target=ask_until_logged, args=(server, before))
            asking.start()
            with listener.accept()[0] as sock:
                collector = Collector(sock)
                collector.accept()
                assert collector.message()
                asking.join()


def ask_until_logged(server: Running, before: int) -> None:
    while server.status()["events"]["logged"] < before + 5:
        ask(server, "host1.example.com")


def test_dnstap_must_know_where_to() -> None:
    with pytest.raises(InvalidInputError, match="dnstap has no socket"):
        validate(DnsDocument, document(query_log={"sample": 5, "to": "dnstap"}), "dns.json")


def test_transports_are_counted_apart(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        ask(server, "host1.example.com", times=3)
        ask(server, "host1.example.com", over=dns.query.tcp)
        ask(server, "nothing.example.com", over=dns.query.tcp)
        status = server.status()
    answers = {tuple(key): count for *key, count in status["answers"] if count}
    assert answers == {("free", "A", "udp"): 3, ("free", "A", "tcp"): 1}
    replies = {tuple(key): count for *key, count in status["replies"] if count}
    assert replies == {("NOERROR", "udp"): 3, ("NOERROR", "tcp"): 1, ("NXDOMAIN", "tcp"): 1}
    assert Transport.UDP.name.lower() in status["latency"]
    assert Event.LOGGED.name.lower() in status["events"]
    assert message.RCODE_NAMES[message.NXDOMAIN] in status["rcodes"]
