"""Save all that the kernel uses, and come back to it on a restarted machine [proposal: part 6].

The image says for how many levels its root is: to resume it in the other mode would read its tables at the wrong depth,
and Linux' header has no word for that. Whatever is wrong with an image is found before anything is overwritten:
another kernel, another mode, another place, a sum that does not match.

To come back, the pages are copied over the kernel that does it. So in the end it runs from one page, on temporary
tables, with a list, all of which lie above everything that is overwritten. The tables show physical memory through this
kernel's direct map, the image window, whose text is the same in both, and the page itself. The fifth level is in them
where it is on, and costs no page where it is not.

There is no disk: the saved image stays in memory, the host carries it over, and it comes back as the loader's module.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.areas.direct_map import map_memory
from fivefold.kernel.boot import start_info
from fivefold.kernel.paging import memblock, phys
from fivefold.kernel.paging.cpu import cr4_in_use, write_cr4
from fivefold.kernel.paging.mapping import map_page, map_range
from fivefold.kernel.paging.pgtable import (
    ACCESSED,
    DIRTY,
    FRAME_MASK,
    KERNEL_RW,
    PMD_LEVEL,
    PMD_SIZE,
    PRESENT,
    RW,
    levels,
)
from fivefold.kernel.paging.phys import LINK_ADDRESS, PAGE_SHIFT, PAGE_SIZE, phys_to_virt
from fivefold.kernel.smp import smp
from fivefold.metal.lang import (
    buffer,
    copy64,
    extern,
    fill64,
    load64,
    noinline,
    read_cr3,
    store64,
    symbol,
    u64,
)
from fivefold.units import PhysAddr, VirtAddr

MAGIC: Final = int.from_bytes(b"5FOLDHIB", "little")

HEADER_MAGIC: Final = 0
HEADER_LEVELS: Final = 8
HEADER_KERNEL: Final = 16
HEADER_LOAD: Final = 24
HEADER_ROOT: Final = 32
HEADER_CONTEXT: Final = 40
HEADER_PAGES: Final = 48
HEADER_SUM: Final = 56
HEADER_DATA: Final = 64
"""Words of the first page: the last is where the pages' bytes start. Between lies the list of where they go."""

OK: Final = 0
NOT_AN_IMAGE: Final = 1
CUT_SHORT: Final = 2
OTHER_MODE: Final = 3
OTHER_KERNEL: Final = 4
OTHER_PLACE: Final = 5
CORRUPT: Final = 6
IN_THE_WAY: Final = 7
NO_MEMORY: Final = 8
OTHER_MEMORY: Final = 9
NOT_IN_MEMORY: Final = 10

STIR: Final = 0x9E37_79B9_7F4A_7C15
"""Odd, so multiplying by it loses nothing; without it words that lie 64 apart could change places unseen."""

context: Final = buffer(64, 64)
sleeps: u64 = 0
"""How often this kernel was saved."""


@extern
def hibernate_context(room: VirtAddr) -> u64:
    """Keep where the kernel is; returns 0, and once more 1 when it comes back."""


@extern
def hibernate_jump(root: PhysAddr, code: VirtAddr, moves: VirtAddr, then: VirtAddr, first: u64, second: u64) -> None:
    """Copy what *moves* lists on the tables at *root*, with the loop at *code*; go to *then* with two arguments."""


