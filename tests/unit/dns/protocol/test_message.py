"""Messages: for any packet, the reply is well formed or there is none."""

from __future__ import annotations

import struct
from typing import Any

import dns.edns
import dns.exception
import dns.message
import dns.name
import dns.rdatatype
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.dns_local import Local
from unmoor.dns.counters.counters import Event
from unmoor.dns.protocol import message, names
from unmoor.dns.protocol.message import Query, Reply, RRset
from unmoor.dns.protocol.names import WireName

LOCAL = Local()
QUESTION = b"\5host0\7example\3com\0\0\1\0\1"
HEADER = b"\x12\x34\0\0\0\1\0\0\0\0\0\0"
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def ask(packet: bytes, limit: int = 1232) -> bytes | None:
    return LOCAL.answer(packet, limit, "127.0.0.1")


def rcode(packet: bytes) -> int:
    reply = ask(packet)
    assert reply is not None
    return reply[3] & 0xF


def header(
    flags: int = 0, questions: int = 1, answers: int = 0, authorities: int = 0, extra: int = 0
) -> bytes:
    return struct.pack("!6H", 0x1234, flags, questions, answers, authorities, extra)


# -- what gets no reply ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(12))
def test_shorter_than_a_header_is_ignored(size: int) -> None:
    before = LOCAL.counts.event(Event.IGNORED)
    assert ask((HEADER + QUESTION)[:size]) is None
    assert LOCAL.counts.event(Event.IGNORED) == before + 1


@pytest.mark.parametrize("flags", [0x8000, 0x8400, 0xFFFF, 0x8005])
def test_responses_are_ignored(flags: int) -> None:
    assert ask(header(flags) + QUESTION) is None


# -- what gets an error ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "expected"), [(32, message.NOERROR), (33, message.FORMERR)])
def test_options_are_bounded(count: int, expected: int) -> None:
    options = b"\xfd\xe9\0\0" * count
    opt = OPT[:-2] + struct.pack("!H", len(options)) + options
    assert rcode(header(extra=1) + QUESTION + opt) == expected


@pytest.mark.parametrize(("count", "expected"), [(16, message.NOERROR), (17, message.FORMERR)])
@pytest.mark.parametrize("section", ["authorities", "extra"])
def test_records_are_bounded(section: str, count: int, expected: int) -> None:
    record = b"\1a\0\0\x10\0\1\0\0\0\0\0\0"
    assert rcode(header(**{section: count}) + QUESTION + record * count) == expected


def test_a_name_ends_after_255_octets() -> None:
    """Also that of a record which is skipped; 127 labels of one octet are 255 octets."""
    owner = b"\1a" * 127 + b"\0"
    assert rcode(header() + owner + b"\0\1\0\1") == message.REFUSED
    assert rcode(header() + b"\1a" + owner + b"\0\1\0\1") == message.FORMERR
    record = b"\0\x10\0\1\0\0\0\0\0\0"
    assert rcode(header(extra=1) + QUESTION + owner + record) == message.NOERROR
    assert rcode(header(extra=1) + QUESTION + b"\1a" + owner + record) == message.FORMERR


@pytest.mark.parametrize("count", [0, 1, 42, 43, 76, 77, 400])
@pytest.mark.parametrize("limit", [512, 1232])
def test_writing_stops_at_the_limit_and_not_before(count: int, limit: int) -> None:
    """An address record takes 16 octets, and the opposite of a set that fits is TC with nothing."""
    rrset = RRset(
        QUESTION[:-4], message.A, 9, tuple((bytes((0, 0, at >> 8, at & 255)),) for at in range(count))
    )
    query = Query(b"\0\1", False, QUESTION, QUESTION[:-4], message.A, message.IN, None)
    octets = message.write(query, Reply(answer=[rrset]), limit)
    size = len(HEADER + QUESTION) + 16 * count
    fits = size <= limit
    assert len(octets) == (size if fits else len(HEADER + QUESTION))
    assert bool(octets[2] & 2) != fits
    assert int.from_bytes(octets[6:8], "big") == count * fits


