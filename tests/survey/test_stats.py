"""Spaces in numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import LA48, Level, distinct_tables
from fivefold.survey.space import open_space
from fivefold.survey.stats import stats
from fivefold.units import GIB, MIB

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
