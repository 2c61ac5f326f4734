"""The chi-square test of uniformity, and the expected number of distinct addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, expm1, lgamma, log, log1p

#: Relative change at which a series has converged; p is less exact, because lgamma is for large arguments.
_EPSILON = 1e-14
_TINY = 1e-300
_MAX_TERMS = 1_000_000


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """A test of `cells` counts: the statistic, its degrees of freedom, and p.

    p is the chance that even, independent draws spread at least this unevenly.
    """

    over: str
    cells: int
    statistic: float
    freedom: int
    p: float


def upper_gamma(a: float, x: float) -> float:
    """Return Q(a, x), the regularized upper incomplete gamma function (DLMF 8.2.4), for a > 0 and x >= 0.

    By the power series below x = a + 1 (DLMF 8.7.1), by the continued fraction above (DLMF 8.9.2, evaluated
    by Lentz's method). Relative error below 1e-9 for a up to 10**5 where Q is above 1e-300.
    """
    if x <= 0:
        return 1.0
    scale = a * log(x) - x - lgamma(a)
    if x < a + 1:
        return 1.0 - _series(a, x) * exp(scale)
    return _fraction(a, x) * exp(scale)


def _series(a: float, x: float) -> float:
    term = total = 1.0 / a
    for n in range(1, _MAX_TERMS):
        term *= x / (a + n)
        total += term
        if term < total * _EPSILON:
            break
    return total


def _fraction(a: float, x: float) -> float:
    b = x + 1.0 - a
    c = 1.0 / _TINY
    d = 1.0 / b
    value = d
    for n in range(1, _MAX_TERMS):
        numerator = -n * (n - a)
        b += 2.0
        d = 1.0 / (numerator * d + b or _TINY)
        c = b + numerator / c or _TINY
        step = c * d
        value *= step
        if abs(step - 1.0) < _EPSILON:
            break
    return value


def chi_square(over: str, counts: Sequence[int], shares: Sequence[float]) -> ChiSquare:
    """Return Pearson's test of `counts` against `shares`, which add up to 1; `over` names the cells.

    With a single cell p is 1.
    """
    total = sum(counts)
    statistic = 0.0
    for count, share in zip(counts, shares, strict=True):
        expected = total * share
        statistic += (count - expected) ** 2 / expected
    freedom = len(counts) - 1
    p = upper_gamma(freedom / 2, statistic / 2) if freedom else 1.0
    return ChiSquare(over, len(counts), statistic, freedom, p)


def expected_distinct(size: int, draws: int) -> float:
    """Return the expected number of distinct addresses in `draws` even draws from `size` addresses."""
    if size == 1:
        return 1.0 if draws else 0.0
    return -size * expm1(draws * log1p(-1 / size))