@pytest.mark.parametrize(
    "packet",
    [
        HEADER,
        header(questions=0),
        header(questions=2) + QUESTION + QUESTION,
        header(answers=1) + QUESTION + OPT,
        HEADER + QUESTION + b"\0",
        HEADER + b"\xc0\x0c\0\1\0\1",
        HEADER + b"\x40abc\0\0\1\0\1",
        HEADER + (b"\x3f" + b"x" * 63) * 4 + b"\0\0\1\0\1",
        header(extra=1) + QUESTION,
        header(extra=1) + QUESTION + OPT[:-1],
        header(extra=1) + QUESTION + OPT + b"\0",
        header(extra=2) + QUESTION + OPT + OPT,
        header(extra=1) + QUESTION + b"\1x" + OPT,
        header(extra=1) + QUESTION + b"\xc0\x0c" + OPT[1:],
        header(extra=1) + QUESTION + OPT[:-1] + b"\3\0\x0a\0",
        header(extra=1) + QUESTION + OPT[:-1] + b"\4\0\x0a\0\1",
        header(authorities=1) + QUESTION + b"\0\0\1",
        header() + QUESTION[:-4] + b"\0\x29\0\1",
    ],
    ids=[
        "no question, count 1",
        "no question",
        "two questions",
        "an answer in a query",
        "one octet more",
        "name points at itself",
        "label type 01",
        "name of 257 octets",
        "OPT missing",
        "OPT cut off",
        "octet after OPT",
        "two OPT",
        "OPT with an owner",
        "OPT with a pointer as owner",
        "option cut off in its head",
        "option cut off in its data",
        "authority cut off",
        "OPT as a type to ask for",
    ],
)
def test_malformed_gets_formerr(packet: bytes) -> None:
    reply = ask(packet)
    assert reply == b"\x12\x34\x80\x01" + bytes(8)


@pytest.mark.parametrize("opcode", range(1, 16))
def test_other_opcodes_are_not_implemented(opcode: int) -> None:
    reply = ask(header(opcode << 11 | 0x0100) + QUESTION)
    assert reply is not None
    flags = struct.unpack_from("!H", reply, 2)[0]
    # RD means something in a query only, and is not echoed here (RFC 8906 section 8.1.4).
    assert flags == 0x8000 | opcode << 11 | message.NOTIMP


@pytest.mark.parametrize(
    ("qtype", "expected"),
    [
        (251, message.REFUSED),
        (252, message.REFUSED),
        (253, message.NOTIMP),
        (249, message.NOTIMP),
        (128, message.NOTIMP),
    ],
)
def test_types_that_are_instructions(qtype: int, expected: int) -> None:
    assert rcode(HEADER + QUESTION[:-4] + struct.pack("!2H", qtype, 1)) == expected


@pytest.mark.parametrize("qclass", [3, 4, 254, 255, 0])
def test_other_classes_are_refused(qclass: int) -> None:
    assert rcode(HEADER + QUESTION[:-4] + struct.pack("!2H", 1, qclass)) == message.REFUSED


def test_outside_the_zones_is_refused() -> None:
    reply = LOCAL.ask("www.example.org")
    assert reply.rcode() == message.REFUSED
    assert not reply.answer + reply.authority
    assert not reply.flags & message.AA


def test_a_defect_of_ours_costs_one_query(caplog: pytest.LogCaptureFixture) -> None:
    local = Local()
    apex = names.from_text("example.com")
    damaged: Any = local.snapshot.zones[apex].nodes
    damaged[apex] = 5
    for _ in range(30):
        reply = local.answer(HEADER + b"\7example\3com\0\0\1\0\1", 1232, "127.0.0.1")
        assert reply is not None
        assert reply[3] & 0xF == message.SERVFAIL
    assert 0 < len(caplog.records) <= 10
    assert local.ask("host1.example.com").answer


