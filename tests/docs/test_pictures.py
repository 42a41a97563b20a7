"""Pictures of the docs are what the code's tables say now, and what docs/metal.md shows is what the compiler makes."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from fivefold.layout import linux_areas
from fivefold.report.page.pictures import RELEASE, pictures

ROOT = Path(__file__).parents[2]


def test_pictures_are_up_to_date() -> None:
    assert {path.name: path.read_text() for path in (ROOT / "docs/pictures").iterdir()} == pictures()


def test_a_map_has_every_area_once_from_high_to_low() -> None:
    svg = ElementTree.fromstring(pictures()["address_maps.svg"])
    boxes = [
        (one.get("x"), float(one.get("y") or 0), float(one.get("height") or 0))
        for one in svg.iter()
        if "rect" in one.tag
    ]
    names = [one.text for one in svg.iter() if one.tag.endswith("text") and one.get("class") is None]
    assert names == [area.name for levels in (4, 5) for area in reversed(linux_areas(RELEASE, levels))]
    for (left, top, height), (right, below, _) in itertools.pairwise(boxes):
        assert left != right or below == top + height


def test_the_page_shows_what_the_compiler_makes() -> None:
    run = [sys.executable, "examples/from_source_to_bytes.py"]
    made = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = re.findall(r"^ +[0-9a-f]+  (?:[0-9a-f]{2} )+ .*$", (ROOT / "docs/metal.md").read_text(), re.M)
    assert len(shown) > 15 and all(line in made.splitlines() for line in shown)
