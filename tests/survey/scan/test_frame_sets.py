"""Sets of physical memory against sets of numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.arch import LA48, Level
from fivefold.survey.scan.frame_sets import EMPTY, FrameSet, LeafRuns, joined
from fivefold.survey.scan.scan_result import Contiguity
from fivefold.units import GIB, MIB

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


@given(RUNS, st.integers(0, 80))
def test_runs_of_leaves_against_page_after_page(runs: list[tuple[int, int]], point: int) -> None:
    """Where a frame is mapped, how often, and all the memory together."""
    starts = [1000 * number + 7 for number in range(len(runs))]
    leaves = runs_of(starts, runs)
    places = sorted(va + point - low for va, (low, size) in zip(starts, runs, strict=True) if low <= point < low + size)
    assert leaves.at(point, 99) == places and leaves.at(point, 2) == places[:2]
    assert leaves.at(point) == places[:8]
    pages = np.arange(80, dtype=np.uint64)
    times = [sum(low <= page < low + size for low, size in runs) for page in range(80)]
    assert leaves.times_mapped(pages).tolist() == times
    assert members(leaves.frames) == numbers(runs)
    chosen = np.array([size % 2 == 0 for _, size in runs], np.bool_)
    both = leaves.where(chosen).and_also([leaves.where(~chosen)])
    assert sorted(zip(both.start.tolist(), both.size.tolist(), strict=True)) == sorted(
        zip(starts, [size for _, size in runs], strict=True)
    )


def runs_of(starts: list[int], runs: list[tuple[int, int]]) -> LeafRuns:
    phys, size = (np.array([run[part] for run in runs], np.uint64) for part in (0, 1))
    ones, flags = np.ones(len(runs), np.uint64), np.zeros(len(runs), np.bool_)
    return LeafRuns(np.array(starts, np.uint64), size, phys, ones, flags, flags, flags, ones)


def test_which_entry_of_the_pat(build: Any) -> None:
    """PWT, PCD and PAT are 1, 2 and 4 of it; PAT is bit 7 of a small page and bit 12 of a large one."""
    built = build(LA48)
    for index in range(8):
        low = (index & 3) << 3 | 1
        built.page(GIB + 0x2000 * index, low | (index >> 2) << 7 | 0x20_0000)
        built.page(2 * GIB + 4 * MIB * index, low | (index >> 2) << 12 | 0x40_0000, Level.PD)
        built.page((4 + 2 * index) * GIB, low | (index >> 2) << 12 | GIB, Level.PDPT)
    space = built.space()
    found = LeafRuns.of(space.scan(contiguity=Contiguity.BREAK))
    assert found.pat.tolist() == [*range(8)] * 3
    assert found.level.tolist() == [1] * 8 + [2] * 8 + [3] * 8
    assert found.phys.tolist() == [0x20_0000] * 8 + [0x40_0000] * 8 + [GIB] * 8
    built.page(GIB + 0x1000, 0x70_0000 | 1)
    with pytest.raises(ValueError, match=r"^runs of leaves are known only after a scan with Contiguity\.BREAK$"):
        LeafRuns.of(built.space().scan())
