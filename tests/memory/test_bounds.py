"""How much of a source is believed: the numbers that docs/memory.md promises, and no bound that it does not name."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
MEMORY = PROJECT / "src" / "fivefold" / "memory"
UNITS = {"": 1, "M": 1 << 20, "G": 1 << 30}
_ROW = re.compile(r"\| .* \| ([\d,]+)([MG]?) \| `([a-z_.0-9]+)\.([A-Z_]+)` \|.*\|")
_BOUND = re.compile(r"^((?:MAX|MOST|LEAST)(?:_[A-Z_]+)?): Final = ", re.MULTILINE)


def told() -> dict[tuple[str, str], int]:
    text = (PROJECT / "docs" / "memory.md").read_text(encoding="utf-8")
    rows = [found.groups() for line in text.splitlines() if (found := _ROW.fullmatch(line))]
    return {(module, name): int(number.replace(",", "")) * UNITS[unit] for number, unit, module, name in rows}


@pytest.mark.parametrize(
    ("place", "number"), told().items(), ids=lambda value: ".".join(value) if isinstance(value, tuple) else ""
)
def test_a_bound_is_as_the_page_says(place: tuple[str, str], number: int) -> None:
    module, name = place
    assert getattr(import_module(f"fivefold.memory.{module}"), name) == number


def test_every_bound_is_on_the_page() -> None:
    found = {
        (".".join(file.relative_to(MEMORY).with_suffix("").parts), name)
        for file in MEMORY.rglob("*.py")
        for name in _BOUND.findall(file.read_text(encoding="utf-8"))
    }
    assert len(found) > 40 and found == told().keys()
