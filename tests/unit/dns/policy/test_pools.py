"""Drawing addresses: within the pool, all of it, evenly, and never twice the same sequence."""

from __future__ import annotations

import os
from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.prefixes import PREFIX4, PREFIX6
from unmoor.dns.policy import pools
from unmoor.dns.policy.pools import Drawer, Range, overlaps, ranges_of
from unmoor.dns.protocol.randomness import numbers_below


def drawer(*prefixes: str) -> Drawer:
    found = [ip_network(prefix) for prefix in prefixes]
    return Drawer(ranges_of(found), 4 if found[0].version == 4 else 16)


@pytest.mark.parametrize(
    ("prefixes", "count"),
    [
        (["198.18.0.7/32"], 1),
        (["198.18.0.6/31"], 2),
        (["198.18.0.0/24"], 256),
        (["198.18.0.0/25", "198.18.1.0/27", "198.18.2.9/32"], 161),
        (["2001:db8::/120"], 256),
        (["2001:db8::1/128", "2001:db8:1::/127"], 3),
    ],
)
def test_every_address_is_drawn_and_no_other(prefixes: list[str], count: int) -> None:
    draw = drawer(*prefixes)
    seen = {draw() for _ in range(count * 40)}
    expected = {address.packed for prefix in prefixes for address in ip_network(prefix)}
    assert len(expected) == count
    # The chance that one address of `count` stays unseen is below count * exp(-40).
    assert seen == expected


@given(st.one_of(st.lists(PREFIX4, min_size=1, max_size=4), st.lists(PREFIX6, min_size=1, max_size=4)))
def test_draws_stay_within_the_pool(prefixes: list[IPv4Network | IPv6Network]) -> None:
    draw = Drawer(ranges_of(prefixes), 4 if prefixes[0].version == 4 else 16)
    kind = IPv4Address if prefixes[0].version == 4 else IPv6Address
    for _ in range(20):
        address = kind(draw())
        assert any(address in prefix for prefix in prefixes)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.data())
def test_numbering_runs_through_all_ranges(sizes: list[int], data: st.DataObject) -> None:
    ranges = [Range(1000 * at, size) for at, size in enumerate(sizes)]
    draw = Drawer(ranges, 4)
    addresses = [draw.at(number) for number in range(draw.size)]
    assert addresses == [(r.first + n).to_bytes(4, "big") for r in ranges for n in range(r.size)]


@settings(max_examples=50)
@given(st.one_of(st.integers(1, 70000), st.sampled_from([2**32, 2**84, 2**128, 2**128 - 1])))
def test_numbers_are_below_the_bound(bound: int) -> None:
    drawn = numbers_below(bound)
    assert drawn
    assert all(0 <= number < bound for number in drawn)


def chi_square(counts: list[int]) -> float:
    """Pearson's statistic in standard deviations from its mean for random data (mean k, variance 2k)."""
    freedom = len(counts) - 1
    expected = sum(counts) / len(counts)
    statistic = sum((count - expected) ** 2 / expected for count in counts)
    return (statistic - freedom) / (2 * freedom) ** 0.5


# The statistic's upper tail is heavier than the normal one: 7 deviations keep chance below one in a million
# for these sizes.
BOUND = 7


@pytest.mark.parametrize("prefixes", [["198.18.0.0/24"], ["198.18.0.0/25", "198.18.4.0/26", "198.18.9.0/32"]])
def test_addresses_come_evenly(prefixes: list[str]) -> None:
    draw = drawer(*prefixes)
    counts = Counter(draw() for _ in range(draw.size * 200))
    assert len(counts) == draw.size
    assert abs(chi_square(list(counts.values()))) < BOUND


def test_successive_addresses_are_independent() -> None:
    draw = drawer("198.18.0.0/28")
    drawn = [draw() for _ in range(16 * 16 * 100 + 1)]
    pairs = Counter(pairwise(drawn))
    assert len(pairs) == 256
    assert abs(chi_square(list(pairs.values()))) < BOUND


def test_every_host_bit_of_a_wide_prefix_varies() -> None:
    draw = drawer("2001:db8::/44")
    ones = Counter()
    for _ in range(400):
        number = int.from_bytes(draw(), "big")
        ones.update(bit for bit in range(128) if number >> bit & 1)
    fixed = [bit for bit in range(84) if not 100 < ones[bit] < 300]
    assert fixed == []  # 100 of 400 is ten standard deviations away from even


def test_a_child_process_does_not_repeat_what_its_parent_had_drawn() -> None:
    draw = drawer("2001:db8::/32")
    draw()
    assert draw.ready
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, draw())
        os._exit(0)
    os.waitpid(pid, 0)
    child = os.read(reader, 16)
    os.close(reader)
    os.close(writer)
    assert child not in draw.ready


def test_no_addresses_cannot_be_drawn_from() -> None:
    with pytest.raises(ValueError, match="no addresses"):
        Drawer([], 4)


@given(st.lists(PREFIX4, max_size=6))
def test_overlaps_are_found(prefixes: list[IPv4Network | IPv6Network]) -> None:
    disjoint = not any(one.overlaps(two) for at, one in enumerate(prefixes) for two in prefixes[at + 1 :])
    assert (overlaps(prefixes) == []) == disjoint


def test_each_prefix_that_overlaps_is_named() -> None:
    wide, one, two, apart = (
        ip_network(f"198.{net}") for net in ("18.0.0/20", "18.1.0/24", "18.2.0/24", "19.0.0/24")
    )
    assert overlaps([two, wide, apart, one]) == [(wide, one), (wide, two)]


def test_the_source_is_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "numbers_below", lambda bound: [bound - 1])
    assert drawer("198.18.0.0/24")() == IPv4Address("198.18.0.255").packed
