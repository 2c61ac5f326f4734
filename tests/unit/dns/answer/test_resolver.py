"""Replies as the RFCs define them, each case with its section."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import dns.message
import pytest

from support.dns_document import document
from support.dns_local import Local, records
from unmoor.dns.protocol import message

LOCAL = Local()
SOA = "example.com. 3600 IN SOA ns1.example.com. hostmaster.example.com. 7 7200 900 1209600 300"
NEGATIVE_SOA = SOA.replace("3600", "300", 1)


def answers(name: str, rtype: str = "A") -> list[str]:
    reply = LOCAL.ask(name, rtype)
    assert reply.rcode() == message.NOERROR
    assert reply.flags & message.AA
    return records(reply.answer)


# -- hostnames, answered by policy -----------------------------------------------------------------------


def test_a_hostname_gets_one_address_of_its_pool() -> None:
    for name, rtype, pool, ttl in [
        ("host0.example.com", "A", "198.18.0.0/20", 30),
        ("host7.example.com", "AAAA", "2001:db8::/44", 30),
        ("biz.example.com", "A", "198.51.100.0/24", 60),
        ("deep.in.the.wood.example.com", "A", "198.51.100.0/24", 60),
    ]:
        reply = LOCAL.ask(name, rtype)
        assert len(reply.answer) == 1
        assert len(reply.answer[0]) == 1
        assert reply.answer[0].ttl == ttl
        assert ip_address(reply.answer[0][0].address) in ip_network(pool)
        assert reply.flags & message.AA
        assert not reply.authority + reply.additional


def test_each_query_draws_again() -> None:
    seen = {answers("host0.example.com", "AAAA")[0] for _ in range(50)}
    assert len(seen) == 50  # of 2**84


def test_the_question_comes_back_as_it_was_written() -> None:
    reply = LOCAL.ask("hOsT0.ExAmPlE.cOm")
    assert reply.question[0].name.to_text() == "hOsT0.ExAmPlE.cOm."
    assert reply.answer[0].name.to_text() == "hOsT0.ExAmPlE.cOm."


@pytest.mark.parametrize(
    ("name", "rtype"),
    [("host0", "TXT"), ("host0", "HTTPS"), ("biz", "AAAA"), ("host0", "NS"), ("host0", "TYPE65281")],
)
def test_another_type_or_a_family_without_pool_is_nodata(name: str, rtype: str) -> None:
    reply = LOCAL.ask(f"{name}.example.com", rtype)
    assert reply.rcode() == message.NOERROR
    assert not reply.answer
    assert records(reply.authority) == [NEGATIVE_SOA]


def test_static_records_beside_a_hostname() -> None:
    assert answers("host0.example.com", "CAA") == ['host0.example.com. 3600 IN CAA 0 issue "ca.example.net"']
    assert len(answers("host0.example.com", "A")) == 1


def test_policies_are_tried_in_order() -> None:
    data = document()
    data["pools"]["one"] = {"ipv4": ["198.18.9.9/32"]}
    data["policies"] = [
        {"name": "elsewhere", "match": {"pops": ["other"]}, "answer": {"pool": "one", "ttl": 1}},
        {"name": "v6", "match": {"types": ["AAAA"]}, "answer": {"pool": "free", "ttl": 2}},
        {
            "name": "wood",
            "match": {"suffixes": ["THE.wood.example.com"]},
            "answer": {"pool": "one", "ttl": 3},
        },
        {
            "name": "pop",
            "match": {"pops": ["lab"], "tags": {"account_type": "free"}},
            "answer": {"pool": "free", "ttl": 4},
        },
        {"name": "rest", "answer": {"pool": "business", "ttl": 5}},
    ]
    local = Local(data)

    def ttl(name: str, rtype: str = "A") -> int:
        found: int = local.ask(f"{name}.example.com", rtype).answer[0].ttl
        return found

    assert ttl("host0") == 4
    assert ttl("host0", "AAAA") == 2
    assert ttl("deep.in.the.wood") == 3
    assert ttl("deep.in.the.wood", "AAAA") == 2
    assert ttl("biz") == 5


def test_answers_are_counted_by_policy() -> None:
    local = Local()
    for name in ("host0", "host1", "www", "biz"):
        local.ask(f"{name}.example.com")
    local.ask("nothing.example.com")
    assert [local.counts.policies[number] for number in (0, 1)] == [3, 1]
    assert local.counts.rcode(message.NXDOMAIN) == 1
    assert local.counts.rcode(message.NOERROR) == 0


# -- static records --------------------------------------------------------------------------------------


def test_records_of_the_zone_file() -> None:
    assert answers("example.com", "SOA") == [SOA]
    assert answers("example.com", "NS") == [
        "example.com. 3600 IN NS ns1.example.com.",
        "example.com. 3600 IN NS ns2.example.net.",
    ]
    assert answers("NS1.example.com", "AAAA") == ["NS1.example.com. 3600 IN AAAA 2001:db8::53"]
    assert answers("odd.example.com", "TYPE65280") == [r"odd.example.com. 3600 IN TYPE65280 \# 3 010203"]


def test_unknown_name_is_nxdomain_with_the_soa() -> None:
    """RFC 2308 sections 3 and 5: the SOA's TTL is the lower of its own and its minimum."""
    reply = LOCAL.ask("nothing.example.com")
    assert reply.rcode() == message.NXDOMAIN
    assert records(reply.authority) == [NEGATIVE_SOA]
    assert reply.flags & message.AA


