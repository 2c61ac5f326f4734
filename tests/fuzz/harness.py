"""Answer packets without sockets, and check each reply.

Each packet is parsed, answered and written as for each transport. All pools have one address per family, so
the replies of the fast path and of the resolver must be identical.
"""

from __future__ import annotations

import base64
import struct
from ipaddress import IPv4Address, IPv6Address

import dns.message
import dns.tsig

from support.dns_document import document
from support.dns_local import Local
from unmoor.dns.answer.fast_path import _slow_path, answerer
from unmoor.dns.answer.rate_limit import Limiter, counted, shared_table
from unmoor.dns.protocol import message, names
from unmoor.dns.protocol.edns import Options
from unmoor.dns.transfer.notify import NotifyHandler
from unmoor.dns.transfer.transfer import Source

HEADER = 12
REVERSE = "$TTL 600\n@ SOA ns.example.net. h.example.net. 1 2 3 4 5\n@ NS ns.example.net.\n"

#: Where a packet comes from, and the most octets that its reply may have.
WAYS = (
    ("198.51.100.7", message.EDNS_SIZE),
    ("2001:db8::7", message.EDNS_SIZE),
    ("203.0.113.7", message.TCP_SIZE),
)


#: Signs queries, and the NOTIFYs of a primary of plain.example.
KEY = dns.tsig.Key("key.example.", b"sixteen octets of", "hmac-sha256")


def everything() -> Local:
    """Serve a document that uses all that changes replies."""
    data = document(tell_name=True, tell_version=True, cookie_secret="0f" * 16, sticky_key="secret")
    data["tsig_keys"] = {"key.example": {"secret": base64.b64encode(KEY.secret).decode()}}
    data["pools"] = {
        "free": {
            "ipv4": ["198.18.0.1/32"],
            "ipv6": ["2001:db8::1/128"],
            "ptr": "ip-{address}.pool.example.com",
        },
        "near": {"ipv4": ["198.18.0.2/32"]},
        "business": {"ipv4": ["198.18.0.3/32"], "ipv6": ["2001:db8::3/128"]},
    }
    free = {"tags": {"account_type": "free"}}
    https = {"alpn": ["h3", "h2"], "port": 8443}
    data["policies"] = [
        {
            "name": "near",
            "match": free | {"clients": ["198.51.100.0/25"]},
            "answer": {"pool": "near", "ttl": 5},
        },
        {
            "name": "free",
            "match": free,
            "answer": {"pool": "free", "ttl": 30, "https": https, "svcb": {"alpn": ["dot"]}},
        },
        {
            "name": "rest",
            "answer": {"pool": "business", "ttl": 60, "strategy": "sticky", "sticky_by": "client"},
        },
    ]
    data["zones"][0]["hostnames"].append({"tags": {"account_type": "free"}, "names": ["*.shop"]})
    data["zones"] += [
        {"name": "18.198.in-addr.arpa", "records": REVERSE},
        {"name": "8.b.d.0.1.0.0.2.ip6.arpa", "records": REVERSE},
        {
            "name": "plain.example",
            "records": "$TTL 60\n@ SOA ns.example.net. h 1 2 3 4 5\n@ NS ns.example.net.\n",
            "hostnames": [{"tags": {"account_type": "paid"}, "names": [f"p{at}" for at in range(5)]}],
        },
    ]
    return Local(data)


class Tireless(NotifyHandler):
    """Accepts every NOTIFY, however many come in a second."""

    def _pass_on(self, apex: bytes, address: str) -> bool:
        return True


