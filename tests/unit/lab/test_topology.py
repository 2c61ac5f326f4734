from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.checkout import ROOT
from unmoor.errors import InvalidInputError, UnmoorError
from unmoor.lab import topology

DEFAULT = ROOT / topology.DEFAULT

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def data() -> dict[str, Any]:
    return deepcopy(yaml.safe_load(DEFAULT.read_text(encoding="utf-8")))


def problems(tmp_path: Path, data: dict[str, Any]) -> list[tuple[str, str]]:
    path = tmp_path / "topology.yml"
    path.write_text(json.dumps(data), encoding="utf-8")  # JSON is YAML
    with pytest.raises(InvalidInputError) as raised:
        topology.load(path)
    for problem in raised.value.problems:
        assert problem.place == str(path)
        assert problem.fix
    return [(problem.key, problem.why) for problem in raised.value.problems]


def test_the_default_is_two_edges_behind_a_router() -> None:
    lab = topology.load(DEFAULT)
    assert set(lab.hosts) == {"client", "router", "edge1", "edge2"}
    assert list(lab.next_hops("router", "edge1")) == [
        (ip_address("198.19.1.11"), "fabric"),
        (ip_address("2001:db8:f001::11"), "fabric"),
    ]


def test_five_edges_are_a_matter_of_the_file(data: dict[str, Any], tmp_path: Path) -> None:
    for number in (3, 4, 5):
        edge = deepcopy(data["hosts"]["edge1"])
        edge["management"] = f"198.19.255.1{number}"
        edge["addresses"]["fabric"] = [f"198.19.1.1{number}", f"2001:db8:f001::1{number}"]
        data["hosts"][f"edge{number}"] = edge
    (tmp_path / "five.yml").write_text(json.dumps(data), encoding="utf-8")
    assert len(topology.load(tmp_path / "five.yml").hosts) == 7


def host(name: str, **values: Any) -> Change:
    return lambda data: data["hosts"][name].update(values)


CASES: list[tuple[Change, str, str]] = [
    (host("edge1", gateway="router"), "hosts.edge1.gateway", "not a known key"),
    (lambda data: data["hosts"].pop("router"), "networks.access.switch", "is not a host with an address"),
    (host("edge1", addresses={"fabric": ["198.19.0.77"]}), "hosts.edge1.addresses.fabric", "is not in the"),
    (host("edge1", addresses={"fabric": ["198.19.1.12"]}), "hosts.edge2.addresses.fabric", "is taken by"),
    (host("edge1", addresses={"fibre": ["198.19.1.11"]}), "hosts.edge1.addresses.fibre", "is not a network"),
    (host("edge1", management="198.19.255.12"), "hosts.edge2.management", "is taken by hosts.edge1"),
    (host("edge1", management="198.19.255.1"), "hosts.edge1.management", "is taken by management.controller"),
    (host("edge1", management="198.19.1.99"), "hosts.edge1.management", "is not in management.ipv4"),
    (host("edge1", routes={"default": ["client"]}), "hosts.edge1.routes.default", "shares a network"),
    (host("edge1", routes={"default": ["edge9"]}), "hosts.edge1.routes.default", "shares a network"),
    (host("edge1", routes={"default": []}), "hosts.edge1.routes.default", "has no next hop"),
    (
        host("edge1", routes={"198.18.0.1/20": ["router"]}),
        "hosts.edge1.routes.198.18.0.1/20",
        "not an IP prefix",
    ),
    (host("edge1", sysctls={"kernel.pid_max": 7}), "hosts.edge1.sysctls.kernel.pid_max.[key]", "pattern"),
    (
        lambda data: data["networks"]["access"].update(ipv4="198.19.1.0/25"),
        "networks.fabric.ipv4",
        "overlaps networks.access.ipv4",
    ),
    (
        lambda data: data["hosts"].update({"a-long-name": data["hosts"].pop("edge2")}),
        "hosts.a-long-name.addresses.fabric",
        "too long",
    ),
    (lambda data: data["hosts"].update(mgmt=data["hosts"]["client"]), "hosts.mgmt", "the lab uses itself"),
    (lambda data: data["image"]["packages"].update(base=["no spaces"]), "image.packages.base.0", "pattern"),
]


@pytest.mark.parametrize(("change", "key", "why"), CASES, ids=[f"{key}: {why}" for _, key, why in CASES])
def test_what_cannot_be_built_is_refused(
    change: Change, key: str, why: str, data: dict[str, Any], tmp_path: Path
) -> None:
    change(data)
    found = problems(tmp_path, data)
    assert any(found_key == key and why in found_why for found_key, found_why in found), found


def test_a_v6_route_needs_a_v6_neighbour(data: dict[str, Any], tmp_path: Path) -> None:
    data["hosts"]["edge1"]["addresses"]["fabric"] = ["198.19.1.11"]
    keys = [key for key, _ in problems(tmp_path, data)]
    assert keys == ["hosts.router.routes.2001:db8:100::/44", "hosts.router.routes.2001:db8:53::53/128"]


def test_every_problem_is_reported_at_once(data: dict[str, Any], tmp_path: Path) -> None:
    data["hosts"]["edge1"]["management"] = "198.19.1.99"
    data["hosts"]["edge2"]["routes"] = {"default": ["client"]}
    keys = {key for key, _ in problems(tmp_path, data)}
    assert keys == {"hosts.edge1.management", "hosts.edge2.routes.default"}


@pytest.mark.parametrize(
    ("text", "why"),
    [("a: [1", "is not YAML"), ("[]", "valid dictionary"), ("[" * 5000 + "]" * 5000, "is nested too deeply")],
)
def test_what_is_not_a_topology_is_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "topology.yml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=why):
        topology.load(tmp_path / "topology.yml")


def test_the_default_is_found_from_below_and_missed_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DEFAULT.parent)
    assert topology.find(None) == DEFAULT
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnmoorError, match="--topology"):
        topology.find(None)
