"""The first packets of a fuzzer: good queries of every kind, and known kinds of malformed ones."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from itertools import product

import dns.edns
import dns.message
import dns.opcode
import dns.tsig

NAMES = (
    "host0.example.com",
    "HOST1.eXample.com",
    "biz.example.com",
    "x.shop.example.com",
    "sub.example.com",
    "deep.sub.example.com",
    "y.wild.example.com",
    "www.example.com",
    "loop1.example.com",
    "a.old.example.com",
    "b.ent.example.com",
    "big.example.com",
    "nothing.example.com",
    "example.com",
    "p0.plain.example",
    "1.0.18.198.in-addr.arpa",
    "other.example.org",
    ".",
)
TYPES = ("A", "AAAA", "ANY", "SOA", "HTTPS", "SVCB", "TXT", "DS", "PTR", "AXFR", "TYPE65280")
OPTIONS: dict[str, tuple[dns.edns.Option, ...]] = {
    "cookie": (dns.edns.GenericOption(10, b"12345678"),),
    "cookie of ours, wrong": (dns.edns.GenericOption(10, b"12345678" + b"\1\0\0\0" + bytes(12)),),
    "cookie too short": (dns.edns.GenericOption(10, b"1234567"),),
    "subnet near": (dns.edns.ECSOption("198.51.100.0", 24),),
    "subnet of ipv6": (dns.edns.ECSOption("2001:db8::", 56),),
    "subnet of nobody": (dns.edns.ECSOption("0.0.0.0", 0),),
    "subnet malformed": (dns.edns.GenericOption(8, b"\0\1\x18\0\xc6\x33\x64\xff"),),
    "nsid, keepalive, padding": tuple(dns.edns.GenericOption(code, b"") for code in (3, 11, 12)),
    "keepalive with a time": (dns.edns.GenericOption(11, b"\0\5"),),
    "two cookies": (dns.edns.GenericOption(10, b"12345678"),) * 2,
}
#: Opcodes, classes and types that do not exist or are not for queries (RFC 8906 section 8, IANA registries).
OPCODES, CLASSES, ODD_TYPES = range(1, 16), (0, 3, 4, 254, 255), (0, 41, 128, 249, 250, 251, 253, 254, 65535)

ID = b"\x12\x34"
QUESTION = b"\5host0\7example\3com\0\0\1\0\1"
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
RECORD = b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4\xc6\x12\0\1"
#: TSIG (RFC 8945) and SIG(0) (RFC 2931), each with a signature that is none.
TSIG = (
    b"\3key\0\0\xfa\0\xff\0\0\0\0\0\x3a\x0bhmac-sha256\0" + bytes(6) + b"\1\x2c\0\x20" + bytes(32) + bytes(6)
)
SIG0 = b"\0\0\x18\0\xff\0\0\0\0\0\x13\0\0\5\0" + bytes(14) + b"\0"


def _header(flags: int, *counts: int) -> bytes:
    return ID + struct.pack("!5H", flags, *counts)


def good() -> Iterator[tuple[str, bytes]]:
    """Queries that get an answer, with descriptions."""
    for name, rtype in product(NAMES, TYPES):
        yield f"{name} {rtype}", dns.message.make_query(name, rtype, id=1).to_wire()
    for name, (what, options) in product(NAMES[:5], OPTIONS.items()):
        query = dns.message.make_query(name, "A", id=1, use_edns=0, options=list(options))
        yield f"{name}, {what}", query.to_wire()
    for version, payload, flags in product((0, 1, 255), (0, 512, 65535), (0, 0x8000, 0xFFFF)):
        query = dns.message.make_query(
            NAMES[0], "A", id=1, use_edns=version, payload=payload, ednsflags=flags
        )
        yield f"EDNS version {version}, size {payload}, flags {flags:x}", query.to_wire()
    yield from notifies()
    for name, edns in product(NAMES[:5], (False, 0)):
        query = dns.message.make_query(name, "A", id=1, use_edns=edns)
        query.use_tsig(dns.tsig.Key("key.example.", b"sixteen octets of"))
        yield f"{name}, signed{'' if edns is False else ', EDNS'}", query.to_wire()
    for name in ("id.server", "version.bind", "hostname.bind"):
        yield name, dns.message.make_query(name, "TXT", "CH", id=1).to_wire()


def notifies() -> Iterator[tuple[str, bytes]]:
    """NOTIFY messages (RFC 1996) for zones with a primary, with one that signs, and with none."""
    for zone, signed in product(("example.com", "plain.example", "elsewhere.example"), (False, True)):
        notify = dns.message.make_query(zone, "SOA", id=1)
        notify.set_opcode(dns.opcode.NOTIFY)
        if signed:
            notify.use_tsig(dns.tsig.Key("key.example.", b"sixteen octets of"))
        yield f"NOTIFY for {zone}, {'signed' if signed else 'unsigned'}", notify.to_wire()


def odd() -> Iterator[tuple[str, bytes]]:
    """Packets that get an error or no reply."""
    for opcode in OPCODES:
        yield f"opcode {opcode}", _header(opcode << 11 | 0x100, 1, 0, 0, 0) + QUESTION
    for qclass in CLASSES:
        yield f"class {qclass}", _header(0, 1, 0, 0, 0) + QUESTION[:-2] + struct.pack("!H", qclass)
    for qtype in ODD_TYPES:
        yield f"type {qtype}", _header(0, 1, 0, 0, 0) + QUESTION[:-4] + struct.pack("!2H", qtype, 1)
    for flags in (0x8000, 0x8180, 0xFFFF, 0x0040, 0x0200, 0x0400, 0x000F):
        yield f"flags {flags:04x}", _header(flags, 1, 0, 0, 0) + QUESTION
    for at, count in product(range(4), (0, 2, 255, 65535)):
        counts = [1, 0, 0, 1]
        counts[at] = count
        yield f"counts {counts}", _header(0, *counts) + QUESTION + OPT
    loops = {
        "itself": b"\xc0\x0c",
        "the header": b"\xc0\0",
        "the end": b"\xc0\xff",
        "in a label": b"\1\xc0\xc0\x0c",
    }
    for what, name in loops.items():
        yield f"a pointer to {what}", _header(0, 1, 0, 0, 0) + name + b"\0\1\0\1"
        yield (
            f"the same in the additional section: {what}",
            (_header(0, 1, 0, 0, 1) + QUESTION + name + OPT[1:]),
        )
    labels = {
        "63": b"\x3f" + b"x" * 63,
        "64": b"\x40" + b"x" * 64,
        "type 10": b"\x80x",
        "255 of them": b"\1x" * 255,
    }
    for what, label in labels.items():
        for times in (1, 4):
            yield f"labels: {what}, {times} times", _header(0, 1, 0, 0, 0) + label * times + b"\0\0\1\0\1"
    yield "OPT twice", _header(0, 1, 0, 0, 2) + QUESTION + OPT + OPT
    yield "OPT as an answer", _header(0, 1, 1, 0, 0) + QUESTION + OPT
    yield "OPT as an authority", _header(0, 1, 0, 1, 0) + QUESTION + OPT
    yield "OPT before a record", _header(0, 1, 0, 0, 2) + QUESTION + OPT + RECORD
    yield "OPT with an owner", _header(0, 1, 0, 0, 1) + QUESTION + b"\1x" + OPT
    yield "OPT longer than it is", _header(0, 1, 0, 0, 1) + QUESTION + OPT[:-1] + b"\xff"
    yield "OPT in the name", _header(0, 1, 0, 0, 1) + b"\6\0\0\x29\0\0\0" + QUESTION + OPT
    yield "TSIG", _header(0, 1, 0, 0, 1) + QUESTION + TSIG
    yield "OPT, TSIG", _header(0, 1, 0, 0, 2) + QUESTION + OPT + TSIG
    yield "TSIG before OPT", _header(0, 1, 0, 0, 2) + QUESTION + TSIG + OPT
    yield "SIG(0)", _header(0, 1, 0, 0, 1) + QUESTION + SIG0
    yield "IXFR", _header(0, 1, 0, 1, 0) + QUESTION[:-4] + b"\0\xfb\0\1" + RECORD
    yield "NOTIFY", _header(0x2400, 1, 1, 0, 0) + b"\7example\3com\0\0\6\0\1" + RECORD
    for what, packet in notifies():
        yield f"{what}, one octet more", packet + b"\0"
        yield f"{what}, another signature", packet[:-7] + b"\xff" + packet[-6:]
    yield "UPDATE", _header(0x2800, 1, 0, 1, 0) + b"\7example\3com\0\0\6\0\1" + RECORD
    yield "octets behind", _header(0, 1, 0, 0, 0) + QUESTION + b"behind"
    yield "a cookie and no question", _header(0, 0, 0, 0, 1) + OPT[:-1] + b"\x0c\0\x0a\0\x0812345678"
    chance = random.Random(1)
    for size in (0, 1, 11, 12, 13, 40, 300, 512, 1500, 4096):
        yield f"{size} octets of chance", chance.randbytes(size)
        yield f"{size} octets of chance behind a header", _header(0, 1, 0, 0, 1) + chance.randbytes(size)


def mutated(chance: random.Random, packet: bytes) -> bytes:
    """Change, cut out, double or add some octets."""
    data = bytearray(packet)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        what = chance.randrange(5)
        if what == 0 and at < len(data):
            data[at] = chance.choice((0, 1, 0x29, 0x3F, 0x40, 0xC0, 0xFF, chance.randrange(256)))
        elif what == 1:
            del data[at : at + chance.randint(1, 8)]
        elif what == 2:
            data[at:at] = data[at : at + chance.randint(1, 30)]
        elif what == 3:
            data[at:at] = chance.randbytes(chance.randint(1, 8))
        elif at < len(data):
            data[at] ^= 1 << chance.randrange(8)
    return bytes(data)
