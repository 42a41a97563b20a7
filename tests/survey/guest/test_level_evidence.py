"""Both readings of a tree are weighed; real guests and small trees alike tell how many levels they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, Level, PagingMode
from fivefold.errors import MemoryReadError
from fivefold.memory import Ram
from fivefold.survey.guest.level_evidence import LevelEvidence, level_evidence, looks_like_table
from fivefold.survey.space import Space
from fivefold.units import GIB, MIB, PhysAddr

ROOT = PhysAddr(0x10_0000)


def test_every_root_of_the_captures(
    name: str, captures: Any, look: Callable[..., Space], facts: Callable[[str], Any]
) -> None:
    roots = facts(name)["roots"]
    for root in [*roots["cr3"], roots["init_top_pgt"], *roots.get("pti_user", [])]:
        assert level_evidence(look(name).source.memory, PhysAddr(int(root, 16))).levels == facts(name)["levels"]


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
@pytest.mark.parametrize(("pa", "level"), [(0x40_0000, Level.PT), (4 * MIB, Level.PD)], ids=["4K", "2M"])
def test_one_page_is_enough(built: Callable[..., Ram], mode: PagingMode, pa: int, level: Level) -> None:
    ram = built(mode, [(0x4000_0000, pa | 7, level)])
    assert level_evidence(ram, ROOT).levels == int(mode.top)


def test_pat_of_a_small_page_is_no_large_page(built: Callable[..., Ram]) -> None:
    assert level_evidence(built(LA48, [(0x1000, 0x20_3000 | 0x87, Level.PT)]), ROOT) == LevelEvidence(four=1)
    assert level_evidence(built(LA48, [(0x1000, 0x20_0000 | 0x87, Level.PT)]), ROOT) == LevelEvidence(five=1)


def test_a_gibibyte_page_alone_does_not_tell(built: Callable[..., Ram]) -> None:
    ram = built(LA57, [(0x40_0000_0000, 2 * GIB | 7, Level.PDPT)])
    assert level_evidence(ram, ROOT) == LevelEvidence()
    assert level_evidence(ram, ROOT).levels is None


def test_pages_that_are_page_tables_do_not_outweigh_the_others(built: Callable[..., Ram]) -> None:
    """Four levels that map their own tables among other pages at 4 KiB."""
    pages = [(0x4000_0000 + 0x1000 * n, 0x10_0000 + 0x1000 * n | 7, Level.PT) for n in range(16)]
    assert level_evidence(built(LA48, pages), ROOT).levels == 4


@pytest.mark.parametrize("flags", [0x67 | 1 << 63, 0x163, 0x25], ids=["NX", "G", "read-only"])
@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_a_leaf_is_known_by_the_rights_that_it_keeps_back(
    built: Callable[..., Ram], mode: PagingMode, flags: int
) -> None:
    """With all of memory there, four levels may map nothing but pages that could be tables: their own, or data."""
    tables = [(0x4000_0000 + 0x1000 * n, 0x10_0000 + 0x1000 * n | flags, Level.PT) for n in range(5)]
    data = [(0x4000_0000 + 0x1000 * n, 0x20_0000 + 0x1000 * n | flags, Level.PT) for n in range(8, 16)]
    other = [(0x4001_0000, 0x30_0000 | flags, Level.PT)]
    ram = built(mode, tables + data + other)
    for _, raw, _ in data:
        ram.write(PhysAddr(raw & 0xFFF_F000), (0x5000_0000_0021).to_bytes(8, "little") * 512)
    assert level_evidence(ram, ROOT).levels == int(mode.top)


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_tables_that_map_themselves_have_no_say(built: Callable[..., Ram], mode: PagingMode) -> None:
    """A slot of the root leads back to it, as in Windows; with four levels a walk through it ends one too high."""
    ram = built(mode, [(0x4000_0000, 0x40_0000 | 7, Level.PT)])
    alone = level_evidence(ram, ROOT)
    ram.write(PhysAddr(ROOT + 8 * 493), (ROOT | 0x63).to_bytes(8, "little"))
    assert level_evidence(ram, ROOT) == alone
    assert alone.levels == int(mode.top)


def test_a_root_that_holds_itself_alone_does_not_tell() -> None:
    ram = Ram.of_size(4096, start=ROOT)
    ram.write(ROOT, (ROOT | 7).to_bytes(8, "little") * 512)
    assert level_evidence(ram, ROOT) == LevelEvidence()


def test_counts_decide_two_to_one() -> None:
    assert [LevelEvidence(*counts).levels for counts in ((0, 0), (1, 2), (1, 3), (3, 1), (2, 1))] == [
        None,
        None,
        5,
        4,
        None,
    ]
    assert str(LevelEvidence(1, 3)) == "3 entries of the tables speak for five levels, 1 for four"


def test_looks_like_table() -> None:
    assert looks_like_table([0, 0, 0x1067])
    assert not looks_like_table([0] * 512)
    assert not looks_like_table([0x1067, 0x6F74_7365_7420_6101])
    assert not looks_like_table([0x1067, 0x7])
    assert not looks_like_table([0x1067, 1])
    assert looks_like_table([0x1067, 0x63])


def test_a_root_that_is_not_there() -> None:
    with pytest.raises(MemoryReadError):
        level_evidence(Ram.of_size(4096, start=0x1000), PhysAddr(0x8000))


@pytest.mark.parametrize(
    ("four", "five", "loud"),
    [
        *((31, 0, None), (32, 0, 4), (32, 4, None), (33, 4, 4), (320, 40, None), (321, 40, 4)),
        *((0, 31, None), (0, 32, 5), (4, 32, None), (4, 33, 5), (40, 320, None), (40, 321, 5)),
    ],
)
def test_what_is_loud(four: int, five: int, loud: int | None) -> None:
    """32 entries or more, more than eight to one."""
    assert LevelEvidence(four, five).loud == loud
    assert LevelEvidence(four - 1, five).plus(LevelEvidence(1, 0)).loud == loud


def test_large_pages_of_four_levels(built: Callable[..., Ram]) -> None:
    """An entry two tables down that maps a page is a PDPT's; what it maps is data, whatever that looks like."""
    gibibyte = built(LA48, [(0x4000_0000, GIB | 7, Level.PDPT)])
    assert level_evidence(gibibyte, ROOT) == LevelEvidence(four=1)
    for level, mapped in ((Level.PDPT, 0), (Level.PD, 0x20_0000)):
        ram = built(LA48, [(0x4000_0000, mapped | 7, level)])
        alone = level_evidence(ram, ROOT)
        data = Ram.of_size(8 * MIB)
        data.write(PhysAddr(1 * MIB), ram.read(PhysAddr(1 * MIB), 4 * MIB - 1))
        for page in range(0x20_0000, 0x22_0000, 0x1000):
            data.write(PhysAddr(page), (0x30_0067).to_bytes(8, "little") * 512)
        assert level_evidence(data, ROOT) == alone


def test_entries_that_are_not_present_say_nothing(built: Callable[..., Ram]) -> None:
    for mode in (LA48, LA57):
        ram = built(mode, [(0x4000_0000, 0x40_0000 | 7, Level.PT)])
        alone = level_evidence(ram, ROOT)
        for table in range(ROOT, ROOT + 0x5000, 0x1000):
            ram.write(PhysAddr(table + 8 * 300), (0x30_00E6).to_bytes(8, "little"))
        assert level_evidence(ram, ROOT) == alone
