"""Addresses that DNS answers with, and changes that would remove one of them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmoor.in_use import addresses_in_use, not_bound, taken_away
from unmoor.model import DnsDocument, EdgeDocument
from unmoor.model.documents import Documents

POOLS = {
    "free": {"ipv4": ["198.18.0.0/24"], "ipv6": ["2001:db8:100::/64"]},
    "spare": {"ipv4": ["198.18.1.0/24"]},
    "holes": {"ipv4": ["198.18.2.0/24"], "exclude": ["198.18.2.0/25"]},
    "unused": {"ipv4": ["198.18.3.0/24"]},
}
PREFIXES = ("198.18.0.0/20", "2001:db8:100::/44")
ZONE = "@ 60 IN SOA ns1 root 1 2 3 4 5\n@ 60 IN NS ns1\nns1 60 IN A 198.51.100.53\n"


def documents(
    answer: dict[str, Any] | None = None,
    *,
    match: dict[str, Any] | None = None,
    prefixes: tuple[str, ...] = PREFIXES,
    addresses: tuple[str, ...] = ("198.51.100.53/32",),
    records: str = "",
    pools: dict[str, Any] | None = None,
) -> Documents:
    edge = {"pop": "ams", "edge": "e", "prefixes": prefixes, "addresses": addresses}
    policy = {"name": "all", "match": match or {}, "answer": {"pool": "free", "ttl": 30} | (answer or {})}
    dns = {
        "pop": "ams",
        "edge": "e",
        "listen": ["198.19.1.11"],
        "zones": [{"name": "example.test", "records": ZONE + records}],
        "pools": pools or POOLS,
        "policies": [policy],
    }
    return Documents(EdgeDocument.model_validate(edge), DnsDocument.model_validate(dns))


@pytest.mark.parametrize(
    ("answer", "match", "used"),
    [
        ({}, {}, ["198.18.0.0/24", "2001:db8:100::/64"]),
        ({"also": {"spare": 1}}, {}, ["198.18.0.0/23", "2001:db8:100::/64"]),
        ({"pool": "holes", "also": {"spare": 9}}, {}, ["198.18.1.0/24", "198.18.2.128/25"]),
        ({"strategy": "sticky", "records": 4}, {}, ["198.18.0.0/24", "2001:db8:100::/64"]),
        ({"https": {"hints": True}}, {"types": ["A"]}, ["198.18.0.0/24", "2001:db8:100::/64"]),
        ({"strategy": "pinned", "addresses": ["198.18.0.7"]}, {}, ["198.18.0.7/32"]),
        ({}, {"pops": ["ams", "fra"]}, ["198.18.0.0/24", "2001:db8:100::/64"]),
        ({}, {"pops": ["fra"]}, []),
    ],
)
def test_addresses_of_policies(answer: dict[str, Any], match: dict[str, Any], used: list[str]) -> None:
    found = addresses_in_use(documents(answer, match=match).dns)
    assert [str(prefix) for prefix in found.prefixes()] == used


def test_addresses_of_static_records_and_hints() -> None:
    records = (
        "www 60 IN A 198.18.9.1\nwww 60 IN AAAA 2001:db8:109::1\n"
        "svc 60 IN HTTPS 1 . alpn=h2 ipv4hint=198.18.9.2,198.18.9.3 ipv6hint=2001:db8:109::2\n"
    )
    found = addresses_in_use(documents(records=records).dns).records
    assert found == {
        ip_address("198.51.100.53"): "ns1.example.test",
        ip_address("198.18.9.1"): "www.example.test",
        ip_address("2001:db8:109::1"): "www.example.test",
        ip_address("198.18.9.2"): "svc.example.test",
        ip_address("198.18.9.3"): "svc.example.test",
        ip_address("2001:db8:109::2"): "svc.example.test",
    }


def test_a_pool_in_also_must_not_go() -> None:
    lines = list(taken_away(documents({"also": {"spare": 1}}), documents()))
    assert lines == [
        "addresses of 198.18.1.0/24 are in use by DNS and would be removed: run playbooks/pool.yml first"
    ]


def test_a_pool_that_no_policy_uses_may_go() -> None:
    fewer = {name: pool for name, pool in POOLS.items() if name != "unused"}
    assert list(taken_away(documents(), documents(pools=fewer))) == []


@pytest.mark.parametrize(
    ("change", "address", "owner"),
    [
        ({"prefixes": PREFIXES}, "198.18.32.1", "www.example.test"),
        ({"prefixes": PREFIXES, "records": ""}, "198.18.32.1", "www.example.test"),
        ({"addresses": ()}, "198.51.100.53", "ns1.example.test"),
    ],
)
def test_the_address_of_a_static_record_stays_local(change: dict[str, Any], address: str, owner: str) -> None:
    before: dict[str, Any] = {
        "prefixes": (*PREFIXES, "198.18.32.0/24"),
        "records": "www 60 IN A 198.18.32.1\n",
    }
    [line] = taken_away(documents(**before), documents(**before | change))
    assert line.startswith(f"{address} is the address of {owner} in a zone file")


def test_a_static_record_may_change_while_its_address_stays_local() -> None:
    before = documents(records="www 60 IN A 198.18.9.1\n")
    assert list(taken_away(before, documents(records="www 60 IN A 203.0.113.1\n"))) == []


def test_what_another_edge_must_take_connections_for() -> None:
    narrow = documents(prefixes=("198.18.0.0/24", "2001:db8:100::/44"))
    assert not_bound(documents().dns, narrow.edge) == ()
    answers = documents({"also": {"spare": 1}}).dns
    assert not_bound(answers, narrow.edge) == (ip_network("198.18.1.0/24"),)


parts = st.lists(
    st.tuples(st.integers(0, 15), st.integers(20, 24)).map(
        lambda pair: str(
            ip_network((int(ip_network("198.18.0.0/16").network_address) + (pair[0] << 12), pair[1]))
        )
    ),
    min_size=1,
    max_size=6,
    unique=True,
)


@given(parts, parts)
def test_addresses_are_taken_away_exactly_when_one_goes(before: list[str], after: list[str]) -> None:
    def addresses(prefixes: list[str]) -> set[int]:
        # Every prefix here is made of whole /24s.
        subnets = (part for prefix in prefixes for part in ip_network(prefix).subnets(new_prefix=24))
        return {int(part.network_address) >> 8 for part in subnets}

    old, new = (documents(pools={"free": {"ipv4": each}}) for each in (before, after))
    assert bool(list(taken_away(old, new))) == bool(addresses(before) - addresses(after))
