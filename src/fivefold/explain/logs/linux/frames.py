"""The register blocks of a report: that of the exception, and those of what it interrupted.

A block begins with its ``RIP:``. That of the exception comes before the call trace; in the trace come those of the
code below (an interrupted kernel, a process at its system call), and after the end trace that of the exception again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fivefold.explain.logs.linux.reports import Report
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import Code

_RIP: Final = re.compile(
    r"\bRIP:\s*(?:([0-9a-f]{4}):)?\s*(?:\[<([0-9a-f]+)>\]|0x([0-9a-f]+)(?![0-9a-f])|([0-9a-f]{16})\b)?"
    r"(?:\s*\[<[0-9a-f]+>\])?\s*(?:0x[0-9a-f]{5,16}(?=\s|$)"
    r"|([A-Za-z_.$][\w.$]*\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?(?: \[\w+\])?))?",
    re.I,
)
_IP: Final = re.compile(r"(?<![ER])\bIP: (?:\[<([0-9a-f]+)>\] )?([A-Za-z_.$][\w.$]*\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?)?")
_NAMED: Final = re.compile(
    r"(?<![A-Za-z0-9_])(R[A-D]X|R[SD]I|R[BS]P|R0?[89]|R1[0-5]|CR[0234])\s*:\s*(?:([0-9a-f]{4}):)?([0-9a-f]+)(?![0-9a-z])",
    re.I,
)
_FLAGS: Final = re.compile(r"\bEFLAGS:\s*([0-9a-f]{8})(?![0-9a-z])", re.I)
_PKRU: Final = re.compile(r"\bPKRU:\s*([0-9a-f]{8})(?![0-9a-z])", re.I)
_CS: Final = re.compile(r"\bCS:\s*([0-9a-f]{4})(?![0-9a-z])", re.I)
_CODE: Final = re.compile(r"\bCode\s*:\s*(.*)$", re.I)
_BYTES: Final = re.compile(r"(?:<?\(?[0-9a-f]{2}\)?>? ?)+", re.I)
_BYTE: Final = re.compile(r"(<?)([0-9a-f]{2})(>?)", re.I)
_TRACE: Final = re.compile(r"Call Trace:|Call trace:|<TASK>|<(?:IRQ|NMI|#DF|SOFTIRQ)>")
_BRACKETS: Final = re.compile(r"\[<[0-9a-f]{16}>\]", re.I)
_RELEASE: Final = re.compile(r"ainted:?(?: [A-Z ]*?)? +\(?(\d+)\.(\d+)\.", re.I)
_CODE_FIRST: Final = (4, 18)
_DIGITS: Final = 16
"""A 64-bit kernel pads these numbers; fewer digits mean that the line was cut, more that it was damaged."""


@dataclass(slots=True)
class Frame:
    """One block. *cs* is None where it has no selector, *symbol* what the kernel prints for RIP."""

    cs: int | None = None
    rip: int | None = None
    symbol: str | None = None
    code: Code | None = None
    has_code_line: bool = False
    numbers: dict[str, int] = field(default_factory=dict)
    in_trace: bool = False
    ended: bool = False
    is_over: bool = False
    """A register came a second time, with another value: what follows is of another block, whose RIP was lost."""

    @property
    def is_user(self) -> bool:
        """Whether it is that of a process."""
        return self.cs is not None and self.cs & 3 == 3


def frames_of(report: Report) -> list[Frame]:
    """The blocks of *report* in order; the first may have no ``RIP:``."""
    is_old = _prints_code_last(report.text)
    frames = [Frame()]
    in_trace = ended = False
    for line in report.lines:
        if _TRACE.search(line.text):
            in_trace = True
        if "end trace" in line.text:
            ended, in_trace = True, False
        _read(line, frames, in_trace, ended, is_old)
    return frames


def exception_frame(frames: list[Frame], by_user: bool | None = None) -> Frame:
    """The block of the exception, completed from where the kernel prints it again after the end trace.

    *by_user* says whether a process made the access, where that is known: then a block of the other kind is not it.
    """
    fitting = [frame for frame in frames if by_user is None or frame.cs is None or frame.is_user == by_user]
    own = [frame for frame in fitting if not frame.in_trace and not frame.ended] or [Frame()]
    again = [frame for frame in fitting if frame.ended]
    first = next((frame for frame in own if frame.cs is not None), None) or next(
        (frame for frame in own if frame.symbol or frame.rip is not None), own[0]
    )
    if own[0].symbol and first.symbol and own[0].symbol.split()[0] != first.symbol.split()[0]:
        first = own[0]  # the line ``IP:`` of the exception, and a block of another
    elif first is not own[0]:
        _complete(first, own[0])
    for other in again:
        is_same = (other.cs, other.symbol) == (first.cs, first.symbol) or (first.cs is None and not first.symbol)
        if is_same and _agree(first.numbers, other.numbers):
            _complete(first, other)
    return first


def _agree(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return all(other.get(name, value) == value for name, value in one.items())


def _complete(frame: Frame, other: Frame) -> None:
    for name, value in other.numbers.items():
        frame.numbers.setdefault(name, value)
    frame.cs = other.cs if frame.cs is None else frame.cs
    frame.rip = other.rip if frame.rip is None else frame.rip
    frame.symbol = frame.symbol or other.symbol
    if not frame.has_code_line:
        frame.code, frame.has_code_line = other.code, other.has_code_line


def _read(line: Line, frames: list[Frame], in_trace: bool, ended: bool, is_old: bool) -> None:
    text = line.text
    frame = frames[-1]
    if (match := _RIP.search(text)) and (match[1] or match[2] or match[5]) and "[inline]" not in text:
        if match[1] is None and frame.cs is not None:
            return  # older kernels repeat RIP and RSP at the end, without selector
        frame = Frame(in_trace=in_trace, ended=ended)
        frames.append(frame)
        frame.cs = int(match[1], 16) if match[1] else None
        frame.rip = _address(match[2] or match[4], frame.cs) if not match[3] else _unpadded(match[3], frame)
        frame.symbol = match[5]
        text = text[match.end() :]
    elif (match := _IP.search(text)) and len(frames) == 1:
        frame.rip = _address(match[1], None)
        frame.symbol = match[2]
    if in_trace and not frame.in_trace and not frame.ended and "RSP: 002b" in text:
        return
    # Since 4.18 the bytes come between RIP and RSP; elsewhere they are of a block whose RIP was lost.
    is_in_place = is_old or not (frame.numbers or in_trace > frame.in_trace)
    if is_in_place and not frame.has_code_line and (match := _CODE.search(text)):
        frame.has_code_line = True
        frame.code = _code(match[1])
    _numbers(text, frame)


def _prints_code_last(text: str) -> bool:
    """Whether the kernel prints ``Code:`` after the trace, as before 4.18: by its release or the form of addresses."""
    if _BRACKETS.search(text):
        return True
    match = _RELEASE.search(text)
    return match is not None and (int(match[1]), int(match[2])) < _CODE_FIRST


def _address(digits: str | None, cs: int | None) -> int | None:
    return int(digits, 16) if digits and len(digits) == _DIGITS else None


def _unpadded(digits: str, frame: Frame) -> int | None:
    """``0x…``: the kernel prints it without leading zeros, for an address that has no symbol."""
    if len(digits) > _DIGITS:
        return None
    value = int(digits, 16)
    return None if len(digits) < _DIGITS and value >> 47 else value


def _numbers(text: str, frame: Frame) -> None:
    for name, _, digits in _NAMED.findall(text):
        if len(digits) != _DIGITS or name.islower():
            continue  # Linux names registers in capitals: a dump in small letters is of another program
        name, value = re.sub("^r0", "r", name.lower()), int(digits, 16)
        frame.is_over |= frame.numbers.get(name, value) != value
        if frame.is_over:
            return
        frame.numbers[name] = value
    for pattern, name in ((_FLAGS, "rflags"), (_PKRU, "pkru")):
        if match := pattern.search(text):
            frame.numbers.setdefault(name, int(match[1], 16))
    if frame.cs is None and (match := _CS.search(text)):
        frame.cs = int(match[1], 16)


def _code(text: str) -> Code | None:
    """The bytes with the one at RIP marked; without exactly one mark nothing says where RIP is."""
    match = _BYTES.match(text.strip())
    words = _BYTE.findall(match[0]) if match else []
    marks = [index for index, (opens, _, closes) in enumerate(words) if opens and closes]
    if len(marks) != 1:
        return None
    return Code(bytes(int(digits, 16) for _, digits, _ in words), marks[0])