@pytest.mark.parametrize("name", ["ent", "b.ent", "wood", "the.wood", "in.the.wood"])
def test_empty_non_terminals_exist(name: str) -> None:
    """RFC 8020: a name with names below it is not NXDOMAIN, be they records or hostnames."""
    for rtype in ("A", "ANY", "TXT"):
        reply = LOCAL.ask(f"{name}.example.com", rtype)
        assert reply.rcode() == message.NOERROR
        assert not reply.answer
        assert records(reply.authority) == [NEGATIVE_SOA]


# -- chains ----------------------------------------------------------------------------------------------


def test_cname_chain_to_a_hostname() -> None:
    """RFC 1034 section 4.3.2 step 3a; the end of the chain is drawn by policy."""
    reply = LOCAL.ask("www.example.com")
    names = [rrset.name.to_text() for rrset in reply.answer]
    assert names == ["www.example.com.", "alias.example.com.", "host0.example.com."]
    assert ip_address(reply.answer[2][0].address) in ip_network("198.18.0.0/20")


def test_cname_itself() -> None:
    assert answers("www.example.com", "CNAME") == ["www.example.com. 3600 IN CNAME alias.example.com."]


def test_cname_out_of_our_zones_ends_there() -> None:
    assert answers("out.example.com") == ["out.example.com. 3600 IN CNAME elsewhere.example.org."]


def test_cname_to_nothing_is_nxdomain() -> None:
    """RFC 6604 section 3: the code is that of the last name."""
    reply = LOCAL.ask("dangling.example.com")
    assert reply.rcode() == message.NXDOMAIN
    assert len(reply.answer) == 1
    assert records(reply.authority) == [NEGATIVE_SOA]


def record_by_record(local: Local, name: str, rtype: str) -> dns.message.Message:
    """A reply in which a record that comes twice is seen twice."""
    reply = local.answer(dns.message.make_query(name, rtype).to_wire(), message.TCP_SIZE, "127.0.0.1")
    assert reply is not None
    return dns.message.from_wire(reply, one_rr_per_rrset=True)


LOOPS = {
    "itself": ("self CNAME self", "self", ["self CNAME self"]),
    "two": ("", "loop1", ["loop1 CNAME loop2", "loop2 CNAME loop1"]),
    "entered from outside": (
        "in CNAME loop2",
        "in",
        ["in CNAME loop2", "loop1 CNAME loop2", "loop2 CNAME loop1"],
    ),
    "case": ("A1 CNAME B1\nb1 CNAME a1", "A1", ["A1 CNAME B1", "b1 CNAME a1"]),
    "wildcard": ("*.w CNAME x.w", "y.w", ["x.w CNAME x.w", "y.w CNAME x.w"]),
    "DNAME and back": (
        "d DNAME e\nx.e CNAME x.d",
        "x.d",
        ["d DNAME e", "x.d CNAME x.e", "x.e CNAME x.d"],
    ),
    "two DNAME": (
        "d DNAME e\ne DNAME d",
        "x.d",
        ["d DNAME e", "e DNAME d", "x.d CNAME x.e", "x.e CNAME x.d"],
    ),
    "DNAME to itself": ("d DNAME d", "x.d", ["d DNAME d", "x.d CNAME x.d"]),
    "DNAME below itself": ("d DNAME a.d", "x.d", ["d DNAME a.d", "x.d CNAME x.a.d"]),
    "DNAME, used twice on the way": (
        "d DNAME e\nx.e CNAME y.d\ny.e TXT t",
        "x.d",
        ["d DNAME e", "x.d CNAME x.e", "x.e CNAME y.d", "y.d CNAME y.e", 'y.e TXT "t"'],
    ),
    "other zones": (
        "go CNAME back.example.net.",
        "go",
        ["back.example.net. CNAME go", "go CNAME back.example.net."],
    ),
}


