"""Memory at its own address: what another kernel is entered on [proposal: part 6].

With five levels the top entry leads to a P4D table; folded it leads to the PUD table, and no page is taken for the
level that is not there. The helpers do that; nothing here asks for the mode.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.paging import memblock
from fivefold.kernel.paging.mapping import map_range, p4d_free
from fivefold.kernel.paging.memblock import allocate_table, free_table
from fivefold.kernel.paging.pgtable import (
    KERNEL_SLOT,
    P4D_SIZE,
    PRESENT,
    PTRS_PER_TABLE,
    RW,
    entry_frame,
    entry_large,
    p4d_clear,
    p4d_none,
    p4d_offset,
    pgd_clear,
    pgd_index,
    pgd_none,
    pgd_size,
    table_at,
)
from fivefold.kernel.paging.phys import phys_to_virt
from fivefold.metal.lang import load64, noinline, store64, u64
from fivefold.units import PhysAddr, VirtAddr

PROTECTION: Final = PRESENT | RW
"""Executable, since the next kernel's first instructions run there, and not global, since it goes away."""


@noinline
def ident_map(top: VirtAddr, start: PhysAddr, end: PhysAddr, largest: u64) -> bool:
    """Add [start, end), whole pages, to the identity map; False without memory for tables."""
    return map_range(top, VirtAddr(start), start, end - start, PROTECTION, largest) == 0


@noinline
def map_all_memory(largest: u64) -> PhysAddr:
    """A new top table with all of memory at its own address; 0 without memory for tables."""
    root = allocate_table()
    if root == 0:
        return root
    done = True
    for i in range(memblock.memory_count):
        start = PhysAddr(memblock.range_start(memblock.memory, i))
        done = ident_map(phys_to_virt(root), start, PhysAddr(memblock.range_end(memblock.memory, i)), largest) and done
    if done:
        return root
    discard(root)
    return PhysAddr(0)


@noinline
def discard(root: PhysAddr) -> None:
    """Give back the tables of an identity map, and none of the memory that it shows."""
    top = phys_to_virt(root)
    last = memblock.end_of_memory()
    va = u64(0)
    while va < last:
        pgd = top + 8 * pgd_index(VirtAddr(va))
        if not pgd_none(load64(pgd)):
            discard_p4ds(VirtAddr(pgd), va, min(last, va + pgd_size()))
        va += pgd_size()
    free_table(root)


@noinline
def discard_p4ds(pgd: VirtAddr, start: u64, end: u64) -> None:
    """Give back what one PGD entry leads to; the entries below it are cleared first."""
    va = start
    while va < end:
        p4d = p4d_offset(pgd, VirtAddr(va))
        if not p4d_none(load64(p4d)):
            entry = load64(p4d)
            p4d_clear(p4d)
            discard_tables(table_at(entry), 2)
            free_table(entry_frame(entry))
        va += P4D_SIZE
    table = entry_frame(load64(pgd))
    pgd_clear(pgd)
    p4d_free(table)


def discard_tables(table: VirtAddr, levels_below: u64) -> None:
    """Give back the tables below a PUD table (2 levels below it) or a PMD table (1)."""
    for i in range(PTRS_PER_TABLE):
        entry = load64(table + 8 * i)
        if entry & PRESENT != 0 and not entry_large(entry):
            if levels_below == 2:
                discard_leaves(table_at(entry))
            store64(table + 8 * i, 0)
            free_table(entry_frame(entry))


@noinline
def discard_leaves(pmd: VirtAddr) -> None:
    """Give back the PTE tables below a PMD table."""
    for i in range(PTRS_PER_TABLE):
        entry = load64(pmd + 8 * i)
        if entry & PRESENT != 0 and not entry_large(entry):
            store64(pmd + 8 * i, 0)
            free_table(entry_frame(entry))


@noinline
def add_kernel_half(top: VirtAddr, reference: VirtAddr) -> None:
    """Show the running kernel too, so that it can load these tables and go on to its last jump."""
    for slot in range(KERNEL_SLOT, PTRS_PER_TABLE):
        store64(top + 8 * slot, load64(reference + 8 * slot))


@noinline
def prepare_root(top: VirtAddr, largest: u64) -> None:
    """Build the root that a jump to another kernel would be made on, and report it; it stays for a look from outside.

    It shows all memory at its own address, and the running kernel's half below *top*.
    """
    before = memblock.table_pages
    root = map_all_memory(largest)
    if root != 0:
        add_kernel_half(phys_to_virt(root), top)
    report.set_word(report.W_HANDOVER_ROOT, root)
    report.set_word(report.W_HANDOVER_TABLES, memblock.table_pages - before)
