"""A line of a log: its number, its text, and the CPU or task that printed it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from fivefold.explain.logs.text.decoding import decode
from fivefold.explain.logs.text.unwrapping import unwrapped

_CALLER: Final = re.compile(r"\[ *\d+\.\d+\] ?\[ *([CT]\d+)\]")
"""``CONFIG_PRINTK_CALLER``: the CPU, or the task, after the time."""


_PAIRS: Final = 8
"""So many lines in a row that all come twice are of two consoles; two CPUs do not print the same in so many."""


class Line(NamedTuple):
    """*number* counts from 1, 0 where the log was not read from its start; *caller* as in ``C2`` or ``T123``."""

    number: int
    text: str
    caller: str | None


GAP: Final = Line(-1, "", None)
"""Stands for the part of a long log that was not read: nothing goes on across it."""


def lines_of(raw: bytes, numbered: bool = True) -> Iterator[Line]:
    """The lines of *raw*, decoded and unwrapped."""
    for number, text in unwrapped(decode(raw).split("\n")):
        match = _CALLER.search(text) if "][" in text or "] [" in text else None
        yield Line(number if numbered else 0, text, match[1] if match else None)


def without_doubles(lines: Sequence[Line]) -> Sequence[Line]:
    """*lines*, each once where two consoles print into one log and every line comes twice."""
    kept: list[Line] = []
    pairs = most = 0
    at = 0
    while at < len(lines):
        is_twice = at + 1 < len(lines) and lines[at + 1].text == lines[at].text
        kept.append(lines[at])
        pairs = 0 if not is_twice else pairs + bool(lines[at].text)
        most = max(most, pairs)
        at += 1 + is_twice
    return kept if most >= _PAIRS else lines
