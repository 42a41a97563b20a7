"""Xen's report of a fatal exception, with the walk that it prints (``Pagetable walk from``).

Xen has four levels on every CPU. Source: Xen 4.2 to 4.20, ``traps.c``, ``x86_64/traps.c`` and
``x86_64/mm.c`` of ``xen/arch/x86``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fivefold.arch import HAS_ERROR_CODE, Vector
from fivefold.explain.logs.register_file import cpu_of, text_of
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import Code, Levels, PrintedEntry, RaisedException, Trace

_XEN: Final = re.compile(r"\(XEN\)")
_BEGINS: Final = re.compile(
    r"----\[ Xen-|Pagetable walk from|FATAL (?:PAGE FAULT|TRAP)|Early fatal page fault|DOUBLE FAULT"
    r"|Unhandled .*\[#\d+|Triple fault - "
)
_WALK: Final = re.compile(r"Pagetable walk from ([0-9a-f]{16})(?![0-9a-z])", re.I)
_ENTRY: Final = re.compile(r"\bL([1-4])\[0x([0-9a-f]{3})\] = ([0-9a-f]{16})(?![0-9a-z])", re.I)
_CODE: Final = re.compile(r"\[error_code=([0-9a-f]{4})\]|\bec=([0-9a-f]{4})\b", re.I)
_ADDRESS: Final = re.compile(r"(?:Faulting linear address: |\(cr2=)([0-9a-f]{16})(?![0-9a-z])", re.I)
_TRAP: Final = re.compile(r"FATAL TRAP: vec(?:tor =)? (\d+)|\[#(\d+)", re.I)
_NUMBER: Final = re.compile(r"\b(r[a-d]x|r[sd]i|r[bs]p|r\d{1,2}|cr[0234]|RFLAGS):\s+([0-9a-f]{16})(?![0-9a-z])", re.I)
_RIP: Final = re.compile(r"\bRIP:\s+([0-9a-f]{4}):\[<([0-9a-f]{16})>\](?: (\S+\+0x[0-9a-f]+))?", re.I)
_EARLY: Final = re.compile(r"Early fatal page fault at [0-9a-f]{4}:([0-9a-f]{16})", re.I)
_BYTES: Final = re.compile(r"code around <[0-9a-f]+>[^\n]*\n[^\n]*?((?:<?[0-9a-f]{2}>? ?){4,})\s*$", re.I | re.M)
_BYTE: Final = re.compile(r"(<?)([0-9a-f]{2})", re.I)
_NAMES: Final = {4: "P4D", 3: "PUD", 2: "PMD", 1: "PTE"}
_LINES: Final = 120
TRIPLE: Final = "the guest had a triple fault; which exceptions led to it is not in the source"


def read_xen(lines: Sequence[Line], source: str) -> Trace | None:
    """The first report of Xen, None if there is none."""
    own = [
        line
        for line in lines
        if line.number < 0 or _XEN.search(line.text) or "Xen" in line.text or _ENTRY.search(line.text)
    ]
    start = next((i for i, line in enumerate(own) if _BEGINS.search(line.text)), None)
    if start is None:
        return None
    heads = [i for i, line in enumerate(own) if "----[ Xen-" in line.text]
    text = text_of(own, start, min(_LINES, heads[1] - start) if len(heads) > 1 else _LINES)
    vector = _vector(text)
    numbers = {name.lower(): int(value, 16) for name, value in _NUMBER.findall(text)}
    rip = _RIP.search(text)
    if vector is None and "Triple fault - " in text:
        return _triple_fault(numbers, rip, source)
    if vector is None:
        return None
    if "rflags" not in numbers and rip is None and vector != Vector.PF:
        return None
    if rip:
        numbers["rip"] = int(rip[2], 16)
        numbers["cpl"] = int(rip[1], 16) & 3 if rip[1] != "e008" else 0
    elif early := _EARLY.search(text):
        numbers["rip"] = int(early[1], 16)
    address = _ADDRESS.search(text) or _WALK.search(text)
    code = _CODE.search(text)
    raised = RaisedException(
        vector,
        error_code=int(code[1] or code[2], 16) if code and vector in HAS_ERROR_CODE else None,
        cr2=int(address[1], 16) if address and vector == Vector.PF else None,
        rip=numbers.get("rip"),
        rsp=numbers.get("rsp"),
        cpl=numbers.get("cpl"),
        cpu=cpu_of("Xen report", numbers),
        code=_bytes(text),
        entries=_entries(text),
        line=own[start].number,
        symbol=rip[3] if rip else None,
    )
    levels = Levels(4, ("the report is Xen's, which has four levels only",))
    return Trace(source, "Xen report", (raised,), "oops", raised.cpu, raised.code, 1, levels=levels)


def _triple_fault(numbers: dict[str, int], rip: re.Match[str] | None, source: str) -> Trace:
    """A guest that Xen ended: its registers are all that is known."""
    if rip:
        numbers["rip"], numbers["cpl"] = int(rip[2], 16), int(rip[1], 16) & 3
    cpu = cpu_of("Xen's dump of the guest", numbers)
    return Trace(source, "Xen report", (), "triple-fault", cpu, says=TRIPLE)


def _vector(text: str) -> int | None:
    if "FATAL PAGE FAULT" in text or "fatal page fault" in text or "Pagetable walk from" in text:
        return int(Vector.PF)
    if "GENERAL PROTECTION FAULT" in text:
        return int(Vector.GP)
    if "DOUBLE FAULT" in text:
        return int(Vector.DF)
    match = _TRAP.search(text)
    return int(match[1] or match[2]) if match else None


def _entries(text: str) -> tuple[PrintedEntry, ...]:
    found: list[PrintedEntry] = []
    for level, _, value in _ENTRY.findall(text):
        if int(level) != 4 - len(found):
            break
        found.append(PrintedEntry(_NAMES[int(level)], int(value, 16)))
    return tuple(found)


def _bytes(text: str) -> Code | None:
    match = _BYTES.search(text)
    words = _BYTE.findall(match[1]) if match else []
    marks = [index for index, (mark, _) in enumerate(words) if mark]
    return Code(bytes(int(digits, 16) for _, digits in words), marks[0]) if len(marks) == 1 else None
