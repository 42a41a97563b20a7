"""UEFI's own report of an exception, as EDK II prints it: ``!!!! X64 Exception Type - 0E(#PF - Page-Fault) …``.

Source: EDK II, ``UefiCpuPkg/Library/CpuExceptionHandlerLib/X64/ArchExceptionHandler.c`` (DumpCpuContext).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fivefold.arch import HAS_ERROR_CODE, Vector
from fivefold.explain.logs.register_file import cpu_of, text_of
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import RaisedException, Trace
from fivefold.memory import Segment

_HEAD: Final = re.compile(r"!!!! X64 Exception Type - ([0-9a-f]{2})", re.I)
_DATA: Final = re.compile(r"ExceptionData - ([0-9a-f]{16})(?![0-9a-z])", re.I)
_NUMBER: Final = re.compile(
    r"\b(R[A-D]X|R[SD]I|R[BS]P|R\d{1,2}|RIP|RFLAGS|CS|CR[0-4])\s*- ([0-9a-f]{16})(?![0-9a-z])", re.I
)
_TABLE: Final = re.compile(r"\b(GDTR|IDTR)\s*- ([0-9a-f]{16}) ([0-9a-f]{16})(?![0-9a-z])", re.I)
_LINES: Final = 30
_CODE_64: Final = 0xAF9B00
"""The flags of the code segment that UEFI runs in: 64-bit."""


def read_firmware(lines: Sequence[Line], source: str) -> Trace | None:
    """The first report of the firmware, None if there is none."""
    heads = [(i, match) for i, line in enumerate(lines) if (match := _HEAD.search(line.text))]
    if not heads:
        return None
    index, head = heads[0]
    text = text_of(lines, index, _LINES)
    vector = int(head[1], 16)
    numbers = {name.lower(): int(value, 16) for name, value in _NUMBER.findall(text)}
    selector = numbers.pop("cs", None)
    segments = {
        name.lower()[:3]: Segment(0, int(base, 16), int(limit, 16), 0) for name, base, limit in _TABLE.findall(text)
    }
    if selector is not None:
        segments["cs"] = Segment(selector, 0, 0xFFFF_FFFF, _CODE_64)
        numbers["cpl"] = selector & 3
    cpu = cpu_of("UEFI report", numbers, segments)
    data = _DATA.search(text)
    raised = RaisedException(
        vector,
        error_code=int(data[1], 16) if data and vector in HAS_ERROR_CODE else None,
        cr2=numbers.get("cr2") if vector == Vector.PF else None,
        rip=numbers.get("rip"),
        rsp=numbers.get("rsp"),
        cpl=numbers.get("cpl"),
        cpu=cpu,
        line=lines[index].number,
    )
    remarks = (f"{len(heads)} reports in the log; this is the first",) if len(heads) > 1 else ()
    return Trace(source, "UEFI report", (raised,), "oops", cpu, total=len(heads), remarks=remarks)
