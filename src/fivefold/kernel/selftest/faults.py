"""Faults on purpose: ``fault=NAME`` breaks one thing, with no interrupt table left that could catch it.

For those who explain faults: the kernel is whole, its tables are those that all checks passed on, and the one access
that should not be made ends in a triple fault. Each name says what is done; `FAULTS` says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fivefold.kernel import params, report
from fivefold.kernel.areas import kernel_map
from fivefold.kernel.paging import layout, memblock, phys
from fivefold.kernel.paging.cpu import CR4_LA57, CR4_PAE, load_idt, write_cr3, write_cr4
from fivefold.kernel.paging.layout import ESPFIX_BASE, MODULES_VADDR, VSYSCALL
from fivefold.kernel.paging.mapping import entry_for
from fivefold.kernel.paging.pgtable import PTE_LEVEL, va_bits
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.kernel.process import syscall, traps, user
from fivefold.metal.lang import load64, noinline, read_cr4, store64, symbol, u64
from fivefold.units import PhysAddr, VirtAddr

READ: Final = 0
WRITE: Final = 1
EXECUTE: Final = 2
CONTROL: Final = 3
USER: Final = 4
RESERVED: Final = 5


@dataclass(frozen=True)
class FaultOnPurpose:
    """A name for the command line, and what is done at the place of that number (`place_of`)."""

    name: str
    act: int
    place: int


PLACES: Final = (
    "null", "guard-hole", "vmalloc-guard", "below-image", "stack-guard", "direct-map-end", "efi", "vsyscall",
    "identity", "text", "rodata", "espfix", "direct-map-text", "data", "vmalloc", "non-canonical-low",
    "non-canonical-high", "entry-guard", "last-page", "modules-guard",
)  # fmt: skip
AT_GUARD_HOLE: Final = PLACES.index("guard-hole")
AT_VMALLOC_GUARD: Final = PLACES.index("vmalloc-guard")
AT_BELOW_IMAGE: Final = PLACES.index("below-image")
AT_STACK_GUARD: Final = PLACES.index("stack-guard")
AT_DIRECT_MAP_END: Final = PLACES.index("direct-map-end")
AT_EFI: Final = PLACES.index("efi")
AT_VSYSCALL: Final = PLACES.index("vsyscall")
AT_IDENTITY: Final = PLACES.index("identity")
AT_TEXT: Final = PLACES.index("text")
AT_RODATA: Final = PLACES.index("rodata")
AT_ESPFIX: Final = PLACES.index("espfix")
AT_DIRECT_MAP_TEXT: Final = PLACES.index("direct-map-text")
AT_DATA: Final = PLACES.index("data")
AT_VMALLOC: Final = PLACES.index("vmalloc")
AT_NON_CANONICAL_LOW: Final = PLACES.index("non-canonical-low")
AT_NON_CANONICAL_HIGH: Final = PLACES.index("non-canonical-high")
AT_ENTRY_GUARD: Final = PLACES.index("entry-guard")
AT_LAST_PAGE: Final = PLACES.index("last-page")
AT_MODULES_GUARD: Final = PLACES.index("modules-guard")
"""Their numbers, which the command line's faults are kept with."""

_READS: Final = (
    "null", "guard-hole", "vmalloc-guard", "below-image", "stack-guard", "direct-map-end", "efi", "vsyscall",
    "identity", "non-canonical-low", "non-canonical-high", "entry-guard", "last-page", "modules-guard",
)  # fmt: skip
_WRITES: Final = ("text", "rodata", "espfix", "direct-map-text", "null")
_FETCHES: Final = ("rodata", "espfix", "data", "vmalloc", "direct-map-text", "null", "last-page")
_USER_READS: Final = ("text", "data", "direct-map-text")


def _rows(act: int, verb: str, names: tuple[str, ...]) -> tuple[FaultOnPurpose, ...]:
    return tuple(FaultOnPurpose(f"{verb}-{name}", act, PLACES.index(name)) for name in names)


FAULTS: Final = (
    *_rows(READ, "read", _READS),
    *_rows(WRITE, "write", _WRITES),
    *_rows(EXECUTE, "execute", _FETCHES),
    *_rows(USER, "user-read", _USER_READS),
    FaultOnPurpose("reserved-bit", RESERVED, PLACES.index("vmalloc")),
    FaultOnPurpose("toggle-la57", CONTROL, 0),
    FaultOnPurpose("clear-pae", CONTROL, 1),
)
"""Everything that can be asked for."""


