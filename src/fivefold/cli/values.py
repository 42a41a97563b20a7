"""Values that options take: sizes, addresses and counts, refused with what was expected.

Addresses and registers are hexadecimal, sizes have a unit or ``0x`` (see `fivefold.units`); counts are decimal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import typer

from fivefold.units import MASK64, parse_address, parse_range, parse_size

T = TypeVar("T")
_DECIMAL: Final = re.compile(r"[+-]?[0-9]+(?:_[0-9]+)*")
_MOST_DIGITS: Final = 40


def size(text: str) -> int:
    """A size in bytes, such as 512M."""
    return _refused(parse_size, text)


def address(text: str) -> int:
    """An address or register of 64 bits, such as ffff888000000000, 0x1000000 or 16M."""
    value = _refused(parse_address, text)
    if value > MASK64:
        raise typer.BadParameter(f"{text!r} does not fit in 64 bits")
    return value


@dataclass(frozen=True, slots=True)
class RootWithLevels:
    """A second-level root, and its levels if they were said."""

    raw: int
    levels: int | None


def rooted(text: str) -> RootWithLevels:
    """A second-level root and, after a colon, its levels, such as 0x1234000 or 0x1234000:4."""
    value, colon, levels = str(text).rpartition(":")
    return RootWithLevels(address(value), count(3, 5)(levels)) if colon else RootWithLevels(address(levels), None)


def window(text: str) -> range:
    """A range of addresses, such as 0x1000-0x2000, 1M-2G, 1000+4K or, to the end, ffff800000000000-."""
    return _refused(parse_range, text)


def count(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """A reader of decimal numbers from *least* to *most*, both included; None is no bound."""

    def read(text: str) -> int:
        word = str(text).strip()
        if not _DECIMAL.fullmatch(word):
            raise typer.BadParameter(f"{text!r} is no count; expected a decimal number{_bounds(least, most)}")
        # Python refuses to convert thousands of digits.
        value = int(word) if len(word) <= _MOST_DIGITS else None
        if value is None or (least is not None and value < least) or (most is not None and value > most):
            raise typer.BadParameter(
                f"{text!r} is out of range; expected a number{_bounds(least, most) or ' of 64 bits'}"
            )
        return value

    return read


def _bounds(least: int | None, most: int | None) -> str:
    if least is None:
        return ""
    if most == least + 1:
        return f", {least} or {most}"
    return f" from {least} on" if most is None else f" from {least} to {most}"


def seconds(text: str) -> float:
    """A time to wait, up to a day."""
    try:
        value = float(text) if str(text).isascii() else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise typer.BadParameter(f"{text!r} is no time to wait; expected seconds, more than 0 and up to 86400")
    return value


def words(text: str) -> str:
    """Text to search for, at least one character."""
    if not text:
        raise typer.BadParameter("nothing to search for; expected one character or more")
    return text


def _refused(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def controls(text: str) -> dict[str, bool]:
    """Controls of a CPU, such as wp=1,smep=1."""
    from fivefold.survey.guest.cpu.controls import parse_as_if

    return _refused(parse_as_if, text)
