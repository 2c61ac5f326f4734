"""Throw packets at the answering half, without sockets: `python bench/dns/fuzz.py [COUNT] [SEED]`.

Half are mutations of good queries, half are octets after a good header. Each must be answered as the RFCs
say, or not at all; memory must not grow. A failure prints the packet; add it to tests/unit/test_dns_wire.py.
"""

# ruff: noqa: S101 - a test that runs for long: its assertions are what it is for
from __future__ import annotations

import random
import resource
import sys
import time
from pathlib import Path

import dns.edns
import dns.message

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "unit"))
from dns_support import Local, document

NAMES = (
    "host0.example.com",
    "HOST1.example.com",
    "sub.example.com",
    "x.wild.example.com",
    "www.example.com",
    ".",
)
TYPES = ("A", "AAAA", "ANY", "SOA", "HTTPS", "TXT", "DS", "AXFR")
OPTIONS = (
    (),
    (dns.edns.GenericOption(10, b"12345678"),),
    (dns.edns.ECSOption("198.51.100.0", 24), dns.edns.GenericOption(3, b"")),
)
CLIENTS = ("198.51.100.7", "2001:db8::7")


def seeds() -> list[bytes]:
    """Give queries of every kind."""
    found = []
    for name in NAMES:
        for rtype in TYPES:
            found.append(dns.message.make_query(name, rtype).to_wire())
            found += [
                dns.message.make_query(name, rtype, use_edns=0, options=list(each)).to_wire()
                for each in OPTIONS
            ]
    return found


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


def check(packet: bytes, reply: bytes | None) -> None:
    """Hold a reply to what must be true of every one."""
    if len(packet) < 12 or packet[2] & 0x80:
        assert reply is None
        return
    assert reply is not None
    assert reply[:2] == packet[:2]
    assert reply[2] & 0x80
    assert len(reply) <= 1232
    assert reply[3] & 0xF != 2
    dns.message.from_wire(reply)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    data = document(tell_name=True, tell_version=True)
    data["policies"][0]["match"]["clients"] = ["198.51.100.0/24"]
    data["policies"].insert(
        1, {**data["policies"][0], "name": "rest", "match": data["policies"][1].get("match", {})}
    )
    data["policies"].pop()
    local, good = Local(data), seeds()
    started, early = time.monotonic(), 0
    for number in range(count):
        if number % 2:
            packet = mutated(chance, chance.choice(good))
        else:
            packet = chance.choice(good)[:12] + chance.randbytes(chance.randrange(80))
        try:
            check(packet, local.answer(packet, 1232, chance.choice(CLIENTS)))
        except Exception:
            print(f"seed {seed}, packet {number}: {packet.hex()}")
            raise
        if number == count // 4:
            early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early
    rate = count / (time.monotonic() - started)
    print(f"{count:,} packets, seed {seed}: all well formed; {rate:,.0f}/s; memory grew by {grown:,} KiB")
    assert grown < 4096, "memory grows with what is asked"


if __name__ == "__main__":
    main()
