"""Files that list more than any memory has: exactly the bound is read, and one more is one clear line."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fivefold.errors import FormatError
from fivefold.memory import open_source
from fivefold.memory.formats import kdump_flat, lime, raw_image, windows_dump, xen_core
from fivefold.memory.formats.raw_image import parse_ram_map
from fivefold.memory.live import mtree
from fivefold.memory.live.mtree import ram_ranges

BOUND = 3


def test_lime(make: Any, saved: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lime, "MAX_SPANS", BOUND)
    ranges = [(0x2000 * number, b"\x01" * 0x1000) for number in range(BOUND + 1)]
    with open_source(saved(make.lime(ranges[:BOUND]))) as source:
        assert [extent.start for extent in source.extents] == [0, 0x2000, 0x4000]
    with pytest.raises(FormatError, match=r": more than 3 ranges$"):
        open_source(saved(make.lime(ranges)))


def test_ram_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_image, "MAX_SPANS", BOUND)
    items = [f"{0x2000 * number:#x}-{0x2000 * number + 0x1000:#x}" for number in range(BOUND + 1)]
    assert [span.start for span in parse_ram_map(",".join(items[:BOUND]))] == [0, 0x2000, 0x4000]
    with pytest.raises(ValueError, match="RAM map has 4 ranges, at most 3 are taken"):
        parse_ram_map(",".join(items))


def test_mtree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtree, "MAX_SPANS", BOUND)

    def view(count: int) -> str:
        lines = [
            f"  {0x2000 * number:016x}-{0x2000 * number + 0xFFF:016x} (prio 0, ram): part{number}"
            for number in range(count)
        ]
        return "\n".join(["FlatView #0", ' AS "memory", root: system', " Root memory region: system", *lines, ""])

    assert len(ram_ranges(view(BOUND))) == BOUND
    with pytest.raises(FormatError, match="shows more than 3 ranges of RAM"):
        ram_ranges(view(BOUND + 1))


def test_flattened_records(make: Any, saved: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make.kdump({3: bytes(4096)})
    flat, count = make.flattened(plain), 1 + -(-len(plain) // 5000)
    monkeypatch.setattr(kdump_flat, "MAX_RECORDS", count)
    open_source(saved(flat)).close()
    monkeypatch.setattr(kdump_flat, "MAX_RECORDS", count - 1)
    with pytest.raises(FormatError, match=f"more than {count - 1} flattened records"):
        open_source(saved(flat))


def windows_bitmap(pages: int, present: list[int]) -> bytes:
    """A crash dump with a bitmap, with nothing else in its header."""
    head = bytearray(0x2000)
    head[:8] = b"PAGEDU64"
    struct.pack_into("<Q", head, 0x10, 0x1000)
    struct.pack_into("<II", head, 0x30, 0x8664, 1)
    struct.pack_into("<I", head, 0xF98, 5)
    bits = bytearray(-(-max(min(pages, 100), 1) // 8))
    for number in present:
        bits[number // 8] |= 1 << number % 8
    summary = struct.pack("<4s4s24xQQQ", b"FDMP", b"DUMP", 0x3000, len(present), pages) + bits
    return bytes(head) + summary.ljust(0x1000, b"\0") + bytes(0x1000 * len(present))


def test_runs_of_a_bitmap(saved: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_dump, "MAX_SPANS", BOUND)
    with open_source(saved(windows_bitmap(60, [1, 3, 4, 6]))) as source:
        assert source.extents == [(0x1000, 0x2000), (0x3000, 0x5000), (0x6000, 0x7000)]
    with pytest.raises(FormatError, match="more than 3 runs of pages"):
        open_source(saved(windows_bitmap(60, [1, 3, 5, 7])))


def test_pages_of_a_bitmap(saved: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_dump, "MOST_PAGES", 24)
    with open_source(saved(windows_bitmap(24, [1, 23]))) as source:
        assert source.extents == [(0x1000, 0x2000), (0x17000, 0x18000)]
    for pages in (0, 25):
        with pytest.raises(FormatError, match=f"a bitmap of {pages} pages; expected 1 to 24"):
            open_source(saved(windows_bitmap(pages, [1])))


@pytest.mark.parametrize("is_pv", [False, True])
def test_xen(tmp_path: Path, machine_files: ModuleType, monkeypatch: pytest.MonkeyPatch, is_pv: bool) -> None:
    path, pages = tmp_path / "xen.core", machine_files.PAGES
    path.write_bytes(machine_files.xen_core(pages, is_pv=is_pv))
    with open_source(path) as source:
        runs = len(source.extents)
    for name, count, says in (
        ("MAX_SPANS", runs, f"more than {runs - 1} runs of pages"),
        ("MOST_PAGES", len(pages), f": {len(pages)} pages, at most {len(pages) - 1} are read"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(xen_core, name, count)
            open_source(path).close()
            patch.setattr(xen_core, name, count - 1)
            with pytest.raises(FormatError, match=says):
                open_source(path)


def test_a_sub_header_of_kdump(make: Any, saved: Callable[[bytes], str]) -> None:
    """Its blocks are skipped; more than a few, or less than none, are forged."""
    plain = bytearray(make.kdump({3: bytes(4096)}))
    at = plain.index(struct.pack("<iI", 4096, 1), 300) + 4
    for blocks in (-1, (1 << 20) + 1):
        struct.pack_into("<i", plain, at, blocks)
        with pytest.raises(FormatError, match=f"kdump sub-header of {blocks} blocks, expected a few"):
            open_source(saved(bytes(plain)))
    struct.pack_into("<i", plain, at, 1 << 20)
    with pytest.raises(FormatError) as caught:
        open_source(saved(bytes(plain)))
    assert "sub-header" not in str(caught.value)
