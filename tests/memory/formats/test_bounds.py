"""Files that list more than any memory has: exactly the bound is read, and one more is one clear line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.errors import FormatError
from fivefold.memory import open_source
from fivefold.memory.formats import lime, raw_image
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
