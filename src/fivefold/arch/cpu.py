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
    invpcid: bool = True
    umip: bool = True
    monitor: bool = True
    clflushopt: bool = True
    clwb: bool = True
    lam: bool = False
    lass: bool = False
    fsgsbase: bool = True
    xsave: bool = True
    cet: bool = False
    vmx: bool = False
    smx: bool = False
    key_locker: bool = False
    uintr: bool = False
    fred: bool = False
    svm: bool = False
    lmsle: bool = False
    ffxsr: bool = False
    tce: bool = False
    mcommit: bool = False
    intwb: bool = False
    uai: bool = False
    aibrs: bool = False
    vendor: Vendor = Vendor.INTEL
    phys_reduction: int = 0
    """By how many bits memory encryption narrows *phys_bits* (SME: CPUID 8000_001F EBX[11:6])."""
    c_bit: int | None = None
    """The bit of an entry that asks for encryption (AMD SME and SEV); neither address nor reserved."""
    shared_bit: int | None = None
    """The bit of an entry that asks for shared memory (Intel TDX); neither address nor reserved."""
    key_id_bits: int = 0
    """How many of the highest address bits select a key (Intel TME-MK): not reserved, and no address."""

    def __post_init__(self) -> None:
        """Refuse widths that no CPU has."""
        if not 32 <= self.phys_bits <= MAX_PHYS_BITS:
            raise ValueError(f"{self.phys_bits} physical address bits; expected 32 to {MAX_PHYS_BITS}")
        if self.phys_reduction < 0 or self.key_id_bits < 0 or self.address_bits < 32:
            raise ValueError(
                f"{self.phys_bits} physical address bits without {self.phys_reduction} for encryption and "
                f"{self.key_id_bits} for keys; expected at least 32 to be left"
            )
        for bit in (self.c_bit, self.shared_bit):
            if bit is not None and not 32 <= bit < MAX_PHYS_BITS:
                raise ValueError(f"encryption by bit {bit} of an entry; expected 32 to {MAX_PHYS_BITS - 1}")

    @property
    def width(self) -> int:
        """Physical address bits that are not reserved: *phys_bits* without the reduction."""
        return self.phys_bits - self.phys_reduction

    @property
    def address_bits(self) -> int:
        """Physical address bits that reach memory: those of `width` that select no key."""
        return self.width - self.key_id_bits

    @property
    def encryption_bits(self) -> int:
        """The C-bit and the shared bit, as a mask; 0 without them."""
        if self.c_bit is None and self.shared_bit is None:
            return 0
        return sum(1 << bit for bit in {self.c_bit, self.shared_bit} if bit is not None)

    @property
    def widest(self) -> PagingMode:
        """The mode with the widest addresses it could run in, whatever it runs in now."""
        return LA57 if self.la57 else LA48

    def frame_mask(self, align: int) -> int:
        """Bits of an entry that hold an address aligned to *align* bytes, a power of two.

        >>> hex(Cpu(phys_bits=46).frame_mask(4096))
        '0x3ffffffff000'
        """
        return ((1 << self.address_bits) - 1) & ~self.encryption_bits & ~(align - 1)

    def must_be_zero(self, entry: Entry, nxe: bool = True) -> int:
        """Bits that must be clear in a present entry at this level and with this page-size bit."""
        mask = FRAME_BITS & ~((1 << self.width) - 1) & ~self.encryption_bits
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


def cpu_from_cpuid(cpuid: CpuidReader, encrypts: bool = True) -> Cpu:
    """Read a `Cpu` through *cpuid*, which maps (leaf, subleaf) to (EAX, EBX, ECX, EDX).

    The maximum leaf is asked first: above it some CPUs answer with another leaf's values. Where the
    CPU can encrypt memory, *encrypts* says that it does (AMD: SYSCFG.MEM_ENCRYPT, which CPUID does
    not show): only then are physical addresses narrower, and the C-bit more than a reserved bit.
    """
    highest, ebx, ecx, edx = cpuid(0, 0)
    vendor = b"".join(part.to_bytes(4, "little") for part in (ebx, edx, ecx))
    amd = vendor in (b"AuthenticAMD", b"HygonGenuine")
    _, _, c1, d1 = cpuid(1, 0)
    a7, b7, c7, d7 = cpuid(7, 0) if highest >= 7 else (0, 0, 0, 0)
    a71 = cpuid(7, 1)[0] if a7 >= 1 else 0
    highest_extended = cpuid(0x8000_0000, 0)[0]

    def extended(leaf: int) -> tuple[int, int, int, int]:
        return cpuid(leaf, 0) if highest_extended >= leaf else (0, 0, 0, 0)

    _, _, ce1, de1 = extended(0x8000_0001)
    a8, b8, _, _ = extended(0x8000_0008)
    # 36 where the leaf is missing: the width that came with PAE.
    width = a8 & 0xFF if highest_extended >= 0x8000_0008 else 36
    a1f, b1f, _, _ = extended(0x8000_001F) if amd and encrypts else (0, 0, 0, 0)
    a21 = extended(0x8000_0021)[0] if amd else 0
    return Cpu(
        phys_bits=min(width, MAX_PHYS_BITS),
        la57=bool(c7 >> 16 & 1),
        gib_pages=bool(de1 >> 26 & 1),
        nx=bool(de1 >> 20 & 1),
        long_mode=bool(de1 >> 29 & 1),
        smep=bool(b7 >> 7 & 1),
        smap=bool(b7 >> 20 & 1),
        pku=bool(c7 >> 3 & 1),
        pks=bool(c7 >> 31 & 1),
        pge=bool(d1 >> 13 & 1),
        pcid=bool(c1 >> 17 & 1),
        invpcid=bool(b7 >> 10 & 1),
        umip=bool(c7 >> 2 & 1),
        monitor=bool(c1 >> 3 & 1),
        clflushopt=bool(b7 >> 23 & 1),
        clwb=bool(b7 >> 24 & 1),
        lam=bool(a71 >> 26 & 1),
        lass=bool(a71 >> 6 & 1),
        fsgsbase=bool(b7 & 1),
        xsave=bool(c1 >> 26 & 1),
        cet=bool(c7 >> 7 & 1 or d7 >> 20 & 1),
        vmx=bool(c1 >> 5 & 1),
        smx=bool(c1 >> 6 & 1),
        key_locker=bool(c7 >> 23 & 1),
        uintr=bool(d7 >> 5 & 1),
        fred=bool(a71 >> 17 & 1),
        svm=amd and bool(ce1 >> 2 & 1),
        lmsle=amd and bool(ce1 >> 2 & 1) and not b8 >> 20 & 1,
        ffxsr=amd and bool(de1 >> 25 & 1),
        tce=amd and bool(ce1 >> 17 & 1),
        mcommit=amd and bool(b8 >> 8 & 1),
        intwb=amd and bool(b8 >> 13 & 1),
        uai=bool(a21 >> 7 & 1),
        aibrs=bool(a21 >> 8 & 1),
        vendor=Vendor.AMD if amd else Vendor.INTEL,
        phys_reduction=b1f >> 6 & 0x3F if a1f & 3 else 0,
        c_bit=b1f & 0x3F if a1f & 3 else None,
    )
