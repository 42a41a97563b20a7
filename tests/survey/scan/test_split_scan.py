"""A scan in parts: the ranges and counts of one scan, and no parts where that is not sure."""

from __future__ import annotations

import numpy as np
import pytest

from fivefold.survey.scan import split_scan
from fivefold.survey.scan.scan import TableScanner
from fivefold.survey.scan.scan_result import ALL_FLAGS, Contiguity, ScanSettings
from fivefold.survey.scan.split_scan import Splitter
from fivefold.units import PhysAddr

P, W, NX = 1, 2, 1 << 63
PTS = 64
"""Leaf tables in each of four PDs, which hang in one PDPT."""
ROOT = 0
LEAF = np.uint64(0x10_0000_0000)


def tables(seed: int, kind: str) -> np.ndarray:  # type: ignore[type-arg]
    """A root, a PDPT, four PDs, their PTs; *kind* says what the leaves are like and what is shared."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((6 + 4 * PTS, 512), np.uint64)
    rows[0, 300] = 0x1000 | P | W
    rows[1, 5:9] = (np.arange(2, 6, dtype=np.uint64) << np.uint64(12)) | np.uint64(P | W)
    pages = np.arange(4 * PTS * 512, dtype=np.uint64).reshape(-1, 512)
    leaves = LEAF + (pages << np.uint64(12)) | np.uint64(P | W)
    if kind == "jumps":
        leaves[rng.integers(0, 4 * PTS, 20), rng.integers(0, 512, 20)] += np.uint64(1 << 40)
    if kind == "apart":
        leaves[PTS:] += np.uint64(1 << 40)
    if kind == "apart twice":
        leaves[PTS : 3 * PTS] += np.uint64(1 << 40)
    if kind == "scattered":
        leaves[rng.random(leaves.shape) < 0.3] = 0
    if kind == "malformed":
        leaves |= np.uint64(NX)
    for pd in range(4):
        mine = np.arange(PTS, dtype=np.uint64) + np.uint64(6 + PTS * pd)
        # Right up to the next PD, so that ranges go on over the seam.
        slots = slice(0, 512, 8) if kind == "scattered" else slice(512 - PTS, 512) if pd % 2 == 0 else slice(0, PTS)
        rows[2 + pd, slots] = (mine << np.uint64(12)) | np.uint64(P | W)
        rows[6 + PTS * pd : 6 + PTS * (pd + 1)] = leaves[PTS * pd : PTS * (pd + 1)]
    if kind == "shared":
        rows[5, 100] = rows[2, 511]
    if kind == "missing":
        rows[2, 500:512] = rows[3, :12] = 0x7777_7000 | P
    if kind == "cycle":
        rows[4, 300] = 0x1000 | P
    return rows


KINDS = ("contiguous", "jumps", "apart", "apart twice", "scattered", "malformed", "shared", "missing", "cycle")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_are_what_one_scan_is(monkeypatch: pytest.MonkeyPatch, kind: str, parts: int) -> None:
    monkeypatch.setattr(split_scan, "LEAST_TABLES", PTS)
    monkeypatch.setattr(split_scan, "cores", lambda: parts)
    image = tables(3, kind)
    reserved = NX if kind == "malformed" else 0
    with TableScanner([(ROOT, image)]) as split, TableScanner([(ROOT, image)]) as whole:
        for contiguity in Contiguity:
            for first, last in ((0, (1 << 64) - 1), (0xFFFF_9600_0000_0000 + (6 << 30) + 0x5000, (1 << 64) - 1)):
                how = ScanSettings(flags=ALL_FLAGS, contiguity=contiguity, first=first, last=last, reserved=reserved)
                windows = split._windows(PhysAddr(ROOT), 4, how)
                assert 2 <= len(windows) <= parts
                found = split._in_parts(PhysAddr(ROOT), 4, windows, 1 << 20)
                _, rows, counts = whole._scan(whole._build(4), PhysAddr(ROOT), how, 1 << 20)
                if kind not in ("shared", "cycle"):
                    assert found is not None or (kind in ("jumps", "apart twice") and contiguity == Contiguity.NOTE)
                if found is not None:
                    assert np.array_equal(found[0], rows) and found[1] == counts
                again = split.scan(PhysAddr(ROOT), 4, how)
                assert np.array_equal(again.rows, rows) and again.counts == counts


def test_a_table_on_two_ways_is_left_to_one_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_scan, "LEAST_TABLES", PTS)
    monkeypatch.setattr(split_scan, "cores", lambda: 2)
    with TableScanner([(ROOT, tables(3, "shared"))]) as scanner:
        windows = scanner._windows(PhysAddr(ROOT), 4, ScanSettings())
        assert scanner._in_parts(PhysAddr(ROOT), 4, windows, 1 << 20) is None
        assert scanner.scan(PhysAddr(ROOT), 4).counts.replays == 1


def test_small_spaces_and_repeats_stay_whole() -> None:
    splitter = Splitter([(ROOT, tables(3, "contiguous"))])
    assert splitter.windows(ROOT, 4, ScanSettings(), 2) == [ScanSettings()]
    with TableScanner([(ROOT, tables(3, "contiguous"))]) as scanner:
        assert len(scanner._windows(PhysAddr(ROOT), 4, ScanSettings(repeat_above=4))) == 1
    assert splitter.table(6 << 12 | 1 << 40) is None


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_that_have_more_ranges_than_the_first_has_room_for(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    monkeypatch.setattr(split_scan, "LEAST_TABLES", PTS)
    monkeypatch.setattr(split_scan, "cores", lambda: parts)
    image, how = tables(3, "scattered"), ScanSettings(flags=ALL_FLAGS, contiguity=Contiguity.BREAK)
    with TableScanner([(ROOT, image)]) as split, TableScanner([(ROOT, image)]) as whole:
        windows = split._windows(PhysAddr(ROOT), 4, how)
        _, rows, counts = whole._scan(whole._build(4), PhysAddr(ROOT), how, 1 << 20)
        sizes = [len(whole._scan(whole._build(4), PhysAddr(ROOT), window, 1 << 20)[1]) for window in windows]
        found = split._in_parts(PhysAddr(ROOT), 4, windows, max(sizes))
        assert found is not None and np.array_equal(found[0], rows) and found[1] == counts
        assert len(rows) > max(sizes) + 1


def test_results_stay_when_their_buffers_are_used_again() -> None:
    """Few ranges are copied out of a buffer, many keep it; either way the next scan must not write there."""
    few, many = tables(3, "contiguous"), tables(3, "scattered")
    with TableScanner([(ROOT, few)]) as one, TableScanner([(ROOT, many)]) as other:
        for scanner in (one, other):
            for max_ranges in (1 << 20, 60_000):
                found = [scanner.scan(PhysAddr(ROOT), 4, ScanSettings(), max_ranges=max_ranges) for _ in range(3)]
                before = [one.rows.copy() for one in found]
                scanner.scan(PhysAddr(ROOT), 4, ScanSettings(last=0xFFFF_9601_8000_0000), max_ranges=max_ranges)
                for kept, copied in zip(found, before, strict=True):
                    assert np.array_equal(kept.rows, copied) and np.array_equal(copied, before[0])