# -- EDNS(0), RFC 6891 -----------------------------------------------------------------------------------


def test_no_opt_unless_asked() -> None:
    assert LOCAL.ask("host0.example.com", use_edns=False).edns == -1
    reply = LOCAL.ask("host0.example.com", use_edns=0)
    assert reply.edns == 0
    assert reply.payload == 1232


@pytest.mark.parametrize("name", ["host0", "txt", "nothing", "big"])
def test_dnssec_ok_is_echoed(name: str) -> None:
    for wanted in (True, False):
        reply = LOCAL.ask(f"{name}.example.com", want_dnssec=wanted, use_edns=0)
        assert bool(reply.ednsflags & message.DO) == wanted


def test_other_versions_get_badvers() -> None:
    reply = LOCAL.ask("host0.example.com", use_edns=1)
    assert reply.rcode() == message.BADVERS
    assert reply.edns == 0
    assert not reply.answer
    assert not reply.flags & message.AA


def test_unknown_options_are_ignored() -> None:
    options = [dns.edns.GenericOption(65001, b"abc"), dns.edns.GenericOption(65002, b"")]
    reply = LOCAL.ask("host0.example.com", use_edns=0, options=options)
    assert len(reply.answer) == 1
    assert reply.options == ()


# -- truncation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "edns"), [({"use_edns": False}, -1), ({"use_edns": 0, "payload": 4096}, 0)]
)
def test_what_does_not_fit_is_truncated(options: dict[str, int], edns: int) -> None:
    reply = LOCAL.ask("big.example.com", "TXT", **options)
    assert reply.flags & message.TC
    assert not reply.answer
    assert reply.edns == edns
    assert reply.question[0].name == dns.name.from_text("big.example.com")
    whole = LOCAL.ask("big.example.com", "TXT", limit=message.TCP_SIZE, **options)
    assert not whole.flags & message.TC
    assert len(whole.answer) == 1


@pytest.mark.parametrize("payload", [0, 1, 511, 512])
def test_an_advertised_size_below_512_means_512(payload: int) -> None:
    query = dns.message.make_query("txt.example.com", "TXT", use_edns=0, payload=payload)
    reply = ask(query.to_wire())
    assert reply is not None
    assert not reply[2] & message.TC >> 8


# -- compression -----------------------------------------------------------------------------------------


def query_of(name: bytes) -> Query:
    return Query(b"\0\1", False, name + b"\0\1\0\1", names.fold(name), 1, 1, None)


label = st.binary(min_size=1, max_size=5)
some_name = st.lists(st.sampled_from([b"a", b"b", b"Example", b"com", b"x.y"]), max_size=5).map(
    lambda parts: b"".join(bytes((len(part),)) + part for part in parts) + b"\0"
)


@given(some_name, st.lists(st.tuples(some_name, some_name), max_size=8))
def test_compressed_names_read_back_as_they_were(question: bytes, pairs: list[tuple[bytes, bytes]]) -> None:
    reply = Reply(
        answer=[RRset(owner, message.MX, 5, ((b"\0\1", WireName(target)),)) for owner, target in pairs]
    )
    parsed = dns.message.from_wire(
        message.write(query_of(question), reply, message.TCP_SIZE), one_rr_per_rrset=True
    )
    got = [(rrset.name, rrset[0].exchange) for rrset in parsed.answer]
    assert got == [(dns.name.from_wire(o, 0)[0], dns.name.from_wire(t, 0)[0]) for o, t in pairs]


def test_pointers_reach_only_so_far() -> None:
    far = [
        RRset(b"\4name" + bytes((3, 97, 97, 97)) + b"\0", 16, 5, ((b"\xff" + b"x" * 255,) * 1,))
        for _ in range(90)
    ]
    late = RRset(b"\4late\0", message.NS, 5, ((WireName(b"\3sub\4late\0"),), (WireName(b"\3sub\4late\0"),)))
    parsed = dns.message.from_wire(
        message.write(query_of(b"\1q\0"), Reply(answer=[*far, late]), message.TCP_SIZE)
    )
    assert parsed.answer[-1].to_text().count("sub.late.") == 1


