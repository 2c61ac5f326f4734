"""Catalog zones (RFC 9432): their content, the owner of each member, and a server that follows them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.dns_document import document, model
from support.dns_primary import Primary, zone_text
from support.dns_server import answer, running
from support.waiting import wait_for
from unmoor.dns.check.check import problems
from unmoor.dns.protocol import names
from unmoor.dns.zones import catalog, static_zone
from unmoor.dns.zones.catalog import Entry, Member, merge, parse

CATALOG = "catalog.example"


def catalog_text(serial: int, *lines: str, version: str = "2", **timers: int) -> str:
    return zone_text(serial, f'version TXT "{version}"', *lines, **timers)


def entries(*lines: str, **more: Any) -> dict[str, Entry]:
    zone = static_zone.read(catalog_text(1, *lines, **more), names.from_text(CATALOG))
    return {names.to_text(name): entry for name, entry in parse(zone).items()}


def test_members_with_their_properties() -> None:
    found = entries(
        "a1.zones PTR One.Example.",
        "a2.zones PTR two.example.",
        'group.a2.zones TXT "foo"',
        'group.a2.zones TXT "bar"',
        "coo.a2.zones PTR other.catalog.",
        'ext.a2.zones TXT "of another vendor"',
        'unknown.a2.zones TXT "a property of the future"',
        "a.b.zones PTR deeper.example.",
        'zones TXT "nothing"',
        'ext TXT "nothing"',
    )
    assert set(found) == {"one.example", "two.example"}
    assert found["one.example"] == Entry(b"a1".hex(), None, ())
    assert found["two.example"].owner == names.from_text("other.catalog")
    assert sorted(found["two.example"].groups) == ["bar", "foo"]


@pytest.mark.parametrize(
    ("strings", "text"),
    [('"foo"', "foo"), ('"f" "oo"', "foo"), ('"fo" "" "o" "bar"', "foobar"), ('""', ""), ('"" "f"', "f")],
)
def test_the_strings_of_a_txt_record_are_joined(strings: str, text: str) -> None:
    assert entries("a.zones PTR one.example.", f"group.a.zones TXT {strings}")["one.example"].groups == (
        text,
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (zone_text(1, "a.zones PTR one.example."), "one TXT record 'version'"),
        (catalog_text(1, version="1"), "the value 2 .*has 1"),
        (catalog_text(1, 'version TXT "3"'), "the value 2"),
        (
            catalog_text(1, "a.zones PTR one.example.", "a.zones PTR two.example."),
            "several PTR records at a.zones",
        ),
        (catalog_text(1, "a.zones PTR one.example.", "b.zones PTR ONE.example."), "names one.example twice"),
        (
            catalog_text(1, "a.zones PTR one.example.", "coo.a.zones PTR x.", "coo.a.zones PTR y."),
            "several PTR records at coo.a.zones",
        ),
    ],
)
def test_broken_catalogs(text: str, why: str) -> None:
    with pytest.raises(catalog.BrokenCatalogError, match=why):
        parse(static_zone.read(text, names.from_text(CATALOG)))


# -- who has which member --------------------------------------------------------------------------------

TWO = document(
    zones=[{"name": "own.example", "primaries": [{"address": "127.0.0.1"}]}],
    catalogs=[
        {"name": "one.catalog", "primaries": [{"address": "127.0.0.1"}], "groups": {"b": {}, "a": {}}},
        {"name": "two.catalog", "primaries": [{"address": "127.0.0.1"}]},
    ],
)
ONE_CATALOG, TWO_CATALOG = names.from_text("one.catalog"), names.from_text("two.catalog")
ZONE = names.from_text("m.example")


def listing(one: dict[str, Entry], two: dict[str, Entry]) -> dict[bytes, dict[bytes, Entry]]:
    return {
        apex: {names.from_text(name): entry for name, entry in each.items()}
        for apex, each in ((ONE_CATALOG, one), (TWO_CATALOG, two))
    }


def entry(unique: str, owner: bytes | None = None, *groups: str) -> Entry:
    return Entry(unique, owner, groups)


def test_a_zone_that_is_configured_by_hand_stays_as_it_is() -> None:
    members, warnings = merge(
        model(TWO), listing({"own.example": entry("1"), "m.example": entry("2")}, {}), []
    )
    assert [member.name for member in members] == ["m.example"]
    assert warnings == ["own.example, of one.catalog, is configured in the document, which takes precedence"]


def test_groups_choose_the_first_that_the_document_knows() -> None:
    members, _ = merge(model(TWO), listing({"m.example": entry("1", None, "x", "a", "b")}, {}), [])
    assert members[0].group == "b"


def test_the_catalog_that_has_a_member_keeps_it() -> None:
    mine = Member("m.example", "two.catalog", "", "two.catalog 1")
    members, warnings = merge(
        model(TWO), listing({"m.example": entry("1")}, {"m.example": entry("1")}), [mine]
    )
    assert members == [mine]
    assert warnings == ["m.example belongs to two.catalog; one.catalog cannot own it"]


@pytest.mark.parametrize(("unique", "state"), [("1", "one.catalog 1"), ("2", "two.catalog 2")])
def test_change_of_ownership(unique: str, state: str) -> None:
    """With the same unique label the zone keeps its state, with another it loses it (section 4.3.1)."""
    mine = Member("m.example", "one.catalog", "", "one.catalog 1")
    both = listing({"m.example": entry("1", TWO_CATALOG)}, {"m.example": entry(unique)})
    members, warnings = merge(model(TWO), both, [mine])
    assert members == [Member("m.example", "two.catalog", "", state)]
    assert warnings == []
    # Handed over, but not there yet: nothing changes.
    members, _ = merge(model(TWO), listing({"m.example": entry("1", TWO_CATALOG)}, {}), [mine])
    assert members == [mine]
    # Then removed from the old one: nothing changes.
    after, _ = merge(
        model(TWO), listing({}, {"m.example": entry(unique)}), merge(model(TWO), both, [mine])[0]
    )
    assert after == [Member("m.example", "two.catalog", "", state)]


def test_moved_without_consent_is_another_zone() -> None:
    mine = Member("m.example", "one.catalog", "", "one.catalog 1")
    members, _ = merge(model(TWO), listing({}, {"m.example": entry("1")}), [mine])
    assert members[0].key != mine.key


def test_another_unique_label_is_another_life() -> None:
    mine = Member("m.example", "one.catalog", "", "one.catalog 1")
    members, _ = merge(model(TWO), listing({"m.example": entry("2")}, {}), [mine])
    assert members[0].key != mine.key


def test_a_catalog_that_is_not_known_takes_nothing_away() -> None:
    mine = Member("m.example", "one.catalog", "", "one.catalog 1")
    members, _ = merge(model(TWO), {TWO_CATALOG: {}}, [mine])
    assert members == [mine]
    assert merge(model(document()), {}, [mine])[0] == []


OWNERS = st.sampled_from([None, ONE_CATALOG, TWO_CATALOG, names.from_text("third")])
LISTED = st.dictionaries(
    st.sampled_from(["m.example", "n.example", "own.example", "one.catalog"]),
    st.builds(Entry, st.sampled_from("12"), OWNERS, st.just(())),
)


@given(LISTED, LISTED, LISTED, LISTED)
def test_merging_settles(
    a: dict[str, Entry], b: dict[str, Entry], c: dict[str, Entry], d: dict[str, Entry]
) -> None:
    """Merging again changes nothing, no zone is served twice, and only zones that a catalog lists are."""
    doc = model(TWO)
    before, _ = merge(doc, listing(a, b), [])
    members, _ = merge(doc, listing(c, d), before)
    assert merge(doc, listing(c, d), members)[0] == members
    assert len({member.apex for member in members}) == len(members)
    assert {member.name for member in members} == (c.keys() | d.keys()) - {"own.example", "one.catalog"}
    assert catalog.load(catalog.dump(members)) == members


def test_policies_for_hostnames_of_members_are_reached() -> None:
    policies = [
        {"name": "members", "match": {"tags": {"of": "members"}}, "answer": {"pool": "free", "ttl": 1}},
        {"name": "some", "match": {"suffixes": ["m.example"]}, "answer": {"pool": "free", "ttl": 1}},
        {"name": "rest", "answer": {"pool": "free", "ttl": 1}},
    ]
    hostnames = [{"tags": {"of": "members"}, "names": ["www"]}]
    catalogs = [
        {"name": CATALOG, "primaries": [{"address": "127.0.0.9"}], "members": {"hostnames": hostnames}}
    ]
    assert problems(model(document(policies=policies, catalogs=catalogs)), "") == []
    said = [str(problem) for problem in problems(model(document(policies=policies)), "")]
    assert ["can never match" in line for line in said] == [True, True]
    shadowed = [policies[2], *policies[:1]]
    said = [str(problem) for problem in problems(model(document(policies=shadowed, catalogs=catalogs)), "")]
    assert len(said) == 1
    assert "rest takes every query first, such as www.member.catalog.example A" in said[0]


# -- a server that follows -------------------------------------------------------------------------------


@pytest.fixture
def primary() -> Iterator[Primary]:
    made = Primary("127.0.0.1")
    yield made
    made.close()


def following(primary: Primary, **more: Any) -> dict[str, Any]:
    return {"catalogs": [{"name": CATALOG, "primaries": [primary.entry()], **more}]}


def test_members_come_and_go(tmp_path: Path, primary: Primary) -> None:
    hostnames = [{"tags": {"account_type": "free"}, "names": ["www", "@"]}]
    for number in (1, 2, 3):
        primary.set(f"m{number}.example", zone_text(1, f"x TXT {number}"))
    primary.set(
        CATALOG,
        catalog_text(1, "a.zones PTR m1.example.", "b.zones PTR m2.example.", 'group.b.zones TXT "g"'),
    )
    with running(tmp_path, **following(primary, groups={"g": {"hostnames": hostnames}})) as server:
        wait_for(lambda: answer(server, "x.m1.example"), '"1"')
        wait_for(lambda: answer(server, "x.m2.example"), '"2"')
        assert answer(server, "www.m2.example", "A").startswith("198.18.")
        assert answer(server, "m2.example", "A").startswith("198.18.")
        assert answer(server, "www.m1.example", "A") == "NXDOMAIN"
        assert answer(server, CATALOG, "SOA") == "REFUSED"  # it is not for everybody to read
        assert server.status()["transfers"]["m1.example"]["catalog"] == CATALOG
        # A broken catalog is ignored as a whole.
        primary.set(CATALOG, catalog_text(2, "b.zones PTR m2.example.", "b.zones PTR m3.example."))
        assert primary.notify(CATALOG, server.port).rcode() == 0
        server.until("broken catalog, which is ignored")
        assert answer(server, "x.m1.example") == '"1"'
        primary.set(CATALOG, catalog_text(3, "b.zones PTR m2.example.", "c.zones PTR m3.example."))
        primary.notify(CATALOG, server.port)
        wait_for(lambda: answer(server, "x.m3.example"), '"3"')
        assert answer(server, "x.m1.example") == "REFUSED"
        assert not list(tmp_path.glob("m1.example*"))
        # The group is gone from m2, and its hostnames with it.
        wait_for(lambda: answer(server, "www.m2.example", "A"), "NXDOMAIN")
    primary.close()
    with running(tmp_path, **following(primary)) as server:
        assert answer(server, "x.m3.example") == '"3"'


def test_another_unique_label_resets_the_zone(tmp_path: Path, primary: Primary) -> None:
    primary.set("m.example", zone_text(9, "x TXT old"))
    primary.set(CATALOG, catalog_text(1, "a.zones PTR m.example."))
    with running(tmp_path, **following(primary)) as server:
        wait_for(lambda: answer(server, "x.m.example"), '"old"')
        # Reset at the primary with a lower serial, which would be refused otherwise.
        primary.versions.clear()
        primary.set("m.example", zone_text(1, "x TXT new"))
        primary.set(CATALOG, catalog_text(2, "b.zones PTR m.example."))
        primary.notify(CATALOG, server.port)
        wait_for(lambda: answer(server, "x.m.example"), '"new"')
        wait_for(lambda: len(list(tmp_path.glob("m.example*.zone"))), 1)


def test_a_member_that_is_configured_by_hand(tmp_path: Path, primary: Primary) -> None:
    primary.set("example.com", zone_text(99, "x TXT theirs"))
    primary.set(CATALOG, catalog_text(1, "a.zones PTR example.com.", "b.zones PTR m.example."))
    primary.set("m.example", zone_text(1, "x TXT one"))
    with running(tmp_path, **following(primary)) as server:
        wait_for(lambda: answer(server, "x.m.example"), '"one"')
        assert answer(server, "txt.example.com") == '"hello"'
        assert (
            server.log.read_text().count("example.com, of catalog.example, is configured in the document")
            == 1
        )


def test_primaries_of_members(tmp_path: Path, primary: Primary) -> None:
    other = Primary("127.0.0.2")
    other.set("m.example", zone_text(1, "x TXT other"))
    primary.set(CATALOG, catalog_text(1, "a.zones PTR m.example."))
    with running(tmp_path, **following(primary, members={"primaries": [other.entry()]})) as server:
        wait_for(lambda: answer(server, "x.m.example"), '"other"')
    other.close()


def test_hostnames_of_a_group_without_a_policy_do_not_stop_the_rest(tmp_path: Path, primary: Primary) -> None:
    primary.set("m.example", zone_text(1, "x TXT one"))
    primary.set(CATALOG, catalog_text(1))
    policies = [
        {"name": "free", "match": {"suffixes": ["example.com"]}, "answer": {"pool": "free", "ttl": 1}}
    ]
    more = following(primary, members={"hostnames": [{"names": ["www"]}]})
    with running(tmp_path, policies=policies, **more) as server:
        server.until("zone catalog.example: serial 1")
        primary.set(CATALOG, catalog_text(2, "a.zones PTR m.example."))
        primary.notify(CATALOG, server.port)
        server.until("www.m.example: has no policy")
        time.sleep(0.2)
        assert answer(server, "host1.example.com", "A").startswith("198.18.")
        assert answer(server, "x.m.example") == "REFUSED"


def test_an_invalid_copy_of_a_member_does_not_hide_the_others() -> None:
    good = Member("m.example", "catalog.example", "", "u")
    (kept,) = catalog.dump([good])
    broken = [{**kept, "name": "a..b"}, {"name": "x"}]
    assert catalog.load([*broken, kept]) == [good]
