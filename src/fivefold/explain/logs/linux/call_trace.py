"""The call trace of a report, line by line: addresses, names, or both, as kernels of all ages print them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from fivefold.explain.logs.trace import Caller

MOST: Final = 64
"""Lines that are kept; a loop of a damaged stack prints thousands."""

_BEGIN: Final = re.compile(r"\bCall Trace:", re.I)
_STAMP: Final = re.compile(r"(?:.*?\bkernel: )?(?:<\d>)?(?:\[ *\d+\.\d+\])?\s*(?:\[ *[TC]\d+\])?\s*")
_LINE: Final = re.compile(
    r"(\? )?\s*(?:\[<([0-9a-f]{16})>\]|\[<0{1,16}>\])?\s*(\? )?(?:0x([0-9a-f]{16})(?:/0x[0-9a-f]{16})?"
    r"|([A-Za-z_.$][\w.$]*\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\w+\])?))?\s*",
    re.I,
)
_MARK: Final = re.compile(r"\s*</?[A-Z#]+>\s*|\s*")


def callers_of(lines: Iterable[str]) -> tuple[Caller, ...]:
    """What follows the first ``Call Trace:`` of *lines*, whatever stamps they have, up to what is no such line."""
    found: list[Caller] = []
    inside = False
    for text in lines:
        if not inside:
            inside = _BEGIN.search(text) is not None
            continue
        text = text[match.end() :] if (match := _STAMP.match(text)) else text
        if _MARK.fullmatch(text):
            continue
        match = _LINE.fullmatch(text)
        if match is None or not (match[2] or match[4] or match[5]) or len(found) == MOST:
            break
        digits = match[2] or match[4]
        found.append(Caller(int(digits, 16) if digits else None, match[5], bool(match[1] or match[3])))
    return tuple(found)
