"""Shared tables: with and without a memory of what was met, the answer is the same, to the last range."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from fivefold.arch import LA48, LA57, AddressSpace, Level, PagingMode, distinct_tables
from fivefold.memory import Ram
from fivefold.survey.scan import scan as host_scan
from fivefold.survey.scan import scan_buffers
from fivefold.survey.scan.scan_result import Contiguity, RegionKind, ScanResult, ScanSettings
from fivefold.units import PhysAddr

BASE = 0x10_0000
P, W, U, PS, NX = 1, 2, 4, 1 << 7, 1 << 63
FRAMES = 24


def rows_of_children(rng: random.Random, level: int, children: list[int], table: np.ndarray) -> None:
    """Fill a table with pointers: the same again and again, in turn, or here and there, under several rights.

    High up there are few of them, or all would unfold into more than can be compared.
    """
    style = rng.randrange(5) if level == 2 else rng.choice((4, 5))
    flags = [P | W | U, P | W | U, P | W, P | U, P | W | U | NX]
    for i in range(512):
        if style == 0 or (style == 1 and rng.random() < 0.02):
            table[i] = children[0] | flags[0]
        elif style == 2 and i < 40:
            table[i] = children[i % len(children)] | flags[0]
        elif style == 3 and i % 100 < 3:
            table[i] = rng.choice(children) | rng.choice(flags)
    if style == 5:
        table[254:258] = children[0] | flags[0]
    if style == 4:
        for i in (0, 1, 255, 256, 511):
            table[i] = rng.choice(children) | rng.choice(flags)


def rows_of_leaves(rng: random.Random, level: int, table: np.ndarray) -> None:
    """Fill a table with leaves: one page everywhere, one after the other, in blocks, or at its ends only."""
    span = 1 << (3 + 9 * level)
    large = PS if level > 1 else 0
    style = rng.randrange(6)
    start = rng.randrange(64) * span
    index = np.arange(512, dtype=np.uint64)
    leaves = np.uint64(P | W | U | large | start) + index * np.uint64(span if style % 2 else 0)
    present = {
        0: index < 512,
        1: index < 512,
        2: index % np.uint64(17) < 9,
        3: (index < 5) | (index > 500),
        4: index % np.uint64(2) == 0,
        5: (index < 512) & (index != 300),
    }[style]
    if rng.random() < 0.5:
        leaves[256:] &= ~np.uint64(W)
    table[:] = np.where(present, leaves, np.uint64(0))


def shared_tree(seed: int) -> tuple[Ram, PhysAddr, PagingMode]:
    """A tree of few tables, most of them reached by many paths, and now and then out of turn."""
    rng = random.Random(seed)
    mode = rng.choice((LA48, LA57))
    tables = np.zeros((FRAMES, 512), np.uint64)
    levels: dict[int, list[int]] = {}
    at = 0
    for level in range(1, mode.top + 1):
        count = 1 if level == mode.top else rng.choice((1, 2, 4))
        levels[level] = [BASE + 0x1000 * (at + i) for i in range(count)]
        for i in range(count):
            if level <= 2 and (level == 1 or rng.random() < 0.2):
                rows_of_leaves(rng, level, tables[at + i])
            else:
                rows_of_children(rng, level, levels[level - 1], tables[at + i])
        at += count
    if rng.random() < 0.3:
        tables[at - 1, rng.randrange(512)] = levels[mode.top][0] | P | W
    ram = Ram.of_size(0x1000 * FRAMES, BASE)
    ram.write(PhysAddr(BASE), tables.astype("<u8").tobytes())
    return ram, PhysAddr(levels[mode.top][0]), mode


def plain_rows(result: ScanResult) -> np.ndarray:
    """The rows with `jump` as a yes or no: which of several places it names may differ."""
    rows = result.rows.copy()
    rows["jump"] = rows["jump"] != 0
    return rows


def scans(seed: int, settings: ScanSettings) -> Iterator[tuple[AddressSpace, ScanResult, ScanResult]]:
    """One space, scanned with a memory of walks and without; nothing if that would take too long."""
    ram, root, mode = shared_tree(seed)
    try:
        with_memory = host_scan.TableScanner(ram.banks()).scan(root, mode.top, settings, max_ranges=1 << 15)
        forgetful = host_scan.TableScanner(ram.banks())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scan_buffers, "MAX_REMEMBERED", 1)
            patch.setattr(host_scan, "MAX_WALKS", 1 << 13)
            yield AddressSpace(ram, root, mode), with_memory, forgetful.scan(root, mode.top, settings)
    except host_scan.TooManyRuns:
        return


@pytest.mark.parametrize("contiguity", list(Contiguity), ids=lambda value: value.name)
def test_memory_changes_nothing_but_the_work(contiguity: Contiguity) -> None:
    compared = replays = 0
    for seed in range(40):
        for space, one, other in scans(seed, ScanSettings(contiguity=contiguity)):
            assert np.array_equal(plain_rows(one), plain_rows(other)), f"seed {seed}"
            assert (
                one.counts.mapped_bytes
                == other.counts.mapped_bytes
                == int(one.size[one.kind == RegionKind.MAPPED].sum())
            )
            wx = one.writable & one.executable & (one.kind == RegionKind.MAPPED)
            assert one.counts.wx_bytes == other.counts.wx_bytes == int(one.size[wx].sum())
            tables = frozenset().union(*distinct_tables(space).values())
            assert one.counts.tables_met == len(tables)
            assert one.counts.tables_walked <= len(tables) * space.mode.top * scan_buffers.RIGHTS
            compared += 1
            replays += one.counts.replays
    assert compared > 10
    assert replays > 1_000


def test_a_long_table_met_again_is_told_as_a_repeat() -> None:
    """Unfolded, what is told with repeats is what is told without."""
    unfolded = 0
    for seed in range(30):
        ram, root, mode = shared_tree(seed)
        scanner = host_scan.TableScanner(ram.banks())
        settings = ScanSettings(contiguity=Contiguity.BREAK, repeat_above=8)
        try:
            short = scanner.scan(root, mode.top, settings, max_ranges=1 << 14)
            full = scanner.scan(root, mode.top, ScanSettings(contiguity=Contiguity.BREAK), max_ranges=1 << 14)
        except host_scan.TooManyRuns:
            continue
        repeats = np.flatnonzero(short.kind == RegionKind.REPEAT)
        assert short.counts.mapped_bytes == full.counts.mapped_bytes
        assert all(short.repeats[repeats] > 0)
        for row in repeats[:20].tolist():
            inside = np.concatenate(list(scanner.behind(short, row)))
            low, high = int(short.start[row]), int(short.last[row])
            part = full.rows[(full.last >= low) & (full.start <= high)]
            # At its ends a range of the full answer may reach out of the table.
            assert np.array_equal(inside["start"][1:], part["start"][1:])
            assert np.array_equal(inside["last"][:-1], part["last"][:-1])
            assert np.array_equal(inside["info"], part["info"])
            unfolded += 1
    assert unfolded > 25


def test_repeats_in_a_row_are_one_range() -> None:
    """A table of 256 ranges, mapped 512 times in a row as ESPfix does, is told once, and then as one repeat."""
    tables = np.zeros((4, 512), np.uint64)
    tables[0, ::2] = 0x7000_0000 | P | W
    tables[1, :] = BASE | P | W
    tables[2, 3] = BASE + 0x1000 | P | W
    tables[3, 511] = BASE + 0x2000 | P | W
    result = host_scan.scan_space(
        [(BASE, tables.tobytes())],
        PhysAddr(BASE + 0x3000),
        4,
        ScanSettings(repeat_above=64, contiguity=Contiguity.NOTE),
    )
    assert len(result) == 257
    assert result.kind[-1] == RegionKind.REPEAT
    assert result.level[-1] == Level.PT
    assert result.phys[-1] == BASE
    assert result.repeats.tolist() == [0] * 256 + [511]
    assert result.counts.mapped_bytes == 512 * 256 * 4096
    assert result.counts.replays == 511


def test_eight_pebibytes_over_four_tables() -> None:
    tables = np.zeros((5, 512), np.uint64)
    tables[0, :] = 0x7000_0000 | P | W | U
    for level in range(1, 4):
        tables[level, :] = BASE + 0x1000 * (level - 1) | P | W | U
    tables[4, 16:48] = BASE + 0x3000 | P | W | U
    settings = ScanSettings(contiguity=Contiguity.IGNORE)
    result = host_scan.scan_space([(BASE, tables.tobytes())], PhysAddr(BASE + 0x4000), 5, settings)
    assert [(row["start"], row["last"]) for row in result.rows] == [(16 << 48, (48 << 48) - 1)]
    assert (result.counts.tables_walked, result.counts.tables_met) == (5, 5)


def test_a_cycle_is_met_once_for_each_level_and_counted() -> None:
    """A root that maps itself: the walk ends because levels do."""
    table = np.zeros(512, np.uint64)
    table[510] = BASE | P | W
    result = host_scan.scan_space([(BASE, table.tobytes())], PhysAddr(BASE), 4)
    top = 0xFFFF_FF7F_BFDF_E000
    assert [(int(row["start"]), int(row["phys"])) for row in result.rows] == [(top, BASE)]
    assert (result.counts.cycles, result.counts.first_cycle) == (3, 0xFFFF_FF00_0000_0000)
    assert (result.counts.mixed_levels, result.counts.first_mixed) == (3, 0xFFFF_FF00_0000_0000)
    assert (result.counts.tables_met, result.counts.tables_walked) == (1, 4)
