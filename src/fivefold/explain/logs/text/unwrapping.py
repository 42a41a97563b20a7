"""Lines that a mail program, a terminal or an editor has broken in two, joined again.

A join is made only where the first part lacks what every such line has and the second part begins
with just that. Otherwise the parts stay as they are, and a number that was cut is no number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

_STAMP: Final = re.compile(r"\[ *\d+\.\d+[^\]]{0,6}\]|^<\d+>|^\w{3} +\d+ \d\d:\d\d:\d\d |^\d{4}-\d\d-\d\d[T ]\d\d:\d\d")
"""A time stamp: no rest of a line has one of its own."""

_HEX: Final = r"(?:0x)?[0-9a-f]+"
_ADDRESS: Final = (
    r"(?:address:?|request at|dereference(?:, address:| at)?:?)\s+(?:virtual address )?"
    rf"(?:{_HEX}(?![\w])|\(null\)|<null>)"
)
_NEEDS: Final = tuple(
    (re.compile(begins, re.I), re.compile(whole, re.I))
    for begins, whole in (
        (r"unable to handle|kernel (?:paging|NULL)", _ADDRESS),
        (r"segfault at", r"\berror:? [0-9a-f]+"),
        (r"traps: .*\[\d+\]", r"\berror:[0-9a-f]+"),
        (r"PANIC: early exception", rf"cr2 {_HEX}"),
        (r"\bv=[0-9a-f]{2} e=[0-9a-f]+", r"\bSP=[0-9a-f]+:[0-9a-f]+ (?:CR2|env)"),
        (r"check_exception old:", rf"old: *{_HEX} new:? *{_HEX}"),
        (r"general protection fault", r"\[#?\d+\]"),
        (r"stack guard page was hit", r"hit at \S+ \(stack is \S+\)"),
        (r"X64 Exception Type", r"!!!!$"),
    )
)
"""What begins such a line, and what a whole one has."""

_OPEN: Final = re.compile(
    r"(?:\b(?:RIP|RSP|R[A-D]X|R[SD]I|RBP|R\d\d|CR\d|EFLAGS|CS|DS|ES|PGD|P4D|PUD|PMD|PTE|Oops|Code|PKRU):?"
    r"|\bR[89] ?:?|\bat|address:?|error_code\(?|#?PF:|\bRIP: 00[0-9a-f]{2}:|\bRSP: 00[0-9a-f]{2}:)$"
)
"""The name of something, and its value is missing."""

_VALUE: Final = re.compile(
    r"(?:0x)?[0-9a-f]{4,18}\b|\[<|0[0-9a-f]{3}:|\(null\)|[\w.]+\+0x|error_code\(|supervisor|user ", re.I
)
_ENTRIES: Final = re.compile(r"\b(?:PGD|P4D|PUD|PMD) [0-9a-f]+$")
_MORE_ENTRIES: Final = re.compile(r"(?:P4D|PUD|PMD|PTE) [0-9a-f]")
_BYTES: Final = re.compile(r"(?:<?[0-9a-f]{2}>?(?: +|$)){1,64}", re.I)
_CODE: Final = re.compile(r"\bCode: *((?:<?[0-9a-f]{2}>?(?: +|$))*)$", re.I)
_CODE_BYTES: Final = 64
"""Bytes of ``Code:`` in every report of Linux."""
_CUT: Final = re.compile(r"(?:\b(?:R[A-D]X|R[SD]I|R[BS]P|R\d\d|R[89] ?|CR[2-4]): |:|address: )([0-9a-f]{1,15})$", re.I)
_REST: Final = re.compile(r"([0-9a-f]{1,15})(?![0-9a-z])", re.I)
_ALL_DIGITS: Final = re.compile(r"[0-9a-f]{1,15}", re.I)
_HEX_DIGITS: Final = tuple("0123456789abcdefABCDEF")
CUT: Final = "\ufffd"
"""Ends a line whose last number goes on in the next one: it is no number."""
_DIGITS: Final = 16
_WIDTH: Final = 60
"""A line that a program broke by its width is at least so long."""
_MOST: Final = 4
"""Parts of one line that are joined."""


def unwrapped(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Each line with the number of its first part, from 1."""
    waiting: str | None = None
    start = parts = 0
    for number, line in enumerate(lines, 1):
        line = line.rstrip()
        joined = None if waiting is None or parts >= _MOST else join(waiting, line)
        if joined is not None:
            waiting, parts = joined, parts + 1
            continue
        if waiting is not None:
            yield start, waiting + CUT if _ALL_DIGITS.fullmatch(line) and waiting[-1:] in _HEX_DIGITS else waiting
        waiting, start, parts = line, number, 1
    if waiting is not None:
        yield start, waiting


def join(first: str, second: str) -> str | None:
    """The line that *first* and *second* are the parts of, None where that is not certain."""
    rest = second.strip()
    if _STAMP.search(second):
        return None
    if _OPEN.search(first) and (_VALUE.match(rest) or _BYTES.fullmatch(rest)):
        return f"{first} {rest}"
    cut, more = _CUT.search(first), _REST.match(second)
    if cut and more and len(first) >= _WIDTH and len(cut[1]) + len(more[1]) == _DIGITS:
        return first + second
    if _ENTRIES.search(first) and _MORE_ENTRIES.match(rest):
        return f"{first} {rest}"
    if (code := _CODE.search(first)) and _BYTES.fullmatch(rest):
        count = len(code[1].split()) + len(rest.split())
        return f"{first} {rest}" if count <= _CODE_BYTES else None
    for begins, whole in _NEEDS:
        if begins.search(first) and not whole.search(first) and whole.search(f"{first} {rest}"):
            return f"{first} {rest}"
    return None
