"""How sure a count of failures is: intervals and comparisons, exact, in the standard library alone.

Sources: Clopper and Pearson, *Biometrika* 26 (1934); Fisher's exact test, two-sided by the sum of all tables that are
no likelier than the one seen; Holm, *Scandinavian Journal of Statistics* 6 (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb, exp, fsum, lgamma, log, log1p
from typing import Final

CONFIDENCE: Final = 0.95
_STEPS: Final = 100
"""Halvings of an interval: more than a float has bits."""


def clopper_pearson(failures: int, runs: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of failure rates that *failures* of *runs* do not speak against, both ends included.

    >>> [round(end, 4) for end in clopper_pearson(3, 200)]
    [0.0031, 0.0432]
    """
    if not 0 <= failures <= runs or runs < 1:
        raise ValueError(f"{failures} failures of {runs} runs; expected 0 to all of at least one")
    tail = (1 - confidence) / 2
    low = 0.0 if failures == 0 else _root(lambda p: 1 - _at_most(failures - 1, runs, p) < tail)
    high = 1.0 if failures == runs else _root(lambda p: _at_most(failures, runs, p) > tail)
    return low, high


def _root(too_low: Callable[[float], bool]) -> float:
    """Where *too_low*, true up to some rate, becomes false."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return (low + high) / 2


def _at_most(count: int, runs: int, rate: float) -> float:
    """The chance of at most *count* failures of *runs*."""
    if rate <= 0:
        return 1.0
    if rate >= 1:
        return float(count >= runs)
    whole, failing, passing = lgamma(runs + 1), log(rate), log1p(-rate)
    return fsum(
        exp(whole - lgamma(k + 1) - lgamma(runs - k + 1) + k * failing + (runs - k) * passing) for k in range(count + 1)
    )


def fisher(first: tuple[int, int], second: tuple[int, int]) -> float:
    """The chance that two cells with one rate differ as much as these: each is (failures, runs). Exact integers inside.

    >>> round(fisher((3, 200), (0, 200)), 4)
    0.2481
    """
    (a, n), (b, m) = first, second
    failures = a + b
    seen = comb(n, a) * comb(m, b)
    tables = (comb(n, k) * comb(m, failures - k) for k in range(max(0, failures - m), min(n, failures) + 1))
    return sum(weight for weight in tables if weight <= seen) / comb(n + m, failures)


def holm(values: Sequence[float]) -> list[float]:
    """The p values of comparisons made together, corrected; in the order given.

    >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected = [1.0] * len(values)
    most = 0.0
    for rank, index in enumerate(order):
        most = max(most, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = most
    return corrected
