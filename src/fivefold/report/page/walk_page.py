"""Walks to some addresses as one page: the address taken apart in both modes, every entry with its bits, the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fivefold.arch import Level, Mapped, Step
from fivefold.report.page.entry_bits import DecodedField, decode
from fivefold.report.page.templating import render
from fivefold.report.text.walk import answer_of, entry_index, flags_of, target_of
from fivefold.survey.paths import Path
from fivefold.survey.scan.regions import spell
from fivefold.survey.space import Space
from fivefold.units import hex64


class AddressPart(NamedTuple):
    """Some bits of an address: what reads them, which they are, their value.

    *folded* where the mode has no such level.
    """

    name: str
    bits: str
    value: str
    folded: bool = False


class AddressSplit(NamedTuple):
    """One address as the MMU takes it apart with so many levels."""

    title: str
    parts: list[AddressPart]


class ShownStep(NamedTuple):
    """One entry that was read, as the page shows it."""

    name: str
    number: int
    at: int
    raw: int
    present: bool
    target: str
    to: int
    flags: str
    so_far: str
    tone: str
    wrong: bool
    fields: list[DecodedField]


def walk_page(space: Space, paths: Sequence[Path]) -> str:
    """The page of *paths*, which are of *space*."""
    return render(
        "walk.html",
        title=f"{space.source.name}, {', '.join(hex64(path.va) for path in paths[:3])}",
        space=space,
        walks=[
            {
                "va": path.va,
                "names": " ".join(name for name in (path.area, space.symbols.at(path.va)) if name),
                "splits": [split_address(path.va, levels) for levels in (space.levels, 9 - space.levels)],
                "steps": list(_steps(path, space)),
                "mapped": isinstance(path.end, Mapped),
                "answer": [line.strip().removeprefix("-> ") for line in answer_of(path, space.controls).split("\n")],
            }
            for path in paths
        ],
    )


def split_address(va: int, levels: int) -> AddressSplit:
    """*va* with *levels*: sign, an index for each level, the offset in a page of 4 KiB.

    >>> [part.value for part in split_address(0xffffffff81000123, 4).parts]
    ['0xffff', '-', '511', '510', '8', '0', '0x123']
    """
    sign = 12 + 9 * levels
    parts = [AddressPart("sign", f"63:{sign}", f"{va >> sign:#x}")]
    if levels < Level.PML5:
        parts.append(AddressPart("PML5", "folded", "-", folded=True))
    for number in range(levels, 0, -1):
        level = Level(number)
        parts.append(AddressPart(level.name, f"{level.shift + 8}:{level.shift}", str(level.index(va))))
    parts.append(AddressPart("offset", "11:0", f"{va & 0xFFF:#x}"))
    return AddressSplit(f"{'five' if levels == Level.PML5 else 'four'} levels", parts)


def _steps(path: Path, space: Space) -> Iterator[ShownStep]:
    for step in path.steps:
        entry = step.entry
        yield ShownStep(
            entry.level.name,
            entry_index(step),
            step.at,
            entry.raw,
            entry.is_present,
            target_of(step),
            space.tables.cpu.frame(entry) if entry.is_present else 0,
            flags_of(step, space.tables),
            spell(step.rights),
            _tone(step),
            bool(entry.is_present and space.tables.reserved(entry)),
            decode(entry),
        )


def _tone(step: Step) -> str:
    """The class of the legend for a page; none for what points to a table, where rights are not decided yet."""
    if not step.entry.is_leaf:
        return ""
    match step.rights.write, step.rights.execute:
        case True, True:
            return "wx"
        case _, True:
            return "x"
        case _:
            return "u" if step.rights.user else "s"
