"""Who maps which memory: for people, as JSON and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TextIO

from fivefold.memory import Source
from fivefold.report.sheet import Writable
from fivefold.survey.find import Answer, Place
from fivefold.survey.guest.root_spaces import RootSpaces
from fivefold.survey.scan.regions import spell
from fivefold.units import format_size, hex64

SCHEMA: Final = "fivefold.find/1"
_MOST_ASKED: Final = 8
COLUMNS: Final = (
    "asked",
    "phys",
    "root",
    "levels",
    "va",
    "size",
    "page",
    "rights",
    "area",
    "repeats",
    "every",
    "strides",
    "symbol",
)


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, in words, and an answer for each place in memory; *more* when there are further ones."""

    asked: str
    answers: Sequence[Answer]
    more: bool = False


def write_text(roots: RootSpaces, questions: Sequence[Question], out: Writable) -> None:
    """A line for each place in memory, below it one for each way there."""
    unsure = f"; {roots.unsure} more are too unsure to ask" if roots.unsure else ""
    out.write(f"# {len(roots.roots)} roots of {roots.source.name}{unsure}\n")
    for question in questions:
        out.write(f"{question.asked}: {_count(question)}\n")
        for answer in question.answers:
            _write_answer(roots.source, answer, out)


def _count(question: Question) -> str:
    count = len(question.answers)
    return f"{'more than ' if question.more else ''}{count} place{'s' if count != 1 else ''}"


def _write_answer(source: Source, answer: Answer, out: Writable) -> None:
    absent = "" if in_memory(source, answer.target) else ", not in the source"
    out.write(f"  phys {hex64(answer.target.start)}{absent}\n")
    for use in answer.tables:
        out.write(f"    {hex64(use.frame)} is a {use.level.name} table of root {hex64(use.root)}\n")
    for place in answer.places:
        out.write(f"    {_line(place)}\n")
    if not answer.places:
        out.write("    mapped nowhere\n")


def _line(place: Place) -> str:
    strides = " of ".join(f"{stride.times} every {format_size(stride.bytes)}" for stride in place.strides)
    how = f"every {format_size(place.every)}" if place.every else strides
    again = f", and {place.repeats} times more, {how}" if place.repeats else ""
    return (
        f"root {hex64(place.root)} {hex64(place.va)} +{format_size(place.size)} "
        f"{place.page} {spell(place.rights)} {place.area or '-'}{f'  {place.symbol}' if place.symbol else ''}{again}"
    )


def in_memory(source: Source, target: range) -> bool:
    """Whether all of *target* can be read."""
    return any(extent.start <= target.start and target.stop <= extent.end for extent in source.extents)


def find_json(roots: RootSpaces, questions: Sequence[Question]) -> dict[str, Any]:
    """The schema ``fivefold.find/1``."""
    return {
        "schema": SCHEMA,
        "source": roots.source.name,
        "roots": [
            {"root": hex64(root.root), "levels": root.levels, "known_from": list(root.reasons)} for root in roots.roots
        ],
        "roots_left_out": roots.unsure,
        "symbols_known_from": _symbols_known_from(roots, questions),
        "questions": [
            {
                "asked": question.asked,
                "more": question.more,
                "answers": [_answer_json(roots.source, answer) for answer in question.answers],
            }
            for question in questions
        ],
    }


def _symbols_known_from(roots: RootSpaces, questions: Sequence[Question]) -> str | None:
    """What names were taken from in a root that maps something; the first few of those are asked."""
    mapping = {place.root for question in questions for answer in question.answers for place in answer.places}
    spaces = (space for space in roots.spaces() if space.root.value in mapping)
    known = (space.symbols.known_from for space in islice(spaces, _MOST_ASKED))
    return next((how for how in known if how is not None), None)


def _answer_json(source: Source, answer: Answer) -> dict[str, Any]:
    return {
        "phys": {"start": hex64(answer.target.start), "end": hex64(answer.target.stop)},
        "in_memory": in_memory(source, answer.target),
        "tables": [
            {"frame": hex64(use.frame), "root": hex64(use.root), "levels": use.levels, "level": int(use.level)}
            for use in answer.tables
        ],
        "places": [_place_json(place) for place in answer.places],
    }


def _place_json(place: Place) -> dict[str, Any]:
    return {
        "root": hex64(place.root),
        "levels": place.levels,
        "address": hex64(place.va),
        "size": place.size,
        "phys": hex64(place.phys),
        "page": place.page,
        "effective": dict(place.rights._asdict()),
        "area": place.area,
        "symbol": place.symbol,
        "repeats": place.repeats,
        "every": place.every,
        "strides": [stride._asdict() for stride in place.strides],
    }


def write_csv(questions: Sequence[Question], out: TextIO) -> None:
    """A header and a row for each way to each place."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for question in questions:
        for place in (place for answer in question.answers for place in answer.places):
            ends = (hex64(place.phys), hex64(place.root), place.levels, hex64(place.va), place.size)
            what = (place.page, spell(place.rights), place.area or "", place.repeats or "", place.every or "")
            strides = " ".join(f"{stride.times}x{stride.bytes:#x}" for stride in place.strides)
            writer.writerow((question.asked, *ends, *what, strides, place.symbol or ""))