@pytest.mark.parametrize("rtype", ["TXT", "ANY", "CNAME", "DNAME"])
@pytest.mark.parametrize("case", LOOPS)
def test_a_chain_ends_at_a_name_seen_before(case: str, rtype: str) -> None:
    """RFC 1034 section 3.6.2; each record is in the answer once."""
    lines, name, expected = LOOPS[case]
    data = document()
    data["zones"][0]["records"] += lines + "\n"
    other = "$TTL 3600\n@ SOA ns h 1 2 3 4 5\n@ NS ns.example.org.\nback CNAME go.example.com.\n"
    data["zones"].append({"name": "example.net", "records": other})
    reply = record_by_record(Local(data), f"{name}.example.com", rtype)
    found = sorted(
        line.replace(".example.com.", "").replace(" 3600 IN", "") for line in records(reply.answer)
    )
    assert len(found) == len(set(found))
    assert len(found) <= len(expected)
    if rtype == "TXT":
        assert reply.rcode() == message.NOERROR
        assert [line.lower() for line in found] == [line.lower() for line in expected]


def test_names_that_grow_from_step_to_step_end_somewhere() -> None:
    """Each DNAME makes the other one's names longer: no name comes twice, and none leads anywhere."""
    data = document()
    data["zones"][0]["records"] += "d DNAME x.e\ne DNAME x.d\n"
    reply = record_by_record(Local(data), "x.d.example.com", "A")
    found = records(reply.answer)
    assert len(found) == len(set(found))
    assert len(found) <= 18


def test_dname() -> None:
    """RFC 6672 section 3.1: what is below is redirected, the owner is not."""
    reply = LOCAL.ask("host.old.example.com")
    assert [rrset.to_text() for rrset in reply.answer] == [
        "old.example.com. 3600 IN DNAME new.example.com.",
        "host.old.example.com. 3600 IN CNAME host.new.example.com.",
        "host.new.example.com. 3600 IN A 198.18.1.4",
    ]
    assert LOCAL.ask("old.example.com").rcode() == message.NOERROR
    assert not LOCAL.ask("old.example.com").answer
    assert LOCAL.ask("x.old.example.com").rcode() == message.NXDOMAIN


def test_dname_that_makes_a_name_too_long() -> None:
    """RFC 6672 section 2.2: YXDOMAIN."""
    data = document()
    long = ".".join(["x" * 63] * 3)
    data["zones"][0]["records"] += f"short IN DNAME {long}\n".replace("short", "short2")
    reply = Local(data).ask(f"{'y' * 60}.short2.example.com")
    assert reply.rcode() == message.YXDOMAIN
    assert records(reply.answer) == [f"short2.example.com. 3600 IN DNAME {long}.example.com."]


# -- wildcards -------------------------------------------------------------------------------------------


def test_wildcard() -> None:
    """RFC 4592 section 2.2.1, with the names of this zone."""
    assert answers("any.wild.example.com", "TXT") == ['any.wild.example.com. 3600 IN TXT "wild"']
    assert answers("a.b.c.wild.example.com", "TXT") == ['a.b.c.wild.example.com. 3600 IN TXT "wild"']
    assert answers("*.wild.example.com", "TXT") == ['*.wild.example.com. 3600 IN TXT "wild"']


