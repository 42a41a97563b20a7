"""Which pages of a memory are there, are empty, and lead to each other: against one page after the other."""

from __future__ import annotations

import random
import struct
from itertools import pairwise

import numpy as np
import pytest

from fivefold.arch import Level
from fivefold.memory import Bank, BankedMemory
from fivefold.survey.guest.table_pages import TablePages, is_among
from fivefold.units import PhysAddr

PAGES = 64


def drawn(seed: int) -> tuple[BankedMemory, dict[int, bytes]]:
    """Banks that begin and end anywhere, some of them next to each other; the whole pages, by their numbers."""
    draw = random.Random(seed)
    cuts = sorted(draw.sample(range(0x100, PAGES * 0x1000, 0x10), 12))
    whole = bytearray(PAGES * 0x1000)
    for page in draw.sample(range(PAGES), 30):
        whole[page * 0x1000 + draw.randrange(512) * 8] = draw.choice([1, 6, 0x20])
    kept = [(low, high) for low, high in pairwise(cuts) if draw.random() < 0.7]
    banks = [Bank(low, memoryview(bytes(whole[low:high]))) for low, high in kept]
    covered = bytearray(PAGES * 0x1000)
    for low, high in kept:
        covered[low:high] = b"\1" * (high - low)
    pages = {
        page: bytes(whole[page * 0x1000 :][:0x1000])
        for page in range(PAGES)
        if covered.count(1, page * 0x1000, (page + 1) * 0x1000) == 0x1000
    }
    return BankedMemory(banks, "drawn"), pages


@pytest.mark.parametrize("seed", range(8))
def test_pages_that_are_there_and_filled(seed: int) -> None:
    memory, pages = drawn(seed)
    found, told = TablePages(memory), []
    TablePages(memory, progress=lambda done, total: told.append((done, total)))
    frames = np.arange(PAGES + 3, dtype=np.uint64) << np.uint64(12)
    there = {int(frame) >> 12 for frame in frames[found.has(frames)]}
    # A page may lie in banks that touch.
    one_bank = {
        page for page in pages if any(start <= page << 12 and (page + 1) << 12 <= end for start, end in spans(memory))
    }
    assert there == one_bank
    filled = {int(frame) >> 12 for frame in frames[found.has(frames) & found.is_filled(frames)]}
    assert filled == {page for page in one_bank if any(pages[page])}
    assert found.count == len(filled)
    for page in range(PAGES):
        entries = found.entries_at(PhysAddr(page << 12))
        assert (entries is not None) == (page in one_bank)
        assert entries is None or entries.tobytes() == pages[page]
    assert all(done <= total for done, total in told) and told[-1][0] == 0x1000 * len(one_bank)


def spans(memory: BankedMemory) -> list[tuple[int, int]]:
    return [(extent.start, extent.end) for extent in memory.extents]


def test_a_memory_without_pages() -> None:
    for banks in ([], [Bank(0x1010, memoryview(b"\1" * 0x1800))]):
        found = TablePages(BankedMemory(banks, "small"))
        frames = np.array([0, 0x1000, 0x2000], np.uint64)
        assert not found.has(frames).any() and found.count == 0
        assert found.entries_at(PhysAddr(0x1000)) is None and not len(found.children(frames, Level.PD))


@pytest.mark.parametrize(
    ("level", "large"), [(Level.PT, 0), (Level.PD, 0), (Level.PDPT, 0), (Level.PML4, 1), (Level.PML5, 1)]
)
def test_where_entries_lead(level: Level, large: int) -> None:
    """Present ones that map no large page, to pages that are there, but for the table itself."""
    frames = {
        0x2000: 1,
        0x3000: 0,
        0x4000: 0x81,
        0x5000: 0x8000_0000_0000_0FE7 & ~0x80,
        0x9000: 1,
        0x1000: 1,
        0x6000: 0x80,
    }
    table = struct.pack("<512Q", *(frame | flags for frame, flags in frames.items()), *[0] * 505)
    memory = BankedMemory([Bank(0x1000, memoryview(table + bytes(0x5000)))], "linked")
    wanted = [0x2000, *([0x4000] if large else []), 0x5000]
    assert TablePages(memory).children(np.array([0x1000], np.uint64), level).tolist() == wanted
    kept = TablePages(memory, not_address=1 << 13)
    assert kept.children(np.array([0x1000], np.uint64), level).tolist() == sorted(
        {at & ~0x2000 for at in wanted} - {0, 0x1000}
    )


def levels_of(*tables: list[int]) -> list[set[int]]:
    """Which levels each of *tables* could be of; they lie from 0x1000 on, with 16 empty pages behind them."""
    data = b"".join(struct.pack("<512Q", *entries, *[0] * (512 - len(entries))) for entries in tables)
    found = TablePages(BankedMemory([Bank(0x1000, memoryview(data + bytes(16 << 12)))], "tables"))
    return [
        {int(level) for level, frames in found.of_level.items() if 0x1000 * (n + 1) in frames.tolist()}
        for n in range(len(tables))
    ]


@pytest.mark.parametrize(
    ("entry", "levels"),
    [
        (0x4000_0083, {1, 2, 3}),
        (0x4000_1083, {1, 2, 3}),
        (0x4020_0083, {1, 2}),
        (0x4000_2083, {1}),
        (0x4010_0083, {1}),
        (0x7000_0003, {1}),
        (0x82, set()),
        (1 << 48 | 0x83, set()),
        (1 << 47 | 0x83, {1, 2, 3}),
    ],
)
def test_what_a_table_of_large_pages_could_be(entry: int, levels: set[int]) -> None:
    """Of a level that has pages of that size and alignment; bit 12 is PAT, and addresses have 48 bits."""
    assert levels_of([entry]) == [levels]


def test_each_level_needs_the_next() -> None:
    """A PT that leads anywhere makes what leads to it a PD, and so on up."""
    chain = [[0x7000_0003], [0x1003], [0x2003], [0x3003], [0x4003]]
    assert levels_of(*chain) == [{1}, {1, 2}, {1, 2, 3}, {1, 2, 3, 4}, {1, 2, 3, 4, 5}]


def test_entries_that_lead_nowhere() -> None:
    """One in eight may; empty tables count neither way until there are 128 and eight to each that is used."""
    pt = [0x7000_0003]
    wrong, empty = 0x6666_0003, 0x3003
    for right, bad, is_pd in ((7, 1, True), (6, 1, False), (14, 2, True), (13, 2, False), (0, 1, False)):
        assert (2 in levels_of(pt, [0x1003] * right + [wrong] * bad)[1]) is is_pd
        assert (2 in levels_of(pt, [0x1003] * right + [wrong & ~1] * bad)[1]) is is_pd
    for used, unused, is_pd in ((1, 128, True), (1, 129, False), (16, 129, False), (17, 137, False), (17, 136, True)):
        assert (2 in levels_of(pt, [0x1003] * used + [empty] * unused)[1]) is is_pd
    assert 2 not in levels_of(pt, [empty] * 3)[1]


@pytest.mark.parametrize("size", range(5))
def test_is_among(size: int) -> None:
    ascending = np.arange(10, 10 + 3 * size, 3, dtype=np.uint64)
    asked = np.arange(30, dtype=np.uint64)
    assert is_among(asked, ascending).tolist() == [number in ascending.tolist() for number in range(30)]