@noinline
def sum_of(at: u64, size: u64) -> u64:
    """A sum over *size* bytes in which every word's place counts."""
    total = MAGIC
    for i in range(size // 8):
        total = (total ^ load64(at + 8 * i)) * STIR
        total = total << 7 | total >> 57
    return total


def image_sum(at: u64, data: u64, count: u64) -> u64:
    """The sum of an image: all of its header but the magic and the sum itself, its list and its pages."""
    header = sum_of(at + HEADER_LEVELS, HEADER_SUM - HEADER_LEVELS)
    return header ^ data ^ sum_of(at + PAGE_SIZE, data - PAGE_SIZE + PAGE_SIZE * count)


def kernel_sum() -> u64:
    """A sum that identifies this kernel, of its code and constants, without the entries, which note where they run."""
    return sum_of(symbol("trap_stubs"), symbol("_erodata") - symbol("trap_stubs"))


@noinline
def used_pages(region: u64, region_end: u64, to: u64) -> u64:
    """Count the pages in use that are not the region; write their addresses at *to* unless it is 0."""
    count = u64(0)
    for i in range(memblock.reserved_count):
        pa = max(memblock.range_start(memblock.reserved, i), memblock.LOW_MEMORY)
        end = min(memblock.range_end(memblock.reserved, i), memblock.end_of_memory())
        while pa < end:
            if (pa < region or pa >= region_end) and memblock.is_memory(PhysAddr(pa), PAGE_SIZE):
                if to != 0:
                    store64(to + 8 * count, pa)
                count += 1
            pa += PAGE_SIZE
    return count


def pages_for(size: u64) -> u64:
    """*size* rounded up to whole pages."""
    return (size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)


@noinline
def save() -> u64:
    """Save the kernel and stop the machine. Returns `OK` when it is resumed, or why it could not be saved."""
    global sleeps
    count = used_pages(0, 0, 0)
    data = PAGE_SIZE + pages_for(8 * count)
    size = data + PAGE_SIZE * count
    region = memblock.allocate(size, PAGE_SIZE)
    if region == 0:
        return NO_MEMORY
    sleeps += 1
    if hibernate_context(VirtAddr(context)) != 0:
        write_cr4(cr4_in_use())
        report.port = report.PORT_UNKNOWN  # the machine was restarted, and its serial port with it
        return OK
    fill_image(phys_to_virt(region), region, size, data)
    report.set_word(report.W_HIBERNATE_AT, region)
    report.set_word(report.W_HIBERNATE_SIZE, size)
    report.put("# hibernate: saved\n")
    report.stop(report.EXIT_HIBERNATED)
    return OK


@noinline
def fill_image(at: u64, region: PhysAddr, size: u64, data: u64) -> None:
    """Write the header, the list and the pages."""
    count = used_pages(region, region + size, at + PAGE_SIZE)
    for i in range(count):
        copy64(at + data + PAGE_SIZE * i, phys_to_virt(PhysAddr(load64(at + PAGE_SIZE + 8 * i))), PAGE_SIZE // 8)
    fill64(at, 0, PAGE_SIZE // 8)
    store64(at + HEADER_LEVELS, levels())
    store64(at + HEADER_KERNEL, kernel_sum())
    store64(at + HEADER_LOAD, report.get_word(report.W_LOAD_ADDRESS))
    store64(at + HEADER_ROOT, read_cr3())
    store64(at + HEADER_CONTEXT, context)
    store64(at + HEADER_PAGES, count)
    store64(at + HEADER_DATA, data)
    store64(at + HEADER_SUM, image_sum(at, data, count))
    store64(at + HEADER_MAGIC, MAGIC)


@noinline
def check_image(at: u64, size: u64) -> u64:
    """Whether *size* bytes at *at* can be resumed by this kernel in this mode; nothing is changed."""
    if size < PAGE_SIZE or load64(at + HEADER_MAGIC) != MAGIC:
        return NOT_AN_IMAGE
    if load64(at + HEADER_LEVELS) != levels():
        return OTHER_MODE
    if load64(at + HEADER_KERNEL) != kernel_sum():
        return OTHER_KERNEL
    if load64(at + HEADER_LOAD) != report.get_word(report.W_LOAD_ADDRESS):
        return OTHER_PLACE
    count = load64(at + HEADER_PAGES)
    data = load64(at + HEADER_DATA)
    if count > size >> PAGE_SHIFT or data > size or PAGE_SIZE + 8 * count > data or PAGE_SIZE * count > size - data:
        return CUT_SHORT
    if load64(at + HEADER_SUM) != image_sum(at, data, count):
        return CORRUPT
    return OK


@noinline
def resume(info: PhysAddr, largest: u64) -> u64:
    """Go back to the kernel that the loader's first module holds; return why that cannot be."""
    if start_info.field32(info, start_info.OFFSET_MODULES) == 0:
        return NOT_AN_IMAGE
    module = PhysAddr(start_info.field64(info, start_info.OFFSET_MODULE_LIST))
    image = start_info.field64(module, 0)
    size = start_info.field64(module, 8)
    if not memblock.is_memory(PhysAddr(image), size):
        return NOT_IN_MEMORY
    at = phys_to_virt(PhysAddr(image))
    outcome = check_image(at, size)
    if outcome != OK:
        return outcome
    count = load64(at + HEADER_PAGES)
    highest = u64(0)
    for i in range(count):
        page = load64(at + PAGE_SIZE + 8 * i)
        if not memblock.is_memory(PhysAddr(page), PAGE_SIZE):
            return OTHER_MEMORY
        if page < image + size and image < page + PAGE_SIZE:
            return IN_THE_WAY
        highest = max(highest, page + PAGE_SIZE)
    if highest <= image:
        memblock.use_only_above(PhysAddr(highest))
    elif not keep_free(at, count):  # the kernel lies above the image
        return NO_MEMORY
    return go_back(at, count, largest)


@noinline
def keep_free(at: u64, count: u64) -> bool:
    """From now on hand out only what is no page of the image's; False if the pages are in too many pieces."""
    for i in range(count):
        memblock.reserve(PhysAddr(load64(at + PAGE_SIZE + 8 * i)), PAGE_SIZE)
    memblock.use_only_above(PhysAddr(PAGE_SIZE))
    return not memblock.overflowed


@noinline
def go_back(at: u64, count: u64, largest: u64) -> u64:
    """Prepare everything in memory that stays, and jump; returns only without memory."""
    code = memblock.allocate(PAGE_SIZE, PAGE_SIZE)
    moves = memblock.allocate(pages_for(16 * (count + 1)), PAGE_SIZE)
    root = memblock.allocate_table()
    if code == 0 or moves == 0 or root == 0 or not map_temporary(phys_to_virt(root), code, largest):
        return NO_MEMORY
    loop = symbol("hibernate_loop")
    copy64(phys_to_virt(code), loop, (symbol("hibernate_loop_end") - loop + 7) // 8)
    to = phys_to_virt(moves)
    for i in range(count):
        store64(to + 16 * i, phys_to_virt(PhysAddr(load64(at + PAGE_SIZE + 8 * i))))
        store64(to + 16 * i + 8, at + load64(at + HEADER_DATA) + PAGE_SIZE * i)
    store64(to + 16 * count, 0)
    saved = load64(at + HEADER_CONTEXT)
    smp.release_cpus()
    hibernate_jump(root, VirtAddr(code), to, VirtAddr(symbol("hibernate_return")), saved, load64(at + HEADER_ROOT))
    return OK


def map_temporary(top: VirtAddr, code: PhysAddr, largest: u64) -> bool:
    """All memory through the direct map, writable; the image window; and the loop's page at its own address."""
    flags = PRESENT | RW | ACCESSED | DIRTY
    load = phys.phys_base + (LINK_ADDRESS - phys.START_KERNEL_MAP)
    size = (report.get_word(report.W_IMAGE_END) - load + PMD_SIZE - 1) & ~(PMD_SIZE - 1)
    left = map_memory(top, largest, KERNEL_RW, 0, memblock.end_of_memory())
    left += map_range(top, VirtAddr(LINK_ADDRESS), PhysAddr(load & FRAME_MASK), size, flags, PMD_LEVEL)
    return map_page(top, VirtAddr(code), code, flags) and left == 0


def explain(outcome: u64) -> None:
    """Say why an image was refused."""
    report.put("# hibernate: ")
    if outcome == OTHER_MODE:
        report.put("the image uses another number of page-table levels\n")
    elif outcome == OTHER_KERNEL:
        report.put("the image is of another kernel\n")
    elif outcome == OTHER_PLACE:
        report.put("the image is of a kernel at another load address\n")
    elif outcome == CORRUPT:
        report.put("the image is corrupt: its sum does not match\n")
    elif outcome == CUT_SHORT:
        report.put("the image is cut short\n")
    elif outcome == OTHER_MEMORY:
        report.put("the image has pages where this machine has no memory\n")
    elif outcome == IN_THE_WAY:
        report.put("the loader put the image where its pages go\n")
    elif outcome == NOT_IN_MEMORY:
        report.put("the loader put the image where the map has no memory\n")
    elif outcome == NO_MEMORY:
        report.put("no memory\n")
    else:
        report.put("there is no image\n")
