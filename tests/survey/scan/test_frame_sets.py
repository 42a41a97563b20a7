"""Sets of physical memory against sets of numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fivefold.survey.scan.frame_sets import EMPTY, FrameSet, joined

RUNS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12)


def made(runs: list[tuple[int, int]]) -> FrameSet:
    starts = np.array([start for start, _ in runs], np.uint64)
    return joined(starts, starts + np.array([size for _, size in runs], np.uint64))


def numbers(runs: list[tuple[int, int]]) -> set[int]:
    return {number for start, size in runs for number in range(start, start + size)}


def members(frames: FrameSet) -> set[int]:
    return {number for run in frames.ranges(1000) for number in run}


@given(RUNS)
def test_joined_runs_ascend_and_never_touch(runs: list[tuple[int, int]]) -> None:
    found = made(runs).ranges(1000)
    assert all(low.stop < high.start for low, high in pairwise(found))
    assert members(made(runs)) == numbers(runs)


@given(RUNS, RUNS)
def test_meet_and_join(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    assert members(made(one) & made(other)) == numbers(one) & numbers(other)
    assert members(made(one) | made(other)) == numbers(one) | numbers(other)


@given(RUNS)
def test_holds(runs: list[tuple[int, int]]) -> None:
    points = np.arange(80, dtype=np.uint64)
    assert set(np.flatnonzero(made(runs).holds(points)).tolist()) == numbers(runs)


def test_nothing() -> None:
    assert EMPTY.size == 0
    assert (EMPTY & made([(1, 5)])).ranges(9) == []
    assert (made([(1, 5)]) & EMPTY).ranges(9) == []
