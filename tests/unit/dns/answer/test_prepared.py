"""Replies from prepared parts equal the resolver's, whatever the zone; and look-ups equal a plain walk."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.dns_document import document
from support.dns_local import Local
from unmoor.dns.answer import fast_path, lookup, prepared
from unmoor.dns.answer.fast_path import Answerer, _slow_path, answerer
from unmoor.dns.answer.rate_limit import FlowCounter, Limiter, shared_table
from unmoor.dns.answer.snapshot import Snapshot
from unmoor.dns.counters.counters import Counts, Event
from unmoor.dns.protocol import message, names
from unmoor.dns.protocol.edns import Options
from unmoor.dns.protocol.message import RRset
from unmoor.dns.protocol.names import WireName
from unmoor.dns.transfer.notify import NotifyHandler
from unmoor.dns.zones import static_zone
from unmoor.dns.zones.static_zone import Zone

APEX, INNER = names.from_text("Zone.example."), names.from_text("b.a.zone.example.")
LABELS = ("a", "b", "*", "ns")
OWNERS = ["@", *(".".join(each) for count in (1, 2) for each in product(LABELS, repeat=count)), "b.b.b"]
#: Where aliases and other records lead: into the zone, below its names, out of it.
TARGETS = ["ns", "a", "b.a", "x.b", "x.a.b", "x", "elsewhere.example.", "*.a", "b.b.b.b"]
A, NS, CNAME, MX, TXT, AAAA, SRV, DNAME, HTTPS = 1, 2, 5, 15, 16, 28, 33, 39, 65
TYPES = (A, NS, CNAME, message.SOA, MX, TXT, AAAA, SRV, DNAME, message.DS, HTTPS, message.ANY, 1000)


def target_names(data: st.DataObject) -> list[bytes]:
    chosen = data.draw(st.lists(st.sampled_from(TARGETS), min_size=1, max_size=2, unique=True))
    return [names.from_text(each, APEX) for each in chosen]


def rdatas(data: st.DataObject, rtype: int) -> tuple[tuple[bytes, ...], ...]:
    if rtype in (CNAME, DNAME):
        target = target_names(data)[0]
        return ((WireName(target) if rtype == CNAME else target,),)
    if rtype == NS:
        return tuple((WireName(each),) for each in target_names(data))
    if rtype == MX:
        return tuple((b"\0\1", WireName(each)) for each in target_names(data))
    if rtype == SRV:
        return ((bytes(6) + target_names(data)[0],),)
    if rtype == HTTPS:
        return ((b"\0" + bytes((data.draw(st.integers(0, 1)),)) + target_names(data)[0],),)
    size, octets = data.draw(st.sampled_from([(1, 4), (3, 16), (40, 12), (2, 600), (400, 4), (9, 140)]))
    return tuple((bytes((at & 255, at >> 8)) * (octets // 2),) for at in range(size))


def soa(apex: bytes) -> RRset:
    """The name of a server that does not exist, and of a person at one that may."""
    piece = (WireName(b"\4none" + apex), WireName(b"\1h\1b" + apex), struct.pack("!5I", 1, 2, 3, 4, 60))
    return RRset(apex, message.SOA, 90, (piece,))


def zone(data: st.DataObject, apex: bytes) -> Zone:
    owners = data.draw(st.lists(st.sampled_from(OWNERS), min_size=4, max_size=14, unique=True))
    found = {(apex, message.SOA): soa(apex), (apex, NS): RRset(apex, NS, 60, ((WireName(b"\2ns" + APEX),),))}
    for owner in owners:
        name = names.from_text(owner, apex)
        allowed = (A, TXT, MX, DNAME) if name == apex else (A, NS, CNAME, MX, TXT, SRV, DNAME, HTTPS)
        weighted = (*allowed, A, MX, CNAME) if name != apex else allowed
        for rtype in data.draw(st.lists(st.sampled_from(weighted), min_size=1, max_size=2, unique=True)):
            written = name.upper() if data.draw(st.booleans()) else name
            found.setdefault((name, rtype), RRset(written, rtype, 60, rdatas(data, rtype)))
    return static_zone.of(apex, found.values())


#: Targets of hostnames: for all clients, for some, with HTTPS, of one family; each pool has one address.
POLICIES = Local(
    document(
        pools={
            "both": {"ipv4": ["198.18.0.1/32"], "ipv6": ["2001:db8::1/128"]},
            "one": {"ipv4": ["198.18.0.2/32"]},
        },
        policies=[
            {"name": "some", "match": {"tags": {"kind": "some"}, "clients": ["2001:db8::/32"]}}
            | {"answer": {"pool": "both", "ttl": 5}},
            {"name": "https", "match": {"tags": {"kind": "https"}}}
            | {"answer": {"pool": "both", "ttl": 5, "https": {"alpn": ["h2"]}}},
            {"name": "rest", "answer": {"pool": "one", "ttl": 5}},
        ],
        zones=[
            {
                "name": "example.com",
                "records": "$TTL 9\n@ SOA ns.example.net. h 1 2 3 4 5\n@ NS ns.example.net.\n",
                "hostnames": [
                    {"tags": {"kind": kind}, "names": [kind]} for kind in ("some", "https", "rest")
                ],
            }
        ],
    )
).snapshot


def snapshot(data: st.DataObject) -> Snapshot:
    zones = {APEX: zone(data, APEX)}
    if data.draw(st.booleans()):
        zones[INNER] = zone(data, INNER)
    bare = replace(POLICIES, zones=zones, hostnames={})
    hostnames = {}
    targets = list(POLICIES.hostnames.values())
    for text in data.draw(st.lists(st.sampled_from(OWNERS[1:]), max_size=5, unique=True)):
        name = names.from_text(text, APEX)
        own = bare.zone_of(name)
        # As the checks have it: no hostname has an address or alias as well, or lies below a cut.
        if own and not own.cut_above(name) and not own.nodes.get(name, {}).keys() & {A, AAAA, CNAME}:
            hostnames[name] = data.draw(st.sampled_from(targets))
            own.add_name(name)
    return replace(bare, hostnames=hostnames)


class _Subjects(FlowCounter):
    """Keeps what it is asked to count."""

    def __init__(self, subjects: list[tuple[str, bytes, bytes]]) -> None:
        super().__init__(1, shared_table())
        self._subjects = subjects

    def __call__(self, address: str, name: bytes, kind: bytes) -> int:
        self._subjects.append((address, name, kind))
        return 0


class Path:
    """One of the two paths, with counters of its own, and what the rate limit was asked to count."""

    def __init__(self, found: Snapshot, made: Callable[..., Answerer]) -> None:
        self.counts, self.subjects = Counts.private(), list[tuple[str, bytes, bytes]]()
        options = Options(found.document, bytes(16))
        limiter = Limiter(_Subjects(self.subjects), options, self.counts)
        self.answer = made(found, self.counts, options, NotifyHandler({}, None), limiter)


def question(chance: random.Random) -> bytes:
    base = chance.choice((APEX, APEX, INNER, b"\7example\0", names.ROOT))
    labels = [chance.choice((*LABELS, "new", "x")) for _ in range(chance.choice((0, 1, 1, 2, 2, 3, 4, 90)))]
    while sum(1 + len(each) for each in labels) + len(base) > names.MAX_NAME:
        labels.pop()
    wire = names.from_text(".".join(labels), base) if labels else base
    if chance.random() < 0.3:
        wire = names.from_text(chance.choice(TARGETS), APEX)
    cased = bytes(octet ^ 32 if chr(octet).isalpha() and chance.random() < 0.3 else octet for octet in wire)
    return cased + struct.pack("!2H", chance.choice(TYPES), chance.choice((1, 1, 1, 1, 3)))


def packet(chance: random.Random) -> bytes:
    opt = b""
    if chance.random() < 0.6:
        flags, size = chance.choice((0, 0x8000)), chance.choice((0, 512, 700, 1232, 4096))
        options = chance.choice((b"", b"", b"\0\x0a\0\x08abcdefgh", b"\0\x08\0\x07\0\1\x18\0\xc6\x33\x64"))
        opt = struct.pack("!BHHBBHH", 0, 41, size, 0, 0, flags, len(options)) + options
    head = struct.pack("!6H", 7, chance.choice((0, 0x0100)), 1, 0, 0, bool(opt))
    return head + question(chance) + opt


@pytest.mark.parametrize("room", [prepared.MAX_SHARED, 6000])
def test_both_paths_give_the_same_octets(room: int) -> None:
    """Also while the table is too small, and is emptied again and again."""

    @settings(max_examples=120, deadline=None)
    @given(st.data(), st.integers(0, 1 << 32))
    def same(data: st.DataObject, seed: int) -> None:
        found, chance = snapshot(data), random.Random(seed)
        fast, slow = Path(found, answerer), Path(found, _slow_path)
        packets = [packet(chance) for _ in range(60)]
        for each, limit in product(packets * 2, (message.EDNS_SIZE, message.TCP_SIZE)):
            replies = [path.answer(each, limit, "198.51.100.7") for path in (fast, slow)]
            assert replies[0] == replies[1], (each, limit)
        assert fast.subjects == slow.subjects
        assert bytes(fast.counts._row) == bytes(slow.counts._row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "MAX_SHARED", room)
        patch.setattr(prepared, "MAX_EXACT", room)
        patch.setattr(prepared, "_PERIOD", 0.0)
        # Server cookies change every 64 s, which may be between the two replies.
        patch.setattr(fast_path, "_now", lambda: 1_800_000_000 & -64)
        same()


def walked(found: Snapshot, own: Zone, name: bytes) -> bytes | None:
    """The owner of the records for a name, by the letter of RFC 4592 section 3.3.1."""

    def exists(each: bytes) -> bool:
        return each in own.nodes or found.exists(each)

    if exists(name):
        return name
    asterisk = b"\1*" + next(each for each in names.suffixes(names.parent(name)) if exists(each))
    return asterisk if exists(asterisk) else None


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 1 << 32))
def test_look_ups_equal_a_plain_walk(data: st.DataObject, seed: int) -> None:
    found, chance = snapshot(data), random.Random(seed)
    for _ in range(100):
        name = names.fold(question(chance)[:-4])
        own = found.zone_of(name)
        assert own is next((found.zones[each] for each in names.suffixes(name) if each in found.zones), None)
        if own:
            upward = list(names.suffixes(name))
            above = [each for each in upward[: upward.index(own.apex) + 1] if each in own.cuts]
            assert own.cut_above(name) == (above[-1] if above else None)
            if not above:
                assert lookup.source_of(found, own, name) == walked(found, own, name)


CHAINS = """
$TTL 60
@ SOA ns h 1 2 3 4 5
@ NS ns
ns A 198.18.0.9
*.loop CNAME x.loop
*.away CNAME y.away.elsewhere.example.
*.mail MX 10 q.mail
svc HTTPS 0 target
*.svcs HTTPS 1 target
target A 198.18.0.8
to-host CNAME host
*.to-host CNAME host
big 60 TXT "BIG"
*.big 60 TXT "BIG"
""".replace("BIG", '" "'.join(["x" * 240] * 5))
CHAINED = document(
    pools={"one": {"ipv4": ["198.18.0.2/32"], "ptr": "ip-{address}.zone.example"}},
    policies=[{"name": "all", "answer": {"pool": "one", "ttl": 5}}],
    zones=[
        {"name": "zone.example", "records": CHAINS, "hostnames": [{"names": ["host", "*.hosts"]}]},
        {"name": "18.198.in-addr.arpa", "records": "$TTL 6\n@ SOA n.e. h.e. 1 2 3 4 5\n@ NS n.e.\n"},
    ],
)
LONG = "l." * 60
#: Questions in an order in which a reply prepared from the first could be wrong for another.
ORDERS = [
    [("x.loop.zone.example", A), ("y.loop.zone.example", A), ("x.loop.zone.example", A)],
    [("y.loop.zone.example", A), ("x.loop.zone.example", A), ("x.loop.zone.example", CNAME)],
    [("y.away.zone.example", MX), ("z.away.zone.example", MX), ("away.zone.example", MX)],
    [("q.mail.zone.example", MX), ("r.mail.zone.example", MX), ("*.mail.zone.example", MX)],
    [("svc.zone.example", HTTPS), ("a.svcs.zone.example", HTTPS), ("b.svcs.zone.example", HTTPS)],
    [("to-host.zone.example", A), ("x.to-host.zone.example", A), ("x.to-host.zone.example", TXT)],
    [("host.zone.example", AAAA), ("host.zone.example", TXT), ("x.hosts.zone.example", A)],
    [("x.hosts.zone.example", AAAA), ("x.hosts.zone.example", message.ANY), ("host.zone.example", HTTPS)],
    [("1.0.18.198.in-addr.arpa", A), ("2.0.18.198.in-addr.arpa", 12), ("x.18.198.in-addr.arpa", 12)],
    [("x.18.198.in-addr.arpa", A), ("2.0.18.198.in-addr.arpa", A), ("0.18.198.in-addr.arpa", A)],
    [(LONG + "big.zone.example", TXT), ("a.big.zone.example", TXT), ("big.zone.example", TXT)],
    [("h.zone.example", A), ("ns.zone.example", AAAA), ("x.ns.zone.example", AAAA), ("n.zone.example", TXT)],
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("limit", [message.CLASSIC_SIZE, message.EDNS_SIZE, message.TCP_SIZE])
def test_one_prepared_reply_fits_all_names_that_share_it(order: list[tuple[str, int]], limit: int) -> None:
    local = Local(CHAINED)
    slow = Path(local.snapshot, _slow_path)
    opt = b"" if limit == message.CLASSIC_SIZE else b"\0\0\x29\x10\0\0\0\0\0\0\0"
    for name, rtype in order * 2:
        asked = names.from_text(name) + struct.pack("!2H", rtype, 1)
        query = struct.pack("!6H", 7, 0, 1, 0, 0, bool(opt)) + asked + opt
        assert local.answer(query, limit, "127.0.0.1") == slow.answer(query, limit, "127.0.0.1"), name


LOCAL = Local()


def taken(replies: prepared.Replies) -> int:
    """The number of prepared forms."""
    table = [each for each in replies._shared.values() if each]
    return len(replies._exact) + sum(len(each.forms) for each in table)


def ask(replies: prepared.Replies, questions: Sequence[tuple[str, int]]) -> list[prepared.Found | None]:
    return [replies.find(names.from_text(name), struct.pack("!2H", kind, 1)) for name, kind in questions]


def test_random_names_share_one_entry() -> None:
    """As does each type that a name lacks."""
    replies = prepared.Replies(LOCAL.snapshot)
    ask(replies, [("a.example.com", A), ("a.wild.example.com", TXT), ("txt.example.com", A)])
    before = taken(replies)
    found = ask(replies, [(f"{chr(at % 26 + 97)}.example.com", at + 1) for at in range(26)])
    found += ask(replies, [(f"{chr(at % 26 + 97)}.wild.example.com", TXT) for at in range(23)])
    found += ask(replies, [("txt.example.com", at) for at in range(1000, 1100)])
    assert all(found)
    assert taken(replies) == before


def test_the_table_is_bounded() -> None:
    replies = prepared.Replies(LOCAL.snapshot)
    for at in range(20_000):
        labels = "l." * (at % 80) + "n" * (at % 60 + 1)
        ask(replies, [(f"{labels}.{name}.example.com", TXT) for name in ("wild", "sub", "big")])
    assert taken(replies) * 400 < prepared.MAX_SHARED + prepared.MAX_EXACT


def test_a_reply_that_is_too_long_is_truncated_and_counted() -> None:
    local = Local()
    query = b"\0\1\0\0\0\1\0\0\0\0\0\0\3big\7example\3com\0\0\x10\0\1"
    for _ in range(2):
        reply = local.answer(query, message.EDNS_SIZE, "127.0.0.1")
        assert reply == b"\0\1\x86\0\0\1\0\0\0\0\0\0" + query[12:]
    assert local.counts.event(Event.TRUNCATED) == 2
    assert len(local.answer(query, message.TCP_SIZE, "127.0.0.1") or b"") > 1500


@pytest.mark.parametrize(
    "name",
    [b"\3big\7example\3com", b"\7example\3com\0\0", b"\x40" + b"a" * 64 + b"\7example\3com\0", b"\0", b""],
)
def test_what_is_not_a_name_is_not_found(name: bytes) -> None:
    assert prepared.Replies(LOCAL.snapshot).find(name, b"\0\1\0\1") is None
