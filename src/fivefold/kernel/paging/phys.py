"""Where physical memory appears to the code that runs, and where the kernel image lies.

Three kinds of code ask. Boot code at its physical address sees physical memory at
itself (`phys_window` is 0); the kernel proper sees it through the direct map
(`phys_window` is `page_offset_base`); on the host `phys_to_virt` is replaced by a
lookup in the extents of a memory image. The one conversion of a kernel-image address
is here, and it subtracts `phys_base`: forgetting that is what reset the proposal's
KASAN kernel under EFI, where the loader had moved the image.
"""

from __future__ import annotations

from typing import Final

from fivefold.metal.lang import inline, u64
from fivefold.units import PhysAddr, VirtAddr

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT

START_KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
"""Where the kernel image's window starts, in both modes."""

LINK_ADDRESS: Final = 0xFFFF_FFFF_8100_0000
"""The virtual address that the image is linked at; what it is loaded at is `phys_base` further on."""

phys_window: u64 = 0
"""Virtual address at which physical address 0 appears."""

phys_base: u64 = 0
"""Load address minus the offset of the link address in the kernel window; wraps below that offset."""


@inline
def phys_to_virt(pa: PhysAddr) -> VirtAddr:
    """Address at which the running code reaches physical *pa*."""
    return VirtAddr(pa + phys_window)


@inline
def kernel_to_phys(va: VirtAddr) -> PhysAddr:
    """Physical address of *va*, an address inside the kernel image at its linked place."""
    return PhysAddr(va - START_KERNEL_MAP + phys_base)
