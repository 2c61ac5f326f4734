"""Conditions and answers of policies: clients, weights, strategies, exclusions."""

from __future__ import annotations

import json
from collections import Counter
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import dns.edns
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from support.dns_document import document
from support.dns_local import Local
from unmoor.commands.dns.group import cli
from unmoor.dns.counters.counters import counter_of
from unmoor.dns.policy.pools import Range, without
from unmoor.dns.policy.selection import Random
from unmoor.dns.protocol import client_subnet, message
from unmoor.dns.protocol.client_subnet import Subnet
from unmoor.errors import UnmoorError

HOST = "host0.example.com"


def with_policies(*policies: dict[str, Any], **changes: Any) -> Local:
    return Local(document(policies=list(policies), **changes))


def policy(name: str, match: dict[str, Any] | None = None, **answer: Any) -> dict[str, Any]:
    return {"name": name, "match": match or {}, "answer": {"pool": "free", "ttl": 30, **answer}}


def addresses(local: Local, name: str = HOST, rtype: str = "A", **options: Any) -> list[str]:
    return [record.address for rrset in local.ask(name, rtype, **options).answer for record in rrset]


def subnet(text: str) -> Subnet:
    return Subnet.of(ip_network(text))


# -- client subnet, RFC 7871 -----------------------------------------------------------------------------

BY_CLIENT = with_policies(
    policy("near", {"clients": ["198.51.100.0/24", "2001:db8:1::/48"]}, pool="business", ttl=1),
    policy("far", {"clients": ["198.51.0.0/16"]}, ttl=2),
    policy("rest", ttl=3),
)


def ask_as(client: str, local: Local = BY_CLIENT, **options: Any) -> tuple[int, int | None]:
    """The TTL of the answer, which identifies the policy, and the scope."""
    address, length = client.split("/")
    reply = local.ask(HOST, use_edns=0, options=[dns.edns.ECSOption(address, int(length))], **options)
    scopes = [option.scopelen for option in reply.options if isinstance(option, dns.edns.ECSOption)]
    return reply.answer[0].ttl, scopes[0] if scopes else None


@pytest.mark.parametrize(
    ("client", "ttl", "scope"),
    [
        ("198.51.100.0/24", 1, 24),
        ("198.51.100.7/32", 1, 24),
        # Differs from 198.51.100.0/24 in the 24th bit.
        ("198.51.101.0/24", 2, 24),
        # Differs from it in the first bit after the /16, so 17 bits decide; but the /16 needs 16.
        ("198.51.128.0/24", 2, 17),
        # The resolver sends too few bits to decide; the scope shows that /24 would matter.
        ("198.51.0.0/16", 2, 24),
        ("198.0.0.0/8", 3, 24),
        ("128.0.0.0/24", 3, 2),
        ("10.0.0.0/24", 3, 1),
        ("2001:db8:1:2::/56", 1, 48),
        ("2001:db8:2::/56", 3, 47),
        # No network at all: the resolver's own address decides, and the answer is valid for all clients.
        ("0.0.0.0/0", 3, 0),
    ],
)
def test_client_subnet_and_scope(client: str, ttl: int, scope: int) -> None:
    assert ask_as(client) == (ttl, scope)


def test_without_the_option_the_resolvers_address_counts() -> None:
    for address, ttl in (("198.51.100.9", 1), ("198.51.3.3", 2), ("127.0.0.1", 3), ("2001:db8:1::1", 1)):
        reply = BY_CLIENT.ask(HOST, address=address, use_edns=0)
        assert reply.answer[0].ttl == ttl
        assert reply.options == ()
    assert ask_as("0.0.0.0/0", address="198.51.100.9") == (1, 0)


def test_where_no_policy_asks_for_clients_the_scope_is_zero() -> None:
    assert ask_as("198.51.100.0/24", Local()) == (30, 0)
    reply = BY_CLIENT.ask("no.example.com", use_edns=0, options=[dns.edns.ECSOption("198.51.100.0", 24)])
    assert reply.options[0].scopelen == 0
    refused = BY_CLIENT.ask("example.org", use_edns=0, options=[dns.edns.ECSOption("198.51.100.0", 24)])
    assert not any(isinstance(option, dns.edns.ECSOption) for option in refused.options)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\1\x18",
        b"\0\1\x18\0\1\2",
        b"\0\1\x18\0\1\2\3\4",
        b"\0\1\x18\x18\1\2\3",
        b"\0\1\x17\0\1\2\3",
        b"\0\1\x21\0\1\2\3\4\5",
        b"\0\3\x08\0\1",
        b"\0\0\0\0",
    ],
    ids=[
        "empty",
        "short",
        "too few",
        "too many",
        "scope set",
        "bits after the prefix",
        "33",
        "family 3",
        "family 0",
    ],
)
def test_malformed_client_subnet(data: bytes) -> None:
    reply = BY_CLIENT.ask(HOST, use_edns=0, options=[dns.edns.GenericOption(8, data)])
    assert reply.rcode() == message.FORMERR


