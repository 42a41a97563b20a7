"""Address spaces of processes [proposal: part 4, and what Linux made of it].

With five levels a process could have 2^56 bytes. Programs that put tags into the top bits of pointers would break, so
no process gets an address above the 47-bit window unasked: a hint above the window opens the rest. The stack stays
in the window in both modes. The last page below the hole is never mapped: a system call there would return to an
address that is not canonical.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging import memblock, sync
from fivefold.kernel.paging.free import free_range
from fivefold.kernel.paging.mapping import lookup, map_page
from fivefold.kernel.paging.memblock import allocate_page, allocate_table, free_page, free_table
from fivefold.kernel.paging.pgtable import NX, PRESENT, RW, USER, entry_frame, lower_half_size
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.metal.lang import buffer, copy64, fill64, load64, noinline, store64, u64
from fivefold.units import PhysAddr, VirtAddr

MAX_SPACES: Final = 16
MAX_MAPPINGS: Final = 30
SPACE_SIZE: Final = 512
ROOT: Final = 0
COUNT: Final = 8
MAPPINGS: Final = 32
"""A space: its root's physical address, how many mappings it has, and those as ascending ranges."""
spaces: Final = buffer(MAX_SPACES * SPACE_SIZE, 64)

NONE: Final = (1 << 64) - 1
"""No address; no space."""

DEFAULT_WINDOW: Final = (1 << 47) - PAGE_SIZE
"""End of what is given without asking, in both modes: also where the stack ends."""
STACK_GAP: Final = 128 << 20
LOWEST: Final = 0x10000

USER_RW: Final = PRESENT | RW | USER | NX
USER_RX: Final = PRESENT | USER


def task_size_max() -> VirtAddr:
    """Exclusive end of what a process may map: one page below the end of the lower half."""
    return VirtAddr(lower_half_size() - PAGE_SIZE)


def stack_top() -> VirtAddr:
    """Where a process' stack starts to grow down: in the window, so that old programs see no high address."""
    return VirtAddr(DEFAULT_WINDOW)


def space_at(number: u64) -> u64:
    """Address of a space's record."""
    return spaces + SPACE_SIZE * number


def root_of(number: u64) -> PhysAddr:
    """Physical address of a space's top table."""
    return PhysAddr(load64(space_at(number) + ROOT))


def top_of(number: u64) -> VirtAddr:
    """The same, as the direct map shows it."""
    return phys_to_virt(root_of(number))


@noinline
def create(reference: VirtAddr) -> u64:
    """Make a space with the kernel's half of *reference* and nothing else; `NONE` without memory or room."""
    for number in range(MAX_SPACES):
        if load64(space_at(number) + ROOT) == 0:
            root = allocate_table()
            if root == 0:
                return NONE
            if not sync.add_space(root):
                free_table(root)
                return NONE
            store64(space_at(number) + ROOT, root)
            store64(space_at(number) + COUNT, 0)
            sync.sync_kernel(reference)
            return number
    return NONE


@noinline
def destroy(number: u64) -> None:
    """Give back all that a space had. It is not in use on any CPU."""
    mappings = space_at(number) + MAPPINGS
    for i in range(load64(space_at(number) + COUNT)):
        start = memblock.range_start(mappings, i)
        free_range(top_of(number), VirtAddr(start), memblock.range_end(mappings, i) - start)
    sync.remove_space(root_of(number))
    free_table(root_of(number))
    store64(space_at(number) + ROOT, 0)


def meets_mapping(number: u64, start: u64, end: u64) -> u64:
    """Start of the highest mapping that [start, end) meets, or `NONE`."""
    mappings = space_at(number) + MAPPINGS
    count = load64(space_at(number) + COUNT)
    found = NONE
    for i in range(count):
        if memblock.range_start(mappings, i) < end and memblock.range_end(mappings, i) > start:
            found = memblock.range_start(mappings, i)
    return found


def highest_free(number: u64, size: u64, limit: u64) -> u64:
    """Highest free place for *size* bytes that ends at *limit* or below; `NONE` if there is none."""
    end = limit
    while end >= LOWEST and size <= end - LOWEST:
        taken = meets_mapping(number, end - size, end)
        if taken == NONE:
            return end - size
        end = taken
    return NONE


