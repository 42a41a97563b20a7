"""How much of a source is believed, and how far a guest is followed: the numbers of two pages, and no others."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).parents[2]
UNITS = {"": 1, "M": 1 << 20, "G": 1 << 30}
_ROW = re.compile(r"\| .* \| ([\d,]+)([MG]?) \| `([a-z_.0-9]+)\.([A-Z_]+)` \|.*\|")


class Kept(NamedTuple):
    """A page whose table has the bounds of a package: constants whose names begin with one of *words*."""

    page: str
    package: str
    words: str
    without_effect: frozenset[str] = frozenset()
    """They change how long something takes, or how much memory."""

    def told(self) -> dict[tuple[str, str], int]:
        text = (PROJECT / "docs" / self.page).read_text(encoding="utf-8")
        rows = [found.groups() for line in text.splitlines() if (found := _ROW.fullmatch(line))]
        return {(module, name): int(number.replace(",", "")) * UNITS[unit] for number, unit, module, name in rows}

    def there(self) -> set[tuple[str, str]]:
        place = PROJECT / "src" / "fivefold" / self.package
        bound = re.compile(rf"^((?:{self.words})(?:_[A-Z_]+)?): Final = ", re.MULTILINE)
        return {
            (".".join(file.relative_to(place).with_suffix("").parts), name)
            for file in place.rglob("*.py")
            for name in bound.findall(file.read_text(encoding="utf-8"))
            if name not in self.without_effect
        }


TUNING = frozenset({"MAX_REMEMBERED", "MOST_PARTS", "MOST_SPLIT_FRAMES", "MOST_STILL"})
PAGES = (Kept("memory.md", "memory", "MAX|MOST|LEAST"), Kept("endings.md", "survey", "MAX|MOST", TUNING))


@pytest.mark.parametrize("kept", PAGES, ids=lambda kept: kept.package)
def test_a_bound_is_as_told(kept: Kept) -> None:
    numbers = {place: getattr(import_module(f"fivefold.{kept.package}.{place[0]}"), place[1]) for place in kept.told()}
    assert numbers == kept.told()


@pytest.mark.parametrize("kept", PAGES, ids=lambda kept: kept.package)
def test_every_bound_is_told(kept: Kept) -> None:
    there = kept.there()
    assert len(there) > 25 and there - kept.told().keys() == set()
