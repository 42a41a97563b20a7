"""How far a guest is followed: the numbers that docs/endings.md promises, and no bound that it does not name."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SURVEY = PROJECT / "src" / "fivefold" / "survey"
UNITS = {"": 1, "M": 1 << 20, "G": 1 << 30}
_ROW = re.compile(r"\| .* \| ([\d,]+)([MG]?) \| `([a-z_.]+)\.([A-Z_]+)` \| .* \|")
_BOUND = re.compile(r"^((?:MAX|MOST)(?:_[A-Z_]+)?): Final = ", re.MULTILINE)
WITHOUT_EFFECT = {"MAX_REMEMBERED", "MOST_PARTS", "MOST_SPLIT_FRAMES", "MOST_STILL"}
"""They change how long something takes, or how much memory."""


def told() -> dict[tuple[str, str], int]:
    text = (PROJECT / "docs" / "endings.md").read_text(encoding="utf-8")
    rows = [found.groups() for line in text.splitlines() if (found := _ROW.fullmatch(line))]
    return {(module, name): int(number.replace(",", "")) * UNITS[unit] for number, unit, module, name in rows}


@pytest.mark.parametrize(
    ("place", "number"), told().items(), ids=lambda value: ".".join(value) if isinstance(value, tuple) else ""
)
def test_a_bound_is_as_told(place: tuple[str, str], number: int) -> None:
    module, name = place
    assert getattr(import_module(f"fivefold.survey.{module}"), name) == number


def test_every_bound_is_told() -> None:
    found = {
        (".".join(file.relative_to(SURVEY).with_suffix("").parts), name)
        for file in SURVEY.rglob("*.py")
        for name in _BOUND.findall(file.read_text(encoding="utf-8"))
        if name not in WITHOUT_EFFECT
    }
    assert len(found) > 25 and found - told().keys() == set()
