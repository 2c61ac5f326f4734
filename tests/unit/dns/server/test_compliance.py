"""Replies of a conforming server to unusual but legal queries, over real sockets.

The cases are those of RFC 8906 section 8 and their neighbours: header flags and opcodes (RFC 1035), EDNS(0)
(RFC 6891) and its options. Each is one packet, written octet by octet, asked over UDP and over TCP.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import dns.message
import pytest

from support.dns_server import Running, running

QR, AA, TC, RD, RA, Z, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0040, 0x0020, 0x0010
NOERROR, FORMERR, NOTIMP, REFUSED, NOTAUTH, BADVERS = 0, 1, 4, 5, 9, 16
A, SOA, TXT, DNSKEY, MAILB, AXFR, ANY = 1, 6, 16, 48, 253, 252, 255
NSID, ECS, EXPIRE, COOKIE, KEEPALIVE, PADDING, EDE = 3, 8, 9, 10, 11, 12, 15
DO = 0x8000

ZONE = b"\7example\3com\0"


def header(
    flags: int, questions: int = 1, answers: int = 0, authority: int = 0, additional: int = 0
) -> bytes:
    return struct.pack("!6H", 0x1234, flags, questions, answers, authority, additional)


def question(name: bytes = ZONE, rtype: int = SOA, rclass: int = 1) -> bytes:
    return name + struct.pack("!2H", rtype, rclass)


def option(code: int, data: bytes = b"") -> bytes:
    return struct.pack("!2H", code, len(data)) + data


def opt(size: int = 1232, version: int = 0, ednsflags: int = 0, options: bytes = b"") -> bytes:
    return b"\0" + struct.pack("!2HBBHH", 41, size, 0, version, ednsflags, len(options)) + options


def query(flags: int = 0, rtype: int = SOA, name: bytes = ZONE, rclass: int = 1) -> bytes:
    return header(flags) + question(name, rtype, rclass)


def edns(flags: int = 0, rtype: int = SOA, name: bytes = ZONE, rclass: int = 1, **more: object) -> bytes:
    return header(flags, additional=1) + question(name, rtype, rclass) + opt(**more)  # type: ignore[arg-type] # by name


@dataclass(frozen=True)
class Expected:
    """`flags` are all of a reply but QR; `answer` its types; `options` their codes, None without OPT."""

    rcode: int = NOERROR
    flags: int = AA
    answer: tuple[int, ...] = (SOA,)
    options: tuple[int, ...] | None = None
    ednsflags: int = 0
    over_tcp: dict[str, object] = field(default_factory=dict)


EMPTY = Expected(answer=())
WITH_OPT = Expected(options=())
BAD_VERSION = Expected(BADVERS, 0, (), ())
TSIG = b"\3key\0\0\xfa\0\xff\0\0\0\0\0\x1d\x0bhmac-sha256\0" + bytes(4) + b"\0\0\1\x2c\0\0\0\1\0\0\0\0"
TSIG = TSIG.replace(b"\0\x1d\x0b", struct.pack("!HB", len(TSIG) - 15, 11))
EVERYTHING = AA | TC | RD | RA | Z | AD | CD

PROBES: dict[str, tuple[bytes, Expected]] = {
    # RFC 8906 section 8.1: the basic protocol
    "plain": (query(), Expected()),
    "unknown type": (query(rtype=1000), EMPTY),
    "unknown type, EDNS": (edns(rtype=1000), Expected(answer=(), options=())),
    "RD is echoed": (query(RD), Expected(flags=AA | RD)),
    "AD is not set (RFC 4035 section 3.1.6)": (query(AD), Expected()),
    "CD is cleared (RFC 4035 section 3.1.6)": (query(CD), Expected()),
    "Z is cleared": (query(Z), Expected()),
    "AA in a query": (query(AA), Expected()),
    "RA in a query": (query(RA), Expected()),
    "TC in a query": (query(TC), Expected()),
    "every flag": (query(EVERYTHING), Expected(flags=AA | RD)),
    "a code in a query": (query(0x000F), Expected()),
    "DNSKEY of an unsigned zone": (
        edns(rtype=DNSKEY, size=512, ednsflags=DO),
        Expected(answer=(), options=(), ednsflags=DO),
    ),
    "another class": (query(rclass=3), Expected(REFUSED, 0, ())),
    "another zone": (query(name=b"\7example\3org\0"), Expected(REFUSED, 0, ())),
    "another zone, EDNS (RFC 8914)": (edns(name=b"\7example\3org\0"), Expected(REFUSED, 0, (), (EDE,))),
    "AXFR": (query(rtype=AXFR), Expected(REFUSED, 0, ())),
    "a meta type": (query(rtype=MAILB), Expected(NOTIMP, 0, ())),
    "ANY (RFC 8482)": (query(rtype=ANY), Expected(answer=(13,))),
    "no question": (header(RD, questions=0), Expected(FORMERR, RD, ())),
    "two questions (RFC 9619)": (header(0, 2) + question() + question(), Expected(FORMERR, 0, ())),
    "octets behind the message": (query() + b"\0", Expected(FORMERR, 0, ())),
    "NOTIFY of a stranger": (query(4 << 11 | AA | RD), Expected(REFUSED, 0, ())),
    "NOTIFY without a question": (header(4 << 11 | RD, 0), Expected(FORMERR, 0, ())),
    # section 8.2: EDNS
    "EDNS": (edns(), WITH_OPT),
    "EDNS, RD": (edns(RD), Expected(flags=AA | RD, options=())),
    "EDNS, every header flag": (edns(EVERYTHING), Expected(flags=AA | RD, options=())),
    "version 1": (edns(version=1), BAD_VERSION),
    "version 255": (edns(version=255), BAD_VERSION),
    "version 1, unknown option": (edns(version=1, options=option(100)), BAD_VERSION),
    "version 1, unknown flag": (edns(version=1, ednsflags=0x40), BAD_VERSION),
    "version 1, DO": (edns(version=1, ednsflags=DO), Expected(BADVERS, 0, (), (), DO)),
    "version 1 of another zone": (edns(version=1, name=b"\7example\3org\0"), BAD_VERSION),
    "unknown option": (edns(options=option(100)), WITH_OPT),
    "unknown option with data": (edns(options=option(65001, bytes(200))), WITH_OPT),
    "unknown flag": (edns(ednsflags=0x40), WITH_OPT),
    "every EDNS flag": (edns(ednsflags=0xFFFF), Expected(options=(), ednsflags=DO)),
    "DO": (edns(ednsflags=DO), Expected(options=(), ednsflags=DO)),
    **{f"payload size {size}": (edns(size=size), WITH_OPT) for size in (0, 512, 1232, 4096, 65535)},
    "truncated, with OPT": (
        edns(rtype=TXT, name=b"\3big" + ZONE, size=512),
        Expected(flags=AA | TC, answer=(), options=(), over_tcp={"flags": AA, "answer": (TXT,)}),
    ),
    "truncated, without": (
        query(rtype=TXT, name=b"\3big" + ZONE),
        Expected(flags=AA | TC, answer=(), over_tcp={"flags": AA, "answer": (TXT,)}),
    ),
    "NSID, which is switched off (RFC 5001)": (edns(options=option(NSID)), WITH_OPT),
    "cookie (RFC 7873)": (edns(options=option(COOKIE, b"12345678")), Expected(options=(COOKIE,))),
    "cookie with an unknown server part": (
        edns(options=option(COOKIE, bytes(24))),
        Expected(options=(COOKIE,)),
    ),
    "cookie of a wrong length": (edns(options=option(COOKIE, b"1234")), Expected(FORMERR, 0, ())),
    "cookie without a question": (
        header(0, 0, additional=1) + opt(options=option(COOKIE, b"12345678")),
        Expected(NOERROR, 0, (), (COOKIE,)),
    ),
    "client subnet of no bits (RFC 7871)": (edns(options=option(ECS, b"\0\1\0\0")), Expected(options=(ECS,))),
    "client subnet": (
        edns(options=option(ECS, b"\0\1\x18\0\xc6\x33\x64")),
        Expected(options=(ECS,)),
    ),
    "client subnet with bits behind it": (
        edns(options=option(ECS, b"\0\1\x17\0\xc6\x33\x65")),
        Expected(FORMERR, 0, ()),
    ),
    "EXPIRE, which is for secondaries (RFC 7314)": (edns(options=option(EXPIRE)), WITH_OPT),
    "padding, which is for encrypted transports (RFC 7830)": (
        edns(options=option(PADDING, bytes(32))),
        WITH_OPT,
    ),
    "keepalive (RFC 7828)": (
        edns(options=option(KEEPALIVE)),
        Expected(options=(), over_tcp={"options": (KEEPALIVE,)}),
    ),
    "several options": (
        edns(
            options=option(COOKIE, b"12345678")
            + option(NSID)
            + option(EXPIRE)
            + option(ECS, b"\0\1\0\0")
            + option(100)
        ),
        Expected(options=(ECS, COOKIE)),
    ),
    "a record beside OPT": (
        header(0, additional=2) + question() + b"\0\0\x10\0\1\0\0\0\0\0\0" + opt(),
        WITH_OPT,
    ),
    "two OPT (RFC 6891 section 6.1.1)": (
        header(0, additional=2) + question() + opt() + opt(),
        Expected(FORMERR, 0, ()),
    ),
    "OPT as a type": (query(rtype=41), Expected(FORMERR, 0, ())),
    "TSIG of an unknown key (RFC 8945)": (
        header(0, additional=1) + question() + TSIG,
        Expected(NOTAUTH, 0, ()),
    ),
    # section 8.1.4: only NOTIMP makes sense, since only the header of the message is understood
    **{
        f"opcode {opcode}, {case}": (packet, Expected(NOTIMP, 0, ()))
        for opcode in (1, 2, 3, 5, *range(6, 16))
        for case, packet in (
            ("nothing but the header", header(opcode << 11, 0)),
            ("every flag", header(opcode << 11 | EVERYTHING, 0)),
            ("a question, EDNS", header(opcode << 11 | RD, additional=1) + question() + opt()),
        )
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("dns"), workers=1) as found:
        yield found


def over_udp(packet: bytes, port: int) -> bytes:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(packet, ("127.0.0.1", port))
        return sock.recv(65535)


def over_tcp(packet: bytes, port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(struct.pack("!H", len(packet)) + packet)
        with sock.makefile("rb") as stream:
            return stream.read(int.from_bytes(stream.read(2), "big"))


@pytest.mark.parametrize("transport", ["UDP", "TCP"])
@pytest.mark.parametrize("probe", PROBES)
def test_probe(server: Running, probe: str, transport: str) -> None:
    packet, expected = PROBES[probe]
    ask = over_tcp if transport == "TCP" else over_udp
    reply = ask(packet, server.port)
    asked, got = (int.from_bytes(each[2:4], "big") for each in (packet, reply))
    message = dns.message.from_wire(reply, keyring=False)
    wanted = vars(expected) | (expected.over_tcp if transport == "TCP" else {})
    found = {
        "rcode": int(message.rcode()),
        "flags": got & 0x07F0,
        "answer": tuple(int(each.rdtype) for each in message.answer),
        "options": tuple(int(each.otype) for each in message.options) if message.edns >= 0 else None,
        "ednsflags": message.ednsflags & 0xFFFF if message.edns >= 0 else 0,
    }
    assert found == {key: wanted[key] for key in found}
    assert reply[:2] == packet[:2]
    assert got & 0xF800 == QR | asked & 0x7800
    assert message.edns <= 0  # ours is version 0, for every version in the query
    if message.question:
        assert reply[12:].startswith(question(message.question[0].name.to_wire() or b"", *_type(packet)))


def _type(packet: bytes) -> tuple[int, int]:
    at = 12
    while packet[at]:
        at += 1 + packet[at]
    rtype, rclass = struct.unpack_from("!2H", packet, at + 1)
    return rtype, rclass


def test_cookie_reply_is_a_whole_one(server: Running) -> None:
    """RFC 9018 section 4: the client's eight octets, and sixteen of ours."""
    message = dns.message.from_wire(over_udp(edns(options=option(COOKIE, b"12345678")), server.port))
    assert message.options[0].client == b"12345678"
    assert len(message.options[0].server) == 16


def test_nothing_answers_a_response(server: Running) -> None:
    """The next reply on the same socket is that to the query behind it."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", server.port))
        sock.send(query(QR))
        sock.send(b"\x43\x21" + query()[2:])
        assert sock.recv(512)[:2] == b"\x43\x21"
