"""Spaces in numbers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, Level, Mapped, distinct_tables, translate
from fivefold.errors import MemoryReadError
from fivefold.survey.space import open_space
from fivefold.survey.stats import stats
from fivefold.units import GIB, MIB, VirtAddr

GUESTS = Path(__file__).parents[1] / "data" / "guests"
P, W, U, NX = 1, 2, 4, 1 << 63
KERNEL = 0xFFFF_9000_0000_0000


def test_a_small_space(build: Callable[..., Any]) -> None:
    built = build(LA48).pages(GIB, 0x3000, GIB | P | U).page(KERNEL, GIB | P | W | NX, Level.PD)
    built.page(KERNEL + GIB, 2 * GIB | P | W | NX)
    found = stats(built.space())
    assert found.is_complete and found.tables == 8 and found.table_bytes == 8 * 4096
    assert [(one.level.name, one.tables, one.used, one.leaves) for one in found.levels] == [
        ("PML4", 1, 2, 0),
        ("PDPT", 2, 3, 0),
        ("PD", 3, 3, 1),
        ("PT", 2, 4, 4),
    ]
    assert found.levels[3].fill == 4 / 1024
    assert found.mapped.by_page == {"4K": 0x4000, "2M": 2 * MIB}
    assert found.mapped.by_half == {"user": 0x3000, "kernel": 2 * MIB + 0x1000}
    assert found.mapped.by_rights == {"r-xu": 0x3000, "rw--": 2 * MIB + 0x1000}
    assert found.mapped.by_area == {"unnamed": 2 * MIB + 0x4000}
    assert (found.physical, found.mapped_twice) == (2 * MIB + 0x1000, 0x3000)


@pytest.mark.parametrize("path", sorted(GUESTS.glob("*.elf.xz")), ids=lambda path: path.name.partition(".")[0])
def test_captures(path: Path) -> None:
    with open_space(str(path)) as space:
        found = stats(space)
        assert found.is_complete
        assert {one.level: one.tables for one in found.levels} == {
            level: len(tables) for level, tables in distinct_tables(space.tables).items()
        }
        assert 0 < found.mapped_twice < found.physical < found.counts.mapped_bytes
        assert sum(found.mapped.by_area.values()) == found.counts.mapped_bytes


def entries_of(ram: Any, table: int) -> list[int]:
    return [int.from_bytes(ram.read(table + 8 * index, 8), "little") for index in range(512)]


def counted(ram: Any, root: int, levels: int) -> list[tuple[int, ...]]:
    """By levels, from the entries alone: tables, links, shared ones, entries used, pages, malformed ones, missing."""
    rows, tables = [], {root: 1}
    for level in range(levels, 0, -1):
        below: Counter[int] = Counter()
        used = pages = malformed = 0
        known = {at for at in tables if at < 0x10_0000}
        for table in known:
            for entry in filter(lambda one: one & 1, entries_of(ram, table)):
                large, frame = bool(entry & 0x80) and level > 1, entry & 0xF_FFFF_FFFF_F000
                is_wrong = large and (level > 3 or bool(frame & ~0x1000 & (1 << 9 * level + 3) - 1))
                used, malformed = used + 1, malformed + is_wrong
                pages += (large or level == 1) and not is_wrong
                if not large and level > 1:
                    below[frame] += 1
        links = sum(count for at, count in tables.items() if at in known)
        shared = sum(tables[at] > 1 for at in known)
        rows.append((level, len(known), links, shared, used, pages, malformed, len(tables) - len(known)))
        tables = dict(below)
    return rows


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_every_number_against_the_entries(build: Callable[..., Any], mode: Any) -> None:
    """Shared tables, missing ones, malformed entries, and memory that is mapped once, twice and three times."""
    draw, built = random.Random(5), build(mode).linux()
    direct = 0xFFFF_8880_0000_0000 if mode is LA48 else 0xFF11_0000_0000_0000
    for base in (0x40_0000, 0x4040_0000):
        for slot in draw.sample(range(512), 60):
            built.page(base + 0x1000 * slot, draw.randrange(32, 96) * MIB | P | draw.choice([0, W, U, W | U, U | NX]))
    built.page(3 * GIB, 128 * MIB | P | U, Level.PD)
    built.entry(path_to(built, 3 * GIB)[-1], 1, 129 * MIB | P | U | 0x80)  # not at a multiple of 2 MiB
    pds = path_to(built, 0x40_0000)
    built.entry(pds[-2], 9, pds[-1] | P | W | U).entry(pds[-2], 11, pds[-1] | P | U | NX)
    built.entry(pds[-2], 13, 0x7000_0000 | P | U).entry(pds[-2], 15, 0x7000_0000 | P | U)
    found = stats(space := built.space())
    raw = counted(built.ram, 0x1000, int(mode.top))
    assert [
        (int(one.level), one.tables, one.links, one.shared, one.used, one.leaves, one.malformed, one.missing)
        for one in found.levels
    ] == [(raw[0][0], 1, raw[0][2] if found.levels[0].links else 0, *raw[0][3:]), *raw[1:]]
    assert all(one.fill == one.used / (512 * one.tables) and one.bytes == 4096 * one.tables for one in found.levels)

    frames: Counter[int] = Counter()
    once: set[tuple[int, Any]] = set()
    areas: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {"page": Counter(), "half": Counter(), "rights": Counter()}
    small = [*range(0x40_0000, 0x40_0000 + 16 * 2 * MIB, 4096), *range(0x4040_0000, 0x4060_0000, 4096)]
    image = 0xFFFF_FFFF_8100_0000
    large = [*range(3 * GIB, 3 * GIB + 4 * MIB, 2 * MIB), *range(direct, direct + 64 * MIB, 2 * MIB), image]
    for va, size in [(va, 4096) for va in small] + [(va, 2 * MIB) for va in large]:
        try:
            leads = translate(space.tables, VirtAddr(va))
        except MemoryReadError:
            continue
        if not isinstance(leads, Mapped):
            continue
        leaf, above = leads.steps[-1], leads.steps[-2]
        assert size == leaf.entry.level.span
        kinds["page"][{1: "4K", 2: "2M"}[int(leaf.entry.level)]] += size
        kinds["half"]["kernel" if va >> 63 else "user"] += size
        letters = [("r", True), ("w", leads.rights.write), ("x", leads.rights.execute), ("u", leads.rights.user)]
        kinds["rights"]["".join(letter if there else "-" for letter, there in letters)] += size
        areas[space.areas.name_at(va) or "unnamed"] += size
        if (leaf.at, above.rights) not in once:  # what a shared table maps counts once
            once.add((leaf.at, above.rights))
            frames.update(range(leads.pa, leads.pa + size, 4096))
    assert found.mapped.by_page == kinds["page"] and found.mapped.by_half == kinds["half"]
    assert found.mapped.by_rights == kinds["rights"] and found.mapped.by_area == areas
    assert sum(kinds["page"].values()) == found.counts.mapped_bytes and found.is_complete
    assert found.physical == 4096 * len(frames)
    assert found.mapped_twice == 4096 * sum(number > 1 for number in frames.values()) > 0
    shown = found._repr_html_()
    assert f"built: {found.tables} tables, " in shown and f"{found.levels[-1].fill:.0%}" in shown


def path_to(built: Any, va: int) -> list[int]:
    """The tables that the walk for *va* reads, from the root on."""
    tables, entry = [], 0x1000
    for level in range(int(built.mode.top), 0, -1):
        tables.append(entry & 0xF_FFFF_FFFF_F000)
        entry = entries_of(built.ram, tables[-1])[va >> 9 * level + 3 & 511]
        if entry & 0x80:
            break
    return tables
