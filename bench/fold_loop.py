"""The loops of fold.py in the subset: a thousand calls of the kernel's `p4d_offset`, inlined or not."""

from __future__ import annotations

from fivefold.kernel.paging.pgtable import p4d_offset
from fivefold.metal.lang import export, noinline, u64
from fivefold.units import VirtAddr


@noinline
def apart(pgd: u64, va: u64) -> u64:
    """`p4d_offset`, behind a call."""
    return p4d_offset(VirtAddr(pgd), VirtAddr(va))


@export
def not_inlined(pgd: u64, va: u64, count: u64) -> u64:
    """Ask *count* times, 512 GiB further each time; return the answers, mixed."""
    found = 0
    for i in range(count):
        found ^= apart(pgd, va + (i << 39))
    return found


@export
def inlined(pgd: u64, va: u64, count: u64) -> u64:
    """As `not_inlined`, without the call."""
    found = 0
    for i in range(count):
        found ^= p4d_offset(VirtAddr(pgd), VirtAddr(va + (i << 39)))
    return found
