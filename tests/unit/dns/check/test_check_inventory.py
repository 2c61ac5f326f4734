"""Whole inventories: what edges share is read, parsed and checked once, and each problem has its place."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unmoor import in_use, proof
from unmoor.dns.check.check import check
from unmoor.dns.check.check_inventory import problems
from unmoor.dns.hostnames import hostnames
from unmoor.dns.parse.document import parse
from unmoor.dns.policy import reachability
from unmoor.dns.zones import static_zone
from unmoor.errors import Problem
from unmoor.model.compile import Compiled, compile_inventory
from unmoor.model.documents import BrokenZone, Documents

ZONE = "@ 60 SOA ns1 root 1 2 3 4 5\n@ 60 NS ns1\nns1 60 A 198.51.100.53\n"
VARIABLES: dict[str, Any] = {
    "unmoor_prefixes": ["198.18.0.0/20", "2001:db8:100::/44"],
    "unmoor_services": {"web": {"ports": [80], "check": "http"}},
    "unmoor_pools": {"free": {"ipv4": ["198.18.0.0/20"], "ipv6": ["2001:db8:100::/44"]}},
    "unmoor_policies": [{"name": "all", "answer": {"pool": "free", "ttl": 30}}],
    "unmoor_zones": [{"name": "example.test", "records_file": "zone", "hostnames_file": "names.csv"}],
    "unmoor_dns_anycast": ["198.51.100.53"],
    "unmoor_gate_vantage": "localhost",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "zone").write_text(ZONE)
    (tmp_path / "names.csv").write_text("name,account\na,free\nb,business\nc,free\n")
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of what parses and checks; each does its work as ever."""
    counted: Counter[str] = Counter()

    def count(module: Any, name: str, label: str) -> None:
        function: Callable[..., Any] = getattr(module, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            counted[label] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, counting)

    count(static_zone, "parse", "zone files")
    count(hostnames, "read", "hostnames")
    count(reachability, "faults", "checks")
    count(Path, "read_text", "files")
    return counted


def compiled(directory: Path, variables: dict[str, Any], edges: int = 12, pops: int = 2) -> Compiled:
    hosts, groups = {}, {"edges": list[str](), "vantage": ["probe"]}
    for number in range(edges):
        name = f"edge{number}"
        # Each host has objects of its own, as from Ansible.
        hosts[name] = copy.deepcopy(variables) | {"unmoor_dns_unicast": [f"198.19.0.{number + 1}"]}
        groups["edges"].append(name)
        groups.setdefault(f"pop_p{number * pops // edges}", []).append(name)
    return compile_inventory(hosts, groups, dict.fromkeys(hosts, directory), lambda _value: "")


def test_what_edges_share_is_parsed_and_checked_once(directory: Path, calls: Counter[str]) -> None:
    found = compiled(directory, VARIABLES)
    assert list(problems(found)) == []
    assert calls == {"files": 1, "zone files": 1, "hostnames": 1, "checks": 2}  # policies depend on the PoP
    zones = {id(pair.dns.zones[0]) for pair in found.documents.values()}
    assert len(zones) == 1


def test_drafts_share_it_as_well(directory: Path, calls: Counter[str]) -> None:
    (directory / "zone").write_text(ZONE + "x AA 198.18.0.1\n")
    found = compiled(directory, VARIABLES | {"unmoor_dns_journal_keep": 0})
    assert not found.documents
    assert {problem.why for problem in problems(found)} == {"`AA` is not a record type"}
    assert calls == {"files": 1, "zone files": 1, "hostnames": 1}


def test_edges_that_differ_are_checked_apart(directory: Path) -> None:
    """Sharing must hide no problem: neither of other policies, nor of the edge's own addresses."""
    hosts = {
        "edge1": VARIABLES | {"unmoor_dns_unicast": ["198.19.0.1"]},
        "edge2": VARIABLES
        | {
            "unmoor_dns_unicast": ["198.19.0.2", "198.19.0.2"],
            "unmoor_policies": [
                {
                    "name": "gold",
                    "match": {"tags": {"a": "b"}},
                    "answer": VARIABLES["unmoor_policies"][0]["answer"],
                }
            ],
        },
        "edge3": VARIABLES | {"unmoor_dns_unicast": ["198.19.0.3", "fe80::3"]},
    }
    groups = {"edges": list(hosts), "pop_a": list(hosts)}
    found = compile_inventory(hosts, groups, dict.fromkeys(hosts, directory), lambda _value: "")
    assert found.problems == ()
    assert sorted((problem.place[-5:], problem.key) for problem in problems(found)) == [
        ("edge2", "unmoor_dns_unicast.1"),
        ("edge2", "unmoor_policies"),
        ("edge2", "unmoor_policies"),
        ("edge2", "unmoor_policies.0"),
        ("edge3", "unmoor_dns_unicast.1"),
    ]


def test_a_proof_parses_its_document_once(directory: Path, calls: Counter[str]) -> None:
    variables = VARIABLES | {"unmoor_services": {"web": {"ports": [443], "check": "https"}}}
    pair = compiled(directory, variables, edges=1, pops=1).documents["edge0"]
    several = Documents(pair.edge, pair.dns.model_copy(update={"listen": pair.dns.listen * 3}))
    calls.clear()
    assert len(list(proof.of_edge(several, [], None))) > 3
    assert calls == {"zone files": 1, "hostnames": 1}
    calls.clear()
    assert list(proof.of_pop(several, None))
    assert calls == {"zone files": 1, "hostnames": 1}


