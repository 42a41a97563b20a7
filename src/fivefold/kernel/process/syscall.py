"""System calls, and the way back to a return address that may be anything [proposal: part 7].

SYSRET to an address that is not canonical faults in ring 0, on Intel, with the user's stack pointer: an attack. So
before it the return address is tested with the width of the mode, and if it is not canonical the safe path is taken:
IRET. The width depends on the mode, at run time; the proposal fixed it at 57 bits, which with four levels let
non-canonical addresses through.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.boot.detect import cpu_has_syscall
from fivefold.kernel.paging.cpu import EFER_SCE, MSR_EFER, MSR_FMASK, MSR_LSTAR, MSR_STAR, write_msr
from fivefold.kernel.paging.pgtable import is_canonical
from fivefold.kernel.process import traps, user
from fivefold.kernel.process.traps import FRAME_RIP, KERNEL_CS
from fivefold.metal.lang import address_of, buffer, extern, load64, rdmsr, store64, symbol, u64
from fivefold.units import VirtAddr

USER_BASE: Final = 0x38 | 3
"""SYSRET takes CS from this plus 16, SS from this plus 8."""
FLAGS_CLEARED: Final = 0x4_7700
"""AC, IOPL, NT, DF, IF, TF: what a system call starts without."""

SYS_EXIT: Final = 0
SYS_ADD: Final = 1
SYS_SET_RETURN: Final = 2
SYS_READ: Final = 3
"""Exit with a value; return the argument plus one; return to the argument instead of to the caller; return the word at
the argument."""
NOTHING: Final = (1 << 64) - 1
"""What `SYS_READ` returns where there is no memory of the program's."""
word: Final = buffer(8)

FRAME_NUMBER: Final = 112
FRAME_ARGUMENT: Final = 64
"""A system call's frame is laid out as a trap's: its number is in RAX, its argument in RDI."""

FAST: Final = 1
SAFE: Final = 0

fast_returns: u64 = 0
safe_returns: u64 = 0
calls: u64 = 0


@extern
def enter_user(rip: VirtAddr, rsp: VirtAddr, argument: u64) -> u64:
    """Run a program in ring 3; return what it exits with, or `traps.outcome` of the exception that ended it."""


def syscall_init() -> None:
    """Tell the CPU where system calls go, if it has them."""
    if not cpu_has_syscall():
        report.set_word(report.W_SYSCALL_STAYS, report.NO_SYSCALL)
        return
    store64(symbol("syscall_handler"), address_of(syscall))
    write_msr(MSR_STAR, USER_BASE << 48 | KERNEL_CS << 32)
    write_msr(MSR_LSTAR, symbol("syscall_entry"))
    write_msr(MSR_FMASK, FLAGS_CLEARED)
    write_msr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE)


def syscall(frame: VirtAddr) -> u64:
    """Do what the frame's number asks for; return which way leads back."""
    global calls
    calls += 1
    number = load64(frame + FRAME_NUMBER)
    argument = load64(frame + FRAME_ARGUMENT)
    if number == SYS_EXIT:
        traps.leave_user(frame, argument)
        return SAFE
    if number == SYS_READ:
        store64(frame + FRAME_NUMBER, read_word(argument))
        return way_back(load64(frame + FRAME_RIP))
    if number == SYS_SET_RETURN:
        store64(frame + FRAME_RIP, argument)
    store64(frame + FRAME_NUMBER, argument + 1)
    return way_back(load64(frame + FRAME_RIP))


def read_word(va: u64) -> u64:
    """The word at *va*, `NOTHING` if it is not the program's: ring 0 may read more than the program that asks."""
    if va > user.task_size_max() - 8 or traps.user_read(VirtAddr(va), VirtAddr(word)) != traps.PROBE_OK:
        return NOTHING
    return load64(word)


def way_back(rip: u64) -> u64:
    """SYSRET only to an address that is canonical in the mode that is on."""
    global fast_returns, safe_returns
    if is_canonical(VirtAddr(rip)):
        fast_returns += 1
        return FAST
    safe_returns += 1
    return SAFE
