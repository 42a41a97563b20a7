"""The number of levels that a report proves, where it has no CR4.

==============================================================  ========  ==============================================
evidence                                                        levels    why no other number fits
==============================================================  ========  ==============================================
a #PF at an address that 57 bits make canonical and 48 do not   5         with four levels it is a #GP, before any walk
RSP or RIP of running code that only 57 bits make canonical     5         with four levels it could not have run; a
                                                                          process may have anything in RSP
printed PGD and P4D entries, both present, that differ          5         a folded P4D is the entry of the PGD
``PGD 0`` and no P4D, by a kernel that prints it (since 4.12)   5         with four levels P4D is printed after any PGD
printed PGD and P4D entries that are equal                      4         they are one entry, printed twice
``PGD`` followed by ``PUD``                                     4         a kernel before 4.12 has no five levels
a #GP whose address the kernel calls not canonical, and which   4         the kernel asks by the bits of the mode
57 bits make canonical
a release before 4.14                                           4         it has no five levels
==============================================================  ========  ==============================================

``57 bits virtual`` in the log, or ``la57`` among the CPU's features, proves nothing: a kernel may use four levels
there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from fivefold.arch import LA48, LA57, Vector
from fivefold.explain.logs.trace import Levels, PrintedEntry, RaisedException, Trace
from fivefold.units import hex64

_WITHOUT_FIVE: Final = (4, 14)
"""The first release that can use five levels."""

_PRINTS_P4D: Final = (4, 12)
_MALFORMED: Final = 0x1000
"""No entry that is present is so small."""

_STACK_SWITCHED: Final = frozenset({Vector.DF, Vector.SS, Vector.NMI, Vector.DB, Vector.MC, Vector.VC})
"""Exceptions after which a frame on the interrupted stack proves nothing."""


class ModeEvidence(NamedTuple):
    """One thing that only *levels* explain, in a sentence."""

    levels: int
    sentence: str


def proven_levels(trace: Trace) -> tuple[Levels | None, tuple[str, ...]]:
    """The levels that *trace* proves, and what to say where its evidence contradicts itself."""
    found = list(_evidence(trace))
    if trace.levels is not None:
        found += [ModeEvidence(trace.levels.number, why) for why in trace.levels.why]
    counts = {one.levels for one in found}
    if len(counts) > 1:
        reasons = "; ".join(f"{one.levels} levels, for {one.sentence}" for one in found)
        return None, (f"the log contradicts itself about the number of levels: {reasons}",)
    if not found:
        return None, ()
    return Levels(found[0].levels, tuple(one.sentence for one in found)), ()


def _evidence(trace: Trace) -> Iterator[ModeEvidence]:
    release = release_number(trace.release)
    if release is not None and release < _WITHOUT_FIVE:
        yield ModeEvidence(4, f"Linux {trace.release} has no five levels")
    for raised in trace.exceptions:
        yield from _of_exception(raised)
        yield from _of_entries(raised.entries, release)


def _of_exception(raised: RaisedException) -> Iterator[ModeEvidence]:
    if raised.vector == Vector.PF and raised.cr2 is not None and _proves(raised.cr2):
        yield ModeEvidence(
            5, f"a #PF at {hex64(raised.cr2)}, which only 57 bits make canonical, is a #GP with four levels"
        )
    if raised.named is not None and raised.named_as == "non-canonical" and _proves(raised.named):
        yield ModeEvidence(4, f"the kernel calls {hex64(raised.named)} not canonical, which it is in 57 bits")
    if raised.during is None and raised.vector not in _STACK_SWITCHED:
        for name, value in (("RSP", raised.rsp), ("RIP", raised.rip)):
            if (
                value is not None
                and _proves(value)
                and (raised.cpl != 3 if name == "RSP" else raised.vector != Vector.GP)
            ):
                yield ModeEvidence(5, f"{name} {hex64(value)} is of code that ran, and only 57 bits make it canonical")


def _of_entries(entries: Sequence[PrintedEntry], release: tuple[int, int] | None) -> Iterator[ModeEvidence]:
    if not entries or entries[0].name != "PGD":
        return
    if len(entries) == 1:
        if entries[0].value == 0 and release is not None and release >= _PRINTS_P4D:
            yield ModeEvidence(5, "the kernel prints PGD 0 and no P4D, which with four levels follows any PGD")
        return
    top, below = entries[0], entries[1]
    if below.name == "PUD":
        yield ModeEvidence(4, "a PUD follows the PGD, as kernels before 4.12 print, which have no five levels")
    if below.name != "P4D":
        return
    if top.value == below.value:
        yield ModeEvidence(4, "the PGD and P4D entries are one and the same")
    elif top.value == 0:
        return
    elif not _is_cut(top.value, below.value) and (below.value == 0 or _is_table(below.value)) and _is_table(top.value):
        yield ModeEvidence(5, "the PGD and P4D entries differ")


def _is_table(value: int) -> bool:
    return bool(value & 1) and value >= _MALFORMED


def _is_cut(one: int, other: int) -> bool:
    """Whether one number is the other with digits missing, as in a damaged line."""
    long, short = sorted((f"{one:x}", f"{other:x}"), key=len, reverse=True)
    if len(long) == len(short) or not other:
        return False
    rest = iter(long)
    return all(digit in rest for digit in short)


def _proves(va: int) -> bool:
    """Whether *va* is an address with five levels only, and not one of the upper half that lost its last digits."""
    return only_57(va) and (bool(va >> 63) or not f"{va:x}".startswith("ff"))


def only_57(va: int) -> bool:
    """Whether *va* is canonical in 57 bits and not in 48."""
    return LA57.is_canonical(va) and not LA48.is_canonical(va)


def release_number(release: str | None) -> tuple[int, int] | None:
    """The first two numbers of a release."""
    match = re.match(r"(\d+)\.(\d+)", release or "")
    return (int(match[1]), int(match[2])) if match else None


def release_known(trace: Trace) -> str | None:
    """The release that *trace* names, or one of those that print a PUD right after the PGD: before 4.12."""
    follows = any(
        names[:2] == ["PGD", "PUD"] for raised in trace.exceptions for names in [[e.name for e in raised.entries]]
    )
    return trace.release or ("4.11" if follows else None)
