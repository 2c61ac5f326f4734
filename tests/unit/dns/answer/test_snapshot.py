"""A reload reads only what has changed, and the result is the same as if it had read everything."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from support.dns_document import document, model
from unmoor.dns.answer.snapshot import Snapshot, build
from unmoor.errors import InvalidInputError

COUNTERS = {name: at for at, name in enumerate(["free", "business", "third"])}


def made(data: dict[str, Any], after: Snapshot | None = None) -> Snapshot:
    return build(model(data), "dns.json", COUNTERS, known=after.content if after else None)


def shown(snapshot: Snapshot) -> dict[str, Any]:
    """All that answers follow from, but for the random source."""
    plans = {
        name: {
            rtype: [
                (each.matcher.policy, each.plan and (each.plan.ttl, each.plan.slot)) for each in candidates
            ]
            for rtype, candidates in target.candidates.items()
        }
        for name, target in snapshot.hostnames.items()
    }
    zones = {apex: (zone.nodes, zone.cuts) for apex, zone in snapshot.zones.items()}
    return {"hostnames": plans, "zones": zones, "named": len(snapshot.ptr_ranges)}


def changed(path: str, value: Any) -> dict[str, Any]:
    data: Any = copy.deepcopy(document())
    *way, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place = data
    for part in way:
        place = place[part]
    place[last] = value
    result: dict[str, Any] = data
    return result


SECOND = {
    "name": "example.org",
    "records": document()["zones"][0]["records"],
    "hostnames": [{"names": ["a"]}],
}


@pytest.mark.parametrize(
    ("path", "value", "kept"),
    [
        ("pools.free.ipv4", ["198.18.7.0/24"], True),
        ("policies.0.answer.ttl", 5, True),
        ("policies.0.match", {"tags": {"account_type": "business"}}, True),
        ("policies.0.match", {"types": ["A"]}, True),
        ("listen", ["127.0.0.1"], True),
        ("policies.0.match", {"suffixes": ["in.the.wood.example.com"]}, False),
        ("policies.0.match", {"zones": ["example.com"], "types": ["A"]}, False),
        ("zones.0.hostnames.0.names", ["host1", "new"], False),
        ("zones.0.hostnames.1.tags", {}, False),
        ("zones.0.records", document()["zones"][0]["records"] + "extra IN A 198.18.1.1\n", False),
        ("zones", [*document()["zones"], SECOND], False),
    ],
)
def test_what_is_kept_makes_no_difference(path: str, value: Any, kept: bool) -> None:
    first = made(document())
    data = changed(path, value)
    again = made(data, first)
    assert (again.content is first.content) == kept
    assert shown(again) == shown(made(data))
    assert shown(made(document(), again)) == shown(first)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("policies.1.answer.pool", "nowhere"),
        ("policies.1.match", {"tags": {"account_type": "nobody"}}),
        ("pools.free.ptr", "ip-{address}.example.org"),
    ],
)
def test_errors_are_found_all_the_same(path: str, value: Any) -> None:
    first = made(document())
    with pytest.raises(InvalidInputError) as fresh:
        made(changed(path, value))
    with pytest.raises(InvalidInputError) as after:
        made(changed(path, value), first)
    assert after.value.problems == fresh.value.problems
