"""Registers from the text of QEMU, KVM, Linux and Bochs.

All print ``NAME = hex`` in some spelling. Text may be cut short or have other output between its
lines, so nothing is required: what was not printed stays unknown, the first of equal names counts.
"""

from __future__ import annotations

import re
from typing import Final

from fivefold.explain.logs.trace import Code
from fivefold.memory import CpuState, Segment

_NAMED: Final = re.compile(
    r"(?<![A-Za-z0-9_])(R[A-D]X|R[SD]I|R[BS]P|R0?[89]|R1[0-5]|RIP|RFL|E[A-D]X|E[SD]I|E[BS]P|EIP|EFL|EFLAGS"
    r"|CR[0234]|EFER|PKRU)\s*([:=])\s*(?:[0-9a-f]{4}:)?(0x)?([0-9a-f]+)(?![0-9a-z])",
    re.I,
)
_WIDE: Final = re.compile(r"(?<![A-Za-z0-9])R(?:AX|BX|SI|BP|IP|1\d) ?=", re.I)
_NARROW: Final = re.compile(r"(?<![A-Za-z0-9])E(?:[A-D]X|[SD]I|[BS]P|IP) ?=")
_ALWAYS_8: Final = frozenset({"RFL", "EFL", "PKRU"})
_AS_WIDE_AS_THE_CODE: Final = frozenset({"CR2", "CR3"})
_SEGMENT: Final = re.compile(
    r"(?<![A-Za-z])(CS|DS|ES|FS|GS|SS|LDT|TR)\s*=\s*([0-9a-f]{4}) ([0-9a-f]{8,16}) ([0-9a-f]{8}) ([0-9a-f]{8})"
)
_TABLE: Final = re.compile(r"(?<![A-Za-z])(GDT|IDT)\s*=\s+([0-9a-f]{8,16}) ([0-9a-f]{8})(?![0-9a-f])")
_TASK: Final = re.compile(r"\bTSS(64|32)-")
"""QEMU names the type of TR by the mode: ``TSS64-busy`` in long mode, whatever code runs."""
_CPL: Final = re.compile(r"\bCPL=([0-3])\b")
_SELECTOR: Final = re.compile(r"\b(CS|SS):\s*([0-9a-f]{4})\b")
_BYTE: Final = re.compile(r"(<?)([0-9a-f]{2})")
_CODE: Final = re.compile(r"\bCode\s*[:=]\s*((?:[0-9a-f]{2} |<[0-9a-f]{2}> ?)+(?:[0-9a-f]{2}|<[0-9a-f]{2}>)?)")


def parse_registers(text: str, source: str) -> CpuState | None:
    """The registers in *text*, None if it has none. *source* says where they come from.

    ``cpl``, and ``lma`` for EFER.LMA, are among the general ones where the text says them; ``narrow`` is where it has
    the names of 32 bits.
    """
    named: dict[str, int] = {}
    is_wide = _WIDE.search(text) is not None
    for match in _NAMED.finditer(text):
        name, sign, prefix, value = match.groups()
        if not _is_whole(name.upper(), sign, bool(prefix), len(value), is_wide):
            continue
        if named.setdefault(_common_name(name), int(value, 16)) != int(value, 16):
            text = text[: match.start()]  # another CPU's, or of another time
            break
    if not named:
        return None
    if cpl := _CPL.search(text):
        named["cpl"] = int(cpl[1])
    elif selector := _SELECTOR.search(text):
        # Outside virtual-8086 mode the low bits of CS are the privilege level.
        named["cpl"] = int(selector[2], 16) & 3
    if not is_wide and _NARROW.search(text):
        named["narrow"] = 1
    if width := _TASK.search(text):
        named["lma"] = int(width[1] == "64")
    control = {name: named.pop(name) for name in ("cr0", "cr2", "cr3", "cr4", "efer") if name in named}
    return CpuState(source, general=named, segments=_segments(text), **control)


def _is_whole(name: str, sign: str, has_prefix: bool, digits: int, is_wide: bool) -> bool:
    """Whether a number has as many digits as its format pads it to; fewer or more are a line that was damaged."""
    if digits not in (8, 16):
        return False
    if name in _ALWAYS_8 or (name[0] == "E" and name not in ("EFER", "EFLAGS")):
        return digits == 8
    if has_prefix or name == "EFLAGS":
        return True  # Bochs pads by the mode
    if name.startswith("R") or sign == ":":
        return digits == 16
    if name in _AS_WIDE_AS_THE_CODE:
        return digits == 16 or not is_wide  # compatibility mode has EAX beside a wide CR3
    return digits == (16 if name == "EFER" else 8)


def parse_code(text: str) -> Code | None:
    """The instruction bytes that *text* prints, None where no byte is marked as the one at RIP (``<48>``)."""
    match = _CODE.search(text)
    if match is None:
        return None
    words = _BYTE.findall(match[1])
    marks = [i for i, (mark, _) in enumerate(words) if mark]
    if len(marks) != 1:
        return None
    return Code(bytes(int(digits, 16) for _, digits in words), marks[0])


def _common_name(name: str) -> str:
    name = name.lower()
    if name in ("rfl", "efl", "eflags"):
        return "rflags"
    if name in ("r08", "r09"):
        return f"r{name[2]}"
    # Outside 64-bit code the E names are printed; the upper halves do not count then.
    return f"r{name[1:]}" if name[0] == "e" and name != "efer" else name


def _segments(text: str) -> dict[str, Segment]:
    found: dict[str, Segment] = {}
    for name, selector, base, limit, flags in _SEGMENT.findall(text):
        found.setdefault(name.lower(), Segment(int(selector, 16), int(base, 16), int(limit, 16), int(flags, 16)))
    for name, base, limit in _TABLE.findall(text):
        found.setdefault(name.lower(), Segment(0, int(base, 16), int(limit, 16), 0))
    return found
