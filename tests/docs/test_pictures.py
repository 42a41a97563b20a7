"""Pictures of the docs are what the code's tables say now, and what docs/metal.md shows is what the compiler makes."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fivefold.layout import linux_areas
from fivefold.report.page.pictures import RELEASE, address_maps, pictures

ROOT = Path(__file__).parents[2]


def test_pictures_are_up_to_date() -> None:
    assert {path.name: path.read_text() for path in (ROOT / "docs/pictures").iterdir()} == pictures()


def test_a_map_has_every_area_once_from_high_to_low() -> None:
    svg = ElementTree.fromstring(address_maps())
    boxes = [
        (one.get("x"), float(one.get("y") or 0), float(one.get("height") or 0))
        for one in svg.iter()
        if "rect" in one.tag
    ]
    names = [one.text for one in svg.iter() if one.tag.endswith("text") and one.get("class") is None]
    assert names == [area.name for levels in (4, 5) for area in reversed(linux_areas(RELEASE, levels))]
    for (left, top, height), (right, below, _) in itertools.pairwise(boxes):
        assert left != right or below == top + height


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "docs/pictures").iterdir()))
def test_no_line_leaves_its_box(name: str) -> None:
    """A fixed pitch at 11 pixels takes 6.6 of them for a character."""
    svg = ElementTree.fromstring((ROOT / "docs/pictures" / name).read_text())
    boxes = [
        [float(one.get(key) or 0) for key in ("x", "y", "width", "height")] for one in svg.iter() if "rect" in one.tag
    ]
    boxes = [box for box in boxes[1:] if box[0] > 0]
    lines: dict[tuple[int, float], float] = {}
    for one in (one for one in svg.iter() if one.tag.endswith("text")):
        x, y, wide = float(one.get("x") or 0), float(one.get("y") or 0), 6.6 * len("".join(one.itertext()))
        around = [
            number
            for number, (left, top, width, height) in enumerate(boxes)
            if left <= x <= left + width and top <= y <= top + height
        ]
        for number in around:
            lines[number, y] = lines.get((number, y), 0) + wide
    assert len(lines) > 15
    for (number, _), wide in lines.items():
        assert wide <= boxes[number][2] - 6


def test_the_page_shows_what_the_compiler_makes() -> None:
    run = [sys.executable, "examples/from_source_to_bytes.py"]
    made = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = re.findall(r"^ +[0-9a-f]+  (?:[0-9a-f]{2} )+ .*$", (ROOT / "docs/metal.md").read_text(), re.M)
    assert len(shown) > 15 and all(line in made.splitlines() for line in shown)