NOTICES = Tireless(
    {
        names.from_text("example.com"): (Source(IPv4Address(WAYS[0][0]), 53, None),),
        names.from_text("plain.example"): (Source(IPv6Address(WAYS[1][0]), 53, KEY),),
    },
    None,
)
LOCAL = everything()
OPTIONS = Options(LOCAL.snapshot.document)
ANSWER = answerer(LOCAL.snapshot, LOCAL.counts, OPTIONS, NOTICES)
CAREFUL = _slow_path(LOCAL.snapshot, LOCAL.counts, OPTIONS, NOTICES)
#: Over the limit from the first packet on: every other one is truncated, the rest get silence.
LIMITER = Limiter(counted(0, shared_table()), OPTIONS, LOCAL.counts)
LIMITED = answerer(LOCAL.snapshot, LOCAL.counts, OPTIONS, NOTICES, LIMITER)


def one(packet: bytes, thorough: bool = False) -> None:
    """Answer a packet over each transport. Raises AssertionError, or what answering raised.

    With `thorough`, dnspython reads the replies as well.
    """
    for address, limit in WAYS:
        reply = ANSWER(packet, limit, address)
        if not message.is_notify(packet) and reply != CAREFUL(packet, limit, address):
            # A minute may have passed in between, which changes the time in a cookie.
            again = ANSWER(packet, limit, address)
            assert again == CAREFUL(packet, limit, address), "the two paths differ"
        check(packet, reply, limit, thorough)
    refused = LIMITED(packet, message.EDNS_SIZE, WAYS[0][0])
    assert refused is None or len(refused) <= max(len(packet), HEADER) + 200


def check(packet: bytes, reply: bytes | None, limit: int, thorough: bool) -> None:
    """Check what must hold for every reply, and for silence."""
    if len(packet) < HEADER or packet[2] & 0x80:
        assert reply is None, "an answer to a response, or to less than a header (RFC 1035 section 7.3)"
        return
    assert reply is not None, "silence to a query"
    assert reply[:2] == packet[:2], "another id"
    assert reply[2] & 0x80, "no response"
    assert not (reply[2] ^ packet[2]) & 0x78, "another opcode"
    # RD is a flag of queries; other operations have no recursion.
    assert reply[2] & 1 == (0 if packet[2] & 0x78 else packet[2] & 1), "another RD"
    assert reply[3] & 0xF != message.SERVFAIL, "a defect of ours"
    assert not reply[3] & 0xF0, "RA, Z, AD or CD"
    assert len(reply) <= limit, "longer than may be sent"
    assert well_formed(reply, packet), "malformed"
    if thorough:
        dns.message.from_wire(reply, keyring=False)
        # The reply to a bad signature repeats its names, whatever their length.
        takes = max(_what_it_takes(packet), len(packet) if reply[3] & 0xF == message.NOTAUTH else 0)
        assert limit == message.TCP_SIZE or len(reply) <= takes, "longer than the asker takes"


def _what_it_takes(packet: bytes) -> int:
    """Octets that the sender accepts over UDP, as another parser reads them."""
    try:
        query = dns.message.from_wire(packet, keyring=False)
    except Exception:  # not even a message: a bare error
        return message.CLASSIC_SIZE
    return max(message.CLASSIC_SIZE, query.payload) if query.edns >= 0 else message.CLASSIC_SIZE


def well_formed(reply: bytes, packet: bytes) -> bool:
    """Check that counts and lengths are right, names end and point backwards, and the question is echoed."""
    questions, *counts = struct.unpack_from("!4H", reply, 4)
    at = HEADER
    for _ in range(questions):
        at = _after_name(reply, at) + 4
    if reply[HEADER:at] != packet[HEADER:at]:
        return False
    for _ in range(sum(counts)):
        at = _after_name(reply, at)
        at += 10 + struct.unpack_from("!H", reply, at + 8)[0]
    return at == len(reply)


def _after_name(reply: bytes, at: int) -> int:
    end, total = 0, 0
    while length := reply[at]:
        if length >= 0xC0:
            target = struct.unpack_from("!H", reply, at)[0] & 0x3FFF
            assert HEADER <= target < at, "a pointer that does not point backwards"
            end, at = end or at + 2, target
            continue
        assert length < 64, "a label of an unknown type"
        at += 1 + length
        total += 1 + length
        assert total < 255, "a name that is too long"
    return end or at + 1
