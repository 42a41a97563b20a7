"""The one line in which our own engines report a triple fault: ``triple fault: #PF(0x2) at …, rip … -> …``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from fivefold.arch import Vector
from fivefold.explain.logs.register_text import parse_registers
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import RaisedException, Trace

_LINE: Final = "triple fault: #"
_EVENT: Final = re.compile(
    r"(#[A-Z]{2}|NMI|vector \d+)(?:\(0x([0-9a-f]{1,8})\))?(?: at 0x([0-9a-f]{16}))?, rip 0x([0-9a-f]{16})"
)
_MOST_LINES: Final = 96


def read_events(lines: Sequence[Line], source: str) -> Trace | None:
    """The exceptions of the first such line, None if there is none."""
    index = next((i for i, line in enumerate(lines) if _LINE in line.text), None)
    if index is None:
        return None
    line = lines[index]
    cpu = parse_registers("\n".join(other.text for other in lines[index : index + _MOST_LINES]), "registers")
    raised = [_event(match, line.number) for match in _EVENT.finditer(line.text)]
    chained = tuple(replace(one, cpu=cpu) for one in pair_up(raised))
    if not chained:
        return None
    return Trace(source, "engine's events", chained, "triple-fault", cpu, total=len(raised), resets=1)


def _event(match: re.Match[str], line: int) -> RaisedException:
    name, code, cr2, rip = match.groups()
    vector = int(name.split()[1]) if name.startswith("vector") else int(Vector[name.removeprefix("#")])
    numbers = [int(number, 16) if number else None for number in (code, cr2, rip)]
    return RaisedException(vector, None, numbers[0], numbers[1], numbers[2], line=line)


def pair_up(records: Sequence[RaisedException]) -> tuple[RaisedException, ...]:
    """Records of an engine with what was being delivered when each was raised.

    An engine records the double fault too; here it is the vector in whose delivery the third one was raised.
    """
    found: list[RaisedException] = []
    during: int | None = None
    for record in records:
        if record.vector == Vector.DF and found:
            during = int(Vector.DF)
            continue
        found.append(replace(record, during=during))
        during = record.vector
    return tuple(found)
