"""Differences of documents, and the playbook that may apply them."""

from __future__ import annotations

from typing import Any

import pytest

from unmoor.model import DnsDocument, EdgeDocument, Zone
from unmoor.model.change import compare
from unmoor.model.dns import Catalog, Primary
from unmoor.model.documents import Documents

#: A value of each field that is no number and differs from the one of `documents`.
OTHER: dict[str, Any] = {
    "zones": (Zone(name="example.com"),),
    "catalogs": (Catalog(name="catalog.example", primaries=(Primary.model_validate({"address": "::1"}),)),),
}


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


def test_a_smaller_pool_is_dns_alone() -> None:
    change = compare(documents(), documents(["198.18.0.0/24"]))
    assert change.lines == ("pool free: 198.18.0.0/20 -> 198.18.0.0/24",)
    assert change.not_dns_alone == ()


def test_another_pool_for_a_policy_is_dns_alone() -> None:
    policies = [{"name": "all", "answer": {"pool": "spare", "ttl": 30}}]
    change = compare(documents(), documents(policies=policies))
    assert change.lines == ("policy all: pool free -> spare",)
    assert change.not_dns_alone == ()


def test_a_new_prefix_is_more_than_dns() -> None:
    change = compare(documents(), documents(prefixes=("198.18.0.0/20", "198.18.32.0/20")))
    assert change.not_dns_alone == (
        "prefix 198.18.32.0/20: added: not a change of DNS pools alone; run playbooks/site.yml",
    )


def test_a_port_and_a_listen_address_are_more_than_dns() -> None:
    assert compare(documents(), documents(port=5353)).not_dns_alone
    assert compare(documents(), documents(listen=["198.19.1.12"])).not_dns_alone


def test_nothing_in_force_is_for_site() -> None:
    change = compare(None, documents())
    assert change.not_dns_alone


def test_no_difference() -> None:
    assert compare(documents(), documents()) == compare(documents(), documents())
    assert compare(documents(), documents()).lines == ()


@pytest.mark.parametrize("name", DnsDocument.model_fields)
def test_every_field_but_pools_and_policies_is_more_than_dns(name: str) -> None:
    """A field that is added later must not slip past pool.yml."""
    old = documents()
    if name in ("version", "pop", "edge", "pools", "policies"):
        return
    new = Documents(old.edge, old.dns.model_copy(update={name: OTHER.get(name, 77)}))
    assert compare(old, new).not_dns_alone


def test_another_grouping_of_hostnames_is_shown() -> None:
    one, two = (
        documents(zones=[{"name": "example.com", "records": "x", "hostnames": groups}])
        for groups in ([{"names": ["a", "b"]}], [{"names": ["a"]}, {"names": ["b"]}])
    )
    assert compare(one, two).lines == ("zone example.com: changed",)


def test_a_long_line_of_a_plan_is_cut() -> None:
    change = compare(documents(), documents([f"198.18.{n}.0/24" for n in range(16)]))
    assert change.lines == (
        "pool free: 198.18.0.0/20 -> "
        + ", ".join(f"198.18.{n}.0/24" for n in range(16))[:172]
        + "... (long; see --diff)",
    )


def test_services_and_catalogs_that_come_go_and_change() -> None:
    web, dns = {"label": "web", "ports": [80]}, {"label": "dns", "ports": [53], "protocols": ["udp"]}

    def edge(*services: dict[str, Any]) -> EdgeDocument:
        base = {"pop": "ams", "edge": "e", "prefixes": ["198.18.0.0/20"], "services": services}
        return EdgeDocument.model_validate(base)

    def lines(old: EdgeDocument, new: EdgeDocument) -> list[str]:
        dns = documents().dns
        return [line for line in compare(Documents(old, dns), Documents(new, dns)).lines if "service" in line]

    assert lines(edge(web), edge(web, dns)) == ["service dns: added"]
    assert lines(edge(web, dns), edge(web)) == ["service dns: removed"]
    assert lines(edge(web), edge(web | {"ports": [80, 443]})) == ["service web ports: 80 -> 80, 443"]
    assert lines(edge(web), edge(web)) == []

    def listed(*catalogs: tuple[str, str]) -> Documents:
        return documents(
            catalogs=[{"name": name, "primaries": [{"address": each}]} for name, each in catalogs]
        )

    one, other = ("one.example", "198.19.1.1"), ("other.example", "198.19.1.2")
    assert compare(listed(one), listed(one, other)).lines == (
        "catalog other.example: added, from 198.19.1.2 port 53",
    )
    assert compare(listed(one, other), listed(one)).lines == (
        "catalog other.example: removed, and its member zones",
    )
    moved = ("one.example", "198.19.1.9")
    assert compare(listed(one, other), listed(moved, other)).lines == ("catalog one.example: changed",)


def test_a_pool_that_goes_does_not_hide_the_others() -> None:
    old = documents().dns.model_dump(mode="json", exclude_unset=True)
    pools = {"a": {"ipv4": ["198.18.1.0/24"]}, **old["pools"], "z": {"ipv4": ["198.18.2.0/24"]}}
    found = compare(documents(pools=pools), documents(["198.18.0.0/21"]))
    assert sorted(found.lines) == [
        "pool a: removed (was 198.18.1.0/24)",
        "pool free: 198.18.0.0/20 -> 198.18.0.0/21",
        "pool z: removed (was 198.18.2.0/24)",
    ]
