"""Mapping ranges: every page read again by `arch`, refusals, and what is left when memory runs out."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, Level, Mapped, PagingMode, distinct_tables, regions, translate
from fivefold.errors import MemoryReadError
from fivefold.units import VirtAddr

RW = 0x163
NX = 1 << 63
PAGE = 4096
GIB = 1 << 30
TABLES = (0x10_0000, 0x60_0000)
"""Memory that has room for some 1,000 tables."""


def mapper(code: Any, mode: PagingMode, **more: Any) -> Any:
    helpers = code(mode, "mapping", "memblock", **{"extents": [TABLES], **more})
    helpers.add_memory()
    return helpers


def base(mode: PagingMode) -> int:
    """Start of an area: 1 TiB into the upper half, so that it is no slot's first address."""
    return mode.sign_extend(1 << (mode.va_bits - 1)) + (1 << 40)


def pages(helpers: Any) -> list[int]:
    return [helpers.get(f"mapping.mapped_{size}") for size in ("1g", "2m", "4k")]


def test_page_sizes_follow_alignment_size_and_cpu(code: Any, mode: PagingMode, pages_vector: list[str]) -> None:
    offset, physical, size, largest, *want = [int(column, 0) for column in pages_vector]
    helpers = mapper(code, mode)
    top, va = helpers.table(), base(mode) + offset
    assert helpers.call("mapping.map_range", top, va, physical, size, RW | NX, largest) == 0
    assert pages(helpers) == want
    (run,) = regions(helpers.space(top), contiguous=True) if sum(map(bool, want)) == 1 else (None,)
    for at in {0, size // 2, size - 1, *(n * PAGE for n in range(0, size // PAGE, size // PAGE // 29 + 1))}:
        assert helpers.physical(top, va + at) == physical + at
    for beside in (va - 1, va + size):
        assert helpers.physical(top, beside) is None
    if run is not None:
        assert (run.start, run.end, run.phys) == (va, va + size, physical)


def test_leaves_carry_what_was_asked_for_and_tables_all_rights(code: Any, mode: PagingMode) -> None:
    helpers = mapper(code, mode)
    top = helpers.table()
    for size, flags in ((GIB, RW | NX), (2 << 20, 0x121), (PAGE, 0x163)):
        helpers.call("mapping.map_range", top, base(mode) + size, size, size, flags, 3)
        found = translate(helpers.space(top), VirtAddr(base(mode) + size))
        assert isinstance(found, Mapped)
        assert found.leaf.raw == size | flags | (0x80 if size > PAGE else 0)
        assert all(step.entry.raw & ~0x000F_FFFF_FFFF_F000 == 0x67 for step in found.steps[:-1])


@pytest.mark.parametrize("seed", range(6))
def test_random_ranges_are_mapped_whole_and_alone(code: Any, mode: PagingMode, seed: int) -> None:
    rng = random.Random(seed)
    helpers = mapper(code, mode)
    top = helpers.table()
    at, made = base(mode) + rng.randrange(1 << 20) * PAGE, []
    for _ in range(8):
        size = rng.choice((1, 3, 511, 512, 513, 1025)) * PAGE
        low, largest = rng.randrange(1 << 18) * PAGE, rng.choice((1, 2, 3))
        if rng.random() < 0.6:
            low, largest = at & 0x3FFF_F000, 3
            size += rng.choice((0, 2 << 20, GIB + 7 * PAGE))
        physical = rng.randrange(1, 1 << 16) * GIB + low
        assert helpers.call("mapping.map_range", top, at, physical, size, RW | NX, largest) == 0
        made.append((at, physical, size))
        at += size + rng.choice((PAGE, 2 << 20, 3 << 30))
    for va, physical, size in made:
        for offset in {0, size - PAGE, rng.randrange(size)}:
            assert helpers.physical(top, va + offset) == physical + offset
        assert helpers.physical(top, va - PAGE) is None
        assert helpers.physical(top, va + size) is None
    tables = distinct_tables(helpers.space(top))
    assert sum(map(len, tables.values())) == helpers.get("memblock.table_pages")


def test_rs_08_vectors_share_a_p4d_slot(code: Any) -> None:
    """Physical and virtual addresses that differ in their low bits: 1 GiB steps of KASLR under five levels."""
    helpers = mapper(code, LA57)
    top, va, physical = helpers.table(), 0xFF42_2802_7FE0_0000, 0x3_3FE0_0000
    last = 0xFF42_287F_4000_0000
    assert va >> 39 == last >> 39, "one slot of the P4D"
    size = last - va + GIB
    assert helpers.call("mapping.map_range", top, va, physical, size, RW | NX, 3) == 0
    assert merged(helpers, top) == [(va, va + size)]
    assert all(run.phys - run.start == physical - va for run in regions(helpers.space(top), contiguous=True))
    assert helpers.physical(top, last) == physical + (last - va) == 0x80_0000_0000


def test_rs_35_the_last_page_of_the_address_space(code: Any, mode: PagingMode) -> None:
    for size in (PAGE, 2 << 20, GIB, GIB + (2 << 20) + PAGE):
        helpers = mapper(code, mode)
        top, va = helpers.table(), (1 << 64) - size
        physical = (1 << 40) - size
        assert helpers.call("mapping.map_range", top, va, physical, size, RW | NX, 3) == 0
        assert helpers.physical(top, (1 << 64) - 1) == (1 << 40) - 1
        (run,) = merged(helpers, top)
        assert run == (va, 1 << 64)


def merged(helpers: Any, top: int) -> list[tuple[int, int]]:
    """What is mapped, pages of all sizes together."""
    found: list[tuple[int, int]] = []
    for run in regions(helpers.space(top)):
        if found and found[-1][1] == run.start:
            found[-1] = (found[-1][0], run.end)
        else:
            found.append((run.start, run.end))
    return found


@pytest.mark.parametrize("size", [PAGE, 2 << 20, GIB])
def test_nothing_is_overwritten(code: Any, mode: PagingMode, size: int) -> None:
    helpers = mapper(code, mode)
    top, va = helpers.table(), base(mode)
    middle = va + 8 * GIB
    helpers.call("mapping.map_range", top, middle, 5 * GIB, size, RW, 3)
    left = helpers.call("mapping.map_range", top, va, 16 * GIB, 16 * GIB, RW | NX, 3)
    assert left == 8 * GIB, "stops where something is"
    assert helpers.physical(top, middle) == 5 * GIB
    assert helpers.physical(top, middle - 1) == 24 * GIB - 1
    assert helpers.call("mapping.map_page", top, middle, 0x1000, RW) == 0
    assert helpers.physical(top, middle) == 5 * GIB


def test_a_table_is_no_place_for_a_large_page(code: Any, mode: PagingMode) -> None:
    helpers = mapper(code, mode)
    top, va = helpers.table(), base(mode)
    helpers.call("mapping.map_page", top, va + 5 * PAGE, 0x5000, RW)
    assert helpers.call("mapping.map_range", top, va, 2 << 20, 2 << 20, RW, 2) == 2 << 20
    assert helpers.physical(top, va + 5 * PAGE) == 0x5000
    assert helpers.physical(top, va) is None


def test_lookup_agrees_with_arch(code: Any, mode: PagingMode) -> None:
    helpers = mapper(code, mode)
    top, va = helpers.table(), base(mode)
    for size in (PAGE, 2 << 20, GIB):
        helpers.call("mapping.map_range", top, va + size, size, size, RW | NX, 3)
    for at in (va, va + PAGE, va + 2 * PAGE, va + (2 << 20), va + (4 << 20), va + GIB, va + 2 * GIB, 0, va ^ 1 << 62):
        found = translate(helpers.space(top), VirtAddr(mode.sign_extend(at)))
        want = found.leaf.raw if isinstance(found, Mapped) else 0
        assert helpers.call("mapping.lookup", top, mode.sign_extend(at)) == want


@pytest.mark.parametrize("room", range(1, 7))
def test_running_out_of_tables_leaves_no_dangling_entry(code: Any, mode: PagingMode, room: int) -> None:
    """Whatever table is the one that is missing: no entry points to memory that is no table."""
    helpers = code(mode, "mapping", "memblock", extents=[(0x10_0000, 0x10_0000 + PAGE * room)])
    helpers.add_memory()
    top = helpers.table()
    left = helpers.call("mapping.map_range", top, base(mode) + GIB - PAGE, 0x1000, 3 * PAGE, RW, 1)
    levels = len(mode.levels)
    assert (left == 0) == (room >= levels + 2), "a second PMD and PTE table are needed behind the 1 GiB border"
    tables = {frame for level in distinct_tables(helpers.space(top)).values() for frame in level}
    assert all(0x10_0000 <= table < 0x10_0000 + PAGE * room for table in tables)
    mapped = sum(run.size for run in regions(helpers.space(top)))
    assert mapped == 3 * PAGE - left
    assert helpers.call("mapping.map_page", top, base(mode) + (7 << 39), 0x1000, RW) == int(
        left == 0 and room > levels + 4
    )


def test_a_table_is_complete_before_it_is_linked(code: Any, mode: PagingMode) -> None:
    """INV-15: whoever reads while it grows meets a table that is clean or an entry that is not there."""
    helpers = mapper(code, mode)
    top = helpers.table()
    watch_links(helpers)
    assert helpers.call("mapping.map_range", top, base(mode) + GIB - PAGE, GIB - PAGE, GIB + 2 * PAGE, RW, 3) == 0


def watch_links(helpers: Any) -> None:
    """From here on every write of an entry that points to a table finds that table without stray entries."""
    write = helpers.ram.write

    def watched(at: int, data: bytes) -> None:
        value = int.from_bytes(data, "little")
        if len(data) == 8 and value & 0xFFF == 0x67:
            table = helpers.ram.read(value & 0x000F_FFFF_FFFF_F000, PAGE)
            assert not any(table), "linked with something in it"
        write(at, data)

    helpers.ram.write = watched


def test_inv_05_no_entry_beyond_the_physical_width(code: Any, mode: PagingMode) -> None:
    """What the CPU cannot address is cut from memory before anything is mapped."""
    helpers = code(mode, "direct_map", "mapping", "memblock", "layout", extents=[TABLES])
    helpers.call("layout.layout_init", 0)
    helpers.call("memblock.add", TABLES[0], TABLES[1] - TABLES[0])
    helpers.call("memblock.add", 1 << 39, 2 << 39)
    assert helpers.call("direct_map.cut_memory", 40) == 1 << 39
    top = helpers.table()
    assert helpers.call("direct_map.direct_map_init", top, 3, TABLES[0], TABLES[0] + 0x3000) == 0
    assert max(run.phys + run.size for run in regions(helpers.space(top), contiguous=True)) == 1 << 40


@pytest.mark.parametrize("largest", [1, 2, 3])
def test_direct_map_maps_memory_and_nothing_else(code: Any, mode: PagingMode, largest: int) -> None:
    helpers = code(mode, "direct_map", "mapping", "memblock", "layout", extents=[TABLES])
    helpers.call("layout.layout_init", 0)
    memory = [(0x1000, 0x9_F000), TABLES, (3 * GIB + 0x1000, 3 * GIB + 0x3000), (4 * GIB, 4 * GIB + (2 << 20))]
    helpers.call("memblock.reserve", 0, 0x10_0000)
    for start, end in memory:
        helpers.call("memblock.add", start, end - start)
    top = helpers.table()
    read_only = (0x20_3000, 0x20_5000)
    assert helpers.call("direct_map.direct_map_init", top, largest, *read_only) == 0
    offset = helpers.get("layout.page_offset_base")
    assert [(low - offset, high - offset) for low, high in merged(helpers, top)] == memory
    for run in regions(helpers.space(top), contiguous=True):
        assert run.start - offset == run.phys
        assert not run.rights.execute and not run.rights.user
        assert run.rights.write == (not (read_only[0] <= run.phys < read_only[1]))
        assert run.level <= largest
    assert Level.PD in {run.level for run in regions(helpers.space(top))} or largest == 1


def test_lookup_in_a_wild_tree_ends(code: Any, mode: PagingMode) -> None:
    """Tables that point at themselves are walked once a level."""
    helpers = mapper(code, mode)
    top = helpers.table()
    helpers.ram.write(top - helpers.window, (top - helpers.window | 0x67).to_bytes(8, "little") * 512)
    assert helpers.call("mapping.lookup", top, base(mode)) == top - helpers.window | 0x67


def test_four_level_tables_are_not_read_one_level_too_deep(code: Any) -> None:
    """A five-level walk over four-level tables ends at a hole, not in a page's content."""
    helpers = mapper(code, LA48)
    top = helpers.table()
    helpers.call("mapping.map_page", top, base(LA48), 0x7777_0000_0000, RW)
    other = code(LA57, "mapping", extents=[TABLES])
    other.ram.write(TABLES[0], helpers.ram.read(TABLES[0], TABLES[1] - TABLES[0]))
    with pytest.raises(MemoryReadError):
        other.call("mapping.lookup", top, LA57.base_of((258, 0, 0, 0, 0)))


@pytest.mark.parametrize("level", [1, 2, 3])
def test_lookup_gives_no_entry_that_is_not_present(code: Any, mode: PagingMode, level: int) -> None:
    """Its other bits are whoever's they are: a place in swap, a right that was taken away."""
    helpers = code(mode, "mapping", "memblock")
    helpers.add_memory()
    top = helpers.table()
    entry = helpers.call("mapping.entry_for", top, base(mode), level)
    helpers.plain.write(entry, 0xDEAD_0000.to_bytes(8, "little"))
    assert helpers.call("mapping.lookup", top, base(mode)) == 0
