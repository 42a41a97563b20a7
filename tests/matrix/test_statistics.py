"""Intervals and p values against published numbers, and against the definition."""

from __future__ import annotations

import random
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.matrix.statistics import clopper_pearson, fisher, holm

INTERVALS = """
# failures runs low high: R's binom.test, to four places
0 10 0.0000 0.3085
1 10 0.0025 0.4450
5 10 0.1871 0.8129
10 10 0.6915 1.0000
3 200 0.0031 0.0432
0 200 0.0000 0.0183
"""
TABLES = """
# failures runs failures runs p: R's fisher.test, to four places
3 200 0 200 0.2481
3 4 1 4 0.4857
8 10 1 10 0.0055
0 5 0 5 1.0000
10 10 0 10 0.0000
"""


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("row", rows(INTERVALS))
def test_published_intervals(row: list[str]) -> None:
    assert [f"{end:.4f}" for end in clopper_pearson(int(row[0]), int(row[1]))] == row[2:]


@pytest.mark.parametrize("row", rows(TABLES))
def test_published_p_values(row: list[str]) -> None:
    a, n, b, m = map(int, row[:4])
    assert f"{fisher((a, n), (b, m)):.4f}" == row[4]
    assert fisher((a, n), (b, m)) == fisher((b, m), (a, n))


@given(st.integers(1, 40), st.data())
def test_the_ends_are_where_the_tails_are(runs: int, data: st.DataObject) -> None:
    """At each end the count that was seen, or one more extreme, has a chance of 2.5 %; exactly, in fractions."""
    failures = data.draw(st.integers(0, runs))
    low, high = clopper_pearson(failures, runs)
    assert low <= failures / runs <= high

    def tail(rate: float, counts: range) -> float:
        p = Fraction(rate)
        return float(sum(comb(runs, k) * p**k * (1 - p) ** (runs - k) for k in counts))

    if failures:
        assert tail(low, range(failures, runs + 1)) == pytest.approx(0.025, abs=1e-9)
    if failures < runs:
        assert tail(high, range(failures + 1)) == pytest.approx(0.025, abs=1e-9)


def test_the_interval_holds_the_true_rate_as_often_as_it_says() -> None:
    """Over 400 seeded experiments of 50 runs: at least 95 of a hundred, as Clopper and Pearson promise."""
    draw = random.Random(7)
    held = 0
    for _ in range(400):
        failures = sum(draw.random() < 0.1 for _ in range(50))
        low, high = clopper_pearson(failures, 50)
        held += low <= 0.1 <= high
    assert held >= 380


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_order_and_is_never_bolder(values: list[float]) -> None:
    found = holm(values)
    assert all(p <= q <= 1 for p, q in zip(values, found, strict=True))
    assert all(
        x <= y
        for _, x, _, y in (
            (a, b, c, d)
            for a, b in zip(values, found, strict=True)
            for c, d in zip(values, found, strict=True)
            if a <= c
        )
    )


def test_more_failures_than_runs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^3 failures of 2 runs; expected 0 to all of at least one$"):
        clopper_pearson(3, 2)