def test_two_client_subnets_are_malformed() -> None:
    option = dns.edns.ECSOption("198.51.100.0", 24)
    assert BY_CLIENT.ask(HOST, use_edns=0, options=[option, option]).rcode() == message.FORMERR


network4 = st.builds(
    lambda n, length: Subnet(4, n, 32).shortened(length), st.integers(0, 2**32 - 1), st.integers(0, 32)
)


@given(network4, st.lists(network4, max_size=5), st.integers(0, 2**32 - 1))
def test_scope_covers_only_clients_with_the_same_answer(
    client: Subnet, networks: list[Subnet], other: int
) -> None:
    """Clients that share the scope's bits are in the same networks."""
    bits = client_subnet.scope(client, networks)
    if bits > client.length:
        return
    host = 32 - bits
    neighbour = Subnet(4, (client.number >> host << host) | (other & ((1 << host) - 1)), 32)
    neighbour = neighbour.shortened(client.length)
    assert [client.is_within(each) for each in networks] == [neighbour.is_within(each) for each in networks]


@given(network4, network4)
def test_within_agrees_with_the_standard_library(one: Subnet, two: Subnet) -> None:
    assert one.is_within(two) == ip_network(str(one)).subnet_of(ip_network(str(two)))


# -- zones -----------------------------------------------------------------------------------------------


def test_match_on_zone() -> None:
    zones = document()["zones"]
    zones.append({**zones[0], "name": "example.org"})
    local = with_policies(
        policy("net", {"zones": ["example.org"]}, ttl=1), policy("rest", ttl=2), zones=zones
    )
    assert local.ask("host0.example.org").answer[0].ttl == 1
    assert local.ask("host0.example.com").answer[0].ttl == 2


# -- strategies ------------------------------------------------------------------------------------------


def test_sticky_by_name() -> None:
    local = with_policies(policy("a", strategy="sticky"), sticky_key="secret")
    names = [f"host{number}.example.com" for number in range(50)]
    first = {name: addresses(local, name) for name in names}
    assert first == {name: addresses(local, name, address="198.51.100.3") for name in names}
    assert addresses(local, "HOST0.Example.com") == first["host0.example.com"]
    assert len({tuple(each) for each in first.values()}) > 40  # of 4096
    other_edge = with_policies(policy("a", strategy="sticky"), sticky_key="secret")
    assert first == {name: addresses(other_edge, name) for name in names}
    for changed in (
        with_policies(policy("a", strategy="sticky"), sticky_key="other"),
        with_policies(policy("b", strategy="sticky"), sticky_key="secret"),
    ):
        assert first != {name: addresses(changed, name) for name in names}
    assert all(ip_address(each) in ip_network("2001:db8::/44") for each in addresses(local, HOST, "AAAA"))


def test_sticky_by_client() -> None:
    local = with_policies(policy("a", strategy="sticky", sticky_by="client"))
    one = addresses(local, address="198.51.100.3")
    assert one == addresses(local, address="198.51.100.200")
    assert one == addresses(local, "host1.example.com", address="198.51.100.3")
    assert len({tuple(addresses(local, address=f"198.51.{net}.3")) for net in range(50)}) > 40
    assert ask_as("198.51.100.0/24", local) == (30, 24)
    assert ask_as("198.51.0.0/16", local) == (30, 16)
    assert ask_as("2001:db8:1:2::/64", local) == (30, 56)
    option = dns.edns.ECSOption("198.51.100.0", 24)
    assert addresses(local, use_edns=0, options=[option]) == one


def test_sticky_addresses_are_spread_evenly() -> None:
    pools = {"free": {"ipv4": ["198.18.0.0/29", "198.18.9.0/30"]}}
    names = [f"host{number}" for number in range(3000)]
    zone = {**document()["zones"][0], "hostnames": [{"names": names}]}
    local = with_policies(policy("a", strategy="sticky"), pools=pools, zones=[zone])
    counts = Counter(addresses(local, f"{name}.example.com")[0] for name in names)
    assert len(counts) == 12
    # 250 each, standard deviation 15: seven of them. The key is fixed, so this cannot fail by chance.
    assert all(abs(count - 250) < 106 for count in counts.values())


def test_pinned() -> None:
    pinned = ["198.18.0.1", "198.18.0.9", "2001:db8::9"]
    local = with_policies(policy("a", strategy="pinned", addresses=pinned))
    for _ in range(5):
        assert sorted(addresses(local)) == pinned[:2]
        assert addresses(local, rtype="AAAA") == pinned[2:]
    v6_only = with_policies(policy("a", strategy="pinned", addresses=pinned[2:]))
    assert addresses(v6_only) == []