# -- anything at all -------------------------------------------------------------------------------------

VALID = [
    dns.message.make_query(name, rtype, **options).to_wire()
    for name in (
        "host0.example.com",
        "HOST1.eXample.com",
        "sub.example.com",
        "x.wild.example.com",
        "example.org",
    )
    for rtype in ("A", "AAAA", "ANY", "SOA", "TYPE65280")
    for options in (
        {},
        {"use_edns": 0},
        {"use_edns": 0, "options": [dns.edns.GenericOption(10, b"12345678")]},
    )
]


def check_reply(packet: bytes, limit: int = 1232) -> None:
    reply = ask(packet, limit)
    if len(packet) < 12 or packet[2] & 0x80:
        assert reply is None
        return
    assert reply is not None
    assert reply[:2] == packet[:2]
    assert reply[2] & 0x80
    assert len(reply) <= limit
    assert reply[3] & 0xF != message.SERVFAIL
    parsed = dns.message.from_wire(reply)
    if parsed.question:
        # The question comes back octet for octet (0x20).
        end = 12 + len(parsed.question[0].name.to_wire()) + 4
        assert reply[12:end] == packet[12:end]


@settings(max_examples=500)
@given(st.binary(max_size=600))
@example(b"")
@example(bytes(12))
@example(bytes(600))
@example(b"\xff" * 600)
def test_random_octets(packet: bytes) -> None:
    check_reply(packet)


@settings(max_examples=500)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_mutated_queries(packet: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(packet)
    for at, value in changes:
        changed[at % len(packet)] = value
    check_reply(bytes(changed))


@pytest.mark.parametrize("packet", VALID, ids=range(len(VALID)))
def test_queries_cut_off_anywhere(packet: bytes) -> None:
    for size in range(len(packet)):
        check_reply(packet[:size])
        if size >= 12:
            assert rcode(packet[:size]) == message.FORMERR


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_octets_after_a_good_header(rest: bytes) -> None:
    check_reply(header(extra=1) + rest)


# -- the replies of the fast path and of the resolver are identical --------------------------------------


@settings(max_examples=300)
@given(
    st.sampled_from(["host0", "hOsT1", "HOST49", "biz", "deep.in.the.wood", "host50", "txt", "in.the.wood"]),
    st.sampled_from(["A", "AAAA", "TXT"]),
    st.integers(0, 0xFFFF).map(lambda bits: bits & 0x0130),
    st.sampled_from([None, 0, 512, 1232, 65535]),
    st.sampled_from([0, 0x8000, 0x4000]),
)
def test_both_paths_agree(name: str, rtype: str, flags: int, payload: int | None, edns_flags: int) -> None:
    edns = {} if payload is None else {"use_edns": 0, "payload": payload, "ednsflags": edns_flags}
    query = dns.message.make_query(f"{name}.Example.Com", rtype, id=7, **edns)
    query.flags = flags
    packet = query.to_wire()
    # An option, or a record that means nothing here, sends the same question down the careful path.
    if payload is None:
        detour = packet[:9] + b"\1" + packet[10:] + b"\0\0\x10\0\1\0\0\0\0\0\0"
    else:
        query.use_edns(0, edns_flags, payload, options=[dns.edns.GenericOption(65001, b"")])
        detour = query.to_wire()
    got, expected = ask(packet), ask(detour)
    assert got is not None
    assert expected is not None
    assert without_address(got) == without_address(expected)


def without_address(reply: bytes) -> tuple[bytes, str]:
    message = dns.message.from_wire(reply)
    for rrset in message.answer:
        rrset.clear()
    return reply[:12], message.to_text()
