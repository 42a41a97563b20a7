"""A bug check of Windows: its code and four parameters, from the blue screen, the event log or ``!analyze``.

Source: Microsoft's public bug check code reference, for x64.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fivefold.arch import Kind, Vector
from fivefold.explain.logs.register_file import text_of
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import PrintedEntry, RaisedException, Trace

_STOP: Final = re.compile(
    r"(?:STOP: |bugcheck was: |BugCheck )(?:0x)?([0-9a-f]{1,8})[, ]+[({]"
    r"(?:0x)?([0-9a-f]+), *(?:0x)?([0-9a-f]+), *(?:0x)?([0-9a-f]+), *(?:0x)?([0-9a-f]+)[)}]",
    re.I,
)
_NAME: Final = re.compile(r"^[A-Z_0-9]+ \(([0-9a-f]{1,8})\)\s*$", re.M)
_ARGUMENT: Final = re.compile(r"^Arg([1-4]): ([0-9a-f`]{8,17})", re.M | re.I)
_LINES: Final = 40
_ACCESS_VIOLATION: Final = 0xC000_0005
_KNOWN: Final = frozenset({0x0A, 0x1E, 0x3B, 0x50, 0x7E, 0x7F, 0xBE, 0xD1, 0xFC})
_MASK32: Final = 0xFFFF_FFFF


def read_bugcheck(lines: Sequence[Line], source: str) -> Trace | None:
    """The first bug check that is about an exception, None if there is none."""
    for index, line in enumerate(lines):
        if match := _STOP.search(line.text):
            numbers = [int(value.replace("`", ""), 16) for value in match.groups()]
            found = _trace(source, line.number, numbers[0], numbers[1:])
        elif match := _NAME.match(line.text):
            text = text_of(lines, index, _LINES)
            said = {int(n): int(value.replace("`", ""), 16) for n, value in _ARGUMENT.findall(text)}
            found = (
                _trace(source, line.number, int(match[1], 16), [said[n] for n in sorted(said)])
                if len(said) == 4
                else None
            )
        else:
            continue
        if found is not None:
            return found
    return None


def _trace(source: str, number: int, code: int, arguments: Sequence[int]) -> Trace | None:
    if code not in _KNOWN:
        return None
    raised = _raised(code, arguments, number)
    if raised is None:
        return None
    names = ", ".join(f"{value:#x}" for value in arguments)
    return Trace(source, "Windows bug check", (raised,), "oops", total=1, remarks=(f"bug check {code:#x} ({names})",))


def _raised(code: int, arguments: Sequence[int], number: int) -> RaisedException | None:
    one, two, three, four = arguments
    fault = int(Vector.PF)
    if code in (0x0A, 0xD1):
        return RaisedException(fault, cr2=one, rip=four or None, cpl=0, kind=_kind(three), by_user=False, line=number)
    if code == 0x50:
        # The second parameter has the bits of the error code, P among them.
        return RaisedException(fault, error_code=two & 0xFFFF, cr2=one, rip=three or None, cpl=0, line=number)
    if code in (0xBE, 0xFC):
        kind = Kind.WRITE if code == 0xBE else Kind.FETCH
        return RaisedException(
            fault, error_code=3 if code == 0xBE else 0x11, cr2=one, cpl=0, kind=kind, line=number,
            entries=(PrintedEntry("PTE", two),) if two & 1 else (), says_no_execute=code == 0xFC,
        )  # fmt: skip
    if code == 0x7F:
        return RaisedException(one & 0xFF, cpl=0, line=number) if one <= 0x1F else None
    if one & _MASK32 != _ACCESS_VIOLATION:
        return None
    if code == 0x1E and four == (1 << 64) - 1:
        # Windows reports what is not canonical as a read of -1.
        return RaisedException(int(Vector.GP), error_code=0, rip=two, cpl=0, line=number)
    if code == 0x1E:
        return RaisedException(fault, cr2=four, rip=two, cpl=0, kind=_kind(three), line=number)
    return RaisedException(fault, rip=two, cpl=0, line=number, dropped=("the address is in the exception record",))


def _kind(operation: int) -> Kind | None:
    return {0: Kind.READ, 1: Kind.WRITE, 8: Kind.FETCH}.get(operation)
