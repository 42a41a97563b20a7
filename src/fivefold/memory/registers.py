"""What a source knows of a CPU: registers as plain numbers, None where it does not say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fivefold.errors import FormatError

MAX_CPUS: Final = 1 << 12
"""Of one running machine; QEMU's largest has a quarter of it."""


class Segment(NamedTuple):
    """A segment register or descriptor-table register with its hidden part; *limit* in bytes."""

    selector: int
    base: int
    limit: int
    flags: int


@dataclass(frozen=True, slots=True)
class CpuState:
    """One CPU. Control registers are raw; *general* has lower-case names as in ``rax``, ``rip``, ``rflags``.

    *segments* has ``cs`` ``ds`` ``es`` ``fs`` ``gs`` ``ss`` ``ldt`` ``tr`` ``gdt`` ``idt`` as far as known.
    *source* says where the numbers come from. *elf_machine* is the machine number of an ELF core where
    it says of this CPU: QEMU writes 62 where EFER.LMA of the first CPU is set, else 3 (``arch_dump.c``).
    """

    source: str
    cr0: int | None = None
    cr2: int | None = None
    cr3: int | None = None
    cr4: int | None = None
    efer: int | None = None
    general: Mapping[str, int] = field(default_factory=dict)
    segments: Mapping[str, Segment] = field(default_factory=dict)
    elf_machine: int | None = None

    @property
    def rip(self) -> int | None:
        """The instruction pointer."""
        return self.general.get("rip")

    @property
    def rsp(self) -> int | None:
        """The stack pointer."""
        return self.general.get("rsp")

    @property
    def gdt(self) -> Segment | None:
        """The global descriptor table."""
        return self.segments.get("gdt")

    @property
    def idt(self) -> Segment | None:
        """The interrupt descriptor table."""
        return self.segments.get("idt")


_CONTROL: Final = re.compile(r"\b(CR[0234]|EFER)\s*=\s*([0-9a-f]{1,16})\b")
# Outside 64-bit code the monitor prints the E names; the upper halves do not exist then.
_GENERAL: Final = re.compile(r"\b(?:R|E)([A-D]X|[SD]I|[BS]P|IP|FL|[0-9]{1,2})\s*=\s*([0-9a-f]{1,16})\b")
_SEGMENT: Final = re.compile(
    r"^(CS|DS|ES|FS|GS|SS|LDT|TR)\s*=\s*([0-9a-f]{4}) ([0-9a-f]{8,16}) ([0-9a-f]{8}) ([0-9a-f]{8})\b", re.M
)
_TABLE: Final = re.compile(r"^(GDT|IDT)\s*=\s+([0-9a-f]{8,16}) ([0-9a-f]{8})\b", re.M)
_CPU_HEADING: Final = re.compile(r"^CPU#\d+.*$", re.M)


def parse_info_registers(text: str, source: str = "info registers") -> tuple[CpuState, ...]:
    """Read what QEMU's monitor prints for ``info registers`` or ``info registers -a``.

    One state for each ``CPU#`` heading, or one for text without headings; blocks without a
    control register are left out. `FormatError` for more than `MAX_CPUS`.
    """
    text = text.replace("\r", "")
    blocks = [block for block in _CPU_HEADING.split(text) if _CONTROL.search(block)]
    if len(blocks) > MAX_CPUS:
        raise FormatError(f"{source} shows {len(blocks)} CPUs, more than {MAX_CPUS}")
    return tuple(_parse_block(block, source) for block in blocks)


def _parse_block(text: str, source: str) -> CpuState:
    control = {name.lower(): int(value, 16) for name, value in _CONTROL.findall(text)}
    general = {f"r{name.lower()}": int(value, 16) for name, value in _GENERAL.findall(text)}
    if "rfl" in general:
        general["rflags"] = general.pop("rfl")
    segments = {
        name.lower(): Segment(int(selector, 16), int(base, 16), int(limit, 16), int(flags, 16))
        for name, selector, base, limit, flags in _SEGMENT.findall(text)
    }
    for name, base, limit in _TABLE.findall(text):
        segments[name.lower()] = Segment(0, int(base, 16), int(limit, 16), 0)
    return CpuState(source, general=general, segments=segments, **control)
