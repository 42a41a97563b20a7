"""Does this machine have five levels, and should they be used? [proposal: parts 1, 4 and 8]

The feature is optional: a kernel that can use five levels must boot without them. CPUID
is asked for its maximum leaf first, because a CPU whose maximum is below 7 answers leaf 7
with some other leaf. `no5lvl` on the command line says no. The answer is a wish: what the
kernel proper follows is CR4.LA57, which says what the machine does.

This file is compiled for i386 as well, for the entry without long mode: no variables, no
strings, no tables.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.boot.start_info import MAX_CMDLINE
from fivefold.kernel.paging.cpu import EAX, ECX, EDX
from fivefold.metal.lang import cpuid, inline, load8, u64

CPUID_LA57: Final = 1 << 16
CPUID_1G_PAGES: Final = 1 << 26
CPUID_SYSCALL: Final = 1 << 11
CPUID_NX: Final = 1 << 20

NO5LVL: Final = int.from_bytes(b"no5lvl", "little")
NO5LVL_SIZE: Final = 6

REASON_CPU_HAS_LA57: Final = 1
REASON_CPU_LACKS_LA57: Final = 2
REASON_NO5LVL: Final = 3
REASON_MAX_LEAF_BELOW_7: Final = 4
REASON_TEXT: Final = (
    (REASON_CPU_HAS_LA57, "the CPU has LA57"),
    (REASON_CPU_LACKS_LA57, "the CPU lacks LA57"),
    (REASON_NO5LVL, "no5lvl on the command line"),
    (REASON_MAX_LEAF_BELOW_7, "CPUID's maximum leaf is below 7, so the CPU lacks LA57"),
)
"""For those who report; the kernel itself passes the number."""


@inline
def separates(byte: u64) -> bool:
    """Whether *byte* ends a word of the command line."""
    return byte <= 32


def cmdline_has(cmdline: u64, word: u64, size: u64) -> bool:
    """Whether the NUL-terminated text at *cmdline* (0: there is none) holds a whole word.

    The word is given as the little-endian number of its *size* bytes, at most 8. What follows a word ``--`` is not
    this kernel's.
    """
    if cmdline == 0:
        return False
    matched = 0
    dashes = 0
    for i in range(MAX_CMDLINE):
        byte = load8(cmdline + i)
        if separates(byte):
            if matched == size:
                return True
            if byte == 0 or dashes == 2:
                return False
            matched = 0
            dashes = 0
            continue
        dashes = dashes + 1 if byte == 45 and dashes < 3 else 3
        if matched < size and byte == word >> (8 * matched) & 0xFF:
            matched = matched + 1
        else:
            matched = size + 1
    return False


def reason_for_mode(cmdline: u64) -> u64:
    """Decide once, for the 32-bit and the 64-bit entry alike: one of the REASON constants."""
    if cpuid(0, 0, EAX) < 7:
        return REASON_MAX_LEAF_BELOW_7
    if cpuid(7, 0, ECX) & CPUID_LA57 == 0:
        return REASON_CPU_LACKS_LA57
    if cmdline_has(cmdline, NO5LVL, NO5LVL_SIZE):
        return REASON_NO5LVL
    return REASON_CPU_HAS_LA57


@inline
def wants_five_levels(reason: u64) -> bool:
    """Whether *reason* decided for five levels."""
    return reason == REASON_CPU_HAS_LA57


def cpu_phys_bits() -> u64:
    """MAXPHYADDR: 36 where CPUID does not say, never above 52."""
    if cpuid(0x8000_0000, 0, EAX) < 0x8000_0008:
        return 36
    return min(cpuid(0x8000_0008, 0, EAX) & 0xFF, 52)


def cpu_has_gib_pages() -> bool:
    """Whether a PUD entry may map 1 GiB."""
    if cpuid(0x8000_0000, 0, EAX) < 0x8000_0001:
        return False
    return cpuid(0x8000_0001, 0, EDX) & CPUID_1G_PAGES != 0


def cpu_has_syscall() -> bool:
    """Whether the CPU has SYSCALL in long mode; without it EFER.SCE is reserved."""
    if cpuid(0x8000_0000, 0, EAX) < 0x8000_0001:
        return False
    return cpuid(0x8000_0001, 0, EDX) & CPUID_SYSCALL != 0


def cpu_has_nx() -> bool:
    """Whether EFER.NXE may be set; without it bit 63 of an entry is reserved."""
    if cpuid(0x8000_0000, 0, EAX) < 0x8000_0001:
        return False
    return cpuid(0x8000_0001, 0, EDX) & CPUID_NX != 0
