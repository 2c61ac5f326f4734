from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmoor.probe.results.chart import svg, terminal

LOADS = st.lists(st.integers(0, 10**6), min_size=1, max_size=300).map(
    lambda loads: sorted(loads, reverse=True)
)


def parsed(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture)  # noqa: S314 - written by the function under test


@given(LOADS.filter(lambda loads: loads[0] > 0))
def test_any_loads_can_be_drawn(loads):
    title, *rows, base, ranks = terminal(loads, "answers", width=40, height=8)
    assert title.startswith("answers")
    assert len(rows) == 8
    assert {len(row) for row in rows} == {len(base)} == {len(ranks)}
    picture = parsed(svg(loads, "A & <B>", "subtitle", "addresses"))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"


def test_a_flat_load_is_a_flat_line():
    rows = [line.partition("│")[2] for line in terminal([100] * 64, "answers", width=64, height=10)]
    assert all(len(set(row)) <= 1 for row in rows)


def test_orders_of_magnitude_need_a_logarithmic_axis():
    title, *rows = terminal([10_000, 100, 10, 1], "answers", width=4, height=12)
    assert "logarithmic" in title
    heights = [sum(1 for row in rows if row[-4:][column] == "█") for column in range(4)]
    assert heights == sorted(heights, reverse=True)
    assert heights == [12, 6, 3, 0]


def test_loads_of_one_magnitude_do_not():
    assert "logarithmic" not in next(iter(terminal([60, 50, 40], "answers")))


@pytest.mark.parametrize("loads", [[120, 80], [10_000, 1]])
def test_the_picture_goes_down_from_left_to_right(loads):
    picture = parsed(svg(loads, "title", "subtitle", "addresses"))
    (line,) = picture.iter("{http://www.w3.org/2000/svg}polyline")
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert heights == sorted(heights)
    assert heights[0] < heights[-1]
