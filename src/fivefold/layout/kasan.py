"""The KASAN shadow: one byte that says what may be touched of eight others.

``shadow(va) = (va >> 3) + offset``. The offset is a constant of the compiler when a kernel is
built, so a kernel that chooses its mode at boot needs one offset for both. Since 4.15
there is one; before that a five-level build had its own. A common offset puts the end of
the shadow at fffffc0000000000 in both modes and leaves its five-level start,
ffdffc0000000000, inside a top-level slot.
"""

from __future__ import annotations

from typing import Final

from fivefold.layout.versions import Version, check_levels, parse_version
from fivefold.units import MASK64, VirtAddr

SCALE_SHIFT: Final = 3
"""One shadow byte stands for 2^3 bytes."""

COMMON_OFFSET: Final = 0xDFFF_FC00_0000_0000
"""Both modes since 4.15, and four levels always (CONFIG_KASAN_SHADOW_OFFSET)."""

OLD_FIVE_LEVEL_OFFSET: Final = 0xDFF8_0000_0000_0000
"""Five levels up to 4.14."""


def shadow_offset(version: str, levels: int) -> int:
    """The offset that kernels of *version* with *levels* were compiled for."""
    old = parse_version(version) < Version(4, 15)
    return OLD_FIVE_LEVEL_OFFSET if old and check_levels(levels) == 5 else COMMON_OFFSET


def to_shadow(va: int, offset: int = COMMON_OFFSET) -> VirtAddr:
    """Where the shadow byte of *va* lies.

    >>> f"{to_shadow(0xffff_ffff_83f1_d0b8):x}"
    'fffffbfff07e3a17'
    """
    return VirtAddr(((va >> SCALE_SHIFT) + offset) & MASK64)


def from_shadow(shadow: int, offset: int = COMMON_OFFSET) -> VirtAddr:
    """The first of the eight addresses whose shadow byte lies at *shadow*.

    Any 64-bit number gives one; whether *shadow* is in the shadow area is asked elsewhere.

    >>> f"{from_shadow(0xffff_fbff_f07e_3a17):x}"
    'ffffffff83f1d0b8'
    """
    return VirtAddr(((shadow - offset) << SCALE_SHIFT) & MASK64)


def shadow_bounds(levels: int, offset: int = COMMON_OFFSET) -> range:
    """Shadow addresses of the whole kernel half with *levels*, end exclusive.

    >>> [f"{bound:x}" for bound in (shadow_bounds(5).start, shadow_bounds(5).stop)]
    ['ffdffc0000000000', 'fffffc0000000000']
    """
    virtual_mask_shift = 9 * check_levels(levels) + 11
    kernel_half = MASK64 + 1 - (1 << virtual_mask_shift)
    start = to_shadow(kernel_half, offset)
    return range(start, start + (1 << virtual_mask_shift - SCALE_SHIFT))
