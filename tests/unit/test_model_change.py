"""What differs between documents, and which playbook may make it so."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from unmoor.model import DnsDocument, EdgeDocument
from unmoor.model.change import compare, in_use
from unmoor.model.inventory import Documents


def documents(
    pool: list[str] | None = None, *, prefixes: tuple[str, ...] = ("198.18.0.0/20",), **dns: Any
) -> Documents:
    edge = {"pop": "ams", "edge": "e", "prefixes": prefixes, "services": [{"label": "web", "ports": [80]}]}
    base = {
        "pop": "ams",
        "edge": "e",
        "listen": ["198.19.1.11"],
        "pools": {"free": {"ipv4": pool or ["198.18.0.0/20"]}, "spare": {"ipv4": ["198.18.0.0/24"]}},
        "policies": [{"name": "all", "answer": {"pool": "free", "ttl": 30}}],
    }
    return Documents(EdgeDocument.model_validate(edge), DnsDocument.model_validate(base | dns))


def test_a_smaller_pool_is_dns_alone_and_takes_addresses_away() -> None:
    change = compare(documents(), documents(["198.18.0.0/24"]))
    assert change.lines == ("pool free ipv4: 198.18.0.0/20 -> 198.18.0.0/24",)
    assert change.not_dns_alone == ()
    assert change.takes_away == (
        "addresses of 198.18.0.0/20 are in use by DNS and would go: run playbooks/pool.yml first",
    )


def test_a_larger_pool_takes_nothing_away() -> None:
    change = compare(documents(["198.18.0.0/24"]), documents())
    assert (change.not_dns_alone, change.takes_away) == ((), ())


def test_the_same_addresses_written_otherwise_take_nothing_away() -> None:
    change = compare(documents(), documents(["198.18.0.0/21", "198.18.8.0/21"]))
    assert change.lines
    assert change.takes_away == ()


def test_another_pool_for_a_policy_is_dns_alone() -> None:
    policies = [{"name": "all", "answer": {"pool": "spare", "ttl": 30}}]
    change = compare(documents(), documents(policies=policies))
    assert change.lines == ("policy all answer pool: free -> spare",)
    assert change.not_dns_alone == ()
    assert change.takes_away


def test_a_new_prefix_is_more_than_dns() -> None:
    change = compare(documents(), documents(prefixes=("198.18.0.0/20", "198.18.32.0/20")))
    assert change.not_dns_alone == (
        "prefix 198.18.32.0/20: new: not a change of DNS pools alone; run playbooks/site.yml",
    )


def test_a_port_and_a_listen_address_are_more_than_dns() -> None:
    assert compare(documents(), documents(port=5353)).not_dns_alone
    assert compare(documents(), documents(listen=["198.19.1.12"])).not_dns_alone


def test_nothing_in_force_is_for_site() -> None:
    change = compare(None, documents())
    assert change.not_dns_alone
    assert not change.takes_away


def test_no_difference() -> None:
    assert compare(documents(), documents()) == compare(documents(), documents())
    assert compare(documents(), documents()).lines == ()


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
def test_takes_away_says_so_exactly_when_an_address_goes(before: list[str], after: list[str]) -> None:
    def addresses(document: DnsDocument) -> set[int]:
        # Every prefix here is made of whole /24s.
        return {
            int(part.network_address) >> 8
            for prefix in in_use(document)
            for part in prefix.subnets(new_prefix=24)
        }

    old, new = documents(before), documents(after)
    assert bool(compare(old, new).takes_away) == bool(addresses(old.dns) - addresses(new.dns))
