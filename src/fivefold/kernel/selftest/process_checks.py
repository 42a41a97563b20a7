"""Checks of what processes need: spaces, a current kernel half, programs in ring 3, and nothing lost at the end."""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.paging import layout, memblock, phys, sync
from fivefold.kernel.paging.cpu import write_cr3
from fivefold.kernel.paging.mapping import lookup
from fivefold.kernel.paging.pgtable import KERNEL_RW, KERNEL_SLOT, PTE_LEVEL, entry_frame, pgd_index, pgd_size, va_bits
from fivefold.kernel.paging.phys import PAGE_SIZE, kernel_to_phys, phys_to_virt
from fivefold.kernel.process import program, syscall, traps, user
from fivefold.kernel.report import equals
from fivefold.metal.lang import load64, noinline, store64, symbol, u64
from fivefold.units import PhysAddr, VirtAddr

CALLS: Final = 5
SUM: Final = CALLS * (CALLS + 1) // 2 + CALLS
"""What the program exits with: 1 + 2 + … and one more for each."""
WINDOW: Final = user.DEFAULT_WINDOW


def check_processes(top: VirtAddr) -> None:
    """All of it; the ledger of pages must balance around it."""
    tables = memblock.table_pages
    pages = memblock.data_pages
    check_create(top)
    check_rules(top)
    check_programs(top)
    check_sync(top)
    equals("free_pages_balance", memblock.data_pages, pages + GROWN_PAGES)
    equals("free_tables_balance", memblock.table_pages, tables + grown)


@noinline
def check_create(top: VirtAddr) -> None:
    """A new space has the kernel's half and an empty lower one; torn down, it leaves nothing."""
    before = memblock.table_pages + memblock.data_pages
    made = user.create(top)
    report.check("user_create", made != user.NONE, made, 0)
    same = True
    for slot in range(KERNEL_SLOT, sync.END_SLOT):
        expected = u64(0) if sync.is_private(slot) else load64(top + 8 * slot)
        same = same and load64(user.top_of(made) + 8 * slot) == expected
    report.check("user_kernel_half", same, u64(same), 1)
    empty = True
    for slot in range(KERNEL_SLOT):
        empty = empty and load64(user.top_of(made) + 8 * slot) == 0
    report.check("user_lower_half_empty", empty, u64(empty), 1)
    user.map_memory(made, 0, 4 * PAGE_SIZE, False, user.USER_RW)
    user.map_memory(made, u64(user.task_size_max()) - 2 * PAGE_SIZE, PAGE_SIZE, True, user.USER_RW)
    copy = user.duplicate(made, top)
    check_duplicate(made, copy)
    user.destroy(copy)
    user.destroy(made)
    equals("free_space", memblock.table_pages + memblock.data_pages, before)


@noinline
def check_duplicate(space: u64, copy: u64) -> None:
    """A copy has the same mappings and other pages."""
    mappings = user.space_at(space) + user.MAPPINGS
    va = VirtAddr(memblock.range_start(mappings, 0))
    one = lookup(user.top_of(space), va)
    other = lookup(user.top_of(copy), va)
    report.check("user_copy", one != 0 and other & ~0x000F_FFFF_FFFF_F000 == one & ~0x000F_FFFF_FFFF_F000, other, one)
    report.check("user_copy_has_own_pages", entry_frame(one) != entry_frame(other), other, one)


@noinline
def check_rules(top: VirtAddr) -> None:
    """Who gets an address above the 47-bit window, and who does not."""
    made = user.create(top)
    high = user.task_size_max() > WINDOW
    page = u64(PAGE_SIZE)
    equals("user_hint_below_window", user.choose_address(made, WINDOW - page, page, False), WINDOW - page)
    straddling = user.choose_address(made, WINDOW - page, 2 * page, False)
    report.check("user_hint_across_window", straddling < WINDOW - 2 * page, straddling, WINDOW)
    at_end = user.choose_address(made, WINDOW, page, False)
    report.check("user_hint_at_window", at_end < WINDOW, at_end, WINDOW)
    above = user.choose_address(made, 1 << 47, page, False)
    report.check("user_hint_above_window", above == 1 << 47 if high else above < WINDOW, above, 1 << 47)
    last = u64(user.task_size_max()) - page
    equals("user_hint_last_page", user.choose_address(made, last, page, False), last)
    anywhere = user.choose_address(made, user.NONE, page, False)
    report.check("user_hint_all_ones", (anywhere >= WINDOW) == high, anywhere, WINDOW)
    plain = user.choose_address(made, 0, page, False)
    report.check("user_no_hint", plain < WINDOW, plain, WINDOW)
    half = u64(1) << (va_bits() - 1)
    equals("user_fixed_beyond_end", user.choose_address(made, half - page, page, True), user.NONE)
    equals("user_stack_top", user.stack_top(), WINDOW)
    user.destroy(made)


