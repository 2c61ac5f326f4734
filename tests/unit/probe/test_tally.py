"""What a probe counts: outcomes of one side, and latencies by nearest rank."""

from __future__ import annotations

import pytest

from unmoor.probe.clients.outcome import Fault, Identity, Outcome
from unmoor.probe.clients.targets import Target
from unmoor.probe.results.tally import Side, latency_ms


@pytest.mark.parametrize(
    ("milliseconds", "median", "highest"),
    [([5], 5, 5), ([1, 2], 1, 2), ([1, 2, 3], 2, 3), ([4, 1, 3, 2], 2, 4), (list(range(1, 102)), 51, 100)],
)
def test_percentiles_are_nearest_ranks(milliseconds: list[int], median: int, highest: int) -> None:
    found = latency_ms([each / 1000 for each in milliseconds])
    assert found == {"p50": median, "p99": highest, "max": max(milliseconds)}


def test_no_latencies() -> None:
    assert latency_ms([]) == {}


def test_a_side_counts_outcomes_and_their_rate() -> None:
    target = Target("198.18.0.1", 80)
    side, other = Side(), Side()
    side.add(Outcome(target, 0.5, Identity(), None), now=11.0)
    side.add(Outcome(target, 1.0, Identity(), Fault("timeout")), now=12.5)
    other.add(Outcome(target, 0.25, Identity(), None), now=10.25)
    side.merge(other)
    assert (side.pairs, side.answered, list(side.latencies)) == (3, 2, [0.5, 0.25])
    assert (side.first, side.last) == (10.0, 12.5)
    assert side.rate == 3 / 2.5
    assert Side().rate == 0
