"""Registers as gdb prints them (``info registers``): a name, a number in hexadecimal, and what it means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fivefold.explain.logs.register_file import cpu_of
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import Trace

_LINE: Final = re.compile(
    r"^\W*(r[a-d]x|r[sd]i|r[bs]p|r\d{1,2}|rip|eflags|cs|cr[0234]|efer)\s+(0x[0-9a-f]{1,16})(?:\s|$)(?:.*<([\w.$]+\+\d+)>)?",
    re.I,
)
_LEAST: Final = 4
"""Registers without which a text is none of these."""


def read_debugger(lines: Sequence[Line], source: str) -> Trace | None:
    """The first registers that gdb printed, None if there are none."""
    numbers: dict[str, int] = {}
    symbol = None
    for line in lines:
        match = _LINE.match(line.text)
        if match is None:
            continue
        name = {"eflags": "rflags"}.get(match[1].lower(), match[1].lower())
        if name in numbers and len(numbers) >= _LEAST:
            break  # another thread
        numbers.setdefault(name, int(match[2], 16))
        symbol = symbol or (match[3] if name == "rip" else None)
    if len(numbers) < _LEAST or "rip" not in numbers:
        return None
    if (selector := numbers.pop("cs", None)) is not None:
        numbers["cpl"] = selector & 3
    cpu = cpu_of("gdb", numbers)
    remarks = (f"RIP is at {symbol}",) if symbol else ()
    return Trace(source, "registers", (), "unknown", cpu, remarks=remarks)
