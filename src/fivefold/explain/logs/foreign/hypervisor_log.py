"""Logs of VirtualBox and VMware: that the guest had a triple fault, and the registers that they print with it.

Sources: VirtualBox, ``VBox.log`` (``Guru Meditation``, the info item ``cpumguest``); VMware, ``vmware.log``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from fivefold.explain.logs.foreign.xen import TRIPLE
from fivefold.explain.logs.register_file import cpu_of, text_of
from fivefold.explain.logs.text.lines import Line
from fivefold.explain.logs.trace import Trace
from fivefold.memory import Segment

_GURU: Final = re.compile(r"Guru Meditation -?\d+ \((\w+)\)")
_VMWARE: Final = re.compile(r"\bvcpu-(\d+)\b.*\b(?:triple[ -]fault|shutdown state)", re.I)
_MONITOR: Final = re.compile(r"MONITOR PANIC.*|.*src=MONITOR.*")
"""VMware's monitor gives its own registers in such lines, not the guest's."""
_NUMBER: Final = re.compile(
    r"(?<![A-Za-z0-9_])(r[a-d]x|r[sd]i|r[bs]p|r0?[89]|r1[0-5]|rip|rflags|cr[0234]|EFER)\s*[=:]\s*"
    r"(?:0x)?([0-9a-f]{8}`?[0-9a-f]{8})(?![0-9a-z`])",
    re.I,
)
_CS: Final = re.compile(r"\bcs=\{([0-9a-f]{4}) base=([0-9a-f]{16}) limit=([0-9a-f]{8}) flags=([0-9a-f]{8})\}", re.I)
_TABLE: Final = re.compile(r"\b(gdtr|idtr)=([0-9a-f]{16}):([0-9a-f]{4})(?![0-9a-z])", re.I)
_LINES: Final = 160


def read_hypervisor(lines: Sequence[Line], source: str) -> Trace | None:
    """The first guru meditation or triple fault, None if there is none."""
    for index, line in enumerate(lines):
        if match := _GURU.search(line.text):
            return _virtualbox(match[1], text_of(lines, index, _LINES), source)
        if _VMWARE.search(line.text):
            text = _MONITOR.sub("", text_of(lines, index, _LINES))
            cpu = cpu_of("VMware's registers", _numbers(text))
            return Trace(source, "VMware log", (), "triple-fault", cpu, says=TRIPLE, remarks=(line.text.strip(),))
    return None


def _virtualbox(word: str, text: str, source: str) -> Trace:
    is_triple = "TRIPLE_FAULT" in word
    says = TRIPLE if is_triple else f"VirtualBox stopped the guest: {word}"
    numbers = _numbers(text)
    segments = {name[:3]: Segment(0, int(base, 16), int(limit, 16), 0) for name, base, limit in _TABLE.findall(text)}
    if cs := _CS.search(text):
        selector, base, limit, flags = (int(value, 16) for value in cs.groups())
        # The attributes of a descriptor, which lie 8 bits higher in its second half.
        segments["cs"] = Segment(selector, base, limit, (flags & 0xF0FF) << 8)
        numbers["cpl"] = selector & 3
    cpu = cpu_of("VirtualBox' registers", numbers, segments)
    return Trace(source, "VirtualBox log", (), "triple-fault" if is_triple else "emulation-failure", cpu, says=says)


def _numbers(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, value in _NUMBER.findall(text):
        found.setdefault(re.sub("^r0", "r", name.lower()), int(value.replace("`", ""), 16))
    return found
