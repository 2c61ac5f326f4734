"""A registry's hostnames get the answers, and the problems, that they would get in the document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dns.message
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from support.dns_document import Tags, document, in_registry, model
from support.dns_local import Local, records
from unmoor.commands.dns.group import cli
from unmoor.dns.answer.export import Export
from unmoor.dns.check.check import problems
from unmoor.model.change import describe_change

SMALL = "$TTL 60\n@ SOA ns h 1 2 3 4 5\n@ NS ns\nns A 198.18.0.53\n"
STATIC = SMALL + "txt.e TXT t\nsub NS ns\n*.w TXT w\nold DNAME new\nalias CNAME a\n"


def with_zone(records: str = SMALL, **changes: Any) -> dict[str, Any]:
    zone = {"name": "example.com", "records": records, "source": "a.zone", "hostnames": []}
    return document(**{"zones": [zone], "policies": [ALL], **changes})


ALL = {"name": "all", "answer": {"pool": "free", "ttl": 1}}
FREE, BUSINESS = {"account_type": "free"}, {"account_type": "business"}

# -- the same as in the document --------------------------------------------------------------------------

label = st.sampled_from(["a", "b", "e", "*", "w", "x", "shop"])
short = st.lists(label, min_size=1, max_size=3).map(".".join)
FIXED = {
    "pools": {
        "free": {"ipv4": ["198.18.0.0/32"], "ipv6": ["2001:db8::/128"]},
        "four": {"ipv4": ["198.18.0.9/32"]},
    }
}
policy_match = st.fixed_dictionaries(
    {},
    optional={
        "tags": st.sampled_from([FREE, BUSINESS]),
        "suffixes": st.lists(
            st.sampled_from([f"{each}example.com" for each in ("a.", "shop.a.", "b.", "e.", "")]),
            min_size=1, max_size=2, unique=True,
        ),
        "zones": st.sampled_from([["example.com"], ["b.example.com"]]),
        "types": st.sampled_from([["A"], ["AAAA"]]),
    },
)  # fmt: skip


def policies(matches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = [{"pool": ("free", "four")[at % 2], "ttl": at} for at in range(len(matches) + 1)]
    return [
        {"name": f"p{at}", "match": match, "answer": answer[at]} for at, match in enumerate([*matches, {}])
    ]


def reasons(data: dict[str, Any]) -> list[str]:
    """The problems, without their examples."""
    return sorted(problem.why.split(", such as")[0] for problem in problems(model(data), "dns.json"))


# An example compiles several documents: a quarter of the usual number takes a few seconds.
@settings(max_examples=settings().max_examples // 4)
@given(
    st.dictionaries(short, st.sampled_from([{}, FREE, BUSINESS]), min_size=1, max_size=8),
    st.lists(policy_match, max_size=3),
    st.lists(short, max_size=8),
)
def test_answers_are_the_same_as_from_the_document(
    tmp_path_factory: pytest.TempPathFactory,
    hostnames: dict[str, Tags],
    matches: list[dict[str, Any]],
    asked: list[str],
) -> None:
    zones = [
        {"name": "example.com", "records": STATIC, "hostnames": []},
        {"name": "b.example.com", "records": SMALL, "hostnames": []},
    ]
    # In the document each zone lists its own names; 'ns' has a static address in both.
    whole = {f"{name}.example.com": tags for name, tags in hostnames.items()}
    listed: dict[str, list[dict[str, Any]]] = {"example.com": [], "b.example.com": []}
    for name, tags in whole.items():
        apex = (
            "b.example.com" if name == "b.example.com" or name.endswith(".b.example.com") else "example.com"
        )
        listed[apex].append({"tags": tags, "names": [f"{name}."]})
    common = {**FIXED, "policies": policies(matches)}
    inline = document(zones=[{**zone, "hostnames": listed[str(zone["name"])]} for zone in zones], **common)
    registry = in_registry(tmp_path_factory.mktemp("r"), whole.items(), *listed)
    beside = document(zones=zones, registry=registry, **common)
    assert reasons(beside) == reasons(inline)
    if reasons(inline):  # unreachable policies, mostly: the answers are wanted all the same
        allowed = [match for match in matches if not reasons({**inline, "policies": policies([match])})]
        inline["policies"] = beside["policies"] = policies(allowed[:1])
    one, two = Local(inline), Local(beside)
    for name in {
        *asked,
        *hostnames,
        *(f"n.{name}" for name in hostnames),
        "sub",
        "x.sub",
        "y.old",
        "alias",
        "e",
    }:
        for qtype in ("A", "AAAA", "TXT"):
            expected, found = one.ask(f"{name}.example.com", qtype), two.ask(f"{name}.example.com", qtype)
            assert found.to_text().splitlines()[1:] == expected.to_text().splitlines()[1:]


def test_the_document_wins_and_both_are_counted(tmp_path: Path) -> None:
    registry = in_registry(tmp_path, [("host0.example.com", BUSINESS), ("new.example.com", FREE)])
    local = Local(document(registry=registry))
    assert "198.18." in records(local.ask("host0.example.com").answer)[0]
    assert "198.18." in records(local.ask("NEW.example.com").answer)[0]
    assert local.snapshot.count == 54


def test_a_wildcard_and_names_between_of_a_registry(tmp_path: Path) -> None:
    registry = in_registry(tmp_path, [("*.shop.example.com", FREE), ("a.b.c.example.com", FREE)])
    local = Local(with_zone(registry=registry))
    assert local.ask("any.shop.example.com").answer[0].name.to_text() == "any.shop.example.com."
    assert local.ask("more.than.one.shop.example.com").answer
    for name in ("shop", "b.c", "c"):  # they exist, with no data (RFC 8020)
        reply = local.ask(f"{name}.example.com")
        assert (reply.rcode(), len(reply.answer), len(reply.authority)) == (0, 0, 1)
    assert local.ask("d.example.com").rcode() == 3
    assert local.ask("d.c.example.com").rcode() == 3


def test_the_hot_path_knows_the_registry(tmp_path: Path) -> None:
    local = Local(with_zone(registry=in_registry(tmp_path, [("www.example.com", FREE)])))
    local.snapshot.zones.clear()  # type: ignore[attr-defined] # the careful path would refuse
    assert local.ask("wWw.example.com").answer
    assert local.ask("ww.example.com").rcode() == 5


def test_octets_that_are_no_name_are_left_to_the_careful_path(tmp_path: Path) -> None:
    local = Local(with_zone(registry=in_registry(tmp_path, [("www.example.com", FREE)])))
    good = dns.message.make_query("www.example.com", "A").to_wire()
    for name in (b"", b"\0", b"\3www", b"\xff" * 300, bytes(4000), b"\3www\7example\3com\0" * 2):
        reply = local.answer(good[:12] + name + b"\0\1\0\1", 1232, "127.0.0.1")
        assert reply is None or not dns.message.from_wire(reply, question_only=True).answer


# -- problems ---------------------------------------------------------------------------------------------


def found(data: dict[str, Any]) -> list[str]:
    return [str(problem) for problem in problems(model(data), "dns.json")]


def test_what_does_not_suit_the_zones_is_a_problem(tmp_path: Path) -> None:
    entries = [("www.example.net", FREE), ("a.example.com", FREE), ("x.sub.example.com", FREE)]
    registry = in_registry(tmp_path, entries, "example.com", "example.net")
    data = with_zone(SMALL + "a A 198.18.0.1\nsub NS ns\nquiet NS ns\n", registry=registry)
    texts = found(data)
    assert len(texts) == 3
    assert "holds 1 hostnames of example.net, such as www.example.net" in texts[0]
    assert "registry = a.example.com: is in the registry, and has a static address or CNAME" in texts[1]
    assert "registry = x.sub.example.com: is in the registry, but below sub.example.com" in texts[2]


def test_a_zone_that_the_registry_was_not_built_for(tmp_path: Path) -> None:
    zones = [{"name": name, "records": SMALL} for name in ("example.com", "b.example.com", "c.example.com")]
    registry = in_registry(tmp_path, [("a.b.example.com", FREE)])
    texts = found(with_zone(zones=zones, registry=registry))
    assert len(texts) == 1
    assert "was built without the zone b.example.com, and holds hostnames there" in texts[0]
    assert "fix: build it again with --zone b.example.com as well" in texts[0]


def test_a_dname_at_the_apex_leaves_no_room_for_hostnames(tmp_path: Path) -> None:
    registry = in_registry(tmp_path, [("a.example.com", FREE)])
    assert "but below example.com" in found(with_zone(SMALL + "@ DNAME example.net.\n", registry=registry))[0]


def test_policies_are_checked_against_the_registry(tmp_path: Path) -> None:
    entries = [("a.example.com", FREE), ("b.shop.example.com", BUSINESS), ("ns2.example.com", BUSINESS)]
    registry = in_registry(tmp_path, entries)
    free = {"name": "free", "match": {"tags": FREE}, "answer": {"pool": "free", "ttl": 1}}
    none = {**free, "name": "none", "match": {"tags": {"account_type": "gold"}}}
    shop = {**free, "name": "shop", "match": {"tags": FREE, "suffixes": ["shop.example.com"]}}
    nowhere = {**free, "name": "nowhere", "match": {"suffixes": ["no.example.com"]}}
    texts = found(with_zone(registry=registry, policies=[shop, nowhere, none, free]))
    assert [text.split(":")[1].strip() for text in texts] == [
        "policies.0 = shop",
        "policies.1 = nowhere",
        "policies.2 = none",
        "policies = b.shop.example.com",
        "policies = ns2.example.com",
    ]
    assert "no hostname carries account_type=gold" in texts[2]
    # A name server may be a hostname of the registry.
    assert found(with_zone(SMALL.replace("ns\nns A", "ns2\nns A"), registry=registry)) == []


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "octets, not"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"www", b"wwx", 1)), "is not the file"),
        (lambda path: path.write_bytes(b"UNMOORRG\xff\0\0\0" + bytes(200)), "has format version 255"),
        (lambda path: path.write_text("name\n"), "is not a registry"),
    ],
    ids=["missing", "cut", "flipped", "too new", "no registry"],
)
def test_a_registry_that_cannot_be_served_is_one_problem(tmp_path: Path, spoil: Any, why: str) -> None:
    registry = in_registry(tmp_path, [("www.example.com", FREE)])
    spoil(Path(registry["path"]))
    texts = found(with_zone(registry=registry))
    assert len(texts) == 1
    assert f"registry.path = {registry['path']}: " in texts[0]
    assert why in texts[0]


def test_an_export_holds_the_names_of_both(tmp_path: Path) -> None:
    entries = [("web.example.com", FREE), ("*.shop.example.com", BUSINESS), ("host0.example.com", BUSINESS)]
    whole = Local(document(registry=in_registry(tmp_path, entries))).snapshot
    (done,) = Export(whole, 1, 1).write(tmp_path)
    owners = {line.split()[0] for line in done.path.read_text().splitlines() if "\tA\t" in line}
    assert {"web", "*.shop", "host0", "host49", "deep.in.the.wood"} <= owners
    assert done.names == 54


def test_check_explain_and_the_words_of_a_change(tmp_path: Path) -> None:
    registry = in_registry(tmp_path, [("www.example.com", FREE), ("*.shop.example.com", BUSINESS)])
    data = with_zone(registry=registry)
    (tmp_path / "dns.json").write_text(json.dumps(data))
    runner = CliRunner()
    checked = runner.invoke(cli, ["check", str(tmp_path / "dns.json")], catch_exceptions=False)
    assert "1 zones, 2 hostnames" in checked.output
    options = ["--config", str(tmp_path / "dns.json")]
    said = runner.invoke(cli, ["explain", "x.shop.example.com", *options], catch_exceptions=False).output
    assert "is a registered hostname with account_type=business" in said
    assert "policy all: pool free" in said
    words = describe_change(model(with_zone()), model(data))
    assert words == [f"registry: none -> {registry['path']} (SHA-256 {registry['sha256'][:12]})"]
