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
    "parse_address",
    "parse_range",
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

_UNITS: Final = {"K": KIB, "M": MIB, "G": GIB, "T": TIB, "P": PIB}
_WITH_UNIT: Final = re.compile(
    r"(?P<number>0x[0-9a-f]{1,16}|[0-9]{1,20})\s*(?P<unit>[kmgtp])(?:i?b)?", re.IGNORECASE | re.ASCII
)
_HEXADECIMAL: Final = re.compile(r"(?P<prefix>0x)?(?P<digits>[0-9a-f]+(?:_[0-9a-f]+)*)", re.IGNORECASE)


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
    """Read a size in bytes: ``512M``, ``4KiB``, ``0x200000``. Units are binary.

    A number without either could mean two things and is refused. Raises `ValueError` that says what was expected.

    >>> parse_size("512M") == 512 << 20
    True
    """
    if match := _WITH_UNIT.fullmatch(text.strip()):
        return _with_unit(match)
    if match := _HEXADECIMAL.fullmatch(text.strip()):
        if match["prefix"]:
            return _hexadecimal(match)
        raise ValueError(f"{text!r} is a size without a unit: {_both_readings(match)}")
    raise ValueError(f"{text!r} is not a size; expected a number and K, M, G, T or P, such as 512M, or 0x…")


def parse_address(text: str) -> int:
    """Read an address or another 64-bit number: hexadecimal with or without ``0x``, or decimal with a unit.

    Raises `ValueError` that says what was expected. The end of all memory, ``16384P``, is a number, too.

    >>> hex(parse_address("401000")), parse_address("2G") == 2 << 30
    ('0x401000', True)
    """
    if match := _WITH_UNIT.fullmatch(text.strip()):
        value = _with_unit(match)
    elif match := _HEXADECIMAL.fullmatch(text.strip()):
        value = _hexadecimal(match)
    else:
        raise ValueError(
            f"{text!r} is not an address; expected hexadecimal such as ffff888000000000, "
            "or decimal with K, M, G, T or P"
        )
    if value > MASK64 + 1:
        raise ValueError(f"{text!r} does not fit in 64 bits")
    return value


def parse_range(text: str) -> range:
    """Read ``START-END``, ``START+SIZE`` or, to the end of all addresses, ``START-``; the end is exclusive.

    Ends are read as addresses. Raises `ValueError` that says what was expected.

    >>> parse_range("401000-402000"), parse_range("1M+4K")
    (range(4198400, 4202496), range(1048576, 1052672))
    """
    start, dash, end = text.partition("-")
    if dash:
        found = range(parse_address(start), parse_address(end) if end.strip() else MASK64 + 1)
    else:
        start, plus, size = text.partition("+")
        if not plus:
            raise ValueError(f"{text!r} is not a range; expected START-END, START+SIZE or START-, the end exclusive")
        first = parse_address(start)
        found = range(first, first + parse_size(size))
    if not found.start < found.stop <= MASK64 + 1:
        raise ValueError(f"{text!r} is not a range of 64-bit addresses; expected the start before the end")
    return found


def _with_unit(match: re.Match[str]) -> int:
    return int(match["number"], 0 if match["number"][:2].lower() == "0x" else 10) * _UNITS[match["unit"].upper()]


def _hexadecimal(match: re.Match[str]) -> int:
    return int(match["digits"].replace("_", ""), 16)


def _both_readings(match: re.Match[str]) -> str:
    """What a number without unit may mean, each reading as it can be written."""
    digits = match["digits"].replace("_", "")
    values = {int(digits, 16): f"0x{digits}"}
    if digits.isdecimal():
        values = {int(digits): f"{int(digits):#x}"} | values
    readings = [f"{word} is {value} byte{'s' * (value != 1)}" for value, word in values.items()]
    return f"{', '.join(readings)}; expected {'one of these' if len(readings) > 1 else 'this'}, or K, M, G, T or P"
