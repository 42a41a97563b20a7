"""`p4d_offset` as a kernel would have it that knows one mode only. The other side of fold.py."""

from __future__ import annotations

from fivefold.kernel.paging.phys import phys_to_virt
from fivefold.metal.lang import inline, load64
from fivefold.units import PhysAddr, VirtAddr


@inline
def five_levels(pgd: VirtAddr, va: VirtAddr) -> VirtAddr:
    """There is always a table."""
    table = phys_to_virt(PhysAddr(load64(pgd) & 0x000F_FFFF_FFFF_F000))
    return VirtAddr(table + 8 * (va >> 39 & 511))


@inline
def four_levels(pgd: VirtAddr, va: VirtAddr) -> VirtAddr:
    """There never is one."""
    return pgd