def test_excluded_addresses_are_never_drawn() -> None:
    pools = {
        "free": {"ipv4": ["198.18.0.0/28"], "exclude": ["198.18.0.0/32", "198.18.0.4/30", "198.18.0.15/32"]}
    }
    for strategy in ("random", "sticky"):
        local = with_policies(policy("a", strategy=strategy, records=32), pools=pools)
        seen = {address for number in range(50) for address in addresses(local, f"host{number}.example.com")}
        assert seen == {f"198.18.0.{n}" for n in (1, 2, 3, 8, 9, 10, 11, 12, 13, 14)}


ranges = st.lists(st.builds(Range, st.integers(0, 60), st.integers(1, 20)), max_size=4)


@given(ranges, ranges)
def test_cutting_ranges_out(whole: list[Range], cut: list[Range]) -> None:
    def members(some: Any) -> Counter[int]:
        return Counter(each.first + n for each in some for n in range(each.size))

    removed = members(cut)
    expected = Counter({number: count for number, count in members(whole).items() if number not in removed})
    left = without(whole, cut)
    assert members(left) == expected
    assert all(each.size > 0 for each in left)


@pytest.mark.parametrize("strategy", ["random", "sticky"])
@pytest.mark.parametrize(
    ("records", "prefix", "count"),
    [(3, "198.18.0.0/24", 3), (32, "198.18.0.0/30", 4), (2, "198.18.0.0/32", 1)],
)
def test_several_records_differ(strategy: str, records: int, prefix: str, count: int) -> None:
    local = with_policies(policy("a", strategy=strategy, records=records), pools={"free": {"ipv4": [prefix]}})
    got = addresses(local)
    assert len(got) == len(set(got)) == count
    assert all(ip_address(each) in ip_network(prefix) for each in got)


@pytest.mark.parametrize("strategy", ["random", "sticky"])
def test_weights(strategy: str) -> None:
    pools = {
        "free": {"ipv4": ["198.18.0.0/30"]},
        "canary": {"ipv4": ["198.51.100.0/24"], "ipv6": ["2001:db8::/64"]},
    }
    names = [f"host{number}" for number in range(2000)]
    zone = {**document()["zones"][0], "hostnames": [{"names": names}]}
    local = with_policies(
        policy("a", strategy=strategy, weight=9, also={"canary": 1}), pools=pools, zones=[zone]
    )
    canary = sum(addresses(local, f"{name}.example.com")[0].startswith("198.51.") for name in names)
    assert 100 < canary < 300  # 200 expected, standard deviation 13.4
    # A pool without the family takes no part in it: every answer has an address.
    assert all(addresses(local, f"{name}.example.com", "AAAA") for name in names[:100])


def test_what_is_simple_takes_the_hot_path_and_nothing_else_does() -> None:
    apart: dict[str, dict[str, Any]] = {
        "simple": {},
        "mixed": {"also": {"business": 1}},
        "several": {"records": 2},
        "sticky": {"strategy": "sticky"},
        "pinned": {"strategy": "pinned", "addresses": ["198.18.0.1"]},
    }
    for name, answer in apart.items():
        local = with_policies(policy(name, **answer))
        target = next(iter(local.snapshot.hostnames.values()))
        assert bool(target.fast) == (name in ("simple", "mixed")), name
    client = next(iter(BY_CLIENT.snapshot.hostnames.values()))
    assert not client.fast
    assert isinstance(client.candidates[message.A][2].plan.selector, Random)


# -- HTTPS, RFC 9460 -------------------------------------------------------------------------------------


def test_https_with_hints_of_the_same_pools() -> None:
    local = with_policies(
        policy("four", {"types": ["A"]}, pool="business", ttl=9, https={"alpn": ["h3", "h2"], "port": 8443}),
        policy("six", ttl=5),
    )
    seen = set()
    for _ in range(20):
        reply = local.ask(HOST, "HTTPS")
        record = reply.answer[0][0]
        # dnspython has read it: parameters in order, lengths right.
        assert (reply.answer[0].ttl, record.priority, record.target.to_text()) == (5, 1, ".")
        text = record.to_text()
        assert text.startswith('1 . alpn="h3,h2" port="8443" ipv4hint="198.51.100.')
        hint = record.params[6].addresses[0]
        assert ip_address(hint) in ip_network("2001:db8::/44")
        seen.add(hint)
    assert len(seen) == 20
    assert local.counts.policies[counter_of(0, message.HTTPS)] == 20
    assert local.counts.answers(1) == 0


def test_https_without_hints_and_without_offer() -> None:
    bare = with_policies(policy("a", https={"hints": False}))
    assert bare.ask(HOST, "HTTPS").answer[0][0].to_text() == '1 . alpn="h2"'
    assert not Local().ask(HOST, "HTTPS").answer
    assert Local().ask(HOST, "HTTPS").authority


