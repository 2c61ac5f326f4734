"""Invalid documents are refused: each problem has its place, its value and its fix."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.tsig
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from support.dns_document import ZONE, document, model
from support.dns_local import Local
from support.dns_primary import SECRET
from unmoor.commands.dns.group import cli
from unmoor.dns.check.check import problems
from unmoor.dns.protocol import names
from unmoor.dns.zones import static_zone
from unmoor.errors import InvalidInputError
from unmoor.model import DnsDocument, load

SMALL_ZONE = "$TTL 60\n@ SOA ns h 1 2 3 4 5\n@ NS ns\nns A 198.18.0.53\n"


def with_zone(extra: str = "", text: str = SMALL_ZONE, **zone: Any) -> dict[str, Any]:
    names = zone.pop("names", ["host"])
    hostnames = [{"tags": {"account_type": "free"}, "names": names}]
    one = {"name": "example.com", "records": text + extra, "source": "a.zone", "hostnames": hostnames, **zone}
    return document(zones=[one], policies=[{"name": "all", "answer": {"pool": "free", "ttl": 1}}])


def with_policies(*policies: dict[str, Any]) -> dict[str, Any]:
    return document(policies=[{"answer": {"pool": "free", "ttl": 1}, **policy} for policy in policies])


def found(data: dict[str, Any]) -> list[str]:
    return [str(problem) for problem in problems(model(data), "dns.json")]


def test_a_correct_document_has_no_problem() -> None:
    assert found(document()) == []
    assert found(with_zone()) == []


LONG = f" {'t' * 249}" * 4
FULL = "x" * 255 + " "
FREE, BUSINESS = {"tags": {"account_type": "free"}}, {"tags": {"account_type": "business"}}

BAD = {
    "address twice": (document(listen=["127.0.0.1", "127.0.0.1"]), "listen.1 = 127.0.0.1: is listed twice"),
    "any address": (document(listen=["0.0.0.0"]), "listen.0 = 0.0.0.0: is not a unicast address"),
    "multicast": (document(listen=["ff02::1"]), "listen.0 = ff02::1: is not a unicast address"),
    "link-local": (document(listen=["fe80::1"]), "listen.0 = fe80::1: is a link-local"),
    "records and primaries": (
        with_zone(primaries=[{"address": "198.51.100.9"}]),
        "zones.0.primaries = example.com: has records as well",
    ),
    "unknown key": (
        with_zone(text="", primaries=[{"address": "198.51.100.9", "tsig_key": "nil"}]),
        "zones.0.primaries.0.tsig_key = nil: is not a key\n    fix: add it to tsig_keys, or name one that "
        "exists: none",
    ),
    "primary twice": (
        with_zone(text="", primaries=[{"address": "198.51.100.9"}, {"address": "198.51.100.9"}]),
        "zones.0.primaries.1 = 198.51.100.9: is listed twice",
    ),
    "its own primary": (
        with_zone(text="", primaries=[{"address": "127.0.0.1", "port": 5300}]),
        "zones.0.primaries.0 = 127.0.0.1: is this server itself",
    ),
    "no base64": (
        document(tsig_keys={"k": {"secret": "not!base64"}}),
        "tsig_keys.k.secret: is not base64 (the value is not shown)",
    ),
    "short secret": (
        document(tsig_keys={"k": {"secret": "c2hvcnQ="}}),
        "tsig_keys.k.secret: is 5 octets long, too few to be secure",
    ),
    "key's name": (
        document(tsig_keys={"a..b": {"secret": "MDEyMzQ1Njc4OWFiY2RlZg=="}}),
        "tsig_keys.a..b: is not a domain name",
    ),
    "catalog is a zone": (
        document(catalogs=[{"name": "Example.com.", "primaries": [{"address": "198.51.100.9"}]}]),
        "catalogs.0.name = Example.com.: is the name of a zone or catalog already",
    ),
    "absolute name of a member": (
        document(
            catalogs=[
                {
                    "name": "c.example",
                    "primaries": [{"address": "198.51.100.9"}],
                    "groups": {"g": {"hostnames": [{"names": ["www", "www.example."]}]}},
                }
            ]
        ),
        "catalogs.0.groups.g.hostnames.0.names.1 = www.example.: is absolute",
    ),
    "empty pool": (document(pools={**document()["pools"], "x": {}}), "pools.x: has no addresses"),
    "overlap": (
        document(pools={**document()["pools"], "x": {"ipv4": ["198.18.0.0/20", "198.18.2.0/24"]}}),
        "pools.x.ipv4 = 198.18.2.0/24: overlaps with 198.18.0.0/20",
    ),
    "unknown pool": (
        with_policies({"name": "a", "answer": {"pool": "nil", "ttl": 1}}),
        "policies.0.answer.pool = nil: is not a pool\n    fix: add the pool, or name one "
        "that exists: business, free",
    ),
    "policy twice": (
        with_policies({"name": "a", "match": FREE}, {"name": "a", "match": BUSINESS}),
        "policies.1.name = a: is the name of several policies",
    ),
    "bad suffix": (
        with_policies({"name": "a", "match": {"suffixes": ["a..b"]}}, {"name": "b"}),
        "policies.0.match.suffixes.0 = a..b: is not a domain name",
    ),
    "family missing": (
        with_policies(
            {"name": "a", "match": {"types": ["AAAA"]}, "answer": {"pool": "business", "ttl": 1}},
            {"name": "b"},
        ),
        "policies.0.answer.pool = business: has no ipv6 prefix, and the policy answers AAAA alone",
    ),
    "shadowed": (
        with_policies({"name": "all"}, {"name": "late", "match": FREE}),
        "policies.1 = late: can never match: all takes every query first",
    ),
    "shadowed by two": (
        with_policies({"name": "a", "match": FREE}, {"name": "b", "match": BUSINESS}, {"name": "late"}),
        "policies.2 = late: can never match: a, b take every query first, such as host0.example.com A at lab",
    ),
    "shadowed by types": (
        with_policies(
            {"name": "a", "match": {"types": ["A"]}},
            {"name": "aaaa", "match": {"types": ["AAAA"]}},
            {"name": "late"},
        ),
        "policies.2 = late: can never match: a, aaaa take every query first",
    ),
    "no such tag": (
        with_policies({"name": "a", "match": {"tags": {"account_type": "fre"}}}, {"name": "b"}),
        "policies.0 = a: can never match: no hostname carries account_type=fre",
    ),
    "no such suffix": (
        with_policies({"name": "a", "match": {"suffixes": ["example.org"]}}, {"name": "b"}),
        "policies.0 = a: can never match: no hostname is at or below its suffixes",
    ),
    "suffix and tag apart": (
        with_policies(
            {"name": "a", "match": {"suffixes": ["wood.example.com", "the.wood.example.com"], **FREE}},
            {"name": "b"},
        ),
        "policies.0 = a: can never match: no hostname meets all its conditions",
    ),
    "names without policy": (
        with_policies({"name": "a", "match": FREE}),
        "policies = biz.example.com: has no policy at lab (hostnames with account_type=business)",
    ),
    "name outside": (
        with_zone(names=["host.example.org."]),
        "names.0 = host.example.org.: is outside its zone",
    ),
    "name twice": (with_zone(names=["a", "A.example.com."]), "names.1 = A.example.com.: is registered twice"),
    "name too long": (with_zone(names=["x" * 64]), "has a label of more than 63 octets"),
    "empty label": (with_zone(names=["a..b"]), "names.0 = a..b: is not a domain name"),
    "not ascii": (with_zone(names=["ä"]), "names.0 = ä: is not ASCII"),
    "clash A": (
        with_zone("host A 198.18.0.1\n"),
        "names.0 = host: has a static address or CNAME record as well",
    ),
    "clash AAAA": (with_zone("HOST AAAA 2001:db8::1\n"), "names.0 = host: has a static address or CNAME"),
    "clash CNAME": (with_zone("host CNAME ns\n"), "names.0 = host: has a static address or CNAME record"),
    "below a cut": (
        with_zone("sub NS ns.example.net.\n", names=["a.sub"]),
        "names.0 = a.sub: is below sub.example.com, which is delegated",
    ),
    "zone name": (with_zone(name="exa mple..com"), "zones.0.name = exa mple..com: is not a domain name"),
    "zone twice": (
        document(zones=document()["zones"] * 2),
        "zones.1.name = example.com: is the name of two zones",
    ),
    "empty pool by exclusion": (
        document(
            pools={
                **document()["pools"],
                "x": {"ipv4": ["198.18.0.0/24"], "exclude": ["198.18.0.0/25", "198.18.0.128/25"]},
            }
        ),
        "pools.x.exclude: excludes all of the pool's ipv4 addresses",
    ),
    "nothing to exclude": (
        document(
            pools={**document()["pools"], "x": {"ipv4": ["198.18.0.0/24"], "exclude": ["198.18.0.0/23"]}}
        ),
        "pools.x.exclude.0 = 198.18.0.0/23: is not wholly in the pool's prefixes",
    ),
    "unknown further pool": (
        with_policies({"name": "a", "answer": {"pool": "free", "ttl": 1, "also": {"nil": 1}}}),
        "policies.0.answer.also = nil: is not a pool",
    ),
    "the same pool twice": (
        with_policies({"name": "a", "answer": {"pool": "free", "ttl": 1, "also": {"free": 1}}}),
        "policies.0.answer.also = free: is the policy's first pool already",
    ),
    "no share": (
        with_policies({"name": "a", "answer": {"pool": "free", "ttl": 1, "also": {"business": 0}}}),
        "policies.0.answer.also.business = 0: is not a weight",
    ),
    "nothing pinned": (
        with_policies({"name": "a", "answer": {"pool": "free", "ttl": 1, "strategy": "pinned"}}),
        "policies.0.answer.addresses: is empty, but the strategy is pinned",
    ),
    "pinned outside": (
        with_policies(
            {
                "name": "a",
                "answer": {"pool": "free", "ttl": 1, "strategy": "pinned", "addresses": ["198.51.100.1"]},
            }
        ),
        "policies.0.answer.addresses.0 = 198.51.100.1: is not an address of the pool free",
    ),
    "addresses but not pinned": (
        with_policies({"name": "a", "answer": {"pool": "free", "ttl": 1, "addresses": ["198.18.0.1"]}}),
        "policies.0.answer.addresses = 198.18.0.1: has no effect on strategy random",
    ),
    "sticky_by but not sticky": (
        with_policies({"name": "a", "answer": {"pool": "free", "ttl": 1, "sticky_by": "client"}}),
        "policies.0.answer.sticky_by = client: has no effect on strategy random",
    ),
    "all addresses of one name": (
        document(pools={**document()["pools"], "x": {"ipv4": ["198.18.64.0/24"], "ptr": "x.example.com"}}),
        "pools.x.ptr = x.example.com: has no {address}",
    ),
    "no name for an address": (
        document(pools={**document()["pools"], "x": {"ipv4": ["198.18.64.0/24"], "ptr": "{address}..x"}}),
        "pools.x.ptr = {address}..x: is not a domain name",
    ),
    "no reverse zone": (
        document(
            pools={**document()["pools"], "x": {"ipv4": ["198.18.64.0/24"], "ptr": "{address}.example.com"}}
        ),
        "is for 198.18.64.0/24, but no zone contains 0.64.18.198.in-addr.arpa",
    ),
    "no protocol": (
        with_policies({"name": "a", "answer": {"pool": "free", "ttl": 1, "https": {"alpn": ["h2", ""]}}}),
        "policies.0.answer.https.alpn.1: is not a protocol name",
    ),
    "no ALPN of SVCB": (
        with_policies({"name": "a", "answer": {"pool": "free", "ttl": 1, "svcb": {"alpn": [""]}}}),
        "policies.0.answer.svcb.alpn.0: is not a protocol name",
    ),
    "protocols without end": (
        with_policies(
            {"name": "a", "answer": {"pool": "free", "ttl": 1, "https": {"alpn": ["h" * 255] * 300}}}
        ),
        "policies.0.answer.https.alpn: takes 76,800 octets",
    ),
    "unknown zone": (
        with_policies({"name": "a", "match": {"zones": ["example.net"]}}, {"name": "b"}),
        "policies.0.match.zones.0 = example.net: is not a zone\n    fix: name one that exists: example.com",
    ),
    "shadowed client": (
        with_policies(
            {"name": "wide", "match": {"clients": ["198.51.0.0/16"]}},
            {"name": "narrow", "match": {"clients": ["198.51.100.0/24"]}},
            {"name": "rest"},
        ),
        "policies.1 = narrow: can never match: wide takes every query first, such as "
        "host0.example.com A at lab from 198.51.100.0/24",
    ),
    "only some clients": (
        with_policies({"name": "a", "match": {"clients": ["198.51.0.0/16"]}}),
        "has no policy at lab (hostnames with account_type=free), for clients in no policy's networks",
    ),
    "not exclusive": (
        with_policies({"name": "a", "match": FREE, "exclusive": True}, {"name": "rest"}),
        "claims to be exclusive, but rest matches host0.example.com A at lab as well",
    ),
    "no SOA": (
        with_zone(text="$TTL 5\n@ NS ns\nns A 198.18.0.1\n"),
        "a.zone: zones.0.records = example.com: has no SOA",
    ),
    "no NS": (with_zone(text="$TTL 5\n@ SOA ns h 1 2 3 4 5\n"), "has no NS record at example.com"),
    "empty zone": (with_zone(text=""), "has no SOA record"),
    "syntax": (
        with_zone("x A 198.18.0.300\n"),
        "a.zone:5: `198.18.0.300` is not an IPv4 address\n    fix: write four numbers from 0 to 255",
    ),
    "unknown type": (with_zone("x AA 198.18.0.3\n"), "a.zone:5: `AA` is not a record type\n    fix: "),
    "no TTL": (with_zone(text="@ NS ns\n"), "a.zone:1: has no TTL, and neither $TTL nor an SOA record"),
    "include": (with_zone("$INCLUDE /etc/passwd\n"), "a.zone:5: $INCLUDE is not allowed"),
    "syntax in a document without file names": (
        with_zone("x A 198.18.0.300\n", source=""),
        "dns.json: zones.0.records = example.com: line 5: `198.18.0.300` is not an IPv4 address",
    ),
    "outside the zone": (
        with_zone("www.example.org. A 198.18.0.1\n"),
        "a.zone:5: has a record outside the zone example.com",
    ),
    "CNAME and other data": (with_zone("x CNAME ns\nx A 198.18.0.1\n"), "has a CNAME beside other records"),
    "CNAME at the apex": (with_zone("@ CNAME ns\n"), "has a CNAME beside other records"),
    "second CNAME": (with_zone("x CNAME ns\nx CNAME b\n"), "has a second CNAME record at x.example.com"),
    "second SOA": (
        with_zone("x SOA ns h 1 2 3 4 5\n"),
        "a.zone:5: has an SOA record below its apex",
    ),
    "occluded": (
        with_zone("sub NS ns.example.net.\nx.sub TXT t\n"),
        "x.sub.example.com: is below sub.example.com, which is delegated",
    ),
    "below DNAME": (with_zone("d DNAME ns\nx.d A 198.18.0.1\n"), "x.d.example.com: is below d.example.com"),
    "more records than a message holds": (
        with_zone("x TXT t\n" + "".join(f"y TXT {at:03}{LONG}\n" for at in range(70))),
        "a.zone:6: has 71,151 octets of TXT records at y.example.com: a DNS "
        "message has room for 64,511\n    fix: remove some",
    ),
    "one record that is larger than any": (
        with_zone("y TXT " + "t" * 255 + f" {'t' * 255}" * 260 + "\n"),
        "octets of TXT records at y.example.com: a DNS message has room for 64,511",
    ),
    "name server without address": (
        with_zone("@ NS other\n"),
        "other.example.com: is a name server of example.com without an address in the zone",
    ),
    "name server that is an alias": (
        with_zone("@ NS other\nother CNAME ns\n"),
        "other.example.com: is a name server of example.com without an address in the zone",
    ),
    "hostname of an inner zone": (
        document(
            zones=[
                *document()["zones"],
                {"name": "in.example.com", "records": SMALL_ZONE},
                {
                    "name": "example.net",
                    "records": SMALL_ZONE,
                    "hostnames": [{"names": ["x.in.example.com."]}],
                },
            ]
        ),
        "is outside its zone example.net",
    ),
    "hostname in the parent of its zone": (
        with_zone(names=["x.in"])
        | {"zones": [*with_zone(names=["x.in"])["zones"], {"name": "in.example.com", "records": SMALL_ZONE}]},
        "names.0 = x.in: belongs to the zone in.example.com",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_problems(name: str) -> None:
    data, expected = BAD[name]
    shown = found(data)
    assert any(expected in each for each in shown), shown
    assert all("\n    fix: " in each for each in shown)


@pytest.mark.parametrize(
    "data",
    [
        with_policies({"name": "other_pop", "match": {"pops": ["elsewhere"]}}, {"name": "rest"}),
        with_policies({"name": "here", "match": {"pops": ["lab"]}}, {"name": "fallback"}),
        with_policies({"name": "a", "match": {"suffixes": ["host3.example.com"]}}, {"name": "b"}),
        document(pools={**document()["pools"], "spare": {"ipv4": ["198.18.200.0/24"]}}),
        document(zones=[{"name": "example.com", "records": SMALL_ZONE}]),
        with_policies(
            {"name": "a", "match": FREE, "exclusive": True},
            {"name": "b", "match": BUSINESS, "exclusive": True},
        ),
        with_policies(
            {"name": "narrow", "match": {"clients": ["198.51.100.0/24"]}},
            {"name": "wide", "match": {"clients": ["198.51.0.0/16", "2001:db8::/32"]}},
            {"name": "rest"},
        ),
        with_policies({"name": "a", "match": {"zones": ["Example.Com."]}}),
        document(
            pools={**document()["pools"], "x": {"ipv4": ["198.18.64.0/24"], "exclude": ["198.18.64.0/32"]}}
        ),
        with_zone("*.x TXT t\nsub NS ns.sub\nns.sub A 198.18.0.9\n_x._tcp SRV 1 1 1 ns\n"),
        with_zone(names=["ns2"], extra="@ NS ns2\n"),
        with_zone("host TXT beside\nhost CAA 0 issue a\n"),
    ],
)
def test_what_is_unusual_but_right(data: dict[str, Any]) -> None:
    assert found(data) == []


ERRORS = r"""$TTL 60
@ SOA ns h ( 1 2 3
    4 5 )                   ; a comment with a (
@ NS ns
ns A 198.18.0.53
one A 198.18.0.300
two AA 198.18.0.1           ; and one with a "
   TXT "goes with two"
a..b A 198.18.0.1
   A 198.18.0.2
three TXT ( "on" ten
  "several" MX ) 5
four MX ten mail
www.example.org. A 198.18.0.1
five CNAME ns
five A 198.18.0.1
   TXT "also beside it"
six TXT "never closed
seven SRV ( 1 1
  1
good A 198.18.0.9
@ MX ten
$TTL x
$INCLUDE /etc/passwd
"\" A 1
sub NS ns.example.net.
x.sub TXT t"""
LINES = [6, 7, 9, 13, 14, 16, 17, 18, 19, 22, 23, 24, 25, 27]


def lines_of(shown: list[str]) -> list[int]:
    return sorted(int(each.split(":")[1]) for each in shown if each.startswith("a.zone:"))


def test_every_error_of_a_zone_file_has_its_line() -> None:
    """None brings about another: lines that carry on a name or a TTL that could not be read are let be."""
    shown = found(with_zone(text=ERRORS, names=[]))
    assert lines_of(shown) == LINES, "\n".join(shown)
    assert len(shown) == len(LINES)


def test_lines_may_end_with_carriage_returns() -> None:
    assert lines_of(found(with_zone(text=ERRORS.replace("\n", "\r\n"), names=[]))) == LINES


def test_a_broken_soa_brings_about_no_other_error() -> None:
    """Neither 'has no SOA', nor records that lack the TTL that they had from it."""
    text = "@ SOA ns h ( 1 2 3\n  4 x )\n@ NS ns\nns A 198.18.0.53\nx AA 1\n"
    assert lines_of(found(with_zone(text=text, names=[]))) == [1, 5]
    unclosed = "$TTL 9\n@ SOA ns h ( 1 2 3\n  4 5\n@ NS ns\nns A 198.18.0.53\nx AA 1\n"
    assert lines_of(found(with_zone(text=unclosed, names=[]))) == [2, 6]


def test_what_is_missing_at_the_apex_is_found_beside_errors() -> None:
    shown = found(with_zone(text="$TTL 9\n@ SOA ns h 1 2 3 4 5\nx AA 1\n", names=[]))
    assert [each.split("\n")[0] for each in shown] == [
        "a.zone: zones.0.records = example.com: has no NS record at example.com",
        "a.zone:3: `AA` is not a record type",
    ]


def test_a_broken_origin_ends_it() -> None:
    """The lines after it are relative to an unknown name."""
    shown = found(with_zone("x AA 1\n$ORIGIN a..b\ny AA 1\n", names=[]))
    assert lines_of(shown) == [5, 6]


def test_errors_without_end_are_bounded(tmp_path: Path) -> None:
    data = with_zone("x AA 1\n" * 3000, names=[])
    shown = found(data)
    assert len(shown) == 1001
    assert "a.zone:1005: is not read further: 1000 errors before this line" in shown[-1]
    path = tmp_path / "dns.json"
    path.write_text(json.dumps(data))
    result = CliRunner().invoke(cli, ["check", str(path)])
    said = str(result.exception)
    assert said.startswith("1001 problems; nothing was changed:\na.zone:5: ")
    assert said.endswith("\n... and 991 more")
    assert len(said.splitlines()) <= 24


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(ZONE)),
            st.integers(0, 12),
            st.text('( )";\\\n\r\t$@.*aA1\0\xe9\u0660', max_size=6),
        ),
        max_size=5,
    )
)
def test_whatever_passes_for_a_zone_file(changes: list[tuple[int, int, str]]) -> None:
    """Cut out, put in: there are errors with lines, or none; nothing is raised, and nothing is endless."""
    text = ZONE
    for at, size, noise in changes:
        text = text[:at] + noise + text[at + size :]
    zone, file = static_zone.parse(text, names.from_text("example.com"))
    assert zone or file.errors
    count = len(re.split(r"\r\n?|\n", text))
    assert all(0 <= error.line <= count for error in file.errors)
    assert len(file.errors) <= count + 3


def test_records_that_just_fit_are_answered_whole() -> None:
    """Over TCP, under the longest name, with all options, signed: no TC, and not a single octet too many."""
    room = 65535 - 1024
    labels = ".".join(["x" * 63] * 3) + "." + "y" * (63 - len("*.example.com") - 2)
    for owner, asked in (("*", labels), ("y", "y")):
        longest = 255 if owner == "*" else len("y.example.com") + 2
        count, left = divmod(room - 12 - longest - 4, 12 + 4 + 1000)
        text = "".join(f"{owner} TXT {at:03}{LONG}\n" for at in range(count))
        assert left > 12
        full, rest = divmod(left - 12, 256)
        text += f"{owner} TXT {FULL * full}{'x' * (rest - 1)}\n"
        keys = {"k" * 63: {"algorithm": "hmac-sha512", "secret": SECRET}}
        assert found(with_zone(text, names=[])) == []
        assert len(found(with_zone(text[:-1] + "x\n", names=[]))) == 1
        local = Local(with_zone(text) | {"tsig_keys": keys, "tell_name": True, "edge": "e" * 200})
        options = [
            dns.edns.GenericOption(dns.edns.OptionType.NSID, b""),
            dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678"),
            dns.edns.GenericOption(dns.edns.OptionType.make(11), b""),
            dns.edns.ECSOption("2001:db8::", 56),
        ]
        query = dns.message.make_query(f"{asked}.example.com", "TXT", use_edns=0, options=options)
        query.use_tsig(dns.tsig.Key("k" * 63, SECRET, "hmac-sha512"))
        reply = local.answer(query.to_wire(), 65535, "127.0.0.1")
        assert reply is not None
        message = dns.message.from_wire(reply, keyring=query.keyring, request_mac=query.mac)
        assert not message.flags & dns.flags.TC
        assert len(message.answer[0]) == count + 1
        assert len(message.options) == 4


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('{"zones":[', "]}")])
def test_json_that_is_nested_deeply(tmp_path: Path, opening: str, closing: str) -> None:
    """Wherever the stack ends: while it is read, or while the value that is wrong is shown."""
    path = tmp_path / "dns.json"
    for depth in (*range(400, 1001, 25), 100_000):
        nested = opening * depth + "1" + closing * depth
        for text in (nested, json.dumps(document())[:-1] + f', "deep": {nested}}}'):
            path.write_text(text)
            with pytest.raises(InvalidInputError) as error:
                load(DnsDocument, path)
            said = str(error.value)
            assert len(said.splitlines()) <= 24
            assert f"{path}: " in said
            assert "fix: " in said
    result = CliRunner().invoke(cli, ["check", str(path)])
    assert isinstance(result.exception, InvalidInputError)
    assert "is not JSON: it is nested too deeply" in str(result.exception)


def test_everything_is_reported_at_once(tmp_path: Path) -> None:
    data = with_zone("x AA 1\n", names=["a..b", "b", "b"])
    data["listen"] *= 2
    data["policies"].append({"name": "late", "answer": {"pool": "nil", "ttl": 1}})
    path = tmp_path / "dns.json"
    path.write_text(json.dumps(data))
    result = CliRunner().invoke(cli, ["check", "--all", str(path)])
    assert result.exit_code == 2
    assert result.output.count("fix:") == len(found(data)) == 7


def test_check_command(tmp_path: Path) -> None:
    path = tmp_path / "dns.json"
    path.write_text(json.dumps(document()))
    result = CliRunner().invoke(cli, ["check", str(path)])
    assert result.exit_code == 0
    assert "1 zones, 52 hostnames, 2 pools, 2 policies" in result.output
    path.write_text(json.dumps(document(listen=["0.0.0.0"])))
    result = CliRunner().invoke(cli, ["check", str(path)])
    assert isinstance(result.exception, InvalidInputError)
    assert len(result.exception.problems) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"version": 2}', '{"listen": "x"}', "\ud800"])
def test_what_is_no_document(tmp_path: Path, text: str) -> None:
    path = tmp_path / "dns.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    result = CliRunner().invoke(cli, ["check", str(path)])
    assert isinstance(result.exception, InvalidInputError)
    assert "fix:" in str(result.exception)
