"""Bits of the control registers, and the instructions that change them.

Reading is an intrinsic; writing is a function in `entry.S`, so that every place that
changes how memory is seen is a symbol which an engine can police.
"""

from __future__ import annotations

from typing import Final

from fivefold.metal.lang import cpuid, extern, read_cr4, u64
from fivefold.units import PhysAddr, VirtAddr

EAX: Final = 0
EBX: Final = 1
ECX: Final = 2
EDX: Final = 3

CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31
CR4_PAE: Final = 1 << 5
CR4_MCE: Final = 1 << 6
CR4_PGE: Final = 1 << 7
CR4_UMIP: Final = 1 << 11
CR4_LA57: Final = 1 << 12
CR4_PCIDE: Final = 1 << 17
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
MSR_EFER: Final = 0xC000_0080
MSR_STAR: Final = 0xC000_0081
MSR_LSTAR: Final = 0xC000_0082
MSR_FMASK: Final = 0xC000_0084
EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11
CR4_KEPT: Final = CR4_LA57 | CR4_MCE
"""What stays as it was found: LA57, since paging is on; MCE, which a guest of some hypervisors cannot clear (Intel TDX
Module Base Architecture Specification, "CR4")."""


CPUID_MCE: Final = 1 << 7
CPUID_SMEP: Final = 1 << 7
CPUID_SMAP: Final = 1 << 20
CPUID_UMIP: Final = 1 << 2
"""EDX of leaf 1; EBX, EBX and ECX of leaf 7."""


def cr4_in_use() -> u64:
    """CR4 as the kernel runs with it: what was found of `CR4_KEPT`, global pages, and each protection that the CPU has.

    MCE is one of them: with it off, a machine check shuts the machine down without a word.
    """
    value = CR4_PAE | CR4_PGE | read_cr4() & CR4_KEPT
    if cpuid(1, 0, EDX) & CPUID_MCE != 0:
        value |= CR4_MCE
    if cpuid(0, 0, EAX) < 7:
        return value
    if cpuid(7, 0, EBX) & CPUID_SMEP != 0:
        value |= CR4_SMEP
    if cpuid(7, 0, EBX) & CPUID_SMAP != 0:
        value |= CR4_SMAP
    if cpuid(7, 0, ECX) & CPUID_UMIP != 0:
        value |= CR4_UMIP
    return value


@extern
def write_cr0(value: u64) -> None:
    """Load CR0."""


@extern
def write_cr3(root: PhysAddr) -> None:
    """Load CR3; drops every translation that is not global."""


@extern
def write_cr4(value: u64) -> None:
    """Load CR4."""


@extern
def write_msr(index: u64, value: u64) -> None:
    """Load a model-specific register."""


@extern
def load_idt(base: VirtAddr, size: u64) -> None:
    """Load IDTR with a table of *size* bytes."""


@extern
def load_gdt(base: VirtAddr, size: u64) -> None:
    """Load GDTR with a table of *size* bytes and reload the segment registers (code 0x18, data 0x10)."""


@extern
def load_task_register(selector: u64) -> None:
    """Load TR."""
