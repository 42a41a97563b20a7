"""The two kinds of address, and the one way numbers of 64 bits are printed.

Distinct types stop the `phys_base` class of bug when mypy runs, at no cost when
the program runs. Arithmetic decays to ``int`` on purpose: say again what the
result is.
"""

from __future__ import annotations

import re
from typing import Final, NewType

__all__ = [
    "GIB",
    "KIB",
    "MASK64",
    "MIB",
    "PAGE",
    "PIB",
    "TIB",
    "PhysAddr",
    "VirtAddr",
    "format_size",
    "hex64",
    "parse_size",
]

VirtAddr = NewType("VirtAddr", int)
"""64 bits as the CPU sees them, canonical or not; never negative."""

PhysAddr = NewType("PhysAddr", int)
"""A physical address; never sign-extended, never negative."""

MASK64: Final = (1 << 64) - 1

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40
PIB: Final = 1 << 50

PAGE: Final = 4 * KIB
"""The smallest page, which is the size of a table, too."""

_UNITS: Final = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB, "P": PIB}
_SIZE: Final = re.compile(r"(0x[0-9a-f]+|[0-9]+)\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE)


def hex64(value: int) -> str:
    """Spell a 64-bit number the one way the project prints it.

    >>> hex64(0xff11_0000_0000_0000)
    '0xff11000000000000'
    """
    return f"{value:#018x}"


def format_size(size: int) -> str:
    """Spell *size* bytes in the largest binary unit that divides it exactly.

    >>> format_size(512 << 20), format_size(4096 + 1024), format_size(0)
    ('512M', '5K', '0')
    """
    for unit in ("P", "T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def parse_size(text: str) -> int:
    """Read a size in bytes: ``512M``, ``0x200000``, ``4KiB``. Units are binary.

    Raises `ValueError` that says what was expected.

    >>> parse_size("512M") == 512 << 20
    True
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; expected a number and K, M, G, T or P, such as 512M")
    return int(match[1], 0) * _UNITS[match[2].upper()]
