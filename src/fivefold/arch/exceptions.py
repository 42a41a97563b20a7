"""Exceptions, and what becomes of one that is raised while another is being delivered.

Source: Intel SDM, "Exception and Interrupt Reference", "Interrupt 8—Double Fault Exception".
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final


class Vector(IntEnum):
    """The architectural exceptions, by the manuals' mnemonics."""

    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    BR = 5
    UD = 6
    NM = 7
    DF = 8
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XM = 19
    VE = 20
    CP = 21
    HV = 28
    VC = 29
    SX = 30


HAS_ERROR_CODE: Final = frozenset(
    {
        Vector.DF,
        Vector.TS,
        Vector.NP,
        Vector.SS,
        Vector.GP,
        Vector.PF,
        Vector.AC,
        Vector.CP,
        Vector.VC,
        Vector.SX,
    }
)
"""The exceptions that push an error code."""


class Escalation(Enum):
    """What happens to the second of two exceptions."""

    SERIAL = "the second is delivered"
    DOUBLE = "a double fault is delivered instead"
    TRIPLE = "the CPU shuts down"


# AMD APM volume 2, "#DF—Double-Fault Exception", for VC and SX.
_CONTRIBUTORY: Final = frozenset(
    {Vector.DE, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.CP, Vector.VC, Vector.SX}
)
_PAGE: Final = frozenset({Vector.PF, Vector.VE})


def escalate(first: int | None, second: int) -> Escalation:
    """What *second* becomes when it is raised while *first* is being delivered.

    Both are vectors; None says that nothing was being delivered. Vectors without an entry in
    the manual's table, external interrupts among them, are benign. `ValueError` if *second* is
    8: a double fault is what this answers, never what is raised.

    >>> escalate(14, 14), escalate(8, 14)
    (<Escalation.DOUBLE: 'a double fault is delivered instead'>, <Escalation.TRIPLE: 'the CPU shuts down'>)
    """
    if second == Vector.DF:
        raise ValueError("a double fault is not raised on its own; give the exception that led to it")
    serious = second in _CONTRIBUTORY or second in _PAGE
    if first == Vector.DF and serious:
        return Escalation.TRIPLE
    if first in _PAGE and serious:
        return Escalation.DOUBLE
    if first in _CONTRIBUTORY and second in _CONTRIBUTORY:
        return Escalation.DOUBLE
    return Escalation.SERIAL
