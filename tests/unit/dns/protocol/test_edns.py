"""EDNS options that do not depend on the question, and the server's name and version."""

from __future__ import annotations

import os
from typing import Any

import dns.edns
import dns.message
import dns.rdataclass
import pytest

from support.dns_document import document
from support.dns_local import Local
from unmoor.dns.protocol import message, siphash
from unmoor.dns.protocol.cookies import Cookies
from unmoor.dns.protocol.edns import EXTENDED_ERROR, KEEPALIVE, NSID

KEY = "e5e973e5a6b2a43f48e7dc849e37bfcf"
CLIENT = bytes.fromhex("2464c4abcf10c957")
LOCAL = Local(document(cookie_secret=KEY, tell_name=True, tell_version=True))
SILENT = Local()


def options(name: str, *sent: tuple[int, bytes], local: Local = LOCAL, **more: Any) -> dict[int, bytes]:
    asked = [dns.edns.GenericOption(code, data) for code, data in sent]
    reply = local.ask(name, use_edns=0, options=asked, **more)
    assert reply.rcode() in (message.NOERROR, message.NXDOMAIN, message.REFUSED)
    return {int(option.otype): option.to_wire() or b"" for option in reply.options}


# The first takes the fast path, the others do not.
NAMES = ["host0.example.com", "txt.example.com", "nothing.example.com", "example.org"]


# -- cookies, RFC 7873 and 9018 --------------------------------------------------------------------------


def test_siphash_of_its_authors() -> None:
    """The example of the SipHash paper, appendix A."""
    key, data, digest = bytes(range(16)), bytes(range(15)), 0xA129CA6149BE45E5.to_bytes(8, "little")
    assert siphash.siphash24(key, data) == siphash.keyed(key)(data) == digest


@pytest.mark.parametrize("size", range(40))
def test_openssl_and_python_agree(size: int) -> None:
    key, data = os.urandom(16), os.urandom(size)
    by_openssl = siphash._by_openssl(key)
    assert by_openssl is not None, "Python's ssl module has an OpenSSL 3 here"
    assert [by_openssl(data), by_openssl(data)] == [siphash.siphash24(key, data)] * 2


def test_cookies_without_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = Cookies(bytes(16)).reply(b"12345678", "198.51.100.7", 1_000_000)
    monkeypatch.setattr(siphash, "_LIBRARY", "libnone.so.0")
    assert siphash._by_openssl(bytes(16)) is None
    assert Cookies(bytes(16)).reply(b"12345678", "198.51.100.7", 1_000_000) == with_it


def test_the_cookie_of_the_rfc() -> None:
    """RFC 9018 appendix A.1."""
    made = Cookies(bytes.fromhex(KEY)).reply(CLIENT, "198.51.100.100", 1559731985)
    assert made == CLIENT + bytes.fromhex("010000005cf79f111f8130c3eee29480")


@pytest.mark.parametrize("name", NAMES)
def test_a_client_gets_a_cookie_and_keeps_it(name: str) -> None:
    made = options(name, (10, CLIENT))[10]
    assert made[:8] == CLIENT
    assert len(made) == 24
    assert options(name, (10, made))[10] == made
    assert options(name, (10, made), address="198.51.100.1")[10] != made


@pytest.mark.parametrize("address", ["198.51.100.1", "2001:db8::1"])
def test_cookies_age(address: str) -> None:
    jar, now = Cookies(bytes.fromhex(KEY)), 2_000_000_000
    made = jar.reply(CLIENT, address, now)
    for age, kept in ((0, True), (1800, True), (1801, False), (-300, True), (-301, False)):
        assert (jar.reply(made, address, now + age) == made) == kept


def test_cookies_survive_the_year_2106() -> None:
    jar, now = Cookies(bytes.fromhex(KEY)), 2**32 - 1
    made = jar.reply(CLIENT, "198.51.100.1", now)
    assert jar.reply(made, "198.51.100.1", now + 100) == made


@pytest.mark.parametrize(
    "server",
    [bytes(8), bytes(32), b"\2" + bytes(15), bytes.fromhex("010000005cf79f111f8130c3eee29481")],
    ids=["too short for ours", "too long for ours", "version 2", "one bit off"],
)
def test_a_cookie_that_is_not_ours_is_replaced(server: bytes) -> None:
    made = Cookies(bytes.fromhex(KEY)).reply(CLIENT + server, "198.51.100.100", 1559731985)
    assert made == CLIENT + bytes.fromhex("010000005cf79f111f8130c3eee29480")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0, 7, 9, 15, 41, 100])
