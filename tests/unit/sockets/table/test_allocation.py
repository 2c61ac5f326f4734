"""Counters of addresses: which ranges keep theirs, and where new ones are put."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unmoor.sockets.table.allocation import _allocate, _gaps, _intersect, _joined

#: Disjoint ranges in order, from gaps and sizes.
pieces = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), max_size=6)


def laid_out(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found, at = [], 0
    for gap, size in parts:
        found.append((at + gap, size))
        at += gap + size
    return found


@given(pieces, pieces)
def test_an_address_keeps_its_counter_or_needs_one(
    wanted: list[tuple[int, int]], counted: list[tuple[int, int]]
) -> None:
    spans, number = laid_out(wanted), 100
    having = []
    for start, count in laid_out(counted):
        having.append((start, count, number))
        number += count + 1
    counters = {start + at: number + at for start, count, number in having for at in range(count)}
    found, rest = _intersect(spans, having)
    assert all(count > 0 for _, count, *_ in (*found, *rest))
    kept = {start + at: number + at for start, count, number in found for at in range(count)}
    new = {start + at for start, count in rest for at in range(count)}
    addresses = {start + at for start, count in spans for at in range(count)}
    assert kept == {address: counters[address] for address in addresses & counters.keys()}
    assert new == addresses - counters.keys()


def test_large_ranges_get_the_large_gaps() -> None:
    # Counters 0..3, 5..12 and 14..15 are unused.
    marks = bytearray(16)
    marks[4] = marks[13] = 1
    found = list(_allocate([(100, 2), (200, 8), (300, 4)], _gaps(marks, marks)))
    assert found == [(200, 8, 5), (300, 4, 0), (100, 2, 14)]


def test_counters_of_older_generations_come_last() -> None:
    taken, reserved = bytearray(b"\1\0\0\0\0\0\0\0"), bytearray(b"\1\1\1\1\1\1\0\0")
    found = list(_allocate([(100, 4)], _gaps(reserved, taken)))
    assert found == [(100, 2, 6), (102, 2, 1)]


def test_pieces_are_joined_only_where_addresses_and_counters_adjoin() -> None:
    assert _joined([(12, 4, 102), (10, 2, 100), (16, 1, 107), (18, 1, 108)]) == (
        (10, 6, 100),
        (16, 1, 107),
        (18, 1, 108),
    )
