"""Symbols of a file, moved to where the kernel in memory lies, and held against it."""

from __future__ import annotations

from typing import Final

from fivefold.errors import FormatError, MemoryReadError
from fivefold.survey.guest.bases import KernelBases
from fivefold.survey.guest.vmcoreinfo import KernelNotes
from fivefold.survey.names.kernel_memory import KernelMemory
from fivefold.symbols import Symbols, moved
from fivefold.units import MASK64, hex64

BANNER: Final = b"Linux version "


def fitted(symbols: Symbols, memory: KernelMemory, bases: KernelBases, notes: KernelNotes) -> Symbols:
    """*symbols* where the kernel of *memory* has them: it may have been moved after its build (KASLR).

    By how much is known from VMCOREINFO, or from where the code begins. `FormatError` where no banner of Linux stands
    where the symbols say that it does: they are another kernel's.
    """
    slide = _slide(symbols, bases, notes)
    if slide:
        # Modules in the file are of the boot in which it was written.
        symbols = Symbols([span for span in symbols.spans if span.module is None], symbols.how)
    found = moved(symbols, slide or 0)
    if slide is None:
        found = Symbols(found.spans, f"{found.how}, not moved: nothing shows where the code begins")
    _check_banner(found, memory)
    return found


def _slide(symbols: Symbols, bases: KernelBases, notes: KernelNotes) -> int | None:
    for name in ("_stext", "_text"):
        there, here = symbols.address(name), notes.symbol(name)
        if there is not None and here is not None:
            return here - there & MASK64
    there, here = symbols.address("_text"), bases.kernel_text.value
    return None if there is None or here is None else here - there & MASK64


def _check_banner(symbols: Symbols, memory: KernelMemory) -> None:
    at = symbols.address("linux_banner")
    try:
        text = BANNER if at is None else memory.read(at, len(BANNER))
    except MemoryReadError:
        return  # a dump of tables alone cannot show that
    if text != BANNER:
        raise FormatError(
            f"{symbols.how}: linux_banner at {hex64(at or 0)} holds {text!r}; expected the symbols of this kernel"
        )
