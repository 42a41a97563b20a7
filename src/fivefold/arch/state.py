"""The registers that govern paging, and the paging that follows from them.

Sources: Intel SDM, "Control Registers", "Paging Modes and Control Bits", "IA32_EFER MSR"; AMD APM
volume 2, "Extended Feature Enable Register (EFER)".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Final

from fivefold.arch.modes import LA48, LA57, PagingMode
from fivefold.units import PhysAddr


class Cr0(IntFlag):
    """Bits of CR0."""

    PE = 1 << 0
    MP = 1 << 1
    EM = 1 << 2
    TS = 1 << 3
    ET = 1 << 4
    NE = 1 << 5
    WP = 1 << 16
    AM = 1 << 18
    NW = 1 << 29
    CD = 1 << 30
    PG = 1 << 31


class Cr4(IntFlag):
    """Bits of CR4."""

    VME = 1 << 0
    PVI = 1 << 1
    TSD = 1 << 2
    DE = 1 << 3
    PSE = 1 << 4
    PAE = 1 << 5
    MCE = 1 << 6
    PGE = 1 << 7
    PCE = 1 << 8
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10
    UMIP = 1 << 11
    LA57 = 1 << 12
    VMXE = 1 << 13
    SMXE = 1 << 14
    FSGSBASE = 1 << 16
    PCIDE = 1 << 17
    OSXSAVE = 1 << 18
    KL = 1 << 19
    SMEP = 1 << 20
    SMAP = 1 << 21
    PKE = 1 << 22
    CET = 1 << 23
    PKS = 1 << 24
    UINTR = 1 << 25
    LASS = 1 << 27
    LAM_SUP = 1 << 28
    FRED = 1 << 32


class Efer(IntFlag):
    """Bits of the EFER MSR; those from SVME up are AMD's alone."""

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11
    SVME = 1 << 12
    LMSLE = 1 << 13
    FFXSR = 1 << 14
    TCE = 1 << 15
    MCOMMIT = 1 << 17
    INTWB = 1 << 18
    UAIE = 1 << 20
    AIBRSE = 1 << 21


RFLAGS_AC: Final = 1 << 18
CR3_LAM_U57: Final = 1 << 61
CR3_LAM_U48: Final = 1 << 62
CR3_KEEP: Final = 1 << 63
"""Bit 63 of a value moved to CR3 with PCIDE=1: keep that PCID's entries. It is not stored."""


class Paging(Enum):
    """The five ways a CPU can translate. Only the last two have a `PagingMode` here."""

    NONE = "no paging (CR0.PG=0)"
    BITS32 = "32-bit paging (CR4.PAE=0)"
    PAE = "PAE paging (EFER.LMA=0)"
    LONG4 = "4-level paging"
    LONG5 = "5-level paging"


_MODE_OF: Final = {Paging.LONG4: LA48, Paging.LONG5: LA57}


@dataclass(frozen=True, slots=True)
class ControlState:
    """The registers that decide how an address is translated and who may use it.

    *cs_long* is the L bit of the code segment: with LMA it makes 64-bit mode. *tss16* says
    that TR holds a 16-bit TSS. *pkrs* is the IA32_PKRS MSR. CR2 decides nothing and is not here.
    """

    cr0: int
    cr3: int
    cr4: int
    efer: int
    rflags: int = 2
    cpl: int = 0
    cs_long: bool = True
    tss16: bool = False
    pkru: int = 0
    pkrs: int = 0

    @classmethod
    def reset(cls) -> ControlState:
        """As after RESET: real mode, caches off."""
        return cls(cr0=int(Cr0.CD | Cr0.NW | Cr0.ET), cr3=0, cr4=0, efer=0, cs_long=False)

    @classmethod
    def long(cls, mode: PagingMode, root: int, cpl: int = 0) -> ControlState:
        """64-bit mode with paging in *mode*, WP and NXE set, no other protection enabled."""
        la57 = Cr4.LA57 if mode.top > LA48.top else 0
        return cls(
            cr0=int(Cr0.PE | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.PG),
            cr3=root,
            cr4=int(Cr4.PAE | la57),
            efer=int(Efer.LME | Efer.LMA | Efer.NXE),
            cpl=cpl,
        )

    @property
    def paging(self) -> Paging:
        """The way of translating, read from PG, LMA, PAE and LA57 and from nothing else."""
        if not self.cr0 & _PG:
            return Paging.NONE
        if not self.efer & _LMA:
            return Paging.PAE if self.cr4 & _PAE else Paging.BITS32
        return Paging.LONG5 if self.cr4 & _LA57 else Paging.LONG4

    @property
    def mode(self) -> PagingMode | None:
        """The long paging mode, or None where `paging` is one of the others."""
        return _MODE_OF.get(self.paging)

    @property
    def in_64bit(self) -> bool:
        """Whether the CPU runs 64-bit code, not compatibility mode or less."""
        return bool(self.efer & _LMA) and self.cs_long

    @property
    def long_mode_active(self) -> bool:
        """EFER.LMA: 64-bit or compatibility mode."""
        return bool(self.efer & _LMA)

    @property
    def wp(self) -> bool:
        """CR0.WP: supervisor writes heed R/W."""
        return bool(self.cr0 & _WP)

    @property
    def nxe(self) -> bool:
        """EFER.NXE: bit 63 of an entry means no-execute."""
        return bool(self.efer & _NXE)

    @property
    def ac(self) -> bool:
        """RFLAGS.AC: explicit supervisor accesses are exempt from SMAP."""
        return bool(self.rflags & RFLAGS_AC)

    def cr4_has(self, bit: Cr4) -> bool:
        """Whether *bit* is set in CR4."""
        return bool(self.cr4 & int(bit))

    def root(self, phys_bits: int) -> PhysAddr:
        """Where the top table lies, by CR3 and the physical width."""
        return PhysAddr(self.cr3 & ((1 << phys_bits) - 1) & ~0xFFF)

    @property
    def pcid(self) -> int:
        """The current PCID; 0 unless CR4.PCIDE is set."""
        return self.cr3 & 0xFFF if self.cr4_has(Cr4.PCIDE) else 0


_PG: Final = int(Cr0.PG)
_WP: Final = int(Cr0.WP)
_PAE: Final = int(Cr4.PAE)
_LA57: Final = int(Cr4.LA57)
_LMA: Final = int(Efer.LMA)
_NXE: Final = int(Efer.NXE)
