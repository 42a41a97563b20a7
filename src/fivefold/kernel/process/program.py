"""Programs of ring 3: run one in a space of its own, and start the process that stays."""

from __future__ import annotations

from fivefold.kernel import report
from fivefold.kernel.paging import phys
from fivefold.kernel.paging.cpu import write_cr3
from fivefold.kernel.paging.pgtable import levels
from fivefold.kernel.paging.phys import PAGE_SIZE
from fivefold.kernel.process import syscall, user
from fivefold.metal.lang import noinline, symbol, u64
from fivefold.units import PhysAddr, VirtAddr


@noinline
def load(top: VirtAddr, code: u64, stack: u64) -> u64:
    """Make a space with the programs of the image in page *code* and one page of stack that ends at *stack*."""
    made = user.create(top)
    user.map_memory(made, code, PAGE_SIZE, True, user.USER_RX)
    user.map_memory(made, stack - PAGE_SIZE, PAGE_SIZE, True, user.USER_RW)
    start = symbol("user_program")
    user.write_page(made, VirtAddr(code), start, (symbol("user_program_end") - start) // 8)
    return made


@noinline
def enter(top: VirtAddr, space: u64, code: u64, stack: u64, entry: u64, argument: u64) -> u64:
    """Run the program at *entry* of the image, whose copy lies in page *code* of *space*; return its result."""
    write_cr3(user.root_of(space))
    at = VirtAddr(code + (entry - symbol("user_program")))
    result = syscall.enter_user(at, VirtAddr(stack), argument)
    write_cr3(PhysAddr(top - phys.phys_window))  # TLB: user leaves are not global, so the space can be torn down now
    return result


@noinline
def run(top: VirtAddr, code: u64, stack: u64, entry: u64, argument: u64) -> u64:
    """Run the program at *entry* of the image in a space of its own, which is gone afterwards; return its result."""
    space = load(top, code, stack)
    result = enter(top, space, code, stack, entry, argument)
    user.destroy(space)
    return result


@noinline
def start_first(top: VirtAddr) -> u64:
    """Make the process that stays, with one page of memory, and report its root; return its space."""
    made = user.create(top)
    user.map_memory(made, user.LOWEST, PAGE_SIZE, True, user.USER_RW)
    report.set_word(report.W_USER_ROOT, user.root_of(made))
    report.set_word(report.W_USER_TABLES, tables_of_one_page())
    return made


def tables_of_one_page() -> u64:
    """Tables of a space with one page: one for each level, the root included."""
    return levels()
