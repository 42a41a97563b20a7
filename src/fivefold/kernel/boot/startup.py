"""From the loader to the kernel proper, in 64-bit code at the physical address [proposal: part 4].

The one decision (`detect.reason_for_mode`) is made once, and compared with the mode that is
active. Only if they differ is the mode changed, through two borrowed pages below 1 MiB: long
mode must be left for it, so code, stack and root table have to lie where 32-bit code reaches
them, wherever the image is. What follows from there on asks CR4, never CPUID.

No variable here is read before `startup_64` has set it; pointers are relative to the
instruction, so they are physical addresses as long as this code runs at one.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.boot import early, in_use, multiboot2, start_info
from fivefold.kernel.boot.detect import cpu_has_nx, reason_for_mode, wants_five_levels
from fivefold.kernel.boot.in_use import LOW_PAGES
from fivefold.kernel.paging import memblock, phys
from fivefold.kernel.paging.cpu import (
    CR0_WP,
    CR4_LA57,
    CR4_PCIDE,
    CR4_PGE,
    EFER_NXE,
    MSR_EFER,
    write_cr0,
    write_cr4,
    write_msr,
)
from fivefold.kernel.paging.pgtable import (
    FRAME_MASK,
    PMD_SIZE,
    TABLE,
    levels,
    max_physmem_bits,
    set_mode,
)
from fivefold.kernel.paging.phys import LINK_ADDRESS, PAGE_SIZE, START_KERNEL_MAP
from fivefold.metal.lang import (
    buffer,
    copy64,
    export,
    fill64,
    load64,
    rdmsr,
    read_cr0,
    read_cr2,
    read_cr3,
    read_cr4,
    store64,
    symbol,
    u64,
)
from fivefold.units import PhysAddr, VirtAddr

early_top: Final = buffer(PAGE_SIZE, PAGE_SIZE)
early_pool: Final = buffer(early.POOL_PAGES * PAGE_SIZE, PAGE_SIZE)
table: Final = buffer(report.TABLE_SIZE, PAGE_SIZE)
borrowed: Final = buffer(LOW_PAGES * PAGE_SIZE, PAGE_SIZE)
"""What was in the trampoline's two pages."""


FRAME_VECTOR: Final = 120
FRAME_ERROR: Final = 128
FRAME_RIP: Final = 136
"""Offsets in what `trap_common` saves (entry.S); `traps.py` has all of them."""


def die(text: str) -> None:
    """Say what is wrong on the serial port and stop the machine."""
    report.put("Bail out! fivefold: ")
    report.put(text)
    report.put("\n")
    report.stop(report.EXIT_PANIC)


def die_without_start_info(info: PhysAddr) -> None:
    """Say what the loader did not hand over, and stop; `multiboot2.py` has noted what such a loader did wrong."""
    outcome = u64(0) if info == 0 else start_info.field32(info, 0)
    if outcome == multiboot2.BAD_PLACE:
        die("multiboot2's information has a size or place that cannot be")
    if outcome == multiboot2.BAD_TAG:
        die("multiboot2's information has a tag that does not fit, or no end")
    if outcome == multiboot2.NO_MAP:
        die("multiboot2's information has no memory map")
    die("no start information; expected PVH's structure with a memory map")


def check_handed_over(info: PhysAddr) -> None:
    """Stop if what the loader hands over is not the structure, or its command line has no end."""
    if not start_info.is_valid(info):
        die_without_start_info(info)
    if start_info.has_endless_cmdline(info):
        die("the command line has no end within 4096 bytes")


