"""Whether a CPU walks four or five levels at all: by its registers, and by what its CR3 points to.

Dumps seldom hold EFER. PAE paging leaves traces all the same: its CR3 may point into a page, and it points to four
entries in which bits 1, 2 and 5 to 8 are reserved, so that a CPU with another value there could not have loaded it.
Source: Intel SDM, "PDPTE Registers" and "Use of CR3 with PAE Paging".
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from fivefold.arch import FRAME_BITS, Cr0, Cr4, Efer, Flag, TableReader
from fivefold.errors import MemoryReadError
from fivefold.memory import CpuState
from fivefold.units import GIB, PhysAddr

CODE_LONG: Final = 1 << 21
"""The L bit of a code segment, in the hidden flags as QEMU prints them: 64-bit code."""

EM_X86_64: Final = 62
"""The ELF machine number of a core whose first CPU is in long mode."""

_PDPTES: Final = Struct("<4Q")
_PDPTE_ALIGN: Final = 32
_PDPTE_RESERVED: Final = 0x1E6 | 0xFFF << 52
_INTO_PAGE: Final = 0xFE0
"""Bits of CR3 that are address for PAE paging, and ignored with four and five levels unless CR4.PCIDE is set."""

_NEEDS_LONG_MODE: Final = 4 * GIB


def why_no_root(cpu: CpuState, memory: TableReader | None = None, *, cr4_given: bool = False) -> str | None:
    """Why the CR3 of *cpu* leads to no tree of four or five levels, as in a CPU that was never started; else None.

    *memory* is asked about the tables where registers leave it open.
    """
    if cpu.cr3 is None:
        return "no CR3"
    if cpu.cr0 is not None and not cpu.cr0 & Cr0.PG:
        return "paging off (CR0.PG=0)"
    if cpu.efer is not None and not cpu.efer & Efer.LMA:
        return "32-bit or PAE paging (EFER.LMA=0)"
    if not cr4_given and cpu.cr4 is not None and not cpu.cr4 & Cr4.PAE:
        return "32-bit paging (CR4.PAE=0)"
    return None if cpu.efer is not None else _why_not_long(cpu, memory)


def _why_not_long(cpu: CpuState, memory: TableReader | None) -> str | None:
    """Which paging *cpu*, of unknown EFER, uses instead of four or five levels; None where nothing says so."""
    if cpu.elf_machine is not None:
        return None if cpu.elf_machine == EM_X86_64 else "32-bit or PAE paging (ELF machine 386: EFER.LMA=0)"
    if cpu.cr3 is None or _must_be_long(cpu):
        return None
    if cpu.cr3 & _INTO_PAGE and cpu.cr4 is not None and not cpu.cr4 & Cr4.PCIDE:
        return f"PAE paging (code segment without L, and CR3 {cpu.cr3:#x} points into a page)"
    if memory is not None and is_pae_root(memory, cpu.cr3):
        return f"PAE paging (code segment without L, and CR3 {cpu.cr3:#x} points to four PAE entries)"
    return None


def _must_be_long(cpu: CpuState) -> bool:
    """Whether the registers are such as only a CPU in long mode has, or have no code segments at all."""
    code = cpu.segments.get("cs")
    if code is None or code.flags & CODE_LONG:
        return True
    return max(cpu.rip or 0, cpu.cr3 or 0) >= _NEEDS_LONG_MODE


def is_pae_root(memory: TableReader, cr3: int) -> bool:
    """Whether PAE paging could be on with this CR3: four entries, one present at least, no reserved bit set.

    A PML4 entry on the path of a running CPU has A set, which is reserved there.
    """
    try:
        raw = memory.read(PhysAddr(cr3 & FRAME_BITS | cr3 & 0xFFF & -_PDPTE_ALIGN), _PDPTES.size)
    except MemoryReadError:
        return False
    present = [entry for entry in _PDPTES.unpack(raw) if entry & Flag.P]
    return bool(present) and not any(entry & _PDPTE_RESERVED for entry in present)
