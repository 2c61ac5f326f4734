"""Signed queries (RFC 8945): good ones get signed answers, others get NOTAUTH and the reason."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.tsig
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.dns_document import document
from support.dns_local import Local
from support.dns_primary import SECRET
from support.dns_server import Running, running
from unmoor.dns.protocol import message

ALGORITHMS = ("hmac-sha1", "hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512")
# One of them below the zone: dnspython compresses its name.
KEYS = {f"{algorithm}.example.com": {"algorithm": algorithm, "secret": SECRET} for algorithm in ALGORITHMS}
KEYS["Transfer.Key"] = {"algorithm": "hmac-sha256", "secret": SECRET}
KEY = dns.tsig.Key("transfer.key", SECRET, "hmac-sha256")
LOCAL = Local(document(tsig_keys=KEYS))

BADSIG, BADKEY, BADTIME, BADTRUNC = 16, 17, 18, 22


def signed(
    name: str = "host0.example.com", rtype: str = "A", key: dns.tsig.Key = KEY, **more: Any
) -> dns.message.Message:
    query = dns.message.make_query(name, rtype, **more)
    query.flags = 0
    query.use_tsig(key, algorithm=key.algorithm)
    return query


def written(query: dns.message.Message, change: Callable[[bytearray], None] = lambda _: None) -> bytes:
    packet = bytearray(query.to_wire())
    change(packet)
    return bytes(packet)


def ask(packet: bytes, limit: int = 1232) -> bytes:
    reply = LOCAL.answer(packet, limit, "127.0.0.1")
    assert reply is not None
    return reply


def error_of(reply: bytes) -> tuple[int, int, int, bytes]:
    """The code, the TSIG error, the MAC's size, and the other data."""
    message = dns.message.from_wire(reply, keyring=False)
    assert message.tsig is not None
    found = message.tsig[0]
    assert message.id == found.original_id
    assert not message.answer + message.authority
    return int(message.rcode()), int(found.error), len(found.mac), found.other


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("dns"), workers=1, tsig_keys=KEYS) as found:
        yield found


@pytest.mark.parametrize("over", [dns.query.udp, dns.query.tcp])
@pytest.mark.parametrize("name", KEYS)
def test_a_good_signature_is_answered_with_one(
    server: Running, name: str, over: Callable[..., dns.message.Message]
) -> None:
    """Section 5.3. dnspython verifies the reply, and that it belongs to this request."""
    key = dns.tsig.Key(name.lower(), SECRET, KEYS[name]["algorithm"])
    for question in (("host0.example.com", "A"), ("txt.example.com", "TXT"), ("nothing.example.com", "A")):
        for edns in (False, 0):
            reply = over(signed(*question, key=key, use_edns=edns), "127.0.0.1", 10, server.port)
            assert reply.had_tsig
            assert reply.flags & dns.flags.AA
            assert reply.edns == (-1 if edns is False else 0)
            assert bool(reply.answer) == ("nothing" not in question[0])


def test_a_transfer_is_refused_with_a_signature(server: Running) -> None:
    reply = dns.query.tcp(signed("example.com", "AXFR"), "127.0.0.1", 10, server.port)
    assert reply.rcode() == dns.rcode.REFUSED
    assert reply.had_tsig


@pytest.mark.parametrize(
    ("key", "peer_error"),
    [
        (dns.tsig.Key("other.key", SECRET, "hmac-sha256"), dns.tsig.PeerBadKey),
        (dns.tsig.Key("transfer.key", SECRET, "hmac-sha512"), dns.tsig.PeerBadKey),
        (dns.tsig.Key("transfer.key", "AAAA" + SECRET[4:], "hmac-sha256"), dns.tsig.PeerBadSignature),
    ],
    ids=["unknown name", "another algorithm", "another secret"],
)
@pytest.mark.parametrize("over", [dns.query.udp, dns.query.tcp])
def test_what_a_client_sees_of_an_error(
    server: Running, key: dns.tsig.Key, peer_error: type[Exception], over: Callable[..., dns.message.Message]
) -> None:
    with pytest.raises(peer_error):
        over(signed(key=key), "127.0.0.1", 10, server.port)