@pytest.mark.parametrize(("name", "rcode"), [("x.wild", 0), ("a.x.wild", 3), ("y._sip.wild", 3), ("wild", 0)])
def test_wildcard_does_not_cover_what_exists(name: str, rcode: int) -> None:
    reply = LOCAL.ask(f"{name}.example.com", "TXT")
    assert reply.rcode() == rcode
    assert not reply.answer


def test_wildcard_without_the_type_is_nodata() -> None:
    reply = LOCAL.ask("any.wild.example.com", "AAAA")
    assert reply.rcode() == message.NOERROR
    assert records(reply.authority) == [NEGATIVE_SOA]


def test_wildcard_hostname() -> None:
    data = document()
    data["zones"][0]["hostnames"][0]["names"].append("*.shop")
    local = Local(data)
    reply = local.ask("any.thing.shop.example.com")
    assert reply.answer[0].name.to_text() == "any.thing.shop.example.com."
    assert ip_address(reply.answer[0][0].address) in ip_network("198.18.0.0/20")
    assert local.ask("shop.example.com").rcode() == message.NOERROR
    assert not local.ask("shop.example.com").answer


# -- delegations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rtype"),
    [("sub", "A"), ("sub", "NS"), ("sub", "ANY"), ("a.b.sub", "A"), ("ns.sub", "A"), ("a.sub", "DS")],
)
def test_referral_with_glue(name: str, rtype: str) -> None:
    """RFC 1034 section 4.3.2 step 3b: not authoritative, no answer, the servers and their addresses."""
    reply = LOCAL.ask(f"{name}.example.com", rtype)
    assert reply.rcode() == message.NOERROR
    assert not reply.flags & message.AA
    assert not reply.answer
    assert records(reply.authority) == [
        "sub.example.com. 3600 IN NS ns.sub.example.com.",
        "sub.example.com. 3600 IN NS ns3.example.net.",
    ]
    assert records(reply.additional) == [
        "ns.sub.example.com. 3600 IN A 198.18.1.3",
        "ns.sub.example.com. 3600 IN AAAA 2001:db8::3",
    ]


def test_ds_at_a_cut_is_the_parents() -> None:
    """RFC 4035 section 3.1.4.1."""
    reply = LOCAL.ask("sub.example.com", "DS")
    assert reply.flags & message.AA
    assert len(reply.answer) == 1


def test_cname_into_a_delegation() -> None:
    reply = LOCAL.ask("to-sub.example.com")
    assert records(reply.answer) == ["to-sub.example.com. 3600 IN CNAME deep.sub.example.com."]
    assert len(records(reply.authority)) == 2


def test_zone_inside_a_zone() -> None:
    data = document()
    data["zones"].append(
        {
            "name": "sub.example.com",
            "records": "$TTL 60\n@ SOA ns h 1 2 3 4 5\n@ NS ns\nns A 198.18.1.3\nx A 198.18.1.9\n",
            "hostnames": [{"names": ["host"]}],
        }
    )
    local = Local(data)
    assert records(local.ask("x.sub.example.com").answer) == ["x.sub.example.com. 60 IN A 198.18.1.9"]
    assert local.ask("host.sub.example.com").answer
    assert records(local.ask("no.sub.example.com").authority)[0].startswith("sub.example.com. 5 IN SOA")
    # DS belongs to the parent, also when we serve both.
    assert records(local.ask("sub.example.com", "DS").answer)[0].startswith("sub.example.com. 3600 IN DS")


# -- ANY -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["host0", "txt", "", "any.wild"])
def test_any_gets_little(name: str) -> None:
    """RFC 8482 section 4.2."""
    full = f"{name}.example.com".lstrip(".")
    assert answers(full, "ANY") == [f'{full}. 3600 IN HINFO "RFC8482" ""']


def test_any_at_a_cname_gets_the_cname() -> None:
    assert answers("www.example.com", "ANY") == ["www.example.com. 3600 IN CNAME alias.example.com."]


# -- targets of SVCB and HTTPS, RFC 9460 section 4.1 -----------------------------------------------------

