"""Tables counted level by level, against the plain walk of `arch`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fivefold.arch import LA48, LA57, Flag, Level, PagingMode, distinct_tables
from fivefold.survey.scan.table_census import census, table_frames
from fivefold.survey.space import Space, open_space
from fivefold.units import GIB, MIB

GUESTS = Path(__file__).parents[2] / "data" / "guests"
P, W, U = 1, 2, 4


def check(space: Space) -> None:
    found = census(space)
    assert {one.level: set(one.tables.tolist()) for one in found} == distinct_tables(space.tables)
    assert table_frames(space).tolist() == sorted(set().union(*distinct_tables(space.tables).values()))


@pytest.mark.parametrize("path", sorted(GUESTS.glob("*.elf.xz")), ids=lambda path: path.name.partition(".")[0])
def test_captures(path: Path) -> None:
    with open_space(str(path)) as space:
        check(space)


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_counts(build: Callable[..., object], mode: PagingMode) -> None:
    built = build(mode).pages(0x40_0000, 0x5000, P | W | U).page(GIB, GIB | P, Level.PDPT)  # type: ignore[operator]
    built.page(8 * MIB, 8 * MIB | P, Level.PD)
    levels = {one.level: one for one in census(built.space())}
    assert [int(levels[level].leaves.sum()) for level in (Level.PT, Level.PD, Level.PDPT)] == [5, 1, 1]
    assert levels[Level.PT].used.tolist() == [5]
    assert levels[Level.PD].used.tolist() == [2]
    assert all(one.size == 4096 for one in levels.values())
    check(built.space())


def test_links_malformed_and_missing(build: Callable[..., object]) -> None:
    built = build(LA48).page(0x40_0000, 0x9000 | P)  # type: ignore[operator]
    pd = 0x3000
    built.entry(pd, 5, 0x2000 | P)  # the same PT again, with other rights
    built.entry(pd, 6, 0x5000_0000 | P)  # outside memory
    built.entry(pd, 7, 0x20_4000 | P | int(Flag.BIT7))  # reserved low bits of a 2 MiB page
    top, _, directory, lowest = census(built.space())
    assert (top.links.tolist(), lowest.links.tolist()) == ([1], [2])
    assert (directory.malformed, directory.used.tolist(), directory.leaves.tolist()) == (1, [4], [0])
    assert lowest.missing.tolist() == [0x5000_0000]
    check(built.space())
