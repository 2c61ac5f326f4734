"""What rollback.yml plans and refuses, and the report of a failed turn."""

from __future__ import annotations

import json
from typing import Any

from support.checkout import load

filters = load("plugins/filter/rollout.py")


def texts(edge: str, prefixes: list[str], pool: str) -> dict[str, str]:
    zone = {"name": "example.test", "records": "@ 60 IN SOA ns1 root 1 2 3 4 5\n@ 60 IN NS ns1\n"}
    dns = {
        "pop": "ams",
        "edge": edge,
        "listen": ["198.19.1.11"],
        "zones": [zone],
        "pools": {"all": {"ipv4": [pool]}},
        "policies": [{"name": "all", "answer": {"pool": "all", "ttl": 1}}],
    }
    return {
        "edge": json.dumps({"pop": "ams", "edge": edge, "prefixes": prefixes}),
        "dns": json.dumps(dns),
    }


def host(
    edge: str, now: tuple[str, ...], pool: str, before: tuple[str, ...] = (), run: str = ""
) -> dict[str, Any]:
    old = {"run": run, "documents": texts(edge, list(before), before[0])} if before else {}
    return {"documents": texts(edge, list(now), pool), "before": old}


OLD, NEW = "198.18.0.0/24", "198.18.1.0/24"


def test_only_edges_that_the_newest_run_changed_go_back() -> None:
    edges = {
        "e1": host("e1", (OLD, NEW), OLD, (OLD,), "2026-01-02"),
        "e2": host("e2", (OLD, NEW), OLD, (OLD,), "2026-01-01"),
        "e3": host("e3", (OLD, NEW), OLD),
    }
    found = filters.rollback_plan(edges, list(edges))
    assert (found["edges"], found["refused"]) == (["e1"], [])
    assert f"prefix {NEW}: removed" in found["plan"]["e1"]
    assert found["plan"]["e2"] == ["stays: changed last by 2026-01-01"]
    assert found["plan"]["e3"] == ["no checkpoint to restore"]


def test_an_address_that_a_neighbour_answers_with_must_not_go() -> None:
    edges = {
        "e1": host("e1", (OLD, NEW), OLD, (OLD,), "2026-01-01"),
        "e2": host("e2", (OLD, NEW), NEW),
    }
    refused = filters.rollback_plan(edges, ["e1"])["refused"]
    assert [line.split(":")[0] for line in refused] == [
        f"{NEW} is in use by DNS on e2 and would not be bound on e1"
    ]


def test_what_is_broken_is_reported() -> None:
    edges = {"e1": {**host("e1", (OLD,), OLD), "before": {"broken": "the release is gone"}}}
    assert filters.rollback_plan(edges, ["e1"])["refused"] == ["the release is gone"]


OTHERS = {"all": ["e1", "e2", "e3"], "begun": ["e1", "e2"], "ended": ["e1"]}


def test_a_restored_turn_is_reported_with_the_state_of_other_edges() -> None:
    said = filters.failure_report("e2", {"fresh": False, "paths": ["/a"]}, [], "Gate", "refused", OTHERS)
    assert "e2: failed at 'Gate': refused" in said
    assert "It was put back" in said
    assert "The gate proved it." in said
    assert "have the new state: e1." in said
    assert "not touched: e3." in said


def test_a_put_back_that_failed_is_not_called_good() -> None:
    gate = [{"item": {"title": "web"}, "rc": 2, "stdout": "", "stderr": "no probe"}]
    said = filters.failure_report("e2", {"fresh": False, "paths": []}, gate, "", "", OTHERS)
    assert "another edge of its batch failed" in said
    assert "web: the probe did not run: no probe" in said
    assert "The gate proved it." not in said
    broken = filters.failure_report("e2", {"msg": "disk full"}, [], "Gate", "refused", OTHERS)
    assert "could not be put back: disk full" in broken
    assert "It was put back" not in broken


def test_a_fresh_edge_stays() -> None:
    said = filters.failure_report("e2", {"fresh": True, "paths": []}, [], "Gate", "refused", OTHERS)
    assert "teardown.yml" in said
