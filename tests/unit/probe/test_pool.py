from __future__ import annotations

from collections import Counter
from ipaddress import ip_address, ip_network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmoor.errors import InvalidInputError
from unmoor.probe.results.pool import DRAWS_PER_CELL, NumberedPool, divide, read_pool


def pool(*prefixes: str) -> NumberedPool:
    found = read_pool([ip_network(prefix) for prefix in prefixes], "AAAA" if ":" in prefixes[0] else "A")
    assert found is not None
    return found


def test_each_address_has_its_number_whatever_the_order_of_prefixes():
    numbered = pool("198.18.4.0/24", "198.18.0.0/31", "198.18.2.9/32")
    assert numbered.size == 256 + 2 + 1
    addresses = ["198.18.0.0", "198.18.0.1", "198.18.2.9", *(f"198.18.4.{host}" for host in range(256))]
    assert [numbered.offset(address) for address in addresses] == list(range(259))


@pytest.mark.parametrize("address", ["198.17.255.255", "198.18.0.2", "198.18.3.255", "198.18.5.0", "0.0.0.0"])
def test_what_is_outside_has_none(address):
    assert pool("198.18.0.0/31", "198.18.4.0/24").offset(address) is None


@given(st.integers(0, 2**84 - 1))
def test_ipv6_numbers_are_exact(number):
    numbered = pool("2001:db8:100::/44")
    assert numbered.offset(str(ip_address(int(ip_address("2001:db8:100::")) + number))) == number


def test_wrong_families_and_overlaps_are_refused_all_at_once():
    prefixes = [ip_network(text) for text in ("198.18.0.0/20", "198.18.4.0/24", "2001:db8::/32")]
    with pytest.raises(InvalidInputError) as caught:
        read_pool(prefixes, "A")
    assert [problem.why for problem in caught.value.problems] == ["is no answer of type A", "overlap"]


def test_without_prefixes_there_is_no_pool():
    assert read_pool([], "A") is None


@given(st.integers(1, 10**30), st.integers(0, 300), st.randoms(use_true_random=False))
def test_cells_hold_every_draw_and_their_shares_add_up(size, draws, random):
    offsets = Counter(random.randrange(size) for _ in range(draws))
    for cells in divide(offsets, size, draws):
        assert sum(cells.counts) == draws
        assert sum(cells.shares) == pytest.approx(1)
        assert len(cells.counts) == 1 or len(cells.counts) * DRAWS_PER_CELL <= draws


def test_by_address_while_there_are_draws_enough():
    (cells,) = divide({0: 10, 3: 10}, 4, 20)
    assert (cells.over, cells.counts) == ("addresses", (10, 0, 0, 10))
    assert [cell.over for cell in divide({0: 10, 3: 9}, 4, 19)] == [
        "equal buckets by first bits",
        "equal buckets by last bits",
    ]


def test_buckets_of_a_size_that_does_not_divide():
    first, last = divide(dict.fromkeys(range(11), 1), 11, 11)
    assert first.counts == (6, 5)
    assert last.counts == (6, 5)
    assert first.shares == last.shares == (6 / 11, 5 / 11)


def test_buckets_see_what_is_wrong_at_either_end():
    random = Random(5)
    even = Counter(random.randrange(2**64) for _ in range(2000))
    assert all(cells.test().p > 1e-6 for cells in divide(even, 2**64, 2000))
    first_half = Counter(random.randrange(2**63) for _ in range(2000))
    by_first, by_last = (cells.test().p for cells in divide(first_half, 2**64, 2000))
    assert by_first < 1e-6 < by_last
    even_only = Counter(2 * random.randrange(2**63) for _ in range(2000))
    by_first, by_last = (cells.test().p for cells in divide(even_only, 2**64, 2000))
    assert by_last < 1e-6 < by_first
