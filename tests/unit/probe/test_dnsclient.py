from __future__ import annotations

import socket
from contextlib import closing
from ipaddress import ip_address
from itertools import count

import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.probe_servers import answering, dns_answer
from unmoor.errors import InvalidInputError
from unmoor.probe.clients.dnsclient import SOCKETS, DnsClient, Reply
from unmoor.probe.clients.dnswire import MalformedReplyError, query, question, read_reply

ASKED = question("www.unmoor.test", "A")
LOOPBACK = [ip_address("127.0.0.1")]


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_a_query_is_what_dnspython_reads(kind):
    message = dns.message.from_wire(query(0x1234, question("WWW.unmoor.test.", kind)))
    assert message.id == 0x1234
    assert str(message.question[0]) == f"WWW.unmoor.test. IN {kind}"
    assert message.flags == 0


@pytest.mark.parametrize(
    "name", ["", "a..b", "x" * 64 + ".test", "ä.test", "a b.test", ".".join(["x" * 60] * 5)]
)
def test_what_is_no_hostname_is_refused(name):
    with pytest.raises(InvalidInputError, match="NAME"):
        question(name, "A")


def test_a_reply_of_dnspython_is_read():
    reply = dns.message.make_response(dns.message.from_wire(query(7, ASKED)))
    reply.answer.append(dns.rrset.from_text("www.unmoor.test.", 30, "IN", "CNAME", "pool.unmoor.test."))
    reply.answer.append(
        dns.rrset.from_text("pool.unmoor.test.", 30, "IN", "A", "198.18.0.1", "198.18.15.255")
    )
    reply.authority.append(dns.rrset.from_text("unmoor.test.", 30, "IN", "A", "198.18.9.9"))
    message = read_reply(reply.to_wire(), ASKED)
    assert (message.rcode, message.truncated) == ("NOERROR", False)
    assert set(message.addresses) == {"198.18.0.1", "198.18.15.255"}


def test_ipv6_addresses_are_read():
    asked = question("www.unmoor.test", "AAAA")
    reply = dns_answer(query(7, asked), "2001:db8:100::1")
    assert read_reply(reply, asked).addresses == ("2001:db8:100::1",)


@given(st.data())
def test_a_damaged_reply_is_read_or_refused(data):
    whole = bytearray(dns_answer(query(7, ASKED), "198.18.0.1", "198.18.0.2"))
    cut = data.draw(st.integers(0, len(whole)))
    for place, value in data.draw(
        st.dictionaries(st.integers(0, len(whole) - 1), st.integers(0, 255))
    ).items():
        whole[place] = value
    try:
        read_reply(bytes(whole[:cut]), ASKED)
    except MalformedReplyError:
        return
    assert cut >= 12


@given(st.integers(0, len(dns_answer(query(7, ASKED), "198.18.0.1")) - 1))
def test_a_reply_cut_short_is_refused(cut):
    with pytest.raises(MalformedReplyError):
        read_reply(dns_answer(query(7, ASKED), "198.18.0.1")[:cut], ASKED)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (query(7, ASKED), "it is a query"),
        (dns_answer(query(7, question("mail.unmoor.test", "A")), "198.18.0.1"), "differs"),
        (dns_answer(query(7, question("www.unmoor.test", "AAAA"))), "differs"),
    ],
)
def test_a_reply_to_something_else_is_refused(reply, why):
    with pytest.raises(MalformedReplyError, match=why):
        read_reply(reply, ASKED)


def test_a_refusal_without_the_question_is_a_refusal():
    bare = query(7, ASKED)[:2] + b"\x80\x05" + bytes(8)
    assert read_reply(bare, ASKED).rcode == "REFUSED"


def replies(client: DnsClient, number: int) -> list[Reply]:
    found: list[Reply] = []
    for _ in range(number):
        client.ask(ASKED)
    while len(client):
        found += client.poll(1)
    return found


def test_many_questions_at_once_from_many_ports():
    askers = set()

    def reply(data: bytes) -> bytes:
        return dns_answer(data, "198.18.0.1")

    with (
        answering(reply, seen=askers.add) as port,
        closing(DnsClient(LOOPBACK, port)) as client,
    ):
        found = replies(client, 200)
    assert len(found) == 200
    assert {(r.addresses, r.lost, r.fault) for r in found} == {(("198.18.0.1",), 0, None)}
    assert len(askers) == SOCKETS


def test_several_servers_take_turns():
    def reply(data: bytes) -> bytes:
        return dns_answer(data, "198.18.0.1")

    with answering(reply, "127.0.0.1") as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
        second.bind(("127.0.0.2", port))
        servers = [ip_address("127.0.0.1"), ip_address("127.0.0.2")]
        with closing(DnsClient(servers, port, timeout=2, attempts=1)) as client:
            found = replies(client, 20)
    assert [r.server for r in found if r.fault is None] == ["127.0.0.1"] * 10
    assert [r.server for r in found if r.fault is not None] == ["127.0.0.2"] * 10


def test_a_lost_datagram_is_asked_again_and_counted():
    turn = count()

    def reply(data: bytes) -> bytes | None:
        return dns_answer(data, "198.18.0.1") if next(turn) else None

    with answering(reply) as port, closing(DnsClient(LOOPBACK, port, timeout=1)) as client:
        (found,) = replies(client, 1)
    assert (found.addresses, found.lost, found.fault) == (("198.18.0.1",), 1, None)


def test_a_question_that_is_never_answered_is_given_up():
    with (
        answering(lambda _: None) as port,
        closing(DnsClient(LOOPBACK, port, timeout=0.05, attempts=3)) as client,
    ):
        (found,) = replies(client, 1)
    assert found.lost == 3
    assert found.fault is not None
    assert found.fault.cause == "timeout"


def test_no_server_is_reported():
    with answering(lambda _: None) as port:
        pass
    with closing(DnsClient(LOOPBACK, port)) as client:
        (found,) = replies(client, 1)
    assert found.fault is not None
    assert found.fault.cause == "refused"


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (lambda q: dns_answer(q, rcode=2), "SERVFAIL"),
        (lambda q: dns_answer(q, rcode=3), "NXDOMAIN"),
        (lambda q: dns_answer(q, rcode=11), "RCODE11"),
        (lambda q: dns_answer(q, flags=0x8600), "truncated"),
        (dns_answer, "no address"),
        (lambda q: q[:2] + b"\x84\x00garbage", "bad answer"),
        (lambda q: q, "bad answer"),
        (lambda _: b"x", "timeout"),  # says not which query it is for
        (lambda q: bytes([q[0] ^ 1, q[1]]) + dns_answer(q, "198.18.0.1")[2:], "timeout"),  # another ID
    ],
)
def test_each_failure_has_its_cause(reply, cause):
    timeout = 0.1 if cause == "timeout" else 30
    with answering(reply) as port, closing(DnsClient(LOOPBACK, port, timeout=timeout, attempts=1)) as client:
        (found,) = replies(client, 1)
    assert found.addresses == ()
    assert found.fault is not None
    assert found.fault.cause == cause
