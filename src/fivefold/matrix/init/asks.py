"""What the init asks the kernel for: memory in both halves of what may be mapped, and accesses that must be refused.

The host reads these tables too, to say what each answer has to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PAGE: Final = 0x1000
MAP_PRIVATE_ANONYMOUS: Final = 0x22
FIXED: Final = 0x10_0000
"""MAP_FIXED_NOREPLACE, since Linux 4.17: there or not at all."""


@dataclass(frozen=True)
class Ask:
    """Memory asked for: at *hint*, and nowhere else where *fixed*."""

    name: str
    hint: int
    fixed: bool = False
    length: int = PAGE


MEMORY: Final = (
    Ask("none", 0),
    Ask("low", 0x1234_5678_9000),
    Ask("below_47", 0x7000_0000_0000),
    Ask("at_47", 1 << 47),
    Ask("across_47", (1 << 47) - PAGE, length=2 * PAGE),
    Ask("at_55", 1 << 55),
    Ask("last_of_56", (1 << 56) - 2 * PAGE),
    Ask("beyond_56", 1 << 56),
    Ask("fixed_at_47", (1 << 47) + PAGE, fixed=True),
    Ask("fixed_at_55", (1 << 55) + PAGE, fixed=True),
    Ask("fixed_last_of_56", (1 << 56) - 3 * PAGE, fixed=True),
    Ask("fixed_guard_of_56", (1 << 56) - PAGE, fixed=True),
    Ask("fixed_at_56", 1 << 56, fixed=True),
)


@dataclass(frozen=True)
class ProbedAccess:
    """An address that is written to where nothing is mapped."""

    name: str
    address: int


ACCESSES: Final = (
    ProbedAccess("middle_of_56", 3 << 54),
    ProbedAccess("at_56", 1 << 56),
    ProbedAccess("middle_of_hole", 1 << 62),
    ProbedAccess("low_end_of_kernel_half", 1 << 63),
)

SYMBOLS: Final = (
    *("_text", "_stext", "_etext", "page_offset_base", "vmalloc_base", "vmemmap_base", "phys_base"),
    *("init_top_pgt", "__pgtable_l5_enabled"),
)
"""Symbols of the kernel that are printed with their addresses."""


def name_hash(name: str) -> int:
    """The number by which the init knows a symbol's name: FNV-1a of 64 bits with the factor of `lines`."""
    found = 0x811C_9DC5
    for byte in name.encode():
        found = (found ^ byte) * 0x0100_0193 & (1 << 64) - 1
    return found


SYMBOL_HASHES: Final = tuple(name_hash(name) for name in SYMBOLS)
