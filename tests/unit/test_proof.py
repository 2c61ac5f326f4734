"""The runs of the probe that prove an edge or a PoP, from its documents."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from unmoor import proof
from unmoor.dns.parse.document import parse
from unmoor.model import DnsDocument, EdgeDocument
from unmoor.model.documents import Documents

ZONE = "@ 60 IN SOA ns1 root 1 2 3 4 5\n@ 60 IN NS ns1\nns1 60 IN A 198.51.100.53\n"


def documents(answer: dict[str, Any] | None = None, **services: dict[str, Any]) -> Documents:
    edge = {
        "pop": "ams",
        "edge": "edge1",
        "prefixes": ["198.18.0.0/20", "2001:db8:100::/44"],
        "addresses": ["198.51.100.53/32"],
        "services": [{"label": label, **body} for label, body in services.items()],
    }
    names = [
        {"tags": {"account": "free"}, "names": ["a", "b"]},
        {"tags": {"account": "gold"}, "names": ["g"]},
    ]
    dns = {
        "pop": "ams",
        "edge": "edge1",
        "listen": ["198.19.1.11", "198.51.100.53"],
        "zones": [{"name": "example.test", "records": ZONE, "hostnames": names}],
        "pools": {"big": {"ipv4": ["198.18.0.0/20"]}, "gold": {"ipv4": ["198.18.0.0/32"]}},
        "policies": [
            {"name": "gold", "match": {"tags": {"account": "gold"}}, "answer": {"pool": "gold", "ttl": 1}},
            {"name": "rest", "answer": {"pool": "big", "ttl": 30, **(answer or {})}},
        ],
    }
    return Documents(EdgeDocument.model_validate(edge), DnsDocument.model_validate(dns))


def examples(given: Documents) -> list[proof.Example]:
    return list(proof.examples(given.dns, parse(given.dns).examples()))


def test_one_example_for_each_policy_that_can_answer() -> None:
    found = [(example.policy.name, example.name, example.qtype) for example in examples(documents())]
    assert found == [("rest", "a.example.test", "A"), ("gold", "g.example.test", "A")]


@pytest.mark.parametrize("answer", [{"strategy": "sticky"}, {"records": 2}, {"also": {"gold": 1}}])
def test_a_policy_that_is_not_even_by_intent_is_not_tested_for_it(answer: dict[str, Any]) -> None:
    found = [example.policy.name for example in examples(documents(answer))]
    assert found == ["gold"]


def test_plain_and_tls_services_are_seen_in_one_run_and_others_apart() -> None:
    given = documents(
        http={"ports": [80, 8080], "check": "http"},
        https={"ports": [443], "check": "https"},
        small={"ports": [7], "check": "banner", "prefixes": ["198.18.1.0/24"]},
        unseen={"ports": [9], "check": "none"},
        datagrams={"ports": [9], "protocols": ["udp"]},
    )
    first, second, *rest = proof.of_pop(given, "/ca.crt")
    assert first.arguments == (
        *("reach", "198.18.0.0/20", "2001:db8:100::/44", "--check", "http"),
        *("--tcp", "80,8080", "--service", "http=80,8080"),
        *("--tls", "443", "--service", "https=443", "--sni", "a.example.test", "--ca", "/ca.crt"),
    )
    assert second.arguments == (
        *("reach", "198.18.1.0/24", "--check", "banner", "--tcp", "7", "--service", "small=7"),
    )
    assert {each.arguments[0] for each in rest} == {"uniformity"}


def test_a_gate_goes_straight_to_its_edge_and_asks_its_own_servers() -> None:
    runs = list(proof.of_edge(documents(http={"ports": [80]}), ["198.19.1.11"], None))
    assert runs[0].arguments[5:9] == ("--via", "198.19.1.11", "--edge", "edge1")
    servers = {run.arguments[run.arguments.index("--server") + 1] for run in runs[1:]}
    assert servers == {"198.19.1.11"}


def test_a_pop_is_asked_on_its_shared_address_often_enough_for_every_address() -> None:
    runs = {run.title: run.arguments for run in proof.of_pop(documents(), None)}
    asked = runs["DNS A by policy rest from 198.51.100.53"]
    assert int(asked[asked.index("--queries") + 1]) > 5 * 4096
    assert asked[asked.index("--pool") + 1] == "198.18.0.0/20"


def test_summary_has_what_was_printed() -> None:
    reach = {
        "pairs": 2,
        "families": {"ipv4": {"pairs": 2, "answered": 1}},
        "rate": {"plain": 10.4},
        "edges": {"edge1": 1},
    }
    assert proof.summary("x", reach)[1] == "  1 of 2 (address, port) pairs answered (ipv4)"
    asked = {"queries": 9, "lost": 1, "outside": 0, "distinct": 4, "pool_size": 4, "p": 0.5}
    assert proof.summary("y", asked)[2] == "  4 distinct addresses of 4 seen; chi-square p 0.500"


def test_a_failure_has_the_finding_and_a_pointer() -> None:
    reach = {"pairs": 2, "causes": {"refused": 2}, "examples": {"refused": ["198.18.0.1:80: refused", "x"]}}
    said = proof.failure("web on 198.18.0.0/20", 1, reach, "")
    assert said[:2] == ["web on 198.18.0.0/20:", "  2 times refused; 198.18.0.1:80: refused"]
    assert "unmoor sockets status" in said[2]
    asked = {"queries": 9, "lost": 9, "failed": 0, "outside": 0, "causes": {"timeout": 9}, "examples": {}}
    assert "unmoor-dns" in proof.failure("DNS", 1, asked, "")[-1]
    uneven = asked | {"lost": 0, "causes": {}, "distinct": 1, "pool_size": 4, "p": 0.0}
    assert "chi-square p 0.000" in proof.failure("DNS", 1, uneven, "")[-1]


def test_a_probe_that_did_not_run_has_a_reason_and_one_that_passed_none() -> None:
    assert proof.failure("web", 2, None, "unmoor: no route\n") == [
        "web: the probe did not run: unmoor: no route"
    ]
    assert proof.failure("web", 0, {}, "") == []


DNS_SERVICE = {"ports": [53], "protocols": ["udp", "tcp"], "prefixes": ["198.18.1.0/24", "2001:db8:100::/64"]}


def test_the_dns_server_is_asked_by_udp_on_its_services_prefixes() -> None:
    given = documents(dns=DNS_SERVICE)
    on_prefixes = Documents(given.edge, given.dns.model_copy(update={"any_address": True}))
    more = [
        each.arguments for each in proof.of_pop(on_prefixes, None) if each not in proof.of_pop(given, None)
    ]
    assert [[value for key, value in pairwise(one) if key == "--server"] for one in more] == [
        ["198.18.1.0", "198.18.1.255"],
        ["2001:db8:100::", "2001:db8:100:0:ffff:ffff:ffff:ffff"],
    ]
    assert list(proof.unproved(on_prefixes)) == []


def test_services_that_no_proof_reaches_are_named() -> None:
    found = list(proof.unproved(documents(dns=DNS_SERVICE, game={"ports": [9], "check": "none"})))
    assert found == [
        "Not proved: service dns over UDP; its check uses TCP.",
        "Not proved: service game has check: none.",
    ]
