from __future__ import annotations

import math
from decimal import Decimal, localcontext
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmoor.probe.results.statistics import chi_square, expected_distinct, upper_gamma


# NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.4: upper critical values, three decimals.
@pytest.mark.parametrize(
    ("freedom", "p", "critical"),
    [
        (1, 0.05, 3.841),
        (1, 0.001, 10.828),
        (2, 0.10, 4.605),
        (5, 0.05, 11.070),
        (10, 0.01, 23.209),
        (30, 0.025, 46.979),
        (60, 0.001, 99.607),
        (100, 0.05, 124.342),
        (100, 0.95, 77.929),
        (100, 0.99, 70.065),
    ],
)
def test_the_printed_table(freedom, p, critical):
    assert upper_gamma(freedom / 2, critical / 2) == pytest.approx(p, rel=2e-3)


@pytest.mark.parametrize(
    ("a", "x"),
    [(5, 3), (128, 180.5), (500, 900), (2048, 1800), (2048, 2300), (20000, 20500), (100000, 101500)],
)
def test_whole_numbers_against_the_exact_sum(a, x):
    # Q(a, x) = exp(-x) * sum of x^k / k! for k < a (DLMF 8.4.10), here with sixty digits.
    with localcontext() as context:
        context.prec = 60
        term = total = Decimal(1)
        for k in range(1, a):
            term *= Decimal(x) / k
            total += term
        exact = float(total * (-Decimal(x)).exp())
    assert upper_gamma(a, x) == pytest.approx(exact, rel=1e-9)


@given(st.floats(1e-3, 600))
def test_one_half_is_the_error_function(x):
    # Q(1/2, x) = erfc(sqrt(x)) (DLMF 7.11.2).
    assert upper_gamma(0.5, x) == pytest.approx(math.erfc(math.sqrt(x)), rel=1e-9, abs=1e-300)


@given(st.integers(1, 5000), st.floats(0, 20000), st.floats(0, 20000))
def test_p_falls_as_the_statistic_grows(freedom, one, other):
    low, high = sorted((one, other))
    small, great = upper_gamma(freedom / 2, high / 2), upper_gamma(freedom / 2, low / 2)
    assert -1e-12 <= small <= great + 1e-9 <= 1 + 1e-8


def test_pearson_on_a_known_example():
    # Sixty throws of a die: the sum of (o - e)^2 / e is 25 + 4 + 0 + 4 + 9 + 64 over 10.
    test = chi_square("faces", [5, 8, 10, 12, 7, 18], [1 / 6] * 6)
    assert test.statistic == pytest.approx(10.6)
    assert test.freedom == 5
    assert test.p == pytest.approx(0.0599, abs=1e-4)


def test_cells_of_different_size():
    assert chi_square("cells", [75, 25], [0.75, 0.25]).p == pytest.approx(1)
    assert chi_square("cells", [50, 50], [0.75, 0.25]).p < 1e-6


def test_a_single_cell_has_nothing_to_test():
    assert chi_square("addresses", [1000], [1.0]).p == 1.0


def test_p_of_even_draws_is_itself_even():
    random = Random(7)
    values = []
    for _ in range(300):
        counts = [0] * 64
        for _ in range(640):
            counts[random.randrange(64)] += 1
        values.append(chi_square("cells", counts, [1 / 64] * 64).p)
    tenths = [sum(1 for p in values if tenth <= p * 10 < tenth + 1) for tenth in range(10)]
    assert sum(tenths) == 300
    assert chi_square("tenths", tenths, [0.1] * 10).p > 1e-3


def test_how_many_distinct_addresses_to_expect():
    assert expected_distinct(1, 0) == 0
    assert expected_distinct(1, 5) == 1
    assert expected_distinct(2, 2) == pytest.approx(1.5)
    assert expected_distinct(4096, 10**7) == pytest.approx(4096)
    # Far fewer draws than addresses: all distinct but for the birthday collisions.
    assert expected_distinct(2**84, 50_000) == pytest.approx(50_000)
