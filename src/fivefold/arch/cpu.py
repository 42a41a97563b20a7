"""The features of a CPU that change what page tables and control registers mean.

Sources: Intel SDM, "CPUID—CPU Identification", "4-Level Paging and 5-Level Paging" and "Control
Registers"; AMD APM volume 2, "Long-Mode Page Translation".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from fivefold.arch.entry import FRAME_BITS, Entry
from fivefold.arch.modes import LA48, LA57, PagingMode

MAX_PHYS_BITS: Final = 52
"""No x86-64 CPU has wider physical addresses; bits 52 to 58 are software's."""

_NX: Final = 1 << 63
_BIT7: Final = 1 << 7
_BIT8: Final = 1 << 8
_PAT12: Final = 1 << 12


class Vendor(Enum):
    """Whose manual holds where the two differ."""

    INTEL = "intel"
    AMD = "amd"


@dataclass(frozen=True, slots=True)
class Cpu:
    """What a CPU can do, enabled or not. Reserved bits follow from this value.

    The defaults are a recent Intel server; `cpu_from_cpuid` reads a real one.
    """

    phys_bits: int = 52
    la57: bool = True
    gib_pages: bool = True
    nx: bool = True
    long_mode: bool = True
    smep: bool = True
    smap: bool = True
    pku: bool = True
    pks: bool = True
    pge: bool = True
    pcid: bool = True
    umip: bool = True
    lam: bool = False
    fsgsbase: bool = True
    xsave: bool = True
    cet: bool = False
    vmx: bool = False
    smx: bool = False
    vendor: Vendor = Vendor.INTEL

    def __post_init__(self) -> None:
        """Refuse a physical width that no CPU has."""
        if not 32 <= self.phys_bits <= MAX_PHYS_BITS:
            raise ValueError(f"{self.phys_bits} physical address bits; expected 32 to {MAX_PHYS_BITS}")

    @property
    def widest(self) -> PagingMode:
        """The mode with the widest addresses it could run in, whatever it runs in now."""
        return LA57 if self.la57 else LA48

    def frame_mask(self, align: int) -> int:
        """Bits of an entry that hold an address aligned to *align* bytes, a power of two.

        >>> hex(Cpu(phys_bits=46).frame_mask(4096))
        '0x3ffffffff000'
        """
        return ((1 << self.phys_bits) - 1) & ~(align - 1)

    def must_be_zero(self, entry: Entry, nxe: bool = True) -> int:
        """Bits that must be clear in a present entry at this level and with this page-size bit."""
        mask = FRAME_BITS & ~((1 << self.phys_bits) - 1)
        if not (nxe and self.nx):
            mask |= _NX
        if entry.level >= 4:
            mask |= _BIT7
            # AMD APM, formats of the PML5E and PML4E: bit 8 too; Intel ignores it there.
            mask |= _BIT8 if self.vendor is Vendor.AMD else 0
        elif entry.level == 3 and not self.gib_pages:
            mask |= _BIT7
        elif entry.is_leaf and entry.level > 1:
            mask |= (entry.level.span - 1) & FRAME_BITS & ~_PAT12
        return mask

    def reserved(self, entry: Entry, nxe: bool = True) -> int:
        """Bits set in *entry* that must be clear; any one of them faults with RSVD.

        *nxe* is EFER.NXE. An entry that is not present has none.

        >>> hex(Cpu(phys_bits=46).reserved(Entry(0x0004_4567_89ab_c083, LA48.top)))
        '0x4400000000080'
        """
        return entry.raw & self.must_be_zero(entry, nxe) if entry.is_present else 0

    def frame(self, entry: Entry) -> int:
        """The physical address in *entry*: of its page if it is a leaf, else of its table."""
        return entry.raw & self.frame_mask(entry.level.span if entry.is_leaf else 4096)


CpuidReader = Callable[[int, int], tuple[int, int, int, int]]


def cpu_from_cpuid(cpuid: CpuidReader) -> Cpu:
    """Read a `Cpu` through *cpuid*, which maps (leaf, subleaf) to (EAX, EBX, ECX, EDX).

    The maximum leaf is asked first: above it some CPUs answer with another leaf's values.
    """
    highest, ebx, ecx, edx = cpuid(0, 0)
    vendor = b"".join(part.to_bytes(4, "little") for part in (ebx, edx, ecx))
    _, _, c1, d1 = cpuid(1, 0)
    a7, b7, c7, d7 = cpuid(7, 0) if highest >= 7 else (0, 0, 0, 0)
    lam = cpuid(7, 1)[0] if a7 >= 1 else 0
    highest_extended = cpuid(0x8000_0000, 0)[0]
    extended = cpuid(0x8000_0001, 0)[3] if highest_extended >= 0x8000_0001 else 0
    # 36 where the leaf is missing: the width that came with PAE.
    width = cpuid(0x8000_0008, 0)[0] & 0xFF if highest_extended >= 0x8000_0008 else 36
    return Cpu(
        phys_bits=min(width, MAX_PHYS_BITS),
        la57=bool(c7 >> 16 & 1),
        gib_pages=bool(extended >> 26 & 1),
        nx=bool(extended >> 20 & 1),
        long_mode=bool(extended >> 29 & 1),
        smep=bool(b7 >> 7 & 1),
        smap=bool(b7 >> 20 & 1),
        pku=bool(c7 >> 3 & 1),
        pks=bool(c7 >> 31 & 1),
        pge=bool(d1 >> 13 & 1),
        pcid=bool(c1 >> 17 & 1),
        umip=bool(c7 >> 2 & 1),
        lam=bool(lam >> 26 & 1),
        fsgsbase=bool(b7 & 1),
        xsave=bool(c1 >> 26 & 1),
        cet=bool(c7 >> 7 & 1 or d7 >> 20 & 1),
        vmx=bool(c1 >> 5 & 1),
        smx=bool(c1 >> 6 & 1),
        vendor=Vendor.AMD if vendor in (b"AuthenticAMD", b"HygonGenuine") else Vendor.INTEL,
    )
