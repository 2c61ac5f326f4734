"""The lab's network alone, without booted hosts: real namespaces, bridges and routes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.checkout import ROOT
from unmoor import paths
from unmoor.lab import layout, network, topology
from unmoor.lab.layout import Layout

DEFAULT = ROOT / topology.DEFAULT


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    monkeypatch.setattr(paths, "LAB_STATE", tmp_path)
    place, lab = Layout("testnet"), topology.load(DEFAULT)
    for host in lab.hosts:
        place.host(host).mkdir(parents=True)
    try:
        network.build(place, lab)
        yield place
    finally:
        network.destroy(place)


def inside(place: Layout, host: str, *command: str) -> str:
    args = ["ip", "netns", "exec", place.namespace(host), *command]
    return subprocess.run(args, capture_output=True, text=True, check=True).stdout


def routes(place: Layout, host: str, family: str) -> dict[str, Any]:
    shown = inside(place, host, "ip", "-json", family, "route", "show", "table", "all")
    return {route["dst"]: route for route in json.loads(shown)}


def answers(place: Layout, host: str, address: str) -> bool:
    """Report whether `address` is reachable: it refuses a connection to a closed port."""
    target = f"[{address}]" if ":" in address else address
    args = [
        "ip",
        "netns",
        "exec",
        place.namespace(host),
        "socat",
        "-u",
        f"TCP:{target}:9,connect-timeout=3",
        "-",
    ]
    done = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return "Connection refused" in done.stderr


@pytest.mark.parametrize("address", ["198.19.1.11", "198.19.1.12", "2001:db8:f001::11", "2001:db8:f001::12"])
def test_the_client_reaches_the_edges_through_the_router_at_once(place: Layout, address: str) -> None:
    assert answers(place, "client", address)


def test_management_is_apart(place: Layout) -> None:
    assert answers(place, "mgmt", "198.19.255.12")
    assert not answers(place, "mgmt", "198.19.1.12")


def test_the_router_spreads_prefixes_over_the_edges(place: Layout) -> None:
    for family, prefix, hops in (
        ("-4", "198.18.0.0/20", {"198.19.1.11", "198.19.1.12"}),
        ("-6", "2001:db8:100::/44", {"2001:db8:f001::11", "2001:db8:f001::12"}),
    ):
        nexthops = routes(place, "router", family)[prefix]["nexthops"]
        assert {hop["gateway"] for hop in nexthops} == hops
    for name in ("net.ipv4.fib_multipath_hash_policy", "net.ipv6.fib_multipath_hash_policy"):
        assert inside(place, "router", "sysctl", "-n", name).strip() == "1"
        assert inside(place, "client", "sysctl", "-n", name).strip() == "0"


def test_a_reset_takes_away_what_a_guest_did_and_puts_back_what_is_the_labs(place: Layout) -> None:
    before = {family: routes(place, "edge1", family) for family in ("-4", "-6")}
    for command in (
        "ip route add local 198.18.0.0/20 dev lo",
        "ip -6 route add local 2001:db8:100::/44 dev lo proto static",
        "ip address add 198.51.100.53/32 dev lo",
        "ip route replace default via 198.19.1.1 dev fabric",
        "ip -6 route delete default",
    ):
        inside(place, "edge1", *command.split())
    assert "198.18.0.0/20" in routes(place, "edge1", "-4")
    network.reset(place, "edge1")
    for family, expected in before.items():
        assert routes(place, "edge1", family).keys() == expected.keys()
    assert "198.51.100.53" not in inside(place, "edge1", "ip", "address")
    assert routes(place, "edge1", "-4")["default"]["protocol"] == layout.ROUTE_PROTOCOL


def test_nothing_is_left_of_it(place: Layout) -> None:
    assert len(network.namespaces(place)) == 5
    network.destroy(place)
    assert not network.namespaces(place)
    network.destroy(place)