def test_addresses_that_are_not_bound_need_no_zone(directory: Path, calls: Counter[str]) -> None:
    pair = compiled(directory, VARIABLES, edges=1, pops=1).documents["edge0"]
    other = pair.edge.model_copy(update={"prefixes": pair.edge.prefixes[:1]})
    calls.clear()
    assert in_use.not_bound(pair.dns, other) == pair.edge.prefixes[1:]
    assert not calls


def test_a_check_parses_nothing(directory: Path, calls: Counter[str]) -> None:
    parsed = parse(compiled(directory, VARIABLES, edges=1, pops=1).documents["edge0"].dns)
    calls.clear()
    assert check(parsed).faults == ()
    assert calls == {"checks": 1}


# -- places ---------------------------------------------------------------------------------------------


def only(found: Compiled) -> Problem:
    (problem,) = dict.fromkeys(problems(found))
    return problem


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"unmoor_dns_anycast": ["2001:DB8:0::1", "2001:db8::1"]}, "unmoor_dns_anycast.1", "2001:db8::1"),
        ({"unmoor_dns_anycast": ["2001:db8::1", "2001:DB8:0::1"]}, "unmoor_dns_anycast.1", "2001:DB8:0::1"),
        (
            {"unmoor_tsig_keys": {"key.example.": {"secret": "c2hvcnQ="}}},
            "unmoor_tsig_keys.key.example..secret",
            "",
        ),
        (
            {"unmoor_policies": [{"name": "all", "answer": {"pool": "nil", "ttl": 30}}]},
            "unmoor_policies.0.answer.pool",
            "nil",
        ),
        (
            {"unmoor_catalogs": [{"name": "a..b", "primaries": [{"address": "198.51.100.9"}]}]},
            "unmoor_catalogs.0.name",
            "a..b",
        ),
    ],
)
def test_a_problem_has_the_key_and_value_that_the_operator_wrote(
    directory: Path, changes: dict[str, Any], key: str, value: str
) -> None:
    places: list[str] = []

    def place_of(given: Any) -> str:
        places.append(str(given))
        return f"vars.yml:{len(str(given))}"

    variables = VARIABLES | {"unmoor_dns_unicast": ["198.19.0.1"]} | changes
    groups = {"edges": ["edge1"], "pop_a": ["edge1"]}
    found = compile_inventory({"edge1": variables}, groups, {"edge1": directory}, place_of)
    assert found.problems == ()
    problem = only(found)
    assert (problem.key, problem.value) == (key, value)
    assert problem.place.startswith("vars.yml:")
    assert all(word in str(places) for word in value.split())


def test_a_hostname_has_its_line(directory: Path) -> None:
    (directory / "names.csv").write_text(
        "name,account\na,free\nb,business\n\nc,free\nC,free\nx..y,business\n"
    )
    found = dict.fromkeys(problems(compiled(directory, VARIABLES)))
    file = directory / "names.csv"
    assert [(each.place, each.key, each.value) for each in found] == [
        (f"{file}:6", "name", "C"),
        (f"{file}:7", "name", "x..y"),
    ]


def test_an_error_of_a_zone_file_has_file_and_line(directory: Path) -> None:
    (directory / "zone").write_text(ZONE + "x 60 A 198.51.100.300\n")
    assert str(only(compiled(directory, VARIABLES))) == (
        f"{directory / 'zone'}:4: `198.51.100.300` is not an IPv4 address\n"
        "    fix: write four numbers from 0 to 255, as in 198.18.0.1"
    )


# -- broken input -----------------------------------------------------------------------------------------


def test_a_zone_that_cannot_be_read_is_no_other_zone(directory: Path) -> None:
    """Its known parts are checked, and nothing is held against what is not known."""
    (directory / "names.csv").write_text("name,account\na,free\na..b,free\n")
    zones = [
        {"name": "example.test", "records_file": "none", "hostnames_file": "names.csv"},
        {"name": "other.test", "records_file": "zone", "hostnames_file": "missing.csv"},
        {"nmae": "third.test", "records_file": "zone"},
        {"name": "Example.test.", "records_file": "zone"},
    ]
    found = compiled(directory, VARIABLES | {"unmoor_zones": zones}, edges=2, pops=1)
    assert found.documents == {}
    draft = found.drafts["edge0"]
    first, second, third, _ = draft.zones
    assert isinstance(first, BrokenZone)
    assert (first.name, first.records, first.hostnames is None) == ("example.test", None, False)
    assert isinstance(second, BrokenZone)
    assert (second.name, second.records, second.hostnames) == ("other.test", ZONE, None)
    assert third == BrokenZone()
    assert not draft.complete
    keys = {problem.key for problem in found.problems}
    assert {"unmoor_zones.0.records_file", "unmoor_zones.1.hostnames_file", "unmoor_zones.2.nmae"} <= keys
    later = {(problem.key, problem.value): problem.why for problem in problems(found)}
    assert set(later) == {("name", "a..b"), ("unmoor_zones.3.name", "Example.test.")}
    assert not [text for text in map(str, (*found.problems, *problems(found))) if "invalid" in text]


def test_a_name_server_without_an_address_is_found_beside_a_wrong_variable(directory: Path) -> None:
    """Every hostname is known, so that it cannot be one of them."""
    (directory / "zone").write_text(ZONE + "@ 60 NS ns2\n")
    found = compiled(directory, VARIABLES | {"unmoor_vantage": "nowhere"})
    assert found.drafts["edge0"].complete
    assert "is a name server of example.test without an address" in only(found).why
