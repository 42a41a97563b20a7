"""The themes of the product that change something on the way: invalidations, stores, registers between two accesses."""

from __future__ import annotations

from itertools import product as cross
from typing import Final

from fivefold.arch import Level
from fivefold.conform.cases.actions import ACTIONS
from fivefold.conform.cases.case import LEVELS, MODES, USUAL, large_frame, make_case
from fivefold.conform.cases.stream import (
    LOWER,
    PLAIN,
    PS,
    RW,
    UPPER,
    US,
    A,
    CaseStream,
    D,
    cases_of,
    edge_addresses,
    path_to,
    usual_entry,
    va_in_page,
)

_TWICE: Final = tuple(name for name, action in ACTIONS.items() if action.then)


def invalidations() -> CaseStream:
    """INVPCID: every type, addresses and PCIDs at the edges, with and without PCIDs."""
    for (mode, paging), action, flags in cross(MODES.items(), ACTIONS.values(), (PLAIN, (*PLAIN, "pcide"))):
        if action.invpcid is None:
            continue
        values = [value for _, value in edge_addresses(paging)] if action.invpcid in (0, 2) else []
        for value in (*values, 0, 1, 0xFFF, 0x1000, 1 << 63):
            for case in cases_of(mode, action.name, 0, flags, value):
                yield ("invpcid", mode, action.name, flags, value.bit_length()), case


def stale() -> CaseStream:
    """A store to the leaf entry of a page that was read, and every invalidation: of plain and of global pages."""
    for (mode, paging), action, slot in cross(MODES.items(), ACTIONS.values(), (LOWER, UPPER)):
        if action.stale is None:
            continue
        va = va_in_page(paging, action.name, slot)
        old = make_case(mode, "read8", 0, (), va).usual("pt")
        protections = (PLAIN, (*PLAIN, "pge"), (*PLAIN, "pcide"), (*PLAIN, "pge", "pcide"))
        for flags, bits, new in cross(protections, (0, 1 << 8, A | D), (0, old ^ 0x1000, old ^ 0x2001)):
            for case in cases_of(mode, action.name, 0, flags, va, {"pt": old | bits}, new=new):
                yield ("stale", mode, action.name, flags, bits), case


def large_stale() -> CaseStream:
    """The same of a 2 MiB page that is read at two places, one of which is invalidated."""
    for (mode, paging), action, slot in cross(MODES.items(), ("stalebignone", "stalebiginvlpg"), (LOWER, UPPER)):
        va, old = va_in_page(paging, action, slot), large_frame(Level.PD) | USUAL | PS
        protections = (PLAIN, (*PLAIN, "pge"), (*PLAIN, "pcide"), (*PLAIN, "pge", "pcide"))
        for flags, bits, new in cross(protections, (0, 1 << 8, A | D), (0, old ^ 1, old + Level.PD.span)):
            for case in cases_of(mode, action, 0, flags, va, {"pd": old | bits}, new=new):
                yield ("stale", mode, action, flags, bits), case


def twice() -> CaseStream:
    """Two accesses with a change of a register between them: rights and keys of the leaf, and rights of the root."""
    settings: tuple[tuple[tuple[str, ...], int], ...] = (
        ((), 0), (("smap",), 0), (("smap", "ac"), 0), (("pke",), 1), (("pke",), 2), (("pke", "pks"), 1),
        (("pke", "pks"), 2),
    )  # fmt: skip
    for (mode, paging), page, action, cpl in cross(MODES.items(), (Level.PT, Level.PD), _TWICE, (0, 3)):
        va, path = va_in_page(paging, action), path_to(mode, page)
        leaf, above = LEVELS[page - 1], LEVELS[paging.top - 1]
        for clear, place, wp, (features, denied) in cross((0, RW, US, RW | US, 1), (leaf, above), (0, 1), settings):
            entries = path | {leaf: usual_entry(path, mode, va, leaf) | (5 << 59 if denied else 0)}
            entries |= {place: usual_entry(entries, mode, va, place) & ~clear}
            flags = (("wp",) if wp else ()) + ("nxe", *features)
            stratum = ("twice", mode, action, clear, features)
            for case in cases_of(mode, action, cpl, flags, va, entries, denied << 10, (denied ^ 3) << 10):
                yield stratum, case