@export
def switch_mode(info: PhysAddr, load: PhysAddr, image_end: PhysAddr) -> u64:
    """Prepare a change of mode: the address of the trampoline's two pages, or 0 if the wanted mode is active.

    Low half of the first page: the root that the trampoline loads. Second page: its code.
    """
    check_handed_over(info)
    if read_cr4() & CR4_PCIDE != 0:
        die("CR4.PCIDE is on; the 64-bit entry expects it off")
    five_levels = wants_five_levels(reason_for_mode(start_info.field64(info, start_info.OFFSET_CMDLINE)))
    if five_levels == (read_cr4() & CR4_LA57 != 0):
        return 0
    place = find_trampoline(info, load, image_end)
    if place == 0:
        die("no free 8 KiB of memory below 0x9f000 for the change of paging mode")
    copy64(borrowed, place, LOW_PAGES * PAGE_SIZE // 8)
    copy64(place + PAGE_SIZE, symbol("trampoline_start"), 512)
    make_trampoline_root(place, five_levels)
    store64(symbol("trampoline_used"), place)
    return place


def make_trampoline_root(root: u64, five_levels: bool) -> None:
    """Make the other mode's root from the active one, whose table may lie above 4 GiB.

    Up: one entry that points to the active root, which becomes the level below. Down: a copy of the
    table that slot 0 points to; its address is cut out with the frame mask, since loaders set software
    and NX bits in that entry.
    """
    active = read_cr3() & FRAME_MASK
    if five_levels:
        fill64(root, 0, 512)
        store64(root, active | TABLE)
    else:
        copy64(root, load64(active) & FRAME_MASK, 512)


def find_trampoline(info: PhysAddr, load: PhysAddr, image_end: PhysAddr) -> PhysAddr:
    """Highest two free pages below `in_use.TRAMPOLINE_LIMIT` that the active tables let code run in; 0 without any."""
    note_all(info, load, image_end)
    in_use.note_low_tables()
    if memblock.overflowed:
        die("the memory map or the active tables are in too many pieces")
    return in_use.find_low_pages()


def note_all(info: PhysAddr, load: PhysAddr, image_end: PhysAddr) -> None:
    """Note what is in use while memory is seen at its own address through the loader's tables."""
    cmdline = start_info.field64(info, start_info.OFFSET_CMDLINE)
    in_use.note(info, load, image_end, VirtAddr(0) if cmdline == 0 else phys.phys_to_virt(PhysAddr(cmdline)))
    in_use.note_tables(info, load, image_end)


@export
def early_exception(frame: VirtAddr) -> None:
    """Say which exception came before the kernel's own handlers are there, and stop; *frame* as in `traps.py`."""
    error = load64(frame + FRAME_ERROR)
    report.panic_on_exception(load64(frame + FRAME_VECTOR), error, read_cr2(), load64(frame + FRAME_RIP))


@export
def startup_64(info: PhysAddr, load: PhysAddr, image_end: PhysAddr, entered_levels: u64) -> u64:
    """Build the early tables; return their root. Long mode is on, in the mode that stays."""
    set_mode(read_cr4() & CR4_LA57 != 0)
    check_handed_over(info)
    if load & (PMD_SIZE - 1) != 0:
        die("the load address is not aligned to 2 MiB")
    if load >> max_physmem_bits() != 0:
        die("the load address is beyond what this mode's direct map can hold")
    phys.phys_base = load - (LINK_ADDRESS - START_KERNEL_MAP)
    if not cpu_has_nx():
        die("the CPU has no NX: nothing could be writable and not executable")
    write_cr0(read_cr0() | CR0_WP)
    # A loader may have PGE on: its global translations would outlive both loads of CR3, until the kernel turns PGE on
    # again, which flushes nothing if it never was off.
    write_cr4(read_cr4() & ~CR4_PGE)
    write_msr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE)
    build_early_tables(load, image_end)
    start_report(info, load, image_end, entered_levels)
    return early_top


def build_early_tables(load: PhysAddr, image_end: PhysAddr) -> None:
    """Map the image in the kernel window first, so that its tables lead the pool, then in an identity map."""
    early.begin(PhysAddr(early_top), PhysAddr(early_pool), 0, 0)
    size = image_end - load
    mapped = early.map_image(VirtAddr(LINK_ADDRESS), load, size)
    early.kernel_tables = early.used
    mapped = early.map_image(VirtAddr(load), load, size) and mapped
    if not mapped:
        die("the pool of early tables is too small for the image")


def start_report(info: PhysAddr, load: PhysAddr, image_end: PhysAddr, entered_levels: u64) -> None:
    """Leave for the kernel proper what only this code knows."""
    cmdline = start_info.field64(info, start_info.OFFSET_CMDLINE)
    report.begin(VirtAddr(table))
    report.introduce(levels(), load)
    report.set_word(report.W_REASON, reason_for_mode(cmdline))
    report.set_word(report.W_ENTERED_LEVELS, entered_levels)
    report.set_word(report.W_LOAD_ADDRESS, load)
    report.set_word(report.W_IMAGE_END, image_end)
    report.set_word(report.W_START_INFO, info)
    report.set_word(report.W_PHYS_BASE, phys.phys_base)
    report.set_word(report.W_EARLY_TOP, early_top)
    report.set_word(report.W_EARLY_POOL, early_pool)
    report.set_word(report.W_EARLY_USED, early.used)
    report.set_word(report.W_EARLY_KERNEL_TABLES, early.kernel_tables)
    report.set_word(report.W_TRAMPOLINE, load64(symbol("trampoline_used")))
    report.set_word(report.W_BORROWED, borrowed)
