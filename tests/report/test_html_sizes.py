"""Sizes on the page of HTML are those of `stats`, for every area, however many regions there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fivefold.report import html_view
from fivefold.survey.space import open_space
from fivefold.survey.stats import stats
from fivefold.units import format_size

GUESTS = Path(__file__).parents[1] / "data" / "guests"
_ROW = re.compile(r"<tr><td>[^<]*<td>(\w+)<td class=n>[^<]*<td class=n>([^<]*)<td>")


@pytest.mark.parametrize("name", ["plain-la57-kaslr", "kasan-la48-kaslr"])
@pytest.mark.parametrize("rows", [20_000, 40])
def test_sizes_are_those_of_stats(monkeypatch: pytest.MonkeyPatch, name: str, rows: int) -> None:
    monkeypatch.setattr(html_view, "MAX_ROWS", rows)
    with open_space(str(GUESTS / f"{name}.elf.xz")) as space:
        page = "".join(html_view.html_page(space))
        counted = {area: format_size(size) for area, size in stats(space).mapped.by_area.items()}
    shown = {area: size for area, size in _ROW.findall(page) if size != "0"}
    assert shown == {area: size for area, size in counted.items() if area != "unnamed"}
    # What is cut is in the middle: both ends of the space are there.
    assert ("kernel_image" in page) and (rows > 40) == ("regions between are not on this page" not in page)
    assert page.count("<tr") <= rows + 40
