"""What every theme of the product is made of: an address in a page of its own, the path to it, a case of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product as cross
from typing import Final

from fivefold.arch import Level, PagingMode
from fivefold.conform.cases.actions import ACTIONS
from fivefold.conform.cases.case import (
    LEVELS,
    USUAL,
    WANTED,
    Case,
    CaseError,
    canonical_va,
    large_frame,
    make_case,
)
from fivefold.units import MASK64

Stratum = tuple[object, ...]
CaseStream = Iterator[tuple[Stratum, Case]]

CORE: Final = ("read8", "write8", "rmw8", "push8", "fetch", "descriptor", "accessed")
ACCESSES: Final = tuple(
    name for name, action in ACTIONS.items() if (action.register, action.invpcid, action.stale) == (None, None, None)
)
PLAIN: Final = ("wp", "nxe")
GUARDED: Final = ("wp", "nxe", "smep", "smap")
RW, US, NX, PS, A, D = 1 << 1, 1 << 2, 1 << 63, 1 << 7, 1 << 5, 1 << 6
UPPER, LOWER = 0x1F0, 0x0F5
PAGE: Final = 0x33
PAGE_LEVELS: Final = (Level.PT, Level.PD, Level.PDPT)


def cases_of(
    mode: str, action: str, cpl: int, flags: tuple[str, ...], va: int, entries: dict[str, int] | None = None,
    pkru: int = 0, pkrs: int = 0, new: int = 0,
) -> Iterator[Case]:  # fmt: skip
    """The case, if it is one."""
    more = tuple(flag for flag in (WANTED.get(ACTIONS[action].needs or ""),) if flag in ("sce", "pke"))
    try:
        yield make_case(mode, action, cpl, (*flags, *more), va, entries, pkru, pkrs, new)
    except CaseError:
        return


def _offset(action: str) -> int:
    """Where in its page an access starts that lies in one page."""
    return {"fetch10": 0x126, "cmpxchg16": 0x120}.get(action, 0x128)


def va_in_page(paging: PagingMode, action: str, slot: int = UPPER) -> int:
    """The address that *action* accesses, in one page, behind *slot* of the root."""
    return canonical_va(paging, slot, PAGE, _offset(action))


def path_to(mode: str, page: Level) -> dict[str, int]:
    """The usual entries down to a page of *page* that differ from a 4 KiB page's."""
    return {} if page is Level.PT else {LEVELS[page - 1]: large_frame(page) | USUAL | PS}


def usual_entry(case_entries: dict[str, int], mode: str, va: int, place: str) -> int:
    """What *place* holds on the path to *va*, unless *case_entries* says."""
    return case_entries.get(place) or make_case(mode, "read8", 0, (), va).usual(place)


def edge_addresses(paging: PagingMode) -> Iterator[tuple[object, int]]:
    """Both ends of both halves, the bits above them one by one, and the end of the address space."""
    gap = paging.gap
    for distance in (*range(-12, 9), -16, -4096, 16, 4096):
        yield ("low end", max(-9, min(distance, 1))), gap.start + distance
        yield ("high end", max(-9, min(distance, 1))), gap.stop + distance
    for distance in (*range(1, 13), 16):
        yield ("wrap", min(distance, 9)), MASK64 + 1 - distance
    for bit, slot in cross(range(paging.va_bits - 1, 64), (LOWER, UPPER)):
        yield ("bit", bit), canonical_va(paging, slot, PAGE, 0x128) ^ 1 << bit
    yield "middle", 1 << 63
    yield "middle", (1 << 62) + 0x1000