def hint_is_honoured(hint: u64, size: u64) -> bool:
    """Whether a hint may be taken as it is: all in bounds, and not across the end of the window."""
    if hint < LOWEST or size > task_size_max() or hint > task_size_max() - size:
        return False
    return (hint > DEFAULT_WINDOW) == (hint + size > DEFAULT_WINDOW)


@noinline
def choose_address(number: u64, hint: u64, size: u64, fixed: bool) -> u64:
    """Where a mapping of *size* bytes goes; `NONE` if nowhere. *hint* 0 means anywhere; the rest is Linux' mmap.

    But a *fixed* place that is taken is refused: nothing is unmapped on the way.
    """
    hint = hint & ~(PAGE_SIZE - 1)
    if size == 0:
        return NONE
    if fixed:
        in_bounds = hint >= LOWEST and size <= task_size_max() and hint <= task_size_max() - size
        return hint if in_bounds and meets_mapping(number, hint, hint + size) == NONE else NONE
    if hint != 0 and hint_is_honoured(hint, size) and meets_mapping(number, hint, hint + size) == NONE:
        return hint
    high = hint > DEFAULT_WINDOW and task_size_max() > DEFAULT_WINDOW
    return highest_free(number, size, (u64(task_size_max()) if high else DEFAULT_WINDOW) - STACK_GAP)


@noinline
def map_memory(number: u64, hint: u64, size: u64, fixed: bool, protection: u64) -> u64:
    """Map *size* bytes of cleared memory where `choose_address` says; return the address or `NONE`."""
    va = choose_address(number, hint, size, fixed)
    count = load64(space_at(number) + COUNT)
    if va == NONE or count >= MAX_MAPPINGS:
        return NONE
    done = u64(0)
    while done < size:
        if not map_fresh(number, VirtAddr(va + done), protection):
            # With the page that could not be mapped: the tables on its way may have been made.
            free_range(top_of(number), VirtAddr(va), done + PAGE_SIZE)
            return NONE
        done += PAGE_SIZE
    mappings = space_at(number) + MAPPINGS
    store64(space_at(number) + COUNT, memblock.insert(mappings, count, va, va + size, MAX_MAPPINGS))
    return va


def map_fresh(number: u64, va: VirtAddr, protection: u64) -> bool:
    """Map one cleared page; False without memory, and then nothing is lost."""
    page = allocate_page()
    if page == 0:
        return False
    fill64(phys_to_virt(page), 0, PAGE_SIZE // 8)
    if map_page(top_of(number), va, page, protection):
        return True
    free_page(page)
    return False


@noinline
def duplicate(number: u64, reference: VirtAddr) -> u64:
    """Copy a space with all its memory; `NONE` without memory, and then nothing is left behind."""
    made = create(reference)
    if made == NONE:
        return NONE
    mappings = space_at(number) + MAPPINGS
    for i in range(load64(space_at(number) + COUNT)):
        start = memblock.range_start(mappings, i)
        if not copy_mapping(number, made, start, memblock.range_end(mappings, i)):
            destroy(made)
            return NONE
    return made


def copy_mapping(number: u64, made: u64, start: u64, end: u64) -> bool:
    """Map copies of the pages in [start, end) with the same rights."""
    count = load64(space_at(made) + COUNT)
    store64(space_at(made) + COUNT, memblock.insert(space_at(made) + MAPPINGS, count, start, end, MAX_MAPPINGS))
    va = start
    while va < end:
        entry = lookup(top_of(number), VirtAddr(va))
        page = allocate_page()
        if page == 0:
            return False
        copy64(phys_to_virt(page), phys_to_virt(entry_frame(entry)), PAGE_SIZE // 8)
        if not map_page(top_of(made), VirtAddr(va), page, entry & (USER_RW | USER_RX)):
            free_page(page)
            return False
        va += PAGE_SIZE
    return True


def write_page(number: u64, va: VirtAddr, source: u64, words: u64) -> None:
    """Copy *words* 64-bit words into a page of a space, through the direct map."""
    copy64(phys_to_virt(entry_frame(lookup(top_of(number), va))), source, words)
