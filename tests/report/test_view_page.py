"""The page of an address space: its data are what the instruments say, whatever the guest and however large it is."""

from __future__ import annotations

import base64
import json
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fivefold as ff
from fivefold.arch import Entry, Level
from fivefold.report.page import region_columns, view_page
from fivefold.report.page.entry_bits import bit_fields, decode
from fivefold.report.page.packed import pack
from fivefold.report.page.table_columns import table_columns
from fivefold.report.page.templating import about_size
from fivefold.report.page.walk_page import walk_page
from fivefold.survey.stats import stats

GUESTS = Path(__file__).parents[1] / "data" / "guests"


def data_of(page: str) -> Any:
    """The data block, read as a browser reads it."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def unpacked(text: str, rows: int, restart: int) -> list[list[int]]:
    """The columns again, number by number."""
    planes = zlib.decompress(base64.b64decode(text))
    columns = []
    for at in range(0, len(planes), 8 * max(rows, 1)):
        total, column = 0, []
        for row in range(rows):
            total = 0 if restart and row % restart == 0 else total
            step = int.from_bytes(bytes(planes[at + plane * rows + row] for plane in range(8)), "little")
            total = (total + step) % 2**64
            column.append(total)
        columns.append(column)
    return columns


def test_columns_come_back_as_they_were() -> None:
    rng = np.random.default_rng(3)
    one, two = (rng.integers(0, 2**64, 1024, np.uint64) for _ in range(2))
    two[:3] = [2**64 - 1, 0, 1]
    for restart in (0, 512):
        packed = pack({"one": one, "two": two}, restart=restart)
        assert packed.described() == {"names": ["one", "two"], "rows": 1024, "restart": restart}
        assert unpacked(packed.text, 1024, restart) == [one.tolist(), two.tolist()]
    assert unpacked(pack({"none": one[:0]}).text, 0, 0) == []


@pytest.mark.parametrize("name", ["guests/plain-la57-kaslr", "guests/kasan-la48-kaslr", "others/xen-4.20-dom0-6.12"])
@pytest.mark.parametrize("rows", [None, 40])
def test_sums_of_areas_are_those_of_stats(monkeypatch: pytest.MonkeyPatch, name: str, rows: int | None) -> None:
    if rows is not None:
        monkeypatch.setattr(view_page, "region_columns", lambda space: region_columns.region_columns(space, rows))
    with ff.open(GUESTS.parent / f"{name}.elf.xz") as space:
        root = data_of(view_page.view_page(space, with_audit=False))["roots"][0]
        counted = stats(space).mapped.by_area
        regions = list(space.regions(all_bits=False, repeat_above=region_columns.SHARED_ABOVE))
    assert {one["name"]: int(one["mapped_bytes"]) for one in root["areas"] if one["mapped_bytes"] != "0"} == counted
    # What is cut is in the middle: both ends of the space are there.
    assert root["columns"]["rows"] + root["cut"] == len(regions)
    assert root["columns"]["rows"] == min(len(regions), rows or len(regions))


def many_regions(tables: int) -> bytes:
    """A memory image of a space with 512 regions of one page for each of *tables* page tables, frames in no order."""
    rng = np.random.default_rng(5)
    memory = np.zeros((3 + tables) * 512, np.uint64)
    memory[0], memory[512] = 0x1007, 0x2007
    for number in range(tables):
        memory[1024 + number] = (3 + number) << 12 | 7
        frames = rng.integers(1, 2**18, 512, np.uint64) << np.uint64(12)
        rights = np.where(np.arange(512) % 2, 0x8000000000000007, 0x8000000000000005).astype(np.uint64)
        memory[(3 + number) * 512 : (4 + number) * 512] = frames | rights
    return memory.tobytes()


@pytest.fixture
def image(tmp_path: Path) -> Callable[[int], Any]:
    def made(tables: int) -> Any:
        path = tmp_path / "many.img"
        path.write_bytes(many_regions(tables))
        return ff.open(path, cr3=0, levels=4)

    return made


def test_a_page_stays_small(image: Callable[[int], Any]) -> None:
    with image(100) as space:
        page = view_page.view_page(space, with_audit=False)
    assert data_of(page)["roots"][0]["columns"]["rows"] >= 100 * 512
    assert len(page) < 5_000_000 * 100 // 400  # at 400 such tables, 200,000 regions, less than 5 MB


def test_tables_beyond_the_bound_are_left_out_and_counted(image: Callable[[int], Any]) -> None:
    with image(20) as space:
        columns = table_columns([space], text=20_000)
        assert len(columns.entries.text) <= 20_000 and columns.left_out > 0
        assert columns.frames.rows + columns.left_out == 23
        assert unpacked(columns.frames.text, columns.frames.rows, 0)[0][:3] == [0, 1, 2]
        assert table_columns([space], most=5).left_out == 18


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("leaf", [True, False])
def test_fields_cover_every_bit_once(level: Level, leaf: bool) -> None:
    if (leaf and level > Level.PDPT) or (not leaf and level == Level.PT):
        return
    bits = [bit for one in bit_fields(level, leaf=leaf) for bit in range(one.low, one.high + 1)]
    assert bits == list(range(64))


def test_reserved_fields_are_what_the_cpu_refuses() -> None:
    cpu = ff.arch.Cpu()
    for level, bits in ((Level.PD, 0x81), (Level.PDPT, 0x81), (Level.PML4, 0x81), (Level.PML5, 0x81)):
        named = sum(
            (1 << one.high + 1) - (1 << one.low)
            for one in bit_fields(level, leaf=Entry(bits, level).is_leaf)
            if one.name == "reserved"
        )
        assert named == cpu.must_be_zero(Entry(bits, level), True)


def test_an_entry_is_decoded() -> None:
    told = {one.field.name: one.value for one in decode(Entry(0x8000_0000_1E20_11E3, Level.PD))}
    assert told["page"] == 0x1E20_0000 >> 21 and told["PAT"] == 1 and told["NX"] == 1 and told["US"] == 0


def test_text_of_a_guest_is_never_markup(tmp_path: Path) -> None:
    hostile = tmp_path / "</script><script>alert(1)"
    hostile.parent.mkdir()
    shutil.copy(GUESTS / "plain-la57-kaslr.elf.xz", hostile)
    with ff.open(hostile) as space:
        page = view_page.view_page(space, with_audit=False)
        assert "<script>alert" not in page and data_of(page)["source"] == str(hostile)
        assert "<script>alert" not in walk_page(space, [space.path(0)])


def test_sizes_that_people_read() -> None:
    told = {0: "0", 1: "1", 1023: "1023", 1024: "1K", 1008 << 20: "1008M", 2**64 - 1: "16E"}
    told |= {2**64 - 2**48: "15.9998E", (4 << 20) - 4096: "3.996M", (4 << 20) + 4096: "4.004M", 4 << 60: "4E"}
    assert {size: about_size(size) for size in told} == told


def test_a_walk_shows_every_entry_and_both_modes() -> None:
    with ff.open(GUESTS / "plain-la57-kaslr.elf.xz") as space:
        path = space.path(0xFFFFFFFFBE400123)
        page = walk_page(space, [path])
    for step in path.steps:
        assert f"{step.entry.raw:#018x}" in page and f"{step.at:#018x}" in page
    assert "five levels" in page and "four levels" in page and "0x000000001e000123" in page
