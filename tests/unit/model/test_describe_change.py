"""The difference of two documents, in words."""

from __future__ import annotations

from typing import Any

import pytest

from support.dns_document import document, model
from unmoor.model.change import describe_change


def changed(path: str, value: Any) -> dict[str, Any]:
    """The small document with one value changed; None removes it."""
    data: Any = document()
    *way, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place = data
    for part in way:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    found: dict[str, Any] = data
    return found


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("pools.free.ipv4", ["198.18.0.0/24"], "pool free: 198.18.0.0/20 -> 198.18.0.0/24"),
        ("pools.free.ipv6", [], "pool free: 2001:db8::/44 -> nothing"),
        ("pools.new", {"ipv4": ["198.18.9.0/24"]}, "pool new: nothing -> 198.18.9.0/24"),
        ("pools.business", None, "pool business: removed (was 198.51.100.0/25, 198.51.100.128/26)"),
        ("policies.0.answer.ttl", 5, "policy free: ttl 30 -> 5"),
        ("policies.0.answer.pool", "business", "policy free: pool free -> business"),
        ("policies.0.match.tags", {}, "policy free: tags account_type=free -> nothing"),
        ("policies.0.match.pops", ["a", "b"], "policy free: pops any -> a, b"),
        ("policies.0.exclusive", True, "policy free: exclusive now"),
        ("policies.0.answer.also", {"business": 3}, "policy free: also nothing -> business=3"),
        ("pools.free.exclude", ["198.18.0.0/32"], "pool free: exclude nothing -> 198.18.0.0/32"),
        ("pools.free.ptr", "{address}.x", "pool free: ptr nothing -> {address}.x"),
        ("sticky_key", "secret", "sticky_key: changed"),
        ("policies.1", None, "policy business: removed"),
        ("policies.0.name", "gratis", "policy gratis: added (pool free, ttl 30)"),
        ("listen", ["127.0.0.1"], "listen: 127.0.0.1, ::1 -> 127.0.0.1"),
        ("port", 53, "port: 5300 -> 53"),
        ("workers", 1, "workers: 2 -> 1"),
        ("any_address", True, "any_address: False -> True"),
        ("tcp_connections", 99, "tcp_connections: 4096 -> 99"),
        ("tcp_per_client", 9, "tcp_per_client: 256 -> 9"),
        ("tcp_idle", 9, "tcp_idle: 15 -> 9"),
        ("zones.0.hostnames.1.names", ["new", "biz"], "zone example.com: hostnames +1 -1"),
        ("zones.0.hostnames.1.tags", {"x": "y"}, "zone example.com: tags of 2 hostnames changed"),
        ("zones.0", None, "zone example.com: removed"),
        ("zones.0.name", "example.net", "zone example.net: added, hostnames 52"),
        (
            "zones.0.records",
            document()["zones"][0]["records"] + "x TXT y\n",
            "zone example.com: records +1 -0 lines",
        ),
    ],
)
def test_one_change_one_line(path: str, value: Any, line: str) -> None:
    assert line in describe_change(model(document()), model(changed(path, value)))


def test_order_of_policies_is_a_change() -> None:
    data = document()
    data["policies"].reverse()
    assert describe_change(model(document()), model(data)) == [
        "policies: order free, business -> business, free"
    ]


def test_nothing_changed() -> None:
    assert describe_change(model(document()), model(document())) == []


def test_catalogs_are_described_like_zones() -> None:
    primaries = [{"address": "198.51.100.9"}]
    both = model(document(catalogs=[{"name": name, "primaries": primaries} for name in ("a.test", "b.test")]))
    changed = {"name": "a.test", "primaries": primaries, "members": {"hostnames": [{"names": ["www"]}]}}
    one = model(document(catalogs=[changed, {"name": "c.test", "primaries": primaries}]))
    assert describe_change(both, one) == [
        "catalog a.test: changed",
        "catalog c.test: added, from 198.51.100.9 port 53",
        "catalog b.test: removed, and its member zones",
    ]