SERVICES = r"""
host1    HTTPS 1 . alpn=h2
one      HTTPS 1 svc alpn=h2
one      HTTPS 2 two.svc alpn=h3
svc      A     198.18.1.5
svc      AAAA  2001:db8::5
two.svc  CNAME svc
pooled   SVCB  1 host2 alpn=h2
alias    HTTPS 0 one
far      HTTPS 0 near
near     HTTPS 0 far
nothing  HTTPS 0 .
outside  HTTPS 1 www.example.org. alpn=h2
below    HTTPS 1 ns.sub alpn=h2
*.any    HTTPS 1 . alpn=h2
*.any    A     198.18.1.6
to-one   CNAME one
Case     HTTPS 1 SVC alpn=h2
many     HTTPS 1 big1 alpn=h2
""".replace("alias    HTTPS", "service  HTTPS").replace("nothing ", "gone    ")
SERVICES += "".join(f"big1 AAAA 2001:db8:1::{number:x}\n" for number in range(1, 60))
SVC = ["svc A 198.18.1.5", "svc AAAA 2001:db8::5"]
TARGETS = {
    "in the zone": ("one", "HTTPS", [*SVC, "two.svc CNAME svc"]),
    "through an alias": (
        "service",
        "HTTPS",
        ["one HTTPS 1 svc", "one HTTPS 2 two.svc", *SVC, "two.svc CNAME svc"],
    ),
    "through a CNAME": ("to-one", "HTTPS", [*SVC, "two.svc CNAME svc"]),
    "the owner": ("host1", "HTTPS", ["host1 A pool", "host1 AAAA pool"]),
    "a hostname": ("pooled", "SVCB", ["host2 A pool", "host2 AAAA pool"]),
    "a loop of aliases": ("far", "HTTPS", ["near HTTPS 0 far"]),
    "an alias that says it is not available": ("gone", "HTTPS", []),
    "outside": ("outside", "HTTPS", []),
    "below a delegation": ("below", "HTTPS", []),
    "wildcard": ("x.any", "HTTPS", ["x.any A 198.18.1.6"]),
    "another type": ("one", "SVCB", []),
    "upper case": ("case", "HTTPS", SVC),
}


def with_services() -> Local:
    data = document()
    data["zones"][0]["records"] += SERVICES
    return Local(data)


@pytest.mark.parametrize("case", TARGETS)
def test_addresses_of_service_targets_are_added(case: str) -> None:
    name, rtype, expected = TARGETS[case]
    reply = with_services().ask(f"{name}.example.com", rtype, limit=message.TCP_SIZE)
    found = []
    for rrset in reply.additional:
        for rdata in rrset:
            text = rdata.to_text()
            if rdata.rdtype in (1, 28) and ip_address(text) in ip_network(POOLS[int(rdata.rdtype)]):
                text = "pool" if "host" in rrset.name.to_text() else text
            line = f"{rrset.name} {rdata.rdtype.name} {text}".replace(".example.com.", "")
            found.append(line.split(' alpn="')[0])
    assert sorted(found) == sorted(expected)
    assert not reply.flags & message.TC


POOLS = {1: "198.18.0.0/20", 28: "2001:db8::/44"}


def test_hints_and_added_addresses_are_the_same() -> None:
    """RFC 9460 section 7.3: a client may take either."""
    data = document()
    data["policies"][0]["answer"]["https"] = {"alpn": ["h2"]}
    reply = Local(data).ask("host0.example.com", "HTTPS")
    hints = reply.answer[0][0].params
    assert [list(hints[key].addresses) for key in (4, 6)] == [
        [each.address for each in found] for found in reply.additional
    ]
    assert [found.ttl for found in reply.additional] == [30, 30]
    data["policies"][0]["answer"]["https"]["hints"] = False
    bare = Local(data).ask("host0.example.com", "HTTPS")
    assert bare.answer[0][0].to_text() == '1 . alpn="h2"'
    assert [
        ip_address(found[0].address) in ip_network(POOLS[int(found.rdtype)]) for found in bare.additional
    ] == [True] * 2


def test_added_addresses_are_left_out_whole_and_without_tc() -> None:
    """RFC 2181 section 9: optional records do not set TC, and an RRset is not split."""
    local = with_services()
    for limit in (512, 1232):
        reply = local.ask("many.example.com", "HTTPS", limit=limit, use_edns=0, payload=limit)
        assert reply.answer
        assert not reply.additional
        assert not reply.flags & message.TC
    assert len(local.ask("many.example.com", "HTTPS", limit=message.TCP_SIZE).additional[0]) == 59
