"""Rates that still arrive at an edge, and the PoPs of edges."""

from __future__ import annotations

import json

from support.checkout import load

filters = load("plugins/filter/turns.py")


def test_rates_are_shown_and_a_failure_has_its_reason() -> None:
    top = {"services": {"web": {"lookups": 12.0}, "dns": {"lookups": 3.5}}}
    answers = [
        {"rc": 0, "stdout": json.dumps({"rcodes": {"NOERROR": 10, "NXDOMAIN": 0}, "uptime": 100.0})},
        {"rc": 0, "stdout": json.dumps(top)},
        {"rc": 0, "stdout": json.dumps({"rcodes": {"NOERROR": 35, "NXDOMAIN": 5}, "uptime": 105.0})},
    ]
    assert filters.traffic_rates(answers) == [
        "sockets: 15.5 new connections and datagrams a second (web 12.0, dns 3.5)",
        "DNS: 6.0 replies a second",
    ]
    gone = {"rc": 2, "msg": "[Errno 2] No such file or directory: 'unmoor'"}
    assert filters.traffic_rates([gone, gone, gone]) == [
        "sockets: [Errno 2] No such file or directory: 'unmoor'",
        "DNS: [Errno 2] No such file or directory: 'unmoor'",
    ]


def test_the_pops_are_those_of_the_edges() -> None:
    groups = {"all": ["a", "b"], "edges": ["a", "b"], "pop_ams": ["a"], "pop_fra": ["b"], "vantage": ["v"]}
    assert filters.pops(groups, ["a"]) == ["ams"]
    assert filters.pops(groups, ["b", "a"]) == ["ams", "fra"]