@noinline
def check_programs(top: VirtAddr) -> None:
    """Programs at both ends of the window, and with five levels of the rest, make system calls and come back."""
    adder = symbol("user_program")
    low = u64(user.LOWEST)
    if report.get_word(report.W_SYSCALL_STAYS) == report.NO_SYSCALL:
        report.skip("user_program", "the CPU has no SYSCALL")
        report.skip("syscall", "the CPU has no SYSCALL")
        return
    result = program.run(top, low, low + 8 * PAGE_SIZE, adder, CALLS)
    if report.get_word(report.W_SYSCALL_STAYS) != 0:
        report.skip("user_program", "SYSCALL does not leave ring 3 on this machine")
        report.skip("syscall", "SYSCALL does not leave ring 3 on this machine")
        return
    equals("user_program_low", result, SUM)
    equals("user_program_window_end", program.run(top, WINDOW - PAGE_SIZE, low + PAGE_SIZE, adder, CALLS), SUM)
    equals("user_stack_window_end", program.run(top, low, u64(user.stack_top()), adder, CALLS), SUM)
    last = u64(user.task_size_max()) - PAGE_SIZE
    equals("user_program_last_page", program.run(top, last, low + PAGE_SIZE, adder, CALLS), SUM)
    equals("syscall_fast_returns", syscall.fast_returns, 4 * CALLS)
    touch = symbol("user_touch")
    denied = traps.outcome(traps.PAGE_FAULT, 5)
    kernel = program.run(top, low, low + 8 * PAGE_SIZE, touch, symbol("_text"))
    equals("user_cannot_read_kernel", kernel, denied)
    memory = program.run(top, low, low + 8 * PAGE_SIZE, touch, phys_to_virt(kernel_to_phys(VirtAddr(symbol("_text")))))
    equals("user_cannot_read_direct_map", memory, denied)
    check_bad_return(top, low)


@noinline
def check_bad_return(top: VirtAddr, low: u64) -> None:
    """A return to an address that is not canonical takes the safe path, and ends the program and nothing else."""
    jumper = symbol("user_jumper")
    before = syscall.safe_returns
    half = u64(1) << (va_bits() - 1)
    end = program.run(top, low, low + 8 * PAGE_SIZE, jumper, half)
    equals("syscall_safe_path", syscall.safe_returns, before + 1)
    report.check("syscall_safe_path_taken", traps.left_rcx != half, traps.left_rcx, low)
    equals("syscall_bad_return_survived", end & traps.PROBE_FAULTED, traps.PROBE_FAULTED)
    fast = syscall.fast_returns
    end = program.run(top, low, low + 8 * PAGE_SIZE, jumper, half - PAGE_SIZE)
    equals("syscall_canonical_is_fast", syscall.fast_returns, fast + 1)
    equals("syscall_fast_path_taken", traps.left_rcx, half - PAGE_SIZE)
    equals("syscall_unmapped_return", end, traps.outcome(traps.PAGE_FAULT, 0x14))


GROWTH: Final = 2
"""Top entries above vmalloc's first: nothing is there yet."""
GROWN_PAGES: Final = 1
"""The page of the grown area, which stays."""
grown: u64 = 0
"""Tables that the growing area took and keeps."""


@noinline
def check_sync(top: VirtAddr) -> None:
    """An area grows into a top entry that no space has yet: every space sees it, without a fault."""
    global grown
    before = memblock.table_pages
    made = user.create(top)
    page = memblock.allocate_page()
    va = VirtAddr((layout.vmalloc_base & ~(pgd_size() - 1)) + GROWTH * pgd_size())
    slot = pgd_index(va)
    equals("sync_slot_was_empty", load64(top + 8 * slot), 0)
    left = sync.map_kernel(top, va, page, PAGE_SIZE, KERNEL_RW, PTE_LEVEL)
    equals("sync_mapped", left, 0)
    equals("sync_copied", load64(user.top_of(made) + 8 * slot), load64(top + 8 * slot))
    write_cr3(user.root_of(made))
    store64(va, 0x57)
    write_cr3(PhysAddr(top - phys.phys_window))
    equals("sync_seen_in_both", load64(va), 0x57)
    store64(va, 0)
    equals(
        "sync_private_not_shared", u64(sync.is_private(pgd_index(VirtAddr(layout.AREAS[0].start[layout.column()])))), 1
    )
    user.destroy(made)
    grown = memblock.table_pages - before
