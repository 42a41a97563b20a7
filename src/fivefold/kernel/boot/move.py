"""Move the image to a random place in physical memory before anything depends on where it is [proposal: part 6].

Runs at the address where the loader put the image, on the tables that are active then. A place is a 2 MiB-aligned run
of memory that holds nothing in use (`in_use.py`) and that those tables map at its own address with all rights. The
image finds itself relative to the instruction, so a copy of it runs as it is; whatever is made from its address later,
such as the real-mode trampoline's root, follows.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import params
from fivefold.kernel.areas import kaslr
from fivefold.kernel.boot import in_use, start_info
from fivefold.kernel.boot.startup import check_handed_over, die, note_all
from fivefold.kernel.paging import memblock
from fivefold.kernel.paging.pgtable import PMD_SIZE
from fivefold.metal.lang import export, noinline, u64
from fivefold.units import PhysAddr, VirtAddr

LOWEST: Final = 1 << 24
"""Below 16 MiB lies what old devices reach, and often what loaders use."""
MOST_PLACES: Final = 1 << 32
"""More than there can be, so that `walk_places` counts them."""


@export
def choose_place(info: PhysAddr, load: PhysAddr, image_end: PhysAddr) -> u64:
    """Where the image should run: a random place if the command line asks for kaslr, else where it is."""
    check_handed_over(info)
    cmdline = VirtAddr(start_info.field64(info, start_info.OFFSET_CMDLINE))
    seed = params.find_option(cmdline, "kaslr=")
    if seed == params.ABSENT and not params.has_word(cmdline, "kaslr"):
        return load
    if seed != params.ABSENT and not params.is_number_at(seed):
        return load  # refused later, with a message
    if params.has_value(cmdline, "hibernate=", "resume"):
        return load  # the loader put this kernel where the saved one was
    kaslr.seed(kaslr.entropy() if seed == params.ABSENT else params.number_at(seed) ^ kaslr.GOLDEN)
    note_all(info, load, image_end)
    if memblock.overflowed:
        return load  # the kernel proper says why, if it matters there
    size = image_end - load
    places = walk_places(size, MOST_PLACES)
    if places == 0:
        return load
    place = walk_places(size, kaslr.draw() % places)
    if not memblock.is_there(PhysAddr(place), size):
        die("the memory map lists memory that is not there, where kaslr would put the image")
    return place


@noinline
def walk_places(size: u64, wanted: u64) -> u64:
    """Address of free place number *wanted* for *size* bytes; how many there are, if that is more."""
    found = u64(0)
    at = memblock.find(size, PMD_SIZE, PhysAddr(LOWEST), PhysAddr(in_use.PLACES_END))
    while at != 0:
        if in_use.can_run_at(at, at + size):
            if found == wanted:
                return at
            found += 1
        at = memblock.find(size, PMD_SIZE, PhysAddr(at + PMD_SIZE), PhysAddr(in_use.PLACES_END))
    return found
