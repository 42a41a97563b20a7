"""Names for the addresses of a trace: from a table of symbols, and the slide between it and the kernel that ran."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from fivefold.explain.area_names import KERNEL_IMAGE
from fivefold.explain.logs.trace import Caller, RaisedException, Trace
from fivefold.symbols import Symbols
from fivefold.units import GIB, MASK64, hex64

_PRINTED: Final = re.compile(r"([A-Za-z_.$][\w.$]*)\+0x([0-9a-f]+)(?:/0x[0-9a-f]+)?( \[\w+\])?$", re.I)
MOST_CALLERS: Final = 16
_ALIGNED: Final = 0x1FFFFF
"""KASLR moves the image of x86-64 by multiples of 2 MiB."""


@dataclass(frozen=True, slots=True)
class Naming:
    """A table of symbols with the *slide* of the kernel that ran; None where nothing says it. *why* says it."""

    table: Symbols
    slide: int | None
    why: str

    def name_at(self, va: int | None) -> str | None:
        """``name`` or ``name+0x12`` at *va*, None where the slide or the name is not known."""
        if va is None or self.slide is None or not va >> 63:
            return None
        return self.table.at(va - self.slide & MASK64)

    def remarks(self, trace: Trace) -> tuple[str, ...]:
        """What the table says beyond the names: numbers for names that the log prints, and the slide."""
        if self.slide is None:
            return (f"{self.table.how}: {self.why}; so addresses have no names, and names no addresses",)
        found = [f"{self.table.how}: {self.why}"]
        for raised in trace.exceptions:
            at = _address(self.table, raised.symbol) if raised.rip is None else None
            if at is not None:
                found.append(f"{raised.symbol} is at {hex64(at + self.slide & MASK64)}")
        if any(caller.name is None for caller in trace.callers):
            found.append(f"call trace: {', '.join(frames_of(trace, self)[:MOST_CALLERS])}{self._rest(trace)}")
        return tuple(dict.fromkeys(found))

    @property
    def known_from(self) -> str | None:
        """What names are taken from, None where none can be: without symbols, or without the slide."""
        return self.table.known_from if self.slide is not None else None

    def _rest(self, trace: Trace) -> str:
        left = len(trace.callers) - MOST_CALLERS
        return f", and {left} more" if left > 0 else ""


def frames_of(trace: Trace, naming: Naming | None) -> tuple[str, ...]:
    """The call trace of *trace* by names, as numbers where there are none; doubtful ones say so."""
    return tuple(_frame(caller, naming) for caller in trace.callers)


def _frame(caller: Caller, naming: Naming | None) -> str:
    named = naming.name_at(caller.address) if naming is not None else None
    name = caller.name or named or hex64(caller.address or 0)
    return f"{name} (doubtful)" if caller.doubtful else name


def name_addresses(trace: Trace, table: Symbols, slide: int | None = None) -> tuple[Trace, Naming]:
    """*trace* with a name for each RIP that had none. *slide* is what memory says of it, if anything does."""
    naming = _naming(trace, table, slide)
    named = tuple(
        raised if raised.symbol else replace(raised, symbol=naming.name_at(raised.rip)) for raised in trace.exceptions
    )
    return replace(trace, exceptions=named), naming


def _naming(trace: Trace, table: Symbols, slide: int | None) -> Naming:
    if table.is_running:
        return Naming(table, 0, "addresses of a running kernel")
    if trace.placement.slide is not None:
        return Naming(table, trace.placement.slide, f"moved by {trace.placement.slide:#x}, the log's Kernel Offset")
    if slide is not None:
        return Naming(table, slide, f"moved by {slide:#x}, as VMCOREINFO in memory says")
    for raised in trace.exceptions:
        if (found := _by_printed_name(raised, table)) is not None:
            return Naming(table, found, f"moved by {found:#x}: the log prints {raised.symbol} with its address")
    if trace.placement.image_fixed:
        return Naming(table, 0, "not moved: the log says that nothing is randomised")
    places = [raised.rip for raised in trace.exceptions if raised.rip is not None]
    if places and trace.dialect != "Linux oops" and all(_is_in_image(rip) and table.at(rip) for rip in places):
        return Naming(table, 0, "taken as not moved, which the log does not say")
    return Naming(table, None, "the log does not say by how much the kernel was moved (Kernel Offset)")


def _by_printed_name(raised: RaisedException, table: Symbols) -> int | None:
    at = _address(table, raised.symbol)
    if at is None or raised.rip is None:
        return None
    slide = raised.rip - at & MASK64
    return slide if slide < GIB and not slide & _ALIGNED else None


def _address(table: Symbols, symbol: str | None) -> int | None:
    """The linked address of ``name+0x12/0x40``; None for modules, and for names that there are several of."""
    match = _PRINTED.match(symbol or "")
    start = table.only_address(match[1]) if match and not match[3] else None
    return None if match is None or start is None else start + int(match[2], 16)


def _is_in_image(va: int) -> bool:
    return KERNEL_IMAGE <= va < KERNEL_IMAGE + GIB
