"""Map ranges: the one loop that builds every kernel mapping, at the largest page that fits.

Refuses to overwrite, writes a table before the entry that points to it, and counts what
is left instead of comparing with an end, so a range may reach the end of the address space.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging.memblock import allocate_table, free_table
from fivefold.kernel.paging.pgtable import (
    PMD_LEVEL,
    PRESENT,
    PSE,
    PTE_LEVEL,
    PTRS_PER_TABLE,
    PUD_LEVEL,
    entry_large,
    entry_present,
    level_shift,
    p4d_folded,
    p4d_none,
    p4d_offset,
    p4d_populate,
    pgd_none,
    pgd_offset,
    pgd_populate,
    pmd_offset,
    pte_offset,
    pud_offset,
)
from fivefold.metal.lang import inline, load64, noinline, store64, u64
from fivefold.units import PhysAddr, VirtAddr

NO_ENTRY: Final = 0

mapped_4k: u64 = 0
mapped_2m: u64 = 0
mapped_1g: u64 = 0
"""Pages of each size that `map_range` made."""


top_changed: bool = False
"""Whether an entry of a top table was made since this was cleared: other address spaces lack it then."""


@inline
def link_table(entry: VirtAddr) -> bool:
    """Make a P4D, PUD or PMD entry point to a table; False without memory, or where a page is mapped."""
    value = load64(entry)
    if entry_present(value):
        return not entry_large(value)
    table = allocate_table()
    if table == 0:
        return False
    p4d_populate(entry, table)
    return True


@inline
def link_p4d(pgd: VirtAddr) -> bool:
    """Make sure that a PGD entry points to a P4D table; there is nothing to do when it is folded."""
    global top_changed
    if not pgd_none(load64(pgd)):
        return True
    table = allocate_table()
    if table == 0:
        return False
    pgd_populate(pgd, table)
    top_changed = True
    return True


@inline
def p4d_free(table: PhysAddr) -> None:
    """Give back a P4D table. Folded there is none: a PGD entry leads to a PUD table, which is freed as that."""
    if not p4d_folded():
        free_table(table)


@inline
def entry_for(top: VirtAddr, va: VirtAddr, level: u64) -> VirtAddr:
    """Address of the entry for *va* at *level* (1 to 3), the tables above it made; `NO_ENTRY` if they cannot be."""
    global top_changed
    pgd = pgd_offset(top, va)
    if not link_p4d(pgd):
        return VirtAddr(NO_ENTRY)
    p4d = p4d_offset(pgd, va)
    if p4d_folded() and p4d_none(load64(p4d)):
        top_changed = True
    if not link_table(p4d):
        return VirtAddr(NO_ENTRY)
    pud = pud_offset(p4d, va)
    if level == PUD_LEVEL:
        return pud
    if not link_table(pud):
        return VirtAddr(NO_ENTRY)
    pmd = pmd_offset(pud, va)
    if level == PMD_LEVEL:
        return pmd
    if not link_table(pmd):
        return VirtAddr(NO_ENTRY)
    return pte_offset(pmd, va)


@inline
def page_level(va: VirtAddr, pa: PhysAddr, size: u64, largest: u64) -> u64:
    """Largest level, at most *largest*, whose pages fit the alignment of both addresses and *size*."""
    low = va | pa
    if largest >= PUD_LEVEL and low & ((1 << 30) - 1) == 0 and size >> 30 != 0:
        return PUD_LEVEL
    if largest >= PMD_LEVEL and low & ((1 << 21) - 1) == 0 and size >> 21 != 0:
        return PMD_LEVEL
    return PTE_LEVEL


def count_pages(level: u64, pages: u64) -> None:
    """Add to the statistics."""
    global mapped_4k, mapped_2m, mapped_1g
    if level == PTE_LEVEL:
        mapped_4k += pages
    elif level == PMD_LEVEL:
        mapped_2m += pages
    else:
        mapped_1g += pages


@noinline
def map_range(top: VirtAddr, va: VirtAddr, pa: PhysAddr, size: u64, protection: u64, largest: u64) -> u64:
    """Map *size* bytes (whole pages); return how many could not be: 0 when all is well.

    Stops at the first entry that is in use, and when memory for tables runs out.
    """
    left = size
    while left != 0:
        level = page_level(va, pa, left, largest)
        entry = entry_for(top, va, level)
        if entry == NO_ENTRY:
            return left
        done = fill_run(entry, va, pa, left, leaf_bits(protection, level), level, largest)
        if done == 0:
            return left
        va = VirtAddr(va + done)
        pa = PhysAddr(pa + done)
        left -= done
    return 0


@inline
def leaf_bits(protection: u64, level: u64) -> u64:
    """Flags of a leaf at *level*: above the PTE it needs the page-size bit."""
    return protection if level == PTE_LEVEL else protection | PSE


def fill_run(entry: VirtAddr, va: VirtAddr, pa: PhysAddr, left: u64, flags: u64, level: u64, largest: u64) -> u64:
    """Write leaves from *entry* to the end of its table or range, or to where a larger page fits; return the bytes."""
    shift = level_shift(level)
    span = 1 << shift
    # By the index, not the entry's address: on the host, tables need not lie at multiples of their size.
    room = PTRS_PER_TABLE - (va >> shift & (PTRS_PER_TABLE - 1))
    done = 0
    while left - done >= span:
        if entry_present(load64(entry)):
            break
        store64(entry, pa + done | flags)
        done += span
        entry = VirtAddr(entry + 8)
        room -= 1
        if room == 0:
            break
        if level < largest and page_level(VirtAddr(va + done), PhysAddr(pa + done), left - done, largest) > level:
            break
    count_pages(level, done >> shift)
    return done


@noinline
def map_page(top: VirtAddr, va: VirtAddr, pa: PhysAddr, protection: u64) -> bool:
    """Map one 4 KiB page; False if the place is taken or there is no memory for tables."""
    entry = entry_for(top, va, PTE_LEVEL)
    if entry == NO_ENTRY or entry_present(load64(entry)):
        return False
    store64(entry, pa | protection)
    return True


def pte_of(top: VirtAddr, va: VirtAddr) -> VirtAddr:
    """Return the address of the PTE of *va*; all tables above it must be there."""
    return pte_offset(pmd_offset(pud_offset(p4d_offset(pgd_offset(top, va), va), va), va), va)


@noinline
def lookup(top: VirtAddr, va: VirtAddr) -> u64:
    """Return the leaf entry that maps *va*, 0 if none does: what is not present maps nothing, whatever it holds."""
    pgd = pgd_offset(top, va)
    if pgd_none(load64(pgd)):
        return 0
    p4d = p4d_offset(pgd, va)
    if p4d_none(load64(p4d)):
        return 0
    pud = pud_offset(p4d, va)
    if load64(pud) & PRESENT == 0 or entry_large(load64(pud)):
        return if_present(load64(pud))
    pmd = pmd_offset(pud, va)
    if load64(pmd) & PRESENT == 0 or entry_large(load64(pmd)):
        return if_present(load64(pmd))
    return if_present(load64(pte_offset(pmd, va)))


def if_present(entry: u64) -> u64:
    """Return *entry*, 0 if it is not present."""
    return entry if entry & PRESENT != 0 else u64(0)
