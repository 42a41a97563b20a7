"""Bits of entries that say how memory is encrypted: not part of an address, and separated from it here.

AMD's C-bit (SME and SEV) asks for encryption, Intel TDX' shared bit for none. No register of a dump has them; Linux
writes its C-bit to VMCOREINFO, as ``NUMBER(sme_mask)``. Physical addresses end below the bit. Sources: AMD APM volume
2, "Secure Memory Encryption"; Intel TDX Module Base Architecture Specification, "Shared bit".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from fivefold.arch import FRAME_BITS, MAX_PHYS_BITS, TABLE_SIZE, Cpu, Flag, TableReader
from fivefold.errors import MemoryReadError
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.vmcoreinfo import KernelNotes
from fivefold.units import PhysAddr

LOWEST_BIT: Final = 32
USUAL_BITS: Final = (47, 51)
"""Where CPUID of EPYC processors has it: 47 in the first two generations, 51 since."""


def choose_c_bit(given: int | None, notes: KernelNotes) -> Found[int | None]:
    """The number of the encryption bit; None where there is none, or nothing says that there is one."""
    if given is not None:
        return Found(given, "given with --c-bit")
    mask = notes.number("sme_mask")
    if mask is None:
        return Found(None, "no source holds CPUID, and no VMCOREINFO says; entries are read without such a bit")
    bit = mask.bit_length() - 1
    if mask and LOWEST_BIT <= bit < MAX_PHYS_BITS and mask == 1 << bit:
        return Found(bit, f"sme_mask in {notes.where}")
    return Found(None, f"sme_mask={mask:#x} in {notes.where}")


def suspected_bit(memory: TableReader, root: int) -> int | None:
    """The bit without which, and only without which, every entry of the table at *root* leads to memory.

    None where there is no such bit. *root* may have it too, as CR3 does. Read it as a hint: nothing proves encryption.
    """
    bits = FRAME_BITS
    if not _is_there(memory, root):
        bits = 1 << root.bit_length() >> 1
        root &= ~bits
        if bits < 1 << LOWEST_BIT or not _is_there(memory, root):
            return None
    entries = np.frombuffer(memory.read(PhysAddr(root), TABLE_SIZE), "<u8")
    targets = [int(entry) & FRAME_BITS for entry in entries[entries & np.uint64(Flag.P) != 0]]
    for target in targets:
        bits &= target
    bit = bits.bit_length() - 1
    if not targets or bit < LOWEST_BIT or any(_is_there(memory, target) for target in targets):
        return None
    return bit if all(_is_there(memory, target ^ 1 << bit) for target in targets) else None


def _is_there(memory: TableReader, pa: int) -> bool:
    try:
        memory.read(PhysAddr(pa), TABLE_SIZE)
    except MemoryReadError:
        return False
    return True


def cpu_with(c_bit: int | None, phys_bits: int | None) -> Cpu:
    """The widest CPU there is, as far as nothing narrower is known; its addresses end below the encryption bit."""
    width = MAX_PHYS_BITS if phys_bits is None else phys_bits
    if c_bit is None:
        return Cpu(phys_bits=width)
    return Cpu(phys_bits=width, phys_reduction=max(width - c_bit, 0), c_bit=c_bit)


@dataclass(frozen=True, slots=True)
class WithoutBits:
    """Page tables of *memory* as they would be without the bits in *mask*; for readers that know of no such bits."""

    memory: TableReader
    mask: int

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        """Whole entries, or `MemoryReadError`."""
        return cleared(self.memory.read(pa, size), self.mask)


def cleared(table: bytes, mask: int) -> bytes:
    """The entries in *table* without the bits in *mask*."""
    return (np.frombuffer(table, "<u8") & np.uint64(~mask & (1 << 64) - 1)).tobytes()