def test_a_cookie_of_no_known_length_is_malformed(name: str, size: int) -> None:
    reply = LOCAL.ask(name, use_edns=0, options=[dns.edns.GenericOption(10, bytes(size))])
    assert reply.rcode() == message.FORMERR


def test_two_cookies_are_malformed() -> None:
    option = dns.edns.GenericOption(10, CLIENT)
    assert LOCAL.ask("host0.example.com", use_edns=0, options=[option, option]).rcode() == message.FORMERR


def test_a_query_for_a_cookie_alone() -> None:
    """RFC 7873 section 5.4: no question."""
    query = dns.message.Message(id=7)
    query.use_edns(0, options=[dns.edns.GenericOption(10, CLIENT)])
    packet = LOCAL.answer(query.to_wire(), 1232, "127.0.0.1")
    assert packet is not None
    reply = dns.message.from_wire(packet)
    assert reply.rcode() == message.NOERROR
    assert not reply.question
    assert (reply.options[0].to_wire() or b"")[:8] == CLIENT
    query.use_edns(0)
    packet = LOCAL.answer(query.to_wire(), 1232, "127.0.0.1")
    assert packet is not None
    assert packet[3] & 0xF == message.FORMERR


def test_without_a_secret_workers_share_one_of_their_own() -> None:
    one, other = Local(secret=b"sixteen octets! "), Local(secret=b"sixteen octets! ")
    made = options("host0.example.com", (10, CLIENT), local=one)[10]
    assert options("host0.example.com", (10, made), local=other)[10] == made
    assert options("host0.example.com", (10, made))[10] != made


# -- NSID, RFC 5001; CHAOS names, RFC 4892 ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nsid_names_the_edge_if_it_may(name: str) -> None:
    assert options(name, (NSID, b""))[NSID] == b"edge1"
    assert NSID not in options(name)
    assert NSID not in options(name, (NSID, b""), local=SILENT)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("id.server", "edge1"),
        ("HOSTNAME.bind", "edge1"),
        ("version.server", "unmoor"),
        ("version.bind", "unmoor"),
    ],
)
def test_chaos(name: str, text: str) -> None:
    reply = LOCAL.ask(name, "TXT", rdclass=dns.rdataclass.CHAOS)
    assert reply.rcode() == message.NOERROR
    assert reply.answer[0].rdclass == dns.rdataclass.CHAOS
    assert reply.answer[0][0].strings[0].decode().startswith(text)
    assert SILENT.ask(name, "TXT", rdclass=dns.rdataclass.CHAOS).rcode() == message.REFUSED
    assert LOCAL.ask(name, "A", rdclass=dns.rdataclass.CHAOS).rcode() == message.REFUSED


# -- TCP keepalive, RFC 7828; extended errors, RFC 8914 --------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_keepalive_over_tcp_only(name: str) -> None:
    assert options(name, (KEEPALIVE, b""), limit=message.TCP_SIZE)[KEEPALIVE] == (150).to_bytes(2, "big")
    assert KEEPALIVE not in options(name, (KEEPALIVE, b""))
    assert KEEPALIVE not in options(name, limit=message.TCP_SIZE)
    wrong = [dns.edns.GenericOption(KEEPALIVE, b"\0\1")]
    assert LOCAL.ask(name, limit=message.TCP_SIZE, use_edns=0, options=wrong).rcode() == message.FORMERR


def test_a_refusal_has_its_reason() -> None:
    assert options("example.org")[EXTENDED_ERROR] == b"\0\x14"
    assert EXTENDED_ERROR not in options("host0.example.com")


# -- the hot path takes options along --------------------------------------------------------------------


def test_options_do_not_slow_down_a_hostname(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: bytes) -> None:
        raise AssertionError("the careful path was taken")

    monkeypatch.setattr(message, "parse", refuse)
    assert options("host0.example.com", (10, CLIENT), (NSID, b""), (65001, b"\0\0\x29"))[10][:8] == CLIENT


def test_octets_of_an_opt_record_in_odd_places() -> None:
    """The fast path searches for the start of OPT; a name or an option may contain the same octets."""
    for name in (rb"\000\000\041.example.com", rb"host0\000\000\041.example.com"):
        assert LOCAL.ask(name.decode(), use_edns=0).rcode() == message.NXDOMAIN
    assert options("host0.example.com", (65001, b"\0\0\x29\4\xd0\0\0\0\0\0\0")) == {}