def test_an_unknown_key_and_a_wrong_mac_get_an_unsigned_error() -> None:
    """Sections 5.2.1, 5.2.2 and 5.3.2."""
    unknown = ask(written(signed(key=dns.tsig.Key("other.key", SECRET, "hmac-sha256"))))
    assert error_of(unknown) == (message.NOTAUTH, BADKEY, 0, b"")
    wrong = ask(written(signed(key=dns.tsig.Key("transfer.key", "AAAA" + SECRET[4:], "hmac-sha256"))))
    assert error_of(wrong) == (message.NOTAUTH, BADSIG, 0, b"")


@pytest.mark.parametrize("off", [-1000, 1000])
def test_a_clock_that_is_off_gets_ours_and_a_signature(off: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 5.2.3."""
    query = signed()
    now = time.time()
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: now + off)
        packet = written(query)
    reply = ask(packet)
    rcode, error, size, other = error_of(reply)
    assert (rcode, error, size) == (message.NOTAUTH, BADTIME, 32)
    assert abs(int.from_bytes(other, "big") - now) < 60
    with pytest.raises(dns.tsig.PeerBadTime):
        dns.message.from_wire(reply, keyring=query.keyring, request_mac=query.mac)
    assert mac_is_right(reply, query)


def mac_is_right(reply: bytes, query: Any) -> bool:
    """Compute the MAC with dnspython's functions, since its verification checks the error before the MAC."""
    message: Any = dns.message.from_wire(reply, keyring=False)
    found = message.tsig[0]
    context = dns.tsig.get_context(KEY)  # type: ignore[no-untyped-call] # dnspython's
    context.update(struct.pack("!H", len(query.mac)) + query.mac)
    start = len(reply) - len(message.tsig.to_rdataset()[0].to_wire()) - len(message.tsig.name.to_wire()) - 10
    context.update(reply[:10] + struct.pack("!H", int.from_bytes(reply[10:12], "big") - 1) + reply[12:start])
    context.update(message.tsig.name.canonicalize().to_wire() + b"\0\xff\0\0\0\0")
    context.update(found.algorithm.canonicalize().to_wire())
    context.update(struct.pack("!HIH", 0, found.time_signed, found.fudge))
    context.update(struct.pack("!2H", found.error, len(found.other)) + found.other)
    return bool(context.sign() == found.mac)


def with_mac(packet: bytes, size: int) -> bytes:
    """The same packet with a MAC of this length; dnspython's rdata ends with MAC, id, error, other."""
    end = len(packet) - 6
    head, mac = packet[: end - 32 - 2], packet[end - 32 : end]
    at = head.rindex(b"\x0bhmac-sha256\0") - 2
    shorter = int.from_bytes(head[at : at + 2], "big") - 32 + size
    head = head[:at] + struct.pack("!H", shorter) + head[at + 2 :]
    return head + struct.pack("!H", size) + (mac + mac)[:size] + packet[end:]


def test_a_mac_that_is_cut_short() -> None:
    """Section 5.2.4: a right but too short MAC."""
    packet = written(signed())
    assert dns.message.from_wire(ask(with_mac(packet, 32)), keyring=False).answer
    for size in (16, 31):
        assert error_of(ask(with_mac(packet, size)))[:3] == (message.NOTAUTH, BADTRUNC, 32)
    for size in (0, 9, 15, 33, 64):
        assert ask(with_mac(packet, size))[3] & 15 == message.FORMERR


#: Where the record begins, and the size of its data, in the output of `signed`.
START, SIZE = 35, 35 + len(b"\x08transfer\x03key\0\0\xfa\0\xff\0\0\0\0")


def replaced(packet: bytes, at: int, octets: bytes) -> bytes:
    return packet[:at] + octets + packet[at + len(octets) :]


MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "class IN": lambda packet: replaced(packet, SIZE - 6, b"\0\1"),
    "a TTL": lambda packet: replaced(packet, SIZE - 1, b"\1"),
    "no data": lambda packet: packet[:SIZE] + b"\0\0",
    "a label too long": lambda packet: replaced(packet, SIZE + 2, b"\x4b"),
    "a pointer as algorithm": lambda packet: replaced(packet, SIZE + 2, b"\xc0\x0c"),
    "octets behind its data": lambda packet: packet + b"\0",
    "an octet more of data": lambda packet: (
        replaced(packet, SIZE + 1, bytes((packet[SIZE + 1] + 1,))) + b"\0"
    ),
    "other data cut off": lambda packet: replaced(packet, len(packet) - 1, b"\6"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_record_that_is_malformed(case: str) -> None:
    packet = written(signed())
    assert packet[SIZE - 8 : SIZE - 4] == b"\0\xfa\0\xff"
    assert ask(MALFORMED[case](packet)) == packet[:2] + b"\x80\1" + bytes(8)


def test_it_is_the_last_record() -> None:
    """Section 5.1; two records are as invalid."""
    packet = written(signed())
    opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
    for more in (opt, packet[START:]):
        assert ask(packet[:11] + b"\2" + packet[12:] + more)[:4] == packet[:2] + b"\x80\1"


@pytest.mark.parametrize(("rtype", "more"), [("TXT", {}), ("TXT", {"use_edns": 0, "payload": 512})])
def test_a_reply_has_room_for_its_signature(rtype: str, more: Any) -> None:
    """Section 5.3: TC, the question and the signature; over TCP all of it."""
    query = signed("big.example.com", rtype, **more)
    reply = ask(written(query))
    parsed = dns.message.from_wire(reply, keyring=query.keyring, request_mac=query.mac)
    assert parsed.flags & dns.flags.TC
    assert parsed.had_tsig
    assert not parsed.answer
    assert len(reply) <= 512
    whole = dns.message.from_wire(
        ask(written(query), message.TCP_SIZE), keyring=query.keyring, request_mac=query.mac
    )
    assert whole.answer


def test_the_limit_counts_the_signature() -> None:
    """Replies of every size around the limit: none is longer, and each is whole or truncated."""
    data = document(tsig_keys=KEYS)
    data["zones"][0]["records"] += "".join(f"t{n} TXT {'x' * 150} {'x' * n}\n" for n in range(100, 250))
    local = Local(data)
    seen = set()
    for size in range(100, 250):
        query = signed(f"t{size}.example.com", "TXT")
        reply = local.answer(query.to_wire(), 1232, "127.0.0.1")
        assert reply is not None
        assert len(reply) <= 512
        message = dns.message.from_wire(reply, keyring=query.keyring, request_mac=query.mac)
        seen.add(bool(message.flags & dns.flags.TC))
        assert bool(message.answer) != bool(message.flags & dns.flags.TC)
    assert seen == {False, True}


@example(0, 0, b"")
@given(st.integers(0, 150), st.integers(0, 150), st.binary(max_size=8))
def test_whatever_is_changed_on_the_way_is_noticed(start: int, stop: int, noise: bytes) -> None:
    """Octets changed, cut out or put in: if the reply is signed as good, nothing was changed but the id."""
    packet = written(signed())
    spoilt = packet[:start] + noise + packet[stop:]
    reply = LOCAL.answer(spoilt, 1232, "127.0.0.1")
    if reply is None or spoilt[2:] == packet[2:]:
        return
    message = dns.message.from_wire(reply, keyring=False)
    # The MAC covers names in lower case; a record that is damaged beyond recognition leaves no signature.
    if message.tsig is not None and message.tsig[0].error == 0:
        assert spoilt[2:].lower() == packet[2:].lower()


def test_an_error_is_no_longer_than_what_was_asked() -> None:
    """Replies do not amplify a flood with forged addresses: long names of keys and algorithms appear once."""
    long = ".".join(["x" * 63] * 3) + "." + "y" * 55
    for key in (
        dns.tsig.Key(long, SECRET, "hmac-sha256"),
        dns.tsig.Key("transfer.key", "AAAA" + SECRET[4:], "hmac-sha256"),
    ):
        for edns in (False, 0):
            packet = written(signed(f"{long}.example.com"[-250:].lstrip("."), key=key, use_edns=edns))
            assert len(ask(packet)) <= len(packet)


def test_without_keys_every_signature_is_of_an_unknown_one() -> None:
    packet = written(signed())
    reply = Local().answer(packet, 1232, "127.0.0.1")
    assert reply is not None
    assert error_of(reply) == (message.NOTAUTH, BADKEY, 0, b"")


def test_pipelined_requests_are_each_signed_by_themselves(server: Running) -> None:
    queries = [signed(f"host{number}.example.com") for number in range(5)]
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        for query in queries:
            packet = query.to_wire()
            sock.sendall(struct.pack("!H", len(packet)) + packet)
        with sock.makefile("rb") as stream:
            for query in queries:
                reply = stream.read(int.from_bytes(stream.read(2), "big"))
                found = dns.message.from_wire(reply, keyring=query.keyring, request_mac=query.mac)
                assert found.id == query.id
                assert found.had_tsig
