"""A processor's state as the delivery of exceptions needs it, free of any engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from fivefold.arch import ControlState
from fivefold.machine.base import TableRegister

PRESENT: Final = 1 << 15
CODE_OR_DATA: Final = 1 << 12
EXECUTABLE: Final = 1 << 11
CONFORMING: Final = 1 << 10
LONG: Final = 1 << 21
BIG: Final = 1 << 22
GRANULAR: Final = 1 << 23

RFLAGS_TF: Final = 1 << 8
RFLAGS_IF: Final = 1 << 9
RFLAGS_NT: Final = 1 << 14
RFLAGS_RF: Final = 1 << 16
RFLAGS_VM: Final = 1 << 17


class VcpuSegment(NamedTuple):
    """A loaded segment: *flags* are the upper half of its descriptor, bits in place."""

    selector: int
    base: int = 0
    limit: int = 0xFFFF_FFFF
    flags: int = 0

    @property
    def dpl(self) -> int:
        """The privilege level in the descriptor."""
        return self.flags >> 13 & 3

    @classmethod
    def from_descriptor(cls, selector: int, raw: int) -> VcpuSegment:
        """What loading *selector* would cache of the 8-byte descriptor *raw*."""
        limit = raw & 0xFFFF | raw >> 32 & 0xF0000
        flags = raw >> 32 & 0x00F0_FF00
        if flags & GRANULAR:
            limit = limit << 12 | 0xFFF
        base = raw >> 16 & 0xFF_FFFF | raw >> 32 & 0xFF00_0000
        return cls(selector, base, limit, flags)


FLAT_CODE64: Final = 0x00AF_9B00_0000_FFFF
FLAT_CODE32: Final = 0x00CF_9B00_0000_FFFF
FLAT_DATA: Final = 0x00CF_9300_0000_FFFF


@dataclass(frozen=True, slots=True)
class Vcpu:
    """Registers that an exception reads or changes."""

    rip: int
    rsp: int
    rflags: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    cpl: int
    cs: VcpuSegment
    ss: VcpuSegment
    tr: VcpuSegment
    ldt: VcpuSegment
    gdt: TableRegister
    idt: TableRegister
    pkru: int = 0

    @property
    def long_mode(self) -> bool:
        """EFER.LMA: gates and stacks are those of IA-32e mode, whatever the code segment."""
        return bool(self.efer >> 10 & 1)

    @property
    def in_64bit(self) -> bool:
        """Running 64-bit code, not compatibility mode or less."""
        return self.long_mode and bool(self.cs.flags & LONG)

    @property
    def control(self) -> ControlState:
        """The part that decides about paging, for `fivefold.arch`."""
        # A busy or available TSS of 16 bits has bit 3 of its type clear; an unloaded TR has type 0.
        kind = self.tr.flags >> 8 & 0xF
        return ControlState(
            cr0=self.cr0,
            cr3=self.cr3,
            cr4=self.cr4,
            efer=self.efer,
            rflags=self.rflags,
            cpl=self.cpl,
            cs_long=bool(self.cs.flags & LONG),
            tss16=kind in (1, 3),
            pkru=self.pkru,
        )
