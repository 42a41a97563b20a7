"""Move the image to a random place in physical memory before anything depends on where it is [proposal: part 6].

Runs at the address where the loader put the image, on the tables that are active then. A place is a free 2 MiB-aligned
run of memory that those tables show at its own address. The image finds itself relative to the instruction, so a copy
of it runs as it is; whatever is made from its address later, such as the real-mode trampoline's root, follows.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import params
from fivefold.kernel.areas import kaslr
from fivefold.kernel.boot import start_info
from fivefold.kernel.boot.startup import meets
from fivefold.kernel.paging.cpu import CR4_LA57
from fivefold.kernel.paging.pgtable import FRAME_MASK, PMD_SIZE, PRESENT, PSE, pgtable_levels_of
from fivefold.metal.lang import export, load64, noinline, read_cr3, read_cr4, u64
from fivefold.units import PhysAddr, VirtAddr

LOWEST: Final = 1 << 24
"""Below 16 MiB lies what old devices reach, and often what loaders use."""
HIGHEST: Final = 1 << 32


@export
def choose_place(info: PhysAddr, load: PhysAddr, image_end: PhysAddr) -> u64:
    """Where the image should run: a random place if the command line asks for kaslr, else where it is."""
    if not start_info.is_valid(info):
        return load
    cmdline = VirtAddr(start_info.field64(info, start_info.OFFSET_CMDLINE))
    seed = params.find_option(cmdline, "kaslr=")
    if seed == params.ABSENT and not params.has_word(cmdline, "kaslr"):
        return load
    if seed != params.ABSENT and not params.is_number_at(seed):
        return load  # refused later, with a message
    if params.has_value(cmdline, "hibernate=", "resume"):
        return load  # the loader put this kernel where the saved one was
    kaslr.seed(kaslr.entropy() if seed == params.ABSENT else params.number_at(seed) ^ kaslr.GOLDEN)
    size = image_end - load
    places = walk_places(info, load, size, start_info.MAX_MAP_ENTRIES << 32)
    if places == 0:
        return load
    return walk_places(info, load, size, kaslr.draw() % places)


@noinline
def walk_places(info: PhysAddr, load: PhysAddr, size: u64, wanted: u64) -> u64:
    """Address of free place number *wanted*; how many there are, if that is more."""
    found = u64(0)
    for i in range(start_info.map_count(info)):
        entry = start_info.map_entry(info, i)
        if start_info.field32(entry, start_info.MAP_TYPE) == start_info.TYPE_RAM:
            low = start_info.field64(entry, 0)
            high = min(low + start_info.field64(entry, 8), HIGHEST)
            at = (max(low, LOWEST) + PMD_SIZE - 1) & ~(PMD_SIZE - 1)
            while at < high and size <= high - at:
                if is_free(info, at, at + size, load):
                    if found == wanted:
                        return at
                    found += 1
                at += PMD_SIZE
    return found


def is_free(info: PhysAddr, start: u64, end: u64, load: PhysAddr) -> bool:
    """Whether neither the loader's things nor the image lie in [start, end), and the tables show it at itself."""
    if meets(start, end, load, end - start) or meets(start, end, info, start_info.SIZE):
        return False
    entries = start_info.field64(info, start_info.OFFSET_MEMORY_MAP)
    if meets(start, end, entries, start_info.map_count(info) * start_info.MAP_ENTRY_SIZE):
        return False
    cmdline = start_info.field64(info, start_info.OFFSET_CMDLINE)
    if meets(start, end, cmdline, start_info.MAX_CMDLINE) or is_disputed(info, start, end):
        return False
    return is_free_of_modules(info, start, end) and is_identity(start) and is_identity(end - 1)


def is_disputed(info: PhysAddr, start: u64, end: u64) -> bool:
    """Whether any row of the map calls some of [start, end) something else than RAM; it may wrap."""
    for i in range(start_info.map_count(info)):
        entry = start_info.map_entry(info, i)
        first = start_info.field64(entry, 0)
        size = start_info.field64(entry, 8)
        if start_info.field32(entry, start_info.MAP_TYPE) != start_info.TYPE_RAM and size != 0:
            if first < end and (start < first + size or first + size < first):
                return True
    return False


def is_free_of_modules(info: PhysAddr, start: u64, end: u64) -> bool:
    """Whether no module, nor their list, lies in [start, end)."""
    listed = start_info.field64(info, start_info.OFFSET_MODULE_LIST)
    if listed == 0:
        return True
    if meets(start, end, listed, start_info.MAX_MODULES * start_info.MODULE_ENTRY_SIZE):
        return False
    for i in range(min(start_info.field32(info, start_info.OFFSET_MODULES), start_info.MAX_MODULES)):
        module = PhysAddr(listed + start_info.MODULE_ENTRY_SIZE * i)
        if meets(start, end, start_info.field64(module, 0), start_info.field64(module, 8)):
            return False
    return True


def is_identity(address: u64) -> bool:
    """Whether the active tables show *address* at itself."""
    at = read_cr3() & FRAME_MASK
    level = pgtable_levels_of(read_cr4() & CR4_LA57 != 0)
    while True:
        entry = load64(at + 8 * (address >> (3 + 9 * level) & 511))
        if entry & PRESENT == 0:
            return False
        if level == 1 or (level <= 3 and entry & PSE != 0):
            span = u64(1) << (3 + 9 * level)
            return entry & FRAME_MASK & ~(span - 1) == address & ~(span - 1)
        at = entry & FRAME_MASK
        level -= 1
    return False
