"""Addresses in the fields of AArch64's instructions.

Source: "ELF for the Arm 64-bit Architecture (AArch64)", static AArch64 relocations; "Arm Architecture Reference
Manual for A-profile", instructions ADR, ADRP, B, BL, ADD (immediate), LDR and STR (immediate).
"""

from __future__ import annotations

from typing import Final

FIELDS: Final = ("adrp", "b26", "lo12", "lo12>>1", "lo12>>2", "lo12>>3", "lo12>>4")
"""A page relative to the instruction's, a branch, and the low 12 bits of an address, scaled by the access's size.

The last are absolute, and hold wherever the image lies, as long as it moves by whole pages of 4 KiB.
"""

_PAGE: Final = 0xFFF
_IMM26: Final = (1 << 26) - 1
_IMM12: Final = 0xFFF << 10
_ADR_FIELD: Final = 3 << 29 | 0x7FFFF << 5


def fill(form: str, word: int, value: int, place: int) -> int | None:
    """Return the instruction *word* at *place* with *value* in its field; None where that does not fit."""
    if form == "adrp":
        return _adrp(word, (value & ~_PAGE) - (place & ~_PAGE))
    if form == "b26":
        return _branch(word, value - place)
    shift = int(form[6:] or 0)
    if value & ((1 << shift) - 1):
        return None
    return word & ~_IMM12 | (value & _PAGE) >> shift << 10


def _adrp(word: int, distance: int) -> int | None:
    if not -(1 << 32) <= distance < 1 << 32:
        return None
    pages = distance >> 12
    return word & ~_ADR_FIELD | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5


def _branch(word: int, distance: int) -> int | None:
    if distance & 3 or not -(1 << 27) <= distance < 1 << 27:
        return None
    return word & ~_IMM26 | distance >> 2 & _IMM26