def place_of(number: u64) -> VirtAddr:
    """The address that a place of `PLACES` stands for here."""
    half = 1 << (va_bits() - 1)
    image = symbol("_text")
    address = VirtAddr(0)
    if number == AT_GUARD_HOLE:
        address = VirtAddr(layout.AREAS[0].start[layout.column()])
    elif number == AT_VMALLOC_GUARD:
        address = VirtAddr(kernel_map.vmalloc_page(0) + PAGE_SIZE)
    elif number == AT_BELOW_IMAGE:
        address = VirtAddr(image - 8)
    elif number == AT_STACK_GUARD:
        address = VirtAddr(symbol("stack_guard") + PAGE_SIZE - 8)
    elif number == AT_DIRECT_MAP_END:
        address = phys_to_virt(memblock.end_of_memory())
    elif number == AT_EFI:
        address = VirtAddr(layout.EFI_VA_END)
    elif number == AT_VSYSCALL:
        address = VirtAddr(VSYSCALL)
    elif number == AT_IDENTITY:
        address = VirtAddr(kernel_map.image_text_phys())
    elif number == AT_TEXT:
        address = VirtAddr(image)
    elif number == AT_RODATA:
        address = VirtAddr(symbol("_rodata"))
    elif number == AT_ESPFIX:
        address = VirtAddr(ESPFIX_BASE)
    elif number == AT_DIRECT_MAP_TEXT:
        address = phys_to_virt(kernel_map.image_text_phys())
    elif number == AT_DATA:
        address = VirtAddr(symbol("_data"))
    elif number == AT_VMALLOC:
        address = kernel_map.vmalloc_page(1)
    elif number == AT_NON_CANONICAL_LOW:
        address = VirtAddr(half)
    elif number == AT_NON_CANONICAL_HIGH:
        address = VirtAddr(0 - half - 8)
    elif number == AT_ENTRY_GUARD:
        address = kernel_map.entry_area(kernel_map.ENTRY_GUARD_MIDDLE)
    elif number == AT_LAST_PAGE:
        address = VirtAddr(0 - PAGE_SIZE)
    elif number == AT_MODULES_GUARD:
        address = VirtAddr(MODULES_VADDR + PAGE_SIZE)
    return address


@noinline
def commit(top: VirtAddr, cmdline: VirtAddr) -> None:
    """Make the fault that the command line names; return if it names none."""
    if params.find_option(cmdline, "fault=") == params.ABSENT:
        return
    for fault in FAULTS:
        if params.has_value(cmdline, "fault=", fault.name):
            do(top, fault.act, fault.place)
            report.panic("a fault on purpose did not happen")
    report.panic("fault= on the command line names no fault that is known")


def do(top: VirtAddr, act: u64, place: u64) -> None:
    """Take the interrupt table away and do it."""
    va = place_of(place)
    if act == USER:
        run_reader(top, va)
    load_idt(VirtAddr(traps.idt), 1)
    if act == READ:
        traps.probe_read(va, VirtAddr(symbol("probe_target")))
    elif act == WRITE:
        traps.probe_write(va)
    elif act == EXECUTE:
        traps.probe_execute(va)
    elif act == RESERVED:
        entry = entry_for(top, va, PTE_LEVEL)
        store64(entry, load64(entry) | 1 << 51)
        write_cr3(PhysAddr(top - phys.phys_window))
        traps.probe_read(va, VirtAddr(symbol("probe_target")))
    elif place == 0:
        write_cr4(read_cr4() ^ CR4_LA57)
    else:
        write_cr4(read_cr4() & ~CR4_PAE)


@noinline
def run_reader(top: VirtAddr, va: VirtAddr) -> None:
    """Run the program that reads its argument in a space of its own, without an interrupt table."""
    made = user.create(top)
    low = u64(user.LOWEST)
    user.map_memory(made, low, PAGE_SIZE, True, user.USER_RX)
    start = symbol("user_program")
    user.write_page(made, VirtAddr(low), start, (symbol("user_program_end") - start) // 8)
    write_cr3(user.root_of(made))
    load_idt(VirtAddr(traps.idt), 1)
    syscall.enter_user(VirtAddr(low + (symbol("user_touch") - start)), VirtAddr(low + PAGE_SIZE), va)
