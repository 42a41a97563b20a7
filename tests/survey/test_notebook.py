"""What notebooks show: well-formed, escaped, and with the facts in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest

from fivefold.arch import LA57, Level
from fivefold.memory import CpuState, Ram, Source
from fivefold.notebook import SHOWN, html_table
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.guest.info import About
from fivefold.survey.scan.scan_result import Contiguity
from fivefold.survey.space import Space

ROOT = 0x10_0000
AT = 0x4000_0000
HOSTILE = "<script>alert('&\"')</script>"


@pytest.fixture
def space(built: Callable[..., Ram], sourced: Callable[..., Source]) -> Space:
    """Pages that are not joined, in a source with a name that must be escaped."""
    pages = [(AT + n * 0x2000, 0x20_0000 + n * 0x1000 | 7, Level.PT) for n in range(SHOWN + 5)]
    ram = built(LA57, pages)
    ram.name = HOSTILE
    cpu = CpuState(HOSTILE, cr0=0x8005_0033, cr3=ROOT, cr4=0x16B0)
    return Space(sourced(ram, (cpu,)), GivenPaging())


def cells(shown: Any) -> list[list[str]]:
    """The caption and the rows of a table that must parse, with nothing in it but a table."""
    table = ElementTree.fromstring(shown._repr_html_())
    assert {part.tag for part in table.iter()} <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    return [[table.findtext("caption") or ""], *([cell.text or "" for cell in row] for row in table.iter("tr"))]


def test_a_space(space: Space) -> None:
    rows = cells(space)
    assert rows[0] == [f"{HOSTILE}: test memory"]
    assert ["root", "0x0000000000100000", f"CR3 of CPU 0 ({HOSTILE})"] in rows
    assert ["EFER.NXE", "not known", "test memory holds no EFER"] in rows


def test_what_info_says(space: Space) -> None:
    rows = cells(About(space.source, space))
    assert ["mode", "la57, 5 levels", f"CR4.LA57=1 of CPU 0 ({HOSTILE})"] in rows
    assert any(row[:2] == ["page_offset_base", "not known"] for row in rows)
    refused = cells(About(space.source, None, HOSTILE))
    assert ["mode", "not known", HOSTILE] in refused


def test_regions(space: Space) -> None:
    regions = space.regions()
    rows = cells(regions)
    assert rows[0][0].startswith(f"regions of Space of {HOSTILE}, root 0x")
    assert rows[2][:6] == ["0x0000000040000000", "0x0000000040001000", "4K", "4K", "rwxu", "P RW US"]
    assert rows[-1] == [f"more than {SHOWN} regions; the rest is not shown"]
    assert len(rows) == SHOWN + 3
    assert len(list(regions)) == len(list(regions)) == SHOWN + 5
    assert cells(next(iter(regions)))[2] == rows[2]


@pytest.mark.parametrize(("count", "more"), [(SHOWN, False), (SHOWN + 1, True)])
def test_whether_there_are_more_regions(space: Space, count: int, more: bool) -> None:
    rows = cells(space.regions(window=range(AT, AT + count * 0x2000)))
    assert (rows[-1][0] == f"more than {SHOWN} regions; the rest is not shown") is more
    assert len(rows) == 2 + SHOWN + more


def test_a_scan(space: Space) -> None:
    rows = cells(space.scan(contiguity=Contiguity.IGNORE))
    assert rows[2][:2] == ["0x0000000040000000", "0x0000000040000fff"]
    assert rows[2][4:] == ["mapped", "1", "rwxu"]
    assert rows[-1] == ["5 more ranges are not shown"]


def test_a_walk(space: Space) -> None:
    path, answer = cells(space.path(AT)), cells(space.translate(AT))
    assert [row[0] for row in path[2:-1]] == ["PML5", "PML4", "PDPT", "PD", "PT"]
    assert path[-1] == ["0x0000000040000000 -> 0x0000000000200000 4K page rwxu"] == answer[0]
    assert path[2:-1] == answer[2:]
    refused = cells(space.translate(1))
    assert refused[0][0].startswith("0x0000000000000001: entry not present at PDPT, nothing in ")


def test_a_table_of_anything() -> None:
    text = html_table(HOSTILE, (HOSTILE, "b"), [(HOSTILE, None)], left_out=HOSTILE)
    table = ElementTree.fromstring(text)
    assert "<script" not in text
    assert [cell.text for cell in table.iter("td")] == [HOSTILE, None, HOSTILE]
