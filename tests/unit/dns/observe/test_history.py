"""The journal as intervals: their borders, and which of them are joined."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from unmoor.dns.observe.history import History, Interval, Moment, Use

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ADDRESS = ip_address("198.18.0.7")
USE = Use("all", "free", "random", 30, ((ip_address("198.18.0.0"), ip_address("198.18.0.255")),))


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def when(seconds: float) -> Moment:
    return Moment(at(seconds), at(seconds))


def history(*spans: tuple[float, float | None]) -> History:
    found = [Interval(USE, at(start), None if end is None else at(end)) for start, end in spans]
    return History("e1", "ams", tuple(found), (), (), ())


@pytest.mark.parametrize(
    ("seconds", "answered", "visible"),
    [
        (-1, False, False),
        (0, True, True),
        (60, True, True),
        (61, False, True),
        (90, False, True),
        (91, False, False),
    ],
)
def test_an_interval_includes_its_ends_and_the_ttl(seconds: int, answered: bool, visible: bool) -> None:
    interval = Interval(USE, at(0), at(60))
    assert (interval.answered(when(seconds)), interval.touches(when(seconds))) == (answered, visible)


@pytest.mark.parametrize(
    ("again", "joined"),
    [(60, True), (75, True), (90, True), (91, False)],
    ids=["at once", "in", "at", "after"],
)
def test_uses_are_joined_within_the_ttl(again: int, joined: bool) -> None:
    found = history((0, 60), (again, 200)).of(ADDRESS)
    spans = [(each.start, each.end) for each in found]
    assert spans == ([(at(0), at(200))] if joined else [(at(0), at(60)), (at(again), at(200))])


def test_a_later_use_that_ends_earlier_does_not_shorten() -> None:
    assert [each.end for each in history((0, 100), (10, 50)).of(ADDRESS)] == [at(100)]
    assert [each.end for each in history((0, 100), (10, None)).of(ADDRESS)] == [None]
    assert [each.end for each in history((0, None), (10, 50)).of(ADDRESS)] == [None]


def test_only_what_can_answer_with_the_address_counts() -> None:
    assert history((0, 60)).of(ip_address("198.18.1.0")) == []
    assert history((0, 60)).of(ip_address("2001:db8::1")) == []
    assert len(history((0, 60)).of(ip_address("198.18.0.255"))) == 1


def test_runs_include_their_ends() -> None:
    some = History("e1", "ams", (), ((at(0), at(60), True), (at(100), None, True)), (), ())
    assert [some.ran(when(each)) for each in (-1, 0, 60, 61, 99, 100, 900)] == [
        False, True, True, False, False, True, True,
    ]  # fmt: skip
