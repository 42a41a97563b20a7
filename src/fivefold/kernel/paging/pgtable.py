"""Entry helpers at every level, with the missing level folded at run time [proposal: parts 3 and 5].

Linux' names: PGD is the top table, P4D the level below it, then PUD, PMD, PTE. With
five levels the PGD is Intel's PML5 and a P4D its PML4. With four levels the PGD is
the PML4 and *the P4D has a name and no table*: its one entry is the PGD entry itself.

The mode is three numbers. Code above this file asks for the numbers, and where a table
that may not be there is counted or given back, for `p4d_folded`; it has no other way to ask
for the mode. They are variables until the machine is known and constants afterwards: the
kernel is compiled twice with them bound, the boot code once without.

The law of folding (four levels)::

    pgd_none(e) is False        set_pgd(p, v) writes, as set_p4d does
    pgd_present(e) is True      pgd_populate, pgd_clear, p4d_free do nothing
    pgd_bad(e) is False         p4d_offset(pgd, va) is pgd
    pgd_leaf(e) is False        p4d_index(va) is 0

So a walk from the top with these helpers runs the same statements in both modes.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.metal.lang import fill64, inline, load64, store64, u64
from fivefold.units import PhysAddr, VirtAddr

l5_enabled: u64 = 0
pgdir_shift: u64 = 39
ptrs_per_p4d: u64 = 1
"""The mode. Written once, before any helper runs; folded by default, because code runs before detection."""

PTRS_PER_TABLE: Final = 512
"""Of every table that there is. Static storage is never sized by `ptrs_per_p4d`, which is no constant."""
KERNEL_SLOT: Final = 256
LAST_SLOT: Final = 511
"""The first top entry of the upper half, in both modes, and its last: where the kernel image is."""

PTE_SHIFT: Final = 12
PMD_SHIFT: Final = 21
PUD_SHIFT: Final = 30
P4D_SHIFT: Final = 39
PMD_SIZE: Final = 1 << PMD_SHIFT
PUD_SIZE: Final = 1 << PUD_SHIFT
P4D_SIZE: Final = 1 << P4D_SHIFT

PTE_LEVEL: Final = 1
PMD_LEVEL: Final = 2
PUD_LEVEL: Final = 3

PRESENT: Final = 1 << 0
RW: Final = 1 << 1
USER: Final = 1 << 2
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
PSE: Final = 1 << 7
GLOBAL: Final = 1 << 8
NX: Final = 1 << 63

FRAME_MASK: Final = 0x000F_FFFF_FFFF_F000
"""Bits of an entry that hold an address: 52 bits in both modes. (The proposal had the arms of this swapped and
cut five-level frames at 46 bits, so that their upper bits leaked into the flags.)"""

TABLE: Final = PRESENT | RW | USER | ACCESSED | DIRTY
"""What an entry that points to a table carries; rights are narrowed at the leaf."""

KERNEL_RW: Final = PRESENT | RW | ACCESSED | DIRTY | GLOBAL | NX
KERNEL_RO: Final = PRESENT | ACCESSED | DIRTY | GLOBAL | NX
KERNEL_RX: Final = PRESENT | ACCESSED | DIRTY | GLOBAL
UNCACHED: Final = 0x18
"""PWT and PCD: registers of devices are not cached."""


def set_mode(five_levels: bool) -> None:
    """Set all three numbers of the mode from the one decision."""
    global l5_enabled, pgdir_shift, ptrs_per_p4d
    if five_levels:
        l5_enabled = 1
        pgdir_shift = 48
        ptrs_per_p4d = 512
    else:
        l5_enabled = 0
        pgdir_shift = 39
        ptrs_per_p4d = 1


@inline
def p4d_folded() -> bool:
    """Whether the P4D is a name without a table: the one spelling of that question, here and above this file."""
    return l5_enabled == 0


@inline
def l5_column() -> u64:
    """Column of the mode in a table that has one for each: 0 folded, 1 for five levels."""
    return l5_enabled


@inline
def levels() -> u64:
    """Tables that the CPU reads for a 4 KiB page."""
    return 4 + l5_enabled


@inline
def pgtable_levels_of(five_levels: bool) -> u64:
    """Levels of the mode that CR4.LA57 names."""
    return 4 + u64(five_levels)


@inline
def va_bits() -> u64:
    """Width of a virtual address: canonical tests, sign extension and dumps all use this one."""
    return pgdir_shift + 9


@inline
def max_physmem_bits() -> u64:
    """Physical addresses that this mode's direct map has room for: 46 bits or 52."""
    return 46 + 6 * l5_enabled


@inline
def is_canonical(va: VirtAddr) -> bool:
    """Whether bits 63 to `va_bits` - 1 of *va* are equal."""
    upper = va >> (va_bits() - 1)
    return upper == 0 or upper == (1 << (65 - va_bits())) - 1


@inline
def entry_frame(entry: u64) -> PhysAddr:
    """Physical address in *entry*, which maps a 4 KiB page or a table."""
    return PhysAddr(entry & FRAME_MASK)


@inline
def table_at(entry: u64) -> VirtAddr:
    """Address of the table that *entry* points to."""
    return phys_to_virt(entry_frame(entry))


@inline
def pgd_index(va: VirtAddr) -> u64:
    """Slot of *va* in the top table."""
    return va >> pgdir_shift & 511


@inline
def p4d_index(va: VirtAddr) -> u64:
    """Slot of *va* in its P4D table; 0 when that is folded."""
    return va >> P4D_SHIFT & (ptrs_per_p4d - 1)


@inline
def pud_index(va: VirtAddr) -> u64:
    """Slot of *va* in its PUD table."""
    return va >> PUD_SHIFT & 511


