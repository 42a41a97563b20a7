"""Values that options take: sizes, addresses and counts, refused with what was expected.

Addresses and registers are hexadecimal, sizes have a unit or ``0x`` (see `fivefold.units`); counts are decimal, as
click reads integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer

from fivefold.units import MASK64, parse_address, parse_range, parse_size

T = TypeVar("T")


def size(text: str) -> int:
    """A size in bytes, such as 512M."""
    return _refused(parse_size, text)


def address(text: str) -> int:
    """An address or register of 64 bits, such as ffff888000000000, 0x1000000 or 16M."""
    value = _refused(parse_address, text)
    if value > MASK64:
        raise typer.BadParameter(f"{text!r} does not fit in 64 bits")
    return value


def window(text: str) -> range:
    """A range of addresses, such as 0x1000-0x2000, 1M-2G, 1000+4K or, to the end, ffff800000000000-."""
    return _refused(parse_range, text)


def seconds(text: str) -> float:
    """A time to wait, up to a day."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise typer.BadParameter(f"{text!r} is no time to wait; expected seconds, more than 0 and up to 86400")
    return value


def _refused(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def controls(text: str) -> dict[str, bool]:
    """Controls of a CPU, such as wp=1,smep=1."""
    from fivefold.survey.guest.cpu.controls import parse_as_if

    return _refused(parse_as_if, text)
