"""Random bases for the direct map, vmalloc and vmemmap [proposal: parts 2, 6 and 7, which gave it up].

The three areas keep their order and lie in a window that starts at the direct map's own base. It ends at the CPU
entry area; with the KASAN shadow it ends where the shadow starts, rounded down to a top-level entry, so that both may
be on at once. The direct map's area is cut to the memory that there is and room to plug in more; vmemmap's follows.

What is left of the window is shared out: each area may be moved up by at most an equal share of what is left then, in
steps of 1 GiB (with the proposal's map, under five levels, of 512 GiB). One step stays empty between two areas, and it
is *deducted before* anything is drawn: so the worst draw still ends inside the window.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging import layout
from fivefold.kernel.paging.layout import CPU_ENTRY_AREA, ESPFIX_BASE, SHADOW_START, STRUCT_PAGE_SIZE
from fivefold.kernel.paging.pgtable import P4D_SHIFT, PUD_SHIFT, max_physmem_bits, p4d_folded, pgd_size
from fivefold.kernel.paging.phys import PAGE_SHIFT
from fivefold.metal.lang import rdtsc, u64
from fivefold.units import PhysAddr

AREAS: Final = 3
TIB: Final = 1 << 40
HOTPLUG_PADDING: Final = 10 * TIB
"""Room above the highest memory, for memory that is plugged in later."""

GOLDEN: Final = 0x9E37_79B9_7F4A_7C15
state: u64 = 0
"""Of the generator, "splitmix64" (Steele, Lea, Flood, "Fast splittable pseudorandom number generators")."""

window_start: u64 = 0
window_end: u64 = 0
free_space: u64 = 0
"""Of the last draw: the window, and what there was to share out in it."""


def seed(value: u64) -> None:
    """Start the generator: the same *value* gives the same run."""
    global state
    state = value


def draw() -> u64:
    """The next 64 random bits."""
    global state
    state = state + GOLDEN
    z = (state ^ state >> 30) * 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) * 0x94D0_49BB_1331_11EB
    return z ^ z >> 31


def entropy() -> u64:
    """A seed where none was given: the time-stamp counter, stirred."""
    seed(rdtsc())
    return draw() ^ rdtsc()


def step() -> u64:
    """Granularity of the bases."""
    if layout.choice == layout.PROPOSAL and not p4d_folded():
        return 1 << P4D_SHIFT
    return 1 << PUD_SHIFT


def round_up_tib(value: u64) -> u64:
    """*value* rounded up to 1 TiB."""
    return (value + TIB - 1) & ~(TIB - 1)


def direct_map_room(memory_end: PhysAddr) -> u64:
    """Bytes for the direct map: the memory that there is, and padding, within what the mode can address."""
    return min(round_up_tib(memory_end) + HOTPLUG_PADDING, 1 << max_physmem_bits())


def vmemmap_room(direct_map: u64) -> u64:
    """Bytes of descriptors for a direct map of that size."""
    return round_up_tib((direct_map >> PAGE_SHIFT) * STRUCT_PAGE_SIZE)


def end_of_window() -> u64:
    """Where the three areas must end."""
    if layout.has_shadow:
        return SHADOW_START[layout.column()] & ~(pgd_size() - 1)
    if CPU_ENTRY_AREA[layout.column()] != 0:
        return CPU_ENTRY_AREA[layout.column()]
    return ESPFIX_BASE


def choose_bases(memory_end: PhysAddr) -> None:
    """Draw and set the three bases and the sizes that go with them; memory ends at *memory_end*."""
    global window_start, window_end, free_space
    layout.randomised = True
    layout.direct_map_size = direct_map_room(memory_end)
    layout.vmemmap_size = vmemmap_room(layout.direct_map_size)
    window_start = layout.page_offset_base
    window_end = end_of_window()
    used = layout.direct_map_size + layout.vmalloc_size + layout.vmemmap_size
    free_space = window_end - window_start - used - (AREAS - 1) * step()
    left = free_space
    moved = move(left, AREAS)
    layout.page_offset_base = window_start + moved
    left -= moved
    moved = move(left, AREAS - 1)
    layout.vmalloc_base = layout.page_offset_base + layout.direct_map_size + step() + moved
    left -= moved
    moved = move(left, AREAS - 2)
    layout.vmemmap_base = layout.vmalloc_base + layout.vmalloc_size + step() + moved


def move(left: u64, areas: u64) -> u64:
    """How far the next of *areas* areas moves up, when *left* bytes can be shared out."""
    return draw() % (left // areas + 1) & ~(step() - 1)


def positions(left: u64, areas: u64) -> u64:
    """How many places the next of *areas* areas can have: the entropy is its logarithm."""
    return left // areas // step() + 1
