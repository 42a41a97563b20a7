"""Shared tables told with repeats say the same, place by place, as when they are unfolded."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, product
from math import prod
from random import Random
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, Level, PagingMode, TooManyRuns
from fivefold.layout import Area
from fivefold.memory import Ram, Source
from fivefold.report.text.dump import write_csv, write_json
from fivefold.survey.guest.areas import AreaMap
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.scan import repeats
from fivefold.survey.scan.regions import PAGE_NAMES, Region
from fivefold.survey.scan.repeats import regions_with_repeats
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.survey.space import Space
from fivefold.units import GIB, MIB, PhysAddr

ROOT = 0x10_0000
PER_LEVEL = 3
SLOTS = (0, 1, 2, 3, 6)
BORDERS = (2 * MIB, GIB + 2 * MIB + 0x1000, 3 * GIB, 1 << 39, 1 << 48)
NAMED = AreaMap(
    tuple(Area(f"part{n}", at, end, "mapped", "test") for n, (at, end) in enumerate(pairwise(BORDERS))),
    "test",
)


def tangled(mode: PagingMode, seed: int) -> Ram:
    """A tree in which each level has three tables, linked at random, with pages of every size between them."""
    ram, pick = Ram.of_size(MIB, start=ROOT, name="tangle"), Random(seed)

    def table(level: int, number: int) -> int:
        return ROOT if level == mode.top else ROOT + 0x1000 * (1 + PER_LEVEL * level + number)

    for level in range(1, mode.top + 1):
        for number in range(PER_LEVEL if level < mode.top else 1):
            usual, rights = pick.randrange(PER_LEVEL), 0x07
            for slot in SLOTS:
                if level == 1 or pick.random() < 0.3:
                    rights = pick.choice((0x01, 0x03, 0x07, 0x8000_0000_0000_0003))
                large = 1 < level < 4 and pick.random() < 0.2
                if level == 1 or large:
                    raw = pick.randrange(1, 5) * Level(level).span | (0x80 if large else 0)
                else:
                    raw = table(level - 1, pick.choice((usual, usual, pick.randrange(PER_LEVEL))))
                ram.write(PhysAddr(table(level, number) + 8 * slot), (raw | rights).to_bytes(8, "little"))
    return ram


Piece = tuple[int, Any]


def pieces(regions: Iterable[Region]) -> Iterator[Piece]:
    """Each page of each place, or what a region has of it, with all that is said of it."""
    for region in regions:
        assert region.kind is RegionKind.MAPPED
        for at in product(*(range(0, stride.times * stride.bytes, stride.bytes) for stride in region.strides)):
            yield from _of_one_place(region._replace(repeats=0, strides=()), sum(at))


def _of_one_place(region: Region, shift: int) -> Iterator[Piece]:
    page = region.level.span
    for at in range(region.start & -page, region.end, page):
        low, high = max(at, region.start), min(at + page, region.end)
        phys = None if region.phys is None else region.phys + low - region.start
        told = (high - low, region.level, region.leaf, region.effective, region.flags, phys, region.area)
        yield low + shift, told


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_place_by_place(sourced: Callable[..., Source], mode: PagingMode, seed: int) -> None:
    space = Space(sourced(tangled(mode, seed)), GivenPaging(cr3=ROOT, levels=int(mode.top), force=True))
    space.areas = NAMED
    windows = [None, range(5 * 0x1000, 2 * GIB + 3 * MIB), range(GIB + 0x1000, 1 << 41)]
    for window in windows:
        told = list(regions_with_repeats(space, window, contiguous=True, repeat_above=0))
        assert sorted(pieces(told)) == sorted(pieces(space.regions(window, contiguous=True)))
        assert [region.start for region in told] == sorted(region.start for region in told)
        assert all(region.page in PAGE_NAMES.values() for region in told)
    assert any(region.repeats > 1 for region in regions_with_repeats(space, contiguous=True, repeat_above=0))


def test_tables_shared_in_no_order_are_refused(sourced: Callable[..., Source], monkeypatch: pytest.MonkeyPatch) -> None:
    space = Space(sourced(tangled(LA48, 1)), GivenPaging(cr3=ROOT, levels=4, force=True))
    space.areas = NAMED
    monkeypatch.setattr(repeats, "MAX_TOLD", 10)
    with pytest.raises(TooManyRuns, match=r"^the tables at 0x0000000000100000 unfold into more than 10 runs$"):
        regions_with_repeats(space, repeat_above=0)


def test_json_and_csv(sourced: Callable[..., Source]) -> None:
    """Rows with repeats are rows like all others, so who sums sizes by repeats has all bytes."""
    space = Space(sourced(tangled(LA57, 1)), GivenPaging(cr3=ROOT, levels=5, force=True))
    space.areas = NAMED
    out, table = io.StringIO(), io.StringIO()
    write_json(space, regions_with_repeats(space, repeat_above=0), out)
    write_csv(space, regions_with_repeats(space, repeat_above=0), table)
    told, rows = json.loads(out.getvalue())["regions"], list(csv.DictReader(table.getvalue().splitlines()))
    for region, row in zip(told, rows, strict=True):
        assert region["page"] in ("4K", "2M", "1G") and len(region["leaf"]) == 4
        assert set(region["effective"]) == {"write", "user", "execute"}
        assert region["size"] == int(region["end"], 16) - int(region["start"], 16)
        assert prod(stride["times"] for stride in region.get("strides", [])) == region.get("repeats", 1)
        assert row["strides"].split() == [f"{s['times']}x{s['bytes']:#x}" for s in region.get("strides", [])]
    everything = sum(region["size"] * region.get("repeats", 1) for region in told)
    assert everything == space.overview.counts.mapped_bytes


@pytest.mark.parametrize("again", [(), (9,), (9, 10), (9, 10, 11), (9, 12)])
def test_how_often_what_lies_behind_a_shared_table_is_told(build: Callable[..., Any], again: tuple[int, ...]) -> None:
    """A place by itself is told as any other; places in a row once, with how many they are."""
    built = build(LA48)
    for slot in (0, 2, 4):
        built.page(0x4000_0000 + 0x1000 * slot, 0x20_0000 + 0x3000 * slot | 7)
    entry = int.from_bytes(built.ram.read(0x3000, 8), "little")
    for index in again:
        built.entry(0x3000, index, entry)
    found = list(regions_with_repeats(built.space(), repeat_above=1))
    runs = {(): [], (9,): [(9, 1)], (9, 10): [(9, 2)], (9, 10, 11): [(9, 3)], (9, 12): [(9, 1), (12, 1)]}[again]
    assert [(one.start, one.phys, one.repeats, one.strides) for one in found] == [
        (
            0x4000_0000 + index * 0x20_0000 + 0x1000 * slot,
            0x20_0000 + 0x3000 * slot,
            times if times > 1 else 0,
            ((times, 0x20_0000),) if times > 1 else (),
        )
        for index, times in [(0, 1), *runs]
        for slot in (0, 2, 4)
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_bits_that_do_not_count(build: Callable[..., Any], shared: bool) -> None:
    """Accessed, dirty and software bits part regions behind shared tables only when they are asked for."""
    built = build(LA48)
    for slot, bits in enumerate((0, 0x20, 0x60, 0x200)):
        built.page(0x4000_0000 + 0x1000 * slot, 0x20_0000 + 0x1000 * slot | 7 | bits)
    if shared:
        entry = int.from_bytes(built.ram.read(0x3000, 8), "little")
        built.entry(0x3000, 9, entry).entry(0x3000, 10, entry)
    for all_bits, parts in ((True, 4), (False, 1)):
        found = list(regions_with_repeats(built.space(), all_bits=all_bits, repeat_above=0))
        assert len(found) == parts * (2 if shared else 1)
        assert {one.repeats for one in found} == ({0, 2} if shared else {0})
    with pytest.raises(TypeError, match=r"^window is 5; expected range or None$"):
        regions_with_repeats(built.space(), 5)  # type: ignore[arg-type]
