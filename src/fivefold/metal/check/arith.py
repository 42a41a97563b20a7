"""The arithmetic of the subset on Python ints: unsigned, 64 bits, total.

The one statement of the semantics that plain code and constant folding share;
`docs/metal.md` has it in words and a property test compares it with machines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fivefold.units import MASK64


def divide(left: int, right: int) -> int:
    """Return the quotient; 0 where *right* is 0."""
    return left // right if right else 0


def modulo(left: int, right: int) -> int:
    """Return the remainder; *left* where *right* is 0."""
    return left % right if right else left


OPERATIONS: Final[dict[str, Callable[[int, int], int]]] = {
    "+": lambda left, right: (left + right) & MASK64,
    "-": lambda left, right: (left - right) & MASK64,
    "*": lambda left, right: (left * right) & MASK64,
    "&": lambda left, right: left & right,
    "|": lambda left, right: left | right,
    "^": lambda left, right: left ^ right,
    "<<": lambda left, right: (left << (right & 63)) & MASK64,
    ">>": lambda left, right: left >> (right & 63),
    "//": divide,
    "%": modulo,
}


def count_trailing_zeros(value: int) -> int:
    """Return the index of the lowest set bit; 64 for 0."""
    return (value & -value).bit_length() - 1 if value else 64


def count_leading_zeros(value: int) -> int:
    """Return how many of the 64 bits lie above the highest set one; 64 for 0."""
    return 64 - value.bit_length()
