"""The loop of map.py in the subset: compiled, it calls the kernel's `map_page` for each page."""

from __future__ import annotations

from fivefold.kernel.paging.mapping import map_page
from fivefold.metal.lang import export, u64
from fivefold.units import PhysAddr, VirtAddr


@export
def map_pages(top: u64, va: u64, count: u64, step: u64, slots: u64, protection: u64) -> u64:
    """Map page i at slot (i x *step*) mod *slots* behind *va*; return how many could be."""
    done = 0
    for i in range(count):
        at = va + ((i * step & (slots - 1)) << 12)
        done += u64(map_page(VirtAddr(top), VirtAddr(at), PhysAddr(i << 12), protection))
    return done