def test_explain_svcb(tmp_path: Path) -> None:
    said = explain(tmp_path, HOST, "SVCB", policies=[policy("a", svcb={"alpn": ["doq"]})])
    assert "answers" in said
    assert ' SVCB 1 . alpn="doq" ipv4hint="198.18.' in said


def test_https_for_a_client() -> None:
    local = with_policies(
        policy("near", {"clients": ["198.51.100.0/24"]}, pool="business", https={}), policy("rest", https={})
    )
    option = dns.edns.ECSOption("198.51.100.0", 24)
    reply = local.ask(HOST, "HTTPS", use_edns=0, options=[option])
    assert reply.answer[0][0].params[4].addresses[0].startswith("198.51.100.")
    assert reply.options[0].scopelen == 24
    assert local.ask(HOST, "HTTPS").answer[0][0].params[4].addresses[0].startswith("198.18.")


def test_svcb_for_a_name_with_underscores_differs_from_https() -> None:
    svcb = {"alpn": ["dot"], "port": 853, "priority": 3}
    zone = {**document()["zones"][0], "hostnames": [{"names": ["_dns.resolver"]}]}
    local = with_policies(policy("a", ttl=7, svcb=svcb, https={}), zones=[zone])
    name = "_dns.resolver.example.com"
    record = local.ask(name, "SVCB").answer[0][0]
    assert (record.priority, record.target.to_text(), list(record.params)) == (3, ".", [1, 3, 4, 6])
    assert record.to_text().startswith('3 . alpn="dot" port="853" ipv4hint=')
    assert ip_address(record.params[4].addresses[0]) in ip_network("198.18.0.0/20")
    assert local.ask(name, "HTTPS").answer[0][0].to_text().startswith('1 . alpn="h2" ipv4hint=')
    assert not with_policies(policy("a", https={}), zones=[zone]).ask(name, "SVCB").answer


# -- explain ---------------------------------------------------------------------------------------------


def explain(tmp_path: Path, *arguments: str, **changes: Any) -> str:
    path = tmp_path / "dns.json"
    path.write_text(json.dumps(document(**changes)))
    result = CliRunner().invoke(cli, ["explain", "--config", str(path), *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_explain_follows_aliases_and_names_the_policy(tmp_path: Path) -> None:
    shown = explain(tmp_path, "www.example.com")
    assert (
        "host0.example.com, in the zone example.com, is a registered hostname with account_type=free" in shown
    )
    assert "1  free  answers" in shown
    assert "pool free, 4096 addresses of 198.18.0.0/20" in shown
    assert "www.example.com. 3600 IN CNAME alias.example.com." in shown


@pytest.mark.parametrize(
    ("arguments", "objection"),
    [
        (["biz.example.com"], "free      no: requires tags account_type=free"),
        (["host0.example.com", "--client", "198.51.100.1"], "narrow  no: requires clients in 198.18.0.0/15"),
        (["host0.example.com", "--pop", "ams"], "pop     no: requires PoP lab, not ams"),
        (["host0.example.com", "MX"], "rest    no: requires type A or AAAA"),
        (["host0.example.com", "HTTPS"], "rest    answers"),
        (["host0.example.com"], "below   no: requires names below x.example.com"),
    ],
)
def test_explain_gives_the_reason_of_each_policy_that_does_not_match(
    tmp_path: Path, arguments: list[str], objection: str
) -> None:
    changes = {}
    if "biz" not in arguments[0]:
        changes["policies"] = [
            policy("narrow", {"clients": ["198.18.0.0/15"]}),
            policy("pop", {"pops": ["lab"], "types": ["AAAA"]}),
            policy("below", {"suffixes": ["x.example.com"]}),
            policy("rest"),
        ]
        zone = document()["zones"][0]
        zone["hostnames"].append({"names": ["y.x"]})
        changes["zones"] = [zone]
    assert objection in explain(tmp_path, *arguments, **changes)


def test_explain_of_what_no_policy_decides(tmp_path: Path) -> None:
    assert "is in none of the server's zones" in explain(tmp_path, "example.org")
    assert "NXDOMAIN" in explain(tmp_path, "nothing.example.com")
    assert "the zone's records answer" in explain(tmp_path, "txt.example.com", "TXT")
    assert "which has no IPv6 addresses" in explain(tmp_path, "biz.example.com", "AAAA")
    data = json.loads(explain(tmp_path, "host1.example.com", "--json"))
    assert data["verdicts"] == [{"policy": "free", "objection": None}]


@pytest.mark.parametrize(
    "arguments", [["a..b"], ["host0.example.com", "NOTYPE"], ["host0.example.com", "--client", "x"]]
)
def test_explain_refuses_nonsense(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(UnmoorError, match=r"cannot ask|is no address"):
        explain(tmp_path, *arguments)
