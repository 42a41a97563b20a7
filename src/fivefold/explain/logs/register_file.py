"""What the readers of this folder share: numbers, and a register file put together from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from fivefold.explain.logs.text.lines import Line
from fivefold.memory import CpuState, Segment

CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer")


_ANOTHER: Final = re.compile(
    r"\bOops: |BUG: unable|NULL pointer dereference, address|general protection fault[:,]|Fatal trap \d|BAD TRAP:"
    r"|!!!! X64 Exception|check_exception old|KVM internal error|^[A-Z_0-9]{12,} \([0-9a-f]{1,8}\)\s*$"
)
"""Begins the report of another exception."""


def text_of(lines: Sequence[Line], start: int, count: int) -> str:
    """*count* lines from index *start*, as one text; no further than a gap in what was read, or another report."""
    part: list[str] = []
    for line in lines[start : start + count]:
        if line.number < 0 or (part and _ANOTHER.search(line.text)):
            break
        part.append(line.text)
    return "\n".join(part)


def cpu_of(source: str, numbers: Mapping[str, int], segments: Mapping[str, Segment] | None = None) -> CpuState | None:
    """The registers in *numbers*, by lower-case names, control registers among them; None if there are none."""
    if not numbers:
        return None
    control = {name: numbers[name] for name in CONTROL if name in numbers}
    general = {name: value for name, value in numbers.items() if name not in CONTROL}
    return CpuState(source, general=general, segments=segments or {}, **control)
