"""From inventory variables to documents: valid ones compile, and each mistake is reported with its fix."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from unmoor.errors import Problem
from unmoor.model.compile import Compiled, compile_inventory
from unmoor.proof import unproved

ZONE = "@ 60 IN SOA ns1 root 1 2 3 4 5\n@ 60 IN NS ns1\nns1 60 IN A 198.51.100.53\n"

VARIABLES: dict[str, Any] = {
    "unmoor_prefixes": ["198.18.0.0/20", "2001:db8:100::/44"],
    "unmoor_services": {"web": {"ports": [80, "8000-8099"]}, "tls": {"ports": [443]}},
    "unmoor_pools": {"free": {"ipv4": ["198.18.0.0/20"], "ipv6": ["2001:db8:100::/44"]}},
    "unmoor_policies": [{"name": "all", "answer": {"pool": "free", "ttl": 30}}],
    "unmoor_zones": [{"name": "example.test", "records_file": "zone", "hostnames_file": "names.csv"}],
    "unmoor_dns_unicast": ["198.19.1.11"],
    "unmoor_dns_anycast": ["198.51.100.53"],
    "unmoor_gate_vantage": "localhost",
}
GROUPS = {"all": ["edge1"], "edges": ["edge1"], "pop_ams": ["edge1"], "vantage": ["probe"], "ungrouped": []}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "zone").write_text(ZONE)
    (tmp_path / "names.csv").write_text("name,account\na,free\nb,business\nc,free\n")
    return tmp_path


def compiled(
    directory: Path,
    hosts: dict[str, dict[str, Any]] | None = None,
    groups: dict[str, list[str]] | None = None,
) -> Compiled:
    hosts = hosts or {"edge1": VARIABLES}
    return compile_inventory(hosts, groups or GROUPS, dict.fromkeys(hosts, directory), lambda _value: "")


def changed(path: str, value: Any) -> dict[str, Any]:
    variables = copy.deepcopy(VARIABLES)
    target: Any = variables
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split("/")]
    for part in parents:
        target = target[part]
    target[last] = value
    return variables


def only(result: Compiled) -> Problem:
    assert len(result.problems) == 1, "\n".join(map(str, result.problems))
    return result.problems[0]


def test_the_dns_server_on_a_whole_prefix(directory: Path) -> None:
    services = {**VARIABLES["unmoor_services"], "dns": {"ports": [53], "protocols": ["udp", "tcp"]}}
    variables = {**VARIABLES, "unmoor_services": services, "unmoor_dns_service": "dns"}
    assert compiled(directory, {"edge1": variables}).documents["edge1"].dns.any_address
    assert not compiled(directory).documents["edge1"].dns.any_address


@pytest.mark.parametrize(
    ("service", "port", "why"),
    [
        (None, 53, "is not a service"),
        ({"ports": [53]}, 53, "without both UDP and TCP"),
        ({"ports": [53], "protocols": ["udp", "tcp"]}, 5353, "of other ports"),
        ({"ports": [53, 54], "protocols": ["udp", "tcp"]}, 53, "of other ports"),
    ],
)
def test_a_service_that_the_dns_server_cannot_be(
    directory: Path, service: dict[str, Any] | None, port: int, why: str
) -> None:
    services = {**VARIABLES["unmoor_services"], **({"dns": service} if service else {})}
    variables = {
        **VARIABLES,
        "unmoor_services": services,
        "unmoor_dns_service": "dns",
        "unmoor_dns_port": port,
    }
    problem = only(compiled(directory, {"edge1": variables}))
    assert problem.key == "unmoor_dns_service"
    assert why in problem.why
    assert f"dns: {{ports: [{port}], protocols: [udp, tcp]}}" in problem.fix


def test_a_right_inventory_compiles(directory: Path) -> None:
    result = compiled(directory)
    assert result.problems == ()
    pair = result.documents["edge1"]
    assert (pair.edge.pop, pair.dns.pop, pair.dns.edge) == ("ams", "ams", "edge1")
    assert [str(address) for address in pair.dns.listen] == ["198.19.1.11", "198.51.100.53"]
    assert [str(prefix) for prefix in pair.edge.addresses] == ["198.51.100.53/32"]
    groups = {tuple(group.tags.items()): group.names for group in pair.dns.zones[0].hostnames}
    assert groups == {(("account", "free"),): ("a", "c"), (("account", "business"),): ("b",)}


@pytest.mark.parametrize(
    ("path", "value", "key", "said"),
    [
        ("unmoor_pools/free/ipv4/0", "198.20.0.0/24", "unmoor_pools.free.ipv4.0", "outside of the prefixes"),
        ("unmoor_pools/free/ipv4/0", "198.18.0.0/19", "unmoor_pools.free.ipv4.0", "outside of the prefixes"),
        ("unmoor_pools/free/ipv6/0", "198.18.0.0/24", "unmoor_pools.free.ipv6.0", "IPv4 prefix in an IPv6"),
        (
            "unmoor_pools/free/ipv4/0",
            "198.18.0.9/24",
            "unmoor_pools.free.ipv4.0",
            "is an address, not a prefix",
        ),
        ("unmoor_prefixes/1", "198.18.8.0/24", "unmoor_prefixes.1", "overlaps 198.18.0.0/20"),
        ("unmoor_services/tls/ports/0", 80, "unmoor_services.tls.ports.0", "claimed by web as well"),
        ("unmoor_services/tls/ports/0", "8050-8150", "unmoor_services.tls.ports.0", "claimed by web as well"),
        ("unmoor_services/tls/ports/0", 0, "unmoor_services.tls.ports.0", "is not a port"),
        ("unmoor_services/tls/prefixes", ["198.18.16.0/24"], "unmoor_services.tls.prefixes.0", "outside of"),
        ("unmoor_services/tls/port", [1], "unmoor_services.tls.port", "is not a known key"),
        ("unmoor_policies/0/match", {"pops": ["fra"]}, "unmoor_policies.0.match.pops.0", "can never match"),
        ("unmoor_pool", {}, "unmoor_pool", "is not a known key"),
        ("unmoor_dns_query_log", {"sample": 9, "to": "dnstap"}, "unmoor_dns_query_log", "has no socket"),
        ("unmoor_dns_journal_keep", 0, "unmoor_dns_journal_keep", "greater than or equal to 1"),
        (
            "unmoor_dns_cookie_secret",
            "short",
            "unmoor_dns_cookie_secret",
            "is not 32 hexadecimal digits (the value is not shown)",
        ),
        ("unmoor_zones/0/records_file", "none", "unmoor_zones.0.records_file", "No such file"),
        ("unmoor_zones/0/hostnames_file", "none", "unmoor_zones.0.hostnames_file", "No such file"),
        ("unmoor_zones/0/records_file", None, "unmoor_zones.0", "has no records"),
        (
            "unmoor_zones/0/primaries",
            [{"address": "198.51.100.9"}],
            "unmoor_zones.0",
            "has both a records_file and primaries",
        ),
        (
            "unmoor_tsig_keys",
            {"k": {"algorithm": "md5", "secret": "x"}},
            "unmoor_tsig_keys.k.algorithm",
            "should be",
        ),
        ("unmoor_catalogs", [{"name": "c.example"}], "unmoor_catalogs.0.primaries", "is missing"),
        ("unmoor_policies/0/answer/ttl", -1, "unmoor_policies.0.answer.ttl", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_fix(
    directory: Path, path: str, value: Any, key: str, said: str
) -> None:
    problems = compiled(directory, {"edge1": changed(path, value)}).problems
    named = {problem.key: problem for problem in problems}
    assert key in named, problems
    assert said in named[key].why
    assert named[key].fix
    assert compiled(directory, {"edge1": changed(path, value)}).documents == {}


def test_settings_of_the_server_arrive(directory: Path) -> None:
    settings = {"unmoor_dns_rate_limit": 500, "unmoor_dns_sticky_key": "secret", "unmoor_dns_tell_name": True}
    settings |= {"unmoor_dns_journal_keep": 7, "unmoor_dns_count_addresses": False}
    settings["unmoor_dns_query_log"] = {"sample": 100}
    dns = compiled(directory, {"edge1": VARIABLES | settings}).documents["edge1"].dns
    assert (dns.rate_limit, dns.tell_name, dns.port) == (500, True, 53)
    assert dns.sticky_key.get_secret_value() == "secret"
    assert (dns.journal_keep, dns.count_addresses, dns.query_log.sample) == (7, False, 100)


def test_a_zone_may_live_in_a_primary(directory: Path) -> None:
    primaries = [{"address": "198.51.100.9", "tsig_key": "k"}]
    keys = {"k": {"algorithm": "hmac-sha512", "secret": "MDEyMzQ1Njc4OWFiY2RlZg=="}}
    variables = VARIABLES | {
        "unmoor_zones": [{"name": "example.test", "primaries": primaries, "hostnames_file": "names.csv"}],
        "unmoor_tsig_keys": keys,
        "unmoor_catalogs": [{"name": "c.example", "primaries": primaries}],
    }
    result = compiled(directory, {"edge1": variables})
    assert result.problems == ()
    dns = result.documents["edge1"].dns
    assert (dns.zones[0].records, dns.zones[0].primaries[0].tsig_key) == ("", "k")
    assert sum(len(group.names) for group in dns.zones[0].hostnames) == 3
    assert (dns.tsig_keys["k"].algorithm, dns.catalogs[0].name) == ("hmac-sha512", "c.example")


@pytest.mark.parametrize(
    "keys", [{"k": "c2VjcmV0"}, {"k": {"secret": ["c2VjcmV0"]}}, {"k": {"secert": "c2VjcmV0"}}, ["c2VjcmV0"]]
)
def test_no_secret_is_shown(directory: Path, keys: Any) -> None:
    problems = compiled(directory, {"edge1": VARIABLES | {"unmoor_tsig_keys": keys}}).problems
    assert problems
    assert not [each for each in problems if "c2VjcmV0" in str(each)]


def test_a_narrower_port_beside_a_range_is_no_clash(directory: Path) -> None:
    assert compiled(directory, {"edge1": changed("unmoor_services/tls/ports/0", 8001)}).problems == ()
    any_port = {"ports": ["any"], "check": "none"}
    assert compiled(directory, {"edge1": changed("unmoor_services/tls", any_port)}).problems == ()


def test_every_problem_is_reported_at_once(directory: Path) -> None:
    variables = changed("unmoor_pools/free/ipv4/0", "198.20.0.0/24")
    variables["unmoor_prefixes"] += ["198.18.0.0/24"]
    variables["unmoor_services"]["tls"]["ports"] = [80]
    keys = {problem.key for problem in compiled(directory, {"edge1": variables}).problems}
    assert keys == {"unmoor_pools.free.ipv4.0", "unmoor_prefixes.2", "unmoor_services.tls.ports.0"}


@pytest.mark.parametrize(
    ("groups", "key", "said"),
    [
        ({"edges": ["edge1"]}, "host edge1", "has no PoP"),
        ({"edges": [], "pop_ams": []}, "group edges", "has no hosts"),
        ({"edges": ["edge1"], "pop_ams": ["edge1"], "pop_fra": []}, "group pop_fra", "has no hosts"),
        ({"edges": ["edge1"], "pop_ams": ["edge1"], "pop_fra": ["edge1"]}, "host edge1", "is in two PoPs"),
        ({"pop_ams": ["edge1"]}, "group edges", "is missing"),
        ({"edges": ["edge1"], "pop_ams": ["edge1"], "pop_AMS": ["edge1"]}, "group pop_AMS", "same PoP name"),
        ({"edges": ["edge1"], "pop_Ams!": ["edge1"]}, "group pop_Ams!", "is not a valid PoP name"),
    ],
)
def test_wrong_groups(directory: Path, groups: dict[str, list[str]], key: str, said: str) -> None:
    problems = compiled(directory, groups=groups).problems
    assert any(problem.key == key and said in problem.why for problem in problems), problems


def test_two_edges_with_the_same_address(directory: Path) -> None:
    groups = {"edges": ["edge1", "edge2"], "pop_ams": ["edge1", "edge2"]}
    problem = only(compiled(directory, {"edge1": VARIABLES, "edge2": VARIABLES}, groups))
    assert (problem.key, problem.value) == ("unmoor_dns_unicast", "198.19.1.11")


def test_a_problem_of_all_hosts_is_reported_once(directory: Path) -> None:
    variables = changed("unmoor_pools/free/ipv4/0", "198.20.0.0/24")
    groups = {"edges": ["edge1", "edge2"], "pop_ams": ["edge1", "edge2"]}
    hosts = {"edge1": variables, "edge2": variables | {"unmoor_dns_unicast": ["198.19.1.12"]}}
    result = compile_inventory(hosts, groups, dict.fromkeys(hosts, directory), lambda _value: "all.yml:3")
    assert only(result).place == "all.yml:3"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name,account\na,free,x\n", 2),
        ("name,account\na\n", 2),
        ("name,account\n", 1),
        ("name,account\na,free\nb,fr", 3),
        ("name,account\na.example.test,free\n", 2),
        ("name,account\nexample.TEST,free\n", 2),
        ("name,account\na b,free\n", 2),
        ("name,account\na\0b,free\n", 2),
        ("name,account\n a,free\n", 2),
        ("name,account\na,free\n,free\n", 3),
        ("host\na\n", 1),
    ],
)
def test_a_bad_line_of_hostnames_is_named(directory: Path, text: str, line: int) -> None:
    (directory / "names.csv").write_text(text)
    assert only(compiled(directory)).place == f"{directory / 'names.csv'}:{line}"


def test_a_name_that_contains_the_zone_elsewhere_is_no_whole_name(directory: Path) -> None:
    text = "name,account\nexample.test.a,free\nwww.example.test.,free\n@,free\nxexample.test2,free\n"
    (directory / "names.csv").write_text(text)
    assert compiled(directory).problems == ()


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        ("0.0.0.0/0", "is the whole of IPv4"),
        ("::/0", "is the whole of IPv6"),
        ("126.0.0.0/7", "has loopback addresses: 127.0.0.0/8"),
        ("127.0.0.0/8", "has loopback addresses"),
        ("224.0.0.0/4", "has multicast addresses"),
        ("239.1.0.0/16", "has multicast addresses"),
        ("169.254.1.0/24", "has link-local addresses"),
        ("255.255.255.255/32", "has reserved addresses"),
        ("::1/128", "has the loopback address"),
        ("fe80::/10", "has link-local addresses"),
        ("ff00::/8", "has multicast addresses"),
        ("::ffff:c612:0/112", "has IPv4-mapped addresses"),
    ],
)
def test_a_prefix_that_is_no_pops(directory: Path, prefix: str, why: str) -> None:
    variables = changed("unmoor_prefixes", [*VARIABLES["unmoor_prefixes"], prefix])
    found = compiled(directory, {"edge1": variables}).problems
    assert [problem.value for problem in found if problem.why.startswith(why)] == [prefix], found


@pytest.mark.parametrize(
    ("path", "value", "key", "why"),
    [
        ("unmoor_dns_unicast", ["198.18.0.11"], "unmoor_dns_unicast.0", "is inside 198.18.0.0/20"),
        ("unmoor_gate_via", ["2001:db8:100::1"], "unmoor_gate_via.0", "is inside 2001:db8:100::/44"),
        ("unmoor_dns_unicast", [62], "unmoor_dns_unicast.0", "is a number, not an IP address"),
        ("unmoor_dns_anycast", ["ns1"], "unmoor_dns_anycast.0", "is not an IP address"),
        ("unmoor_dns_unicast", [], "unmoor_dns_unicast", "is missing"),
        ("unmoor_gate_vantage", "prode", "unmoor_gate_vantage", "is not in group vantage"),
        ("unmoor_vantage", "elsewhere", "unmoor_vantage", "is not in group vantage"),
        ("unmoor_gate_vantage", None, "unmoor_gate_vantage", "is missing"),
        ("unmoor_services/tls/ports/0", "any", "unmoor_services.tls.ports.0", "cannot be probed"),
        ("unmoor_services/tls/protocols", ["udp"], "unmoor_services.tls", "has UDP only"),
        ("unmoor_removals_unasked", {"zone": 1}, "unmoor_removals_unasked.zone.[key]", "Input should be"),
    ],
)
def test_what_would_fail_only_in_the_edges_turn(
    directory: Path, path: str, value: Any, key: str, why: str
) -> None:
    variables = changed(path, value) if "/" in path else VARIABLES | {path: value}
    problem = only(compiled(directory, {"edge1": variables}))
    assert (problem.key, problem.why[: len(why)]) == (key, why), problem


def test_a_misspelt_vantage_host_is_named(directory: Path) -> None:
    problem = only(compiled(directory, {"edge1": VARIABLES | {"unmoor_gate_vantage": "prode"}}))
    assert problem.fix == "did you mean probe?"


def test_a_prefix_over_the_management_network(directory: Path) -> None:
    hosts = {"edge1": VARIABLES}
    machines = {"edge1": "198.18.3.1", "probe": "2001:db8:100::1", "other": "edge.example.test"}
    found = compile_inventory(
        hosts, GROUPS, {"edge1": directory}, lambda _value: "", machines=machines
    ).problems
    assert [(problem.key, problem.why.split(":")[0]) for problem in found] == [
        ("unmoor_prefixes.0", "has 198.18.3.1, the address of host edge1"),
        ("unmoor_prefixes.1", "has 2001"),
    ]


def test_a_service_may_opt_out_of_proof(directory: Path) -> None:
    services = {**VARIABLES["unmoor_services"], "game": {"ports": [9], "protocols": ["udp"], "check": "none"}}
    result = compiled(directory, {"edge1": VARIABLES | {"unmoor_services": services}})
    assert result.problems == ()
    lines = list(unproved(result.documents["edge1"]))
    assert lines == ["Not proved: service game has check: none."]
