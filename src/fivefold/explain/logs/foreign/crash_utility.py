"""A backtrace of the crash utility, which marks the registers of the exception: ``[exception RIP: name+34]``.

Source: crash, ``x86_64.c`` (x86_64_exception_frame, x86_64_display_full_frame), as its help shows them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fivefold.arch import Vector
from fivefold.explain.logs.linux.facts import facts_of
from fivefold.explain.logs.linux.reports import Report
from fivefold.explain.logs.register_file import cpu_of, text_of
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import RaisedException, Trace

_MARK: Final = re.compile(r"\[exception RIP: (?:unknown or invalid address|([\w.$]+\+(?:0x[0-9a-f]+|\d+))?)", re.I)
_NUMBER: Final = re.compile(r"\b(R[A-D]X|R[SD]I|R[BS]P|R\d{1,2}|RIP|RFLAGS|CS): +([0-9a-f]{4,16})(?![0-9a-z])", re.I)
_PANIC: Final = re.compile(r"PANIC: \"(.*)\"?")
_HANDLER: Final = re.compile(r"#\d+ \[[0-9a-f]{16}\] (?:asm_exc_|async_|do_)?([a-z_]+) at", re.I)
_VECTORS: Final = (
    ("page_fault", Vector.PF),
    ("general_protection", Vector.GP),
    ("double_fault", Vector.DF),
    ("stack_segment", Vector.SS),
    ("invalid_op", Vector.UD),
    ("divide_error", Vector.DE),
    ("int3", Vector.BP),
)
_FRAME: Final = re.compile(r"^\W*#\d+ \[[0-9a-f]{8,16}\]", re.I | re.M)
_LINES: Final = 12
_WIDTHS: Final = {"cs": 4, "rflags": 8}


def read_crash(lines: Sequence[Line], source: str) -> Trace | None:
    """The first exception frame of a backtrace, None if there is none."""
    index = next((i for i, line in enumerate(lines) if "[exception RIP" in line.text), None)
    if index is None:
        return None
    match = _MARK.search(lines[index].text)
    numbers = {
        name.lower(): int(value, 16)
        for name, value in _NUMBER.findall(_block(lines, index + 1))
        if len(value) == _WIDTHS.get(name.lower(), 16)
    }
    selector = numbers.pop("cs", None)
    if selector is not None:
        numbers["cpl"] = selector & 3
    before = text_of(lines, max(0, index - 3), 3)
    vector: int | None = next((int(vector) for name, vector in _VECTORS if name in before), None)
    panic = next((found[1] for line in lines if (found := _PANIC.search(line.text))), None)
    facts = facts_of(Report("fault", [Line(0, panic, None)])) if panic else None
    if vector is None:
        vector = facts.vector if facts else None
    if vector is None:
        return None
    raised = RaisedException(
        vector,
        error_code=facts.error_code if facts else None,
        cr2=facts.address if facts and vector == Vector.PF else None,
        rip=numbers.get("rip"),
        rsp=numbers.get("rsp"),
        cpl=numbers.get("cpl"),
        cpu=cpu_of("crash", numbers),
        line=lines[index].number,
        symbol=match[1] if match else None,
    )
    return Trace(source, "crash backtrace", (raised,), "oops", raised.cpu, total=1)


def _block(lines: Sequence[Line], start: int) -> str:
    """The registers from *start* on: they end where the frames go on, the last of which has those of the process."""
    text = text_of(lines, start, _LINES)
    end = _FRAME.search(text)
    return text[: end.start()] if end else text
