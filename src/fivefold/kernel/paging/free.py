"""Tear page tables down: a range of pages, or everything that a process had [proposal: parts 5 and 6].

A table is given back after the entry that led to it is cleared, and after every CPU has dropped what it remembers of
it: here no CPU uses a tree that is torn down. The same statements run in both modes: folded, `pgd_clear` does nothing
and `p4d_free` frees nothing, and the PUD table that hangs on the top entry is freed once, as a P4D entry's. The top
level is cleared last.
"""

from __future__ import annotations

from fivefold.kernel.paging.mapping import p4d_free
from fivefold.kernel.paging.memblock import free_page, free_table
from fivefold.kernel.paging.pgtable import (
    FRAME_MASK,
    P4D_SIZE,
    PMD_SIZE,
    PRESENT,
    PTRS_PER_TABLE,
    PUD_SIZE,
    entry_frame,
    entry_large,
    p4d_clear,
    p4d_folded,
    p4d_none,
    p4d_offset,
    pgd_clear,
    pgd_none,
    pgd_offset,
    pgd_size,
    pmd_offset,
    pte_offset,
    pud_offset,
    table_at,
)
from fivefold.kernel.paging.phys import PAGE_SIZE
from fivefold.metal.lang import inline, load64, noinline, store64, u64
from fivefold.units import PhysAddr, VirtAddr


@inline
def span_end(va: u64, end: u64, size: u64) -> u64:
    """Where the entry of *va*, which spans *size* bytes, ends, or *end* if that comes first."""
    return min((va & ~(size - 1)) + size, end)


@noinline
def is_empty(table: VirtAddr) -> bool:
    """Whether nothing is in a table."""
    used = u64(0)
    for i in range(PTRS_PER_TABLE):
        used |= load64(table + 8 * i)
    return used == 0


def drop_table(entry: VirtAddr) -> None:
    """Clear *entry* and give back the table that it led to, if that is empty.

    TLB: nothing is flushed here. All that is freed in this file is of a root that no CPU has loaded, or has loaded CR3
    since, and has no global leaf (`free_range`).
    """
    value = load64(entry)
    if is_empty(table_at(value)):
        store64(entry, 0)
        free_table(entry_frame(value))


@noinline
def free_ptes(pmd: VirtAddr, start: u64, end: u64) -> None:
    """Give back the pages of [start, end) below one PMD entry, and its table when that is empty."""
    va = start
    while va < end:
        pte = pte_offset(pmd, VirtAddr(va))
        entry = load64(pte)
        if entry & PRESENT != 0:
            store64(pte, 0)
            free_page(PhysAddr(entry & FRAME_MASK))
        va += PAGE_SIZE
    drop_table(pmd)


@noinline
def free_pmds(pud: VirtAddr, start: u64, end: u64) -> None:
    """Free the pages of [start, end) below one PUD entry, and the tables that become empty."""
    va = start
    while va < end:
        stop = span_end(va, end, PMD_SIZE)
        pmd = pmd_offset(pud, VirtAddr(va))
        if load64(pmd) & PRESENT != 0 and not entry_large(load64(pmd)):
            free_ptes(pmd, va, stop)
        va = stop
    drop_table(pud)


@noinline
def free_puds(p4d: VirtAddr, start: u64, end: u64) -> None:
    """Free the pages of [start, end) below one P4D entry (folded: the top entry), and the tables that become empty."""
    va = start
    while va < end:
        stop = span_end(va, end, PUD_SIZE)
        pud = pud_offset(p4d, VirtAddr(va))
        if load64(pud) & PRESENT != 0 and not entry_large(load64(pud)):
            free_pmds(pud, va, stop)
        va = stop
    value = load64(p4d)
    if is_empty(table_at(value)):
        p4d_clear(p4d)
        free_table(entry_frame(value))


@noinline
def free_p4ds(pgd: VirtAddr, start: u64, end: u64) -> None:
    """Free the pages of [start, end) below one PGD entry, and the tables that become empty.

    Its P4D table is one of them only where the level is not folded.
    """
    va = start
    while va < end:
        stop = span_end(va, end, P4D_SIZE)
        p4d = p4d_offset(pgd, VirtAddr(va))
        if not p4d_none(load64(p4d)):
            free_puds(p4d, va, stop)
        va = stop
    value = load64(pgd)
    if not pgd_none(value) and is_p4d_table_empty(value):
        pgd_clear(pgd)
        p4d_free(entry_frame(value))


def is_p4d_table_empty(pgd_value: u64) -> bool:
    """Whether the table behind a PGD entry is empty; folded there is none, and the entry may be empty itself."""
    return not p4d_folded() and is_empty(table_at(pgd_value))


@noinline
def free_range(top: VirtAddr, start: VirtAddr, size: u64) -> None:
    """Give back all 4 KiB pages in a range of the lower half, and every table that becomes empty.

    No CPU may have *top* loaded: then neither its TLB nor its paging-structure caches lead to what is freed, since each
    load of CR3 drops both for all that is not global (docs/tlb.md).
    """
    va = u64(start)
    end = start + size
    while va < end:
        stop = span_end(va, end, pgd_size())
        pgd = pgd_offset(top, VirtAddr(va))
        if load64(pgd) & PRESENT != 0:
            free_p4ds(pgd, va, stop)
        va = stop
