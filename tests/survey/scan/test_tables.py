"""Tables read and told apart: columns against `arch`'s entries, and the two orders of descent against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.arch import LA48, LA57, Cpu, Entry, Level, PagingMode
from fivefold.memory import Ram
from fivefold.survey.scan.tables import Tables, classify
from fivefold.survey.space import Space
from fivefold.units import MASK64, PhysAddr

ROOT = PhysAddr(0x10_0000)
ALL = range(1 << 64)
RAW = st.integers(0, MASK64) | st.sampled_from([0, 1, 0x81, 0x80, 0x1001, 0x1081, 0x20_0083, 1 << 63 | 1, 1 << 51 | 1])
RAWS = st.lists(RAW, min_size=1, max_size=8)


@given(
    st.lists(RAW, min_size=1, max_size=8), st.sampled_from(list(Level)), st.sampled_from([40, 46, 52]), st.booleans()
)
def test_columns_say_what_arch_says_of_each_entry(raws: list[int], level: Level, bits: int, nxe: bool) -> None:
    cpu = Cpu(phys_bits=bits)
    found = classify(np.array(raws, np.uint64), level, cpu, nxe=nxe)
    for raw, *columns in zip(raws, *(column.tolist() for column in found), strict=True):
        entry = Entry(raw, level)
        malformed = entry.is_present and bool(cpu.must_be_zero(entry, nxe) & raw)
        leaf = entry.is_present and not malformed and entry.is_leaf
        link = entry.is_present and not malformed and not leaf
        assert columns == [entry.is_present, malformed, leaf, link]


@given(RAWS, st.sampled_from(list(Level)))
def test_without_a_cpu_only_p_and_the_page_size_bit_count(raws: list[int], level: Level) -> None:
    found = classify(np.array(raws, np.uint64), level)
    for raw, present, malformed, leaf, link in zip(raws, *(column.tolist() for column in found), strict=True):
        large = bool(raw & 0x80) and level > Level.PT
        assert present == bool(raw & 1)
        assert malformed == (present and large and level > Level.PDPT)
        assert (leaf, link) == (
            present and not malformed and (large or level == Level.PT),
            present and not malformed and not (large or level == Level.PT),
        )


def leaves_in(tables: Tables, mode: PagingMode, window: range) -> list[tuple[int, Level]]:
    """Address and level of each leaf that touches *window*."""
    found = tables.in_order(ROOT, mode, window)
    return [(table.address(int(i), mode), table.level) for table, indices in found for i in indices]


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_both_orders_count_the_same_leaves(built: Callable[..., Ram], mode: PagingMode) -> None:
    """A PT that is linked twice and a table that leads to itself among them."""
    high = 0xFF11_0000_0000_0000 if mode is LA57 else 0xFFFF_8880_0000_0000
    ram = built(mode, [(0x1000, 0x5003, Level.PT), (0x20_0000, 0x60_0003, Level.PD), (high, 0x7003, Level.PT)])
    tables = Tables(ram)
    ram.write(PhysAddr(ROOT + 8 * 300), (ROOT | 3).to_bytes(8, "little"))

    by_level = sum(
        int((chunk.paths * chunk.classes.leaf.sum(1, np.uint64)).sum()) for chunk in tables.by_level(ROOT, mode.top)
    )
    listed = leaves_in(tables, mode, ALL)
    assert by_level == len(listed) > 3
    assert listed == sorted(set(listed))


def test_a_window_cuts_between_pages(built: Callable[..., Ram]) -> None:
    ram = built(LA48, [(at, at | 3, Level.PT) for at in (0x1000, 0x2000, 0x3000, 0x20_0000)])
    windows = ((0x1FFF, 0x2001), (0x2000, 0x3000), (0x3001, 0x20_0000), (0x3000, 0x20_0001))
    touched = [[at for at, _ in leaves_in(Tables(ram), LA48, range(*window))] for window in windows]
    assert touched == [[0x1000, 0x2000], [0x2000], [0x3000], [0x3000, 0x20_0000]]


def test_a_table_that_is_not_in_memory_is_noted_once(built: Callable[..., Ram]) -> None:
    ram = built(LA48, [(0x1000, 0x5003, Level.PT)])
    for slot in (7, 8):
        ram.write(PhysAddr(ROOT + 8 * slot), (0x4000_0003).to_bytes(8, "little"))
    tables = Tables(ram)

    chunks = list(tables.by_level(ROOT, Level.PML4))
    assert [int(frame) for chunk in chunks for frame in chunk.missing] == [0x4000_0000]
    assert [len(leaves_in(tables, LA48, ALL)), tables.missing] == [1, [0x4000_0000]]


def test_links_and_paths_of_a_capture(look: Callable[..., Space], facts: Callable[[str], Any]) -> None:
    """The shadow's tables are linked from everywhere: far more ways lead to them than entries point there."""
    space = look("kasan-la57-nokaslr")
    chunks = list(Tables(space.source.memory).by_level(PhysAddr(space.root.value), Level(space.levels)))
    known = facts("kasan-la57-nokaslr")["physical_addresses"]
    last = {chunk.level: chunk for chunk in chunks}[Level.PT]
    shared = int(np.argmax(last.paths))
    assert int(last.frames[shared]) == int(known["kasan_early_shadow_pte"], 16)
    assert int(last.paths[shared]) > 1 << 20 > int(last.links[shared])