@inline
def pmd_index(va: VirtAddr) -> u64:
    """Slot of *va* in its PMD table."""
    return va >> PMD_SHIFT & 511


@inline
def pte_index(va: VirtAddr) -> u64:
    """Slot of *va* in its PTE table."""
    return va >> PTE_SHIFT & 511


@inline
def pgd_offset(top: VirtAddr, va: VirtAddr) -> VirtAddr:
    """Address of the PGD entry for *va* in the table at *top*."""
    return VirtAddr(top + 8 * pgd_index(va))


@inline
def p4d_offset(pgd: VirtAddr, va: VirtAddr) -> VirtAddr:
    """Address of the P4D entry for *va*: folded, the PGD entry itself."""
    if p4d_folded():
        return pgd
    return VirtAddr(table_at(load64(pgd)) + 8 * p4d_index(va))


@inline
def pud_offset(p4d: VirtAddr, va: VirtAddr) -> VirtAddr:
    """Address of the PUD entry for *va* in the table that the entry at *p4d* points to."""
    return VirtAddr(table_at(load64(p4d)) + 8 * pud_index(va))


@inline
def pmd_offset(pud: VirtAddr, va: VirtAddr) -> VirtAddr:
    """Address of the PMD entry for *va* in the table that the entry at *pud* points to."""
    return VirtAddr(table_at(load64(pud)) + 8 * pmd_index(va))


@inline
def pte_offset(pmd: VirtAddr, va: VirtAddr) -> VirtAddr:
    """Address of the PTE for *va* in the table that the entry at *pmd* points to."""
    return VirtAddr(table_at(load64(pmd)) + 8 * pte_index(va))


@inline
def pgd_none(entry: u64) -> bool:
    """Whether a PGD entry is empty; never when folded, since the question belongs to the P4D then."""
    if p4d_folded():
        return False
    return entry == 0


@inline
def pgd_present(entry: u64) -> bool:
    """Whether a PGD entry is present; always when folded."""
    if p4d_folded():
        return True
    return entry & PRESENT != 0


@inline
def pgd_bad(entry: u64) -> bool:
    """Whether a PGD entry has other flags than a table's; never when folded."""
    if p4d_folded():
        return False
    return table_bad(entry)


@inline
def pgd_leaf(entry: u64) -> bool:
    """Whether a PGD entry maps a page: no CPU has pages of that size."""
    return False


@inline
def set_pgd(pgd: VirtAddr, entry: u64) -> None:
    """Write a PGD entry. Folded, this is the same store as `set_p4d`."""
    store64(pgd, entry)


@inline
def pgd_populate(pgd: VirtAddr, table: PhysAddr) -> None:
    """Link a P4D table; nothing when folded."""
    if not p4d_folded():
        store64(pgd, table | TABLE)


@inline
def pgd_clear(pgd: VirtAddr) -> None:
    """Empty a PGD entry; nothing when folded."""
    if not p4d_folded():
        store64(pgd, 0)


@inline
def p4d_none(entry: u64) -> bool:
    """Whether a P4D entry is empty. The CPU may have set A or D in an empty one (an erratum), so they do not count."""
    return entry & ~(ACCESSED | DIRTY) == 0


@inline
def p4d_present(entry: u64) -> bool:
    """Whether a P4D entry is present; folded, this asks about the top entry."""
    return entry & PRESENT != 0


@inline
def p4d_bad(entry: u64) -> bool:
    """Whether a P4D entry has other flags than a table's."""
    return table_bad(entry)


@inline
def set_p4d(p4d: VirtAddr, entry: u64) -> None:
    """Write a P4D entry: folded, this is the one right way to write the top table."""
    store64(p4d, entry)


@inline
def p4d_populate(p4d: VirtAddr, table: PhysAddr) -> None:
    """Link a PUD table; folded, into the top table."""
    store64(p4d, table | TABLE)


@inline
def p4d_clear(p4d: VirtAddr) -> None:
    """Empty a P4D entry; folded, the top entry."""
    store64(p4d, 0)


@inline
def top_none(entry: u64) -> bool:
    """Whether an entry of the top table is empty, whatever its level is called."""
    if p4d_folded():
        return p4d_none(entry)
    return pgd_none(entry)


@inline
def lower_half_size() -> u64:
    """Bytes of the lower half of the address space."""
    return 1 << (va_bits() - 1)


@inline
def table_bad(entry: u64) -> bool:
    """Whether an entry that should point to a table carries other flags (U/S and NX may differ)."""
    return entry & ~(FRAME_MASK | USER | NX) != TABLE & ~USER


@inline
def entry_none(entry: u64) -> bool:
    """Whether a PUD, PMD or PTE entry is empty, as `p4d_none`."""
    return entry & ~(ACCESSED | DIRTY) == 0


@inline
def entry_present(entry: u64) -> bool:
    """Whether a PUD, PMD or PTE entry is present."""
    return entry & PRESENT != 0


@inline
def entry_large(entry: u64) -> bool:
    """Whether a present PUD or PMD entry maps a page instead of pointing to a table."""
    return entry & PSE != 0


@inline
def level_shift(level: u64) -> u64:
    """Lowest address bit of the index at *level*, counted from 1 for the PTE."""
    return PTE_SHIFT + 9 * (level - 1)


@inline
def pgd_size() -> u64:
    """Bytes behind one top entry; 512 GiB when folded, 256 TiB otherwise."""
    return 1 << pgdir_shift


@inline
def clear_table(table: VirtAddr) -> None:
    """Empty all entries of a table."""
    fill64(table, 0, PAGE_SIZE // 8)
