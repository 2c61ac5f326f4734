"""Rendezvous hashing: which choices change with the ranges, and how evenly addresses are chosen."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmoor.dns.policy.pools import Drawer, Mix, Range, ranges_of, without
from unmoor.dns.policy.rendezvous import Rendezvous
from unmoor.dns.policy.selection import Sticky
from unmoor.dns.protocol.client_subnet import Subnet

KEYS = [blake2b(b"%d" % number, digest_size=32).digest() for number in range(4000)]
NAMES = [b"\5host%d\7example\3com\0" % number for number in range(4000)]
ANYBODY = Subnet(4, 0, 0)


def ranges(*prefixes: str) -> tuple[Range, ...]:
    return ranges_of(ip_network(each) for each in prefixes)


def choices(some: tuple[Range, ...]) -> list[int]:
    octets = 4 if some[0].first < 1 << 32 else 16
    rendezvous = Rendezvous(some, octets)
    return [rendezvous.choose(key) for key in KEYS]


# Around borders of blocks of 2**16 and 2**88 addresses, where a search begins.
BORDERS = {4: int(ip_address("198.18.0.0")), 16: int(ip_address("2001:db8:100::"))}


@st.composite
def some_ranges(draw: st.DrawFn) -> tuple[int, tuple[Range, ...]]:
    octets = draw(st.sampled_from([4, 16]))
    scale = draw(st.sampled_from([1, 300, 70_000] if octets == 4 else [1, 70_000, 1 << 80, 3 << 87]))
    at, found = BORDERS[octets] - 10 * scale, []
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=6)):
        found.append(Range(at + gap * scale, size * scale))
        at += (gap + size) * scale
    return octets, tuple(found)


@given(some_ranges(), st.data(), st.integers(0, 3999))
def test_a_choice_that_is_left_stays(
    given_ranges: tuple[int, tuple[Range, ...]], data: st.DataObject, number: int
) -> None:
    octets, whole = given_ranges
    chosen = Rendezvous(whole, octets).choose(KEYS[number])
    assert any(each.first <= chosen < each.first + each.size for each in whole)
    # Cut out what does not contain the choice: ranges below it, above it, and single addresses beside it.
    last = max(each.first + each.size for each in whole)
    below = data.draw(st.integers(whole[0].first, chosen))
    above = data.draw(st.integers(chosen + 1, last))
    holes = [Range(chosen - 1, 1), Range(chosen + 1, 1)] if data.draw(st.booleans()) else []
    left = without(whole, [Range(0, below), Range(above, last - above + 1), *holes])
    assert Rendezvous(left, octets).choose(KEYS[number]) == chosen


@pytest.mark.parametrize("excluded", [0, 17, 255])
def test_excluding_an_address_moves_only_what_was_on_it(excluded: int) -> None:
    whole = ranges("198.18.7.0/24")
    gone = whole[0].first + excluded
    before, after = choices(whole), choices(without(whole, [Range(gone, 1)]))
    moved = [one for one, two in zip(before, after, strict=True) if one != two]
    print(f"{len(moved)} of 4,000 moved")
    assert set(moved) == {gone}
    assert len(moved) == before.count(gone)
    # What was on it goes to as many others.
    assert len({two for one, two in zip(before, after, strict=True) if one == gone}) > len(moved) / 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["198.18.0.0/24"], ["198.18.0.0/23"]),
        (["198.18.1.0/24"], ["198.18.0.0/20"]),
        (["198.18.0.0/20"], ["198.18.0.0/20", "203.0.113.0/24"]),
        (["198.18.0.0/20"], ["198.17.0.0/16", "198.18.0.0/20"]),
        (["198.16.0.0/14"], ["198.16.0.0/13"]),
        (["198.18.0.0/25", "198.18.3.0/26"], ["198.18.0.0/24", "198.18.3.0/26"]),
        (["2001:db8::/44"], ["2001:db8::/43"]),
        (["2001:db8::/44"], ["2001:db8::/44", "2001:db8:f000::/44"]),
        (["2001:db8:0:1::/64"], ["2001:db8:0:1::/64", "2001:db8:0:4::/62"]),
        (["2001:db8::/37"], ["2001:db8::/36"]),
    ],
)
def test_growth_moves_what_the_new_addresses_take(old: list[str], new: list[str]) -> None:
    few, many = ranges(*old), ranges(*new)
    before, after = choices(few), choices(many)
    moved = [two for one, two in zip(before, after, strict=True) if one != two]
    assert all(not any(each.first <= two < each.first + each.size for each in few) for two in moved)
    share = 1 - sum(each.size for each in few) / sum(each.size for each in many)
    # Standard deviations from the share; the keys are fixed, so this cannot fail by chance.
    deviation = (len(KEYS) * share * (1 - share)) ** 0.5
    print(
        f"{len(moved)} of 4,000 moved, {len(KEYS) * share:.0f} expected, standard deviation {deviation:.0f}"
    )
    assert abs(len(moved) - len(KEYS) * share) < 4 * deviation


def test_how_ranges_are_written_does_not_matter() -> None:
    assert choices(ranges("198.18.0.0/23")) == choices(
        ranges("198.18.1.0/24", "198.18.0.0/25", "198.18.0.128/25")
    )


@pytest.mark.parametrize(
    "some",
    [
        ranges("198.18.0.0/25"),
        ranges("198.18.255.192/26", "198.19.0.0/26"),
        ranges("198.18.3.0/28", "203.0.113.0/27", "192.0.2.9/32", "198.18.77.0/30"),
        without(ranges("198.18.0.0/26"), ranges("198.18.0.3/32", "198.18.0.16/29")),
        ranges("2001:db8::/122", "2001:db8:1:2::/125", "2001:db9::/128"),
    ],
    ids=["one", "across blocks", "scattered", "with holes", "IPv6"],
)
def test_addresses_are_chosen_evenly(some: tuple[Range, ...]) -> None:
    rendezvous = Rendezvous(some, 4 if some[0].first < 1 << 32 else 16)
    size = sum(each.size for each in some)
    keys = [blake2b(b"%d" % number, digest_size=32).digest() for number in range(100 * size)]
    counts = Counter(rendezvous.choose(key) for key in keys)
    assert len(counts) == size
    # Pearson's statistic, as standard deviations from its mean. The keys are fixed.
    statistic = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert abs(statistic - (size - 1)) / (2 * (size - 1)) ** 0.5 < 4


def test_every_host_bit_of_a_wide_prefix_varies() -> None:
    found = choices(ranges("2001:db8::/44"))
    ones = [sum(each >> bit & 1 for each in found) for bit in range(84)]
    assert all(abs(each - 2000) < 5 * 32 for each in ones)


def test_no_addresses_cannot_be_chosen_from() -> None:
    with pytest.raises(ValueError, match="no addresses"):
        Rendezvous([Range(7, 0)], 4)


# -- sticky answers --------------------------------------------------------------------------------------


def sticky(records: int = 1, **pools: tuple[int, tuple[Range, ...]]) -> list[tuple[int, ...]]:
    """The addresses of 4,000 names, of pools with weights."""
    mix = Mix([(Drawer(some, 4, name), weight) for name, (weight, some) in pools.items()])
    selector = Sticky(mix, records, b"key", by_client=False)
    return [
        tuple(int.from_bytes(each, "big") for each in selector.addresses(name, ANYBODY)) for name in NAMES
    ]


def test_answers_are_the_same_in_every_release_and_on_every_edge() -> None:
    found = sticky(2, main=(9, ranges("198.18.0.0/20")), canary=(1, ranges("203.0.113.0/24")))
    assert [[str(ip_address(each)) for each in found[number]] for number in (0, 1, 7)] == [
        ["198.18.0.77", "198.18.2.22"],
        ["198.18.1.64", "198.18.15.174"],
        ["198.18.11.77", "203.0.113.147"],
    ]
    assert str(ip_address(choices(ranges("2001:db8::/44"))[0])) == "2001:db8:2:76a:55a5:8a33:8269:b72f"


def test_an_excluded_address_leaves_the_others_of_an_answer() -> None:
    whole = ranges("198.18.0.0/24")
    gone = whole[0].first + 9
    before = sticky(3, main=(1, whole))
    after = sticky(3, main=(1, without(whole, [Range(gone, 1)])))
    for old, new in zip(before, after, strict=True):
        assert len(set(new)) == 3
        if gone in old:
            assert len(set(old) & set(new)) == 2
        else:
            assert old == new


def test_a_weight_moves_names_only_to_the_pool_that_gains() -> None:
    main, canary = ranges("198.18.0.0/20"), ranges("203.0.113.0/24")
    alone = sticky(main=(9, main))
    tenth = sticky(main=(9, main), canary=(1, canary))
    half = sticky(main=(5, main), canary=(5, canary))
    for few, many, expected in ((alone, tenth, 400), (tenth, half, 1600)):
        moved = [new for old, new in zip(few, many, strict=True) if old != new]
        assert all(canary[0].first <= new[0] < canary[0].first + 256 for new in moved)
        # Standard deviations of 19 and 31; the key is fixed.
        assert abs(len(moved) - expected) < 130
    # In whichever order the pools are written.
    assert sticky(canary=(1, canary), main=(9, main)) == tenth
