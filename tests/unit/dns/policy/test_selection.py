"""Strategies: how often the addresses of pools of different size are in an answer of several records."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import chain
from typing import Any

import pytest

from unmoor.dns.policy.pools import Drawer, Mix, Range
from unmoor.dns.policy.selection import Pinned, Random, Sticky
from unmoor.dns.protocol.client_subnet import Subnet

ANYBODY = Subnet(4, 0, 0)
ANSWERS = 4000


def expected(sizes: tuple[int, int], weights: tuple[int, int], records: int) -> float:
    """Return how many records of the first pool an answer has on average, when no address comes twice."""

    @lru_cache(None)
    def more(one: int, two: int) -> float:
        if one + two == records:
            return 0.0
        chance = [
            weight * (size - has) / size for weight, size, has in zip(weights, sizes, (one, two), strict=True)
        ]
        first = chance[0] / sum(chance)
        return first * (1 + more(one + 1, two) if first else 0) + (1 - first) * (
            more(one, two + 1) if first < 1 else 0
        )

    return more(0, 0)


def answers(strategy: str, sizes: tuple[int, int], weights: tuple[int, int], records: int) -> list[list[int]]:
    pools = [Drawer([Range(1000 * at, size)], 4, f"pool{at}") for at, size in enumerate(sizes)]
    mix = Mix(list(zip(pools, weights, strict=True)))
    selector: Any = (
        Random(mix, records) if strategy == "random" else Sticky(mix, records, b"key", by_client=False)
    )
    drawn = (selector.addresses(b"%d" % number, ANYBODY) for number in range(ANSWERS))
    return [[int.from_bytes(each, "big") for each in answer] for answer in drawn]


@pytest.mark.parametrize("strategy", ["random", "sticky"])
@pytest.mark.parametrize(
    ("sizes", "weights", "records"),
    [
        ((1, 8), (1, 1), 2),
        ((1, 8), (1, 1), 1),
        ((4, 256), (9, 1), 1),
        ((4, 256), (9, 1), 3),
        ((16, 256), (1, 1), 8),
        ((4, 8), (1, 3), 9),
    ],
)
def test_several_records_of_pools_of_different_size(
    strategy: str, sizes: tuple[int, int], weights: tuple[int, int], records: int
) -> None:
    found = answers(strategy, sizes, weights, records)
    assert all(len(set(answer)) == len(answer) == records for answer in found)
    counts = Counter(chain.from_iterable(found))
    small = sum(counts[address] for address in range(sizes[0])) / ANSWERS
    wanted, by_weight = expected(sizes, weights, records), records * weights[0] / sum(weights)
    print(
        f"{small:.3f} of {records} records from the small pool; expected {wanted:.3f}, by weight {by_weight}"
    )
    # The number in an answer has a standard deviation of at most half of its range.
    assert abs(small - wanted) < 7 * min(records, sizes[0]) / 2 / ANSWERS**0.5
    for first, size in ((0, sizes[0]), (1000, sizes[1])):
        even = sum(counts[first + at] for at in range(size)) / size
        # Each address of a pool as often as the others: Poisson, or less scattered.
        assert all(abs(counts[first + at] - even) <= 7 * even**0.5 + 1 for at in range(size))


def test_the_example_of_the_documentation() -> None:
    # docs/dns.md: in 77% of the answers, 38% of the records.
    assert round(expected((1, 8), (1, 1), 2), 2) == 0.77
    assert round(expected((1, 8), (1, 1), 2) / 2, 2) == 0.38


def test_the_scope_is_what_an_answer_depends_on() -> None:
    drawer = Drawer([Range(0, 8)], 4)
    client, narrow = Subnet(4, 0xC6336400, 24), Subnet(6, 0x20010DB8 << 96, 64)
    for any_client in (
        Random(drawer, 1),
        Sticky(Mix([(drawer, 1)]), 1, b"", by_client=False),
        Pinned([b"abcd"]),
    ):
        assert any_client.scope(client) == any_client.scope(narrow) == 0
    sticky = Sticky(Mix([(drawer, 1)]), 1, b"", by_client=True)
    assert (sticky.scope(client), sticky.scope(narrow), sticky.scope(ANYBODY)) == (24, 56, 0)
