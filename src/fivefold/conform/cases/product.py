"""The systematic product: levels × bits × registers × accesses × edges.

Each theme yields a stratum and a case. `product` orders them so that every stratum comes once before any comes
twice: the first few thousand cases meet every rule with every kind of access.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import resources
from itertools import chain, zip_longest
from itertools import product as cross
from random import Random
from typing import Final

from fivefold.arch import Cr0, Cr4, Level, PagingMode
from fivefold.conform.cases.actions import ACTIONS
from fivefold.conform.cases.case import (
    LEVELS,
    MODES,
    USUAL,
    Case,
    canonical_va,
    impossible,
    large_frame,
    make_case,
    parse_case,
)
from fivefold.conform.cases.product_steps import invalidations, large_stale, stale, twice
from fivefold.conform.cases.stream import (
    ACCESSES,
    CORE,
    GUARDED,
    LOWER,
    NX,
    PAGE,
    PAGE_LEVELS,
    PLAIN,
    PS,
    RW,
    UPPER,
    US,
    A,
    CaseStream,
    D,
    Stratum,
    cases_of,
    edge_addresses,
    path_to,
    usual_entry,
    va_in_page,
)
from fivefold.units import MASK64

WIDE: Final = (
    "read8",
    "write8",
    "rmw8",
    "lock8",
    "xchg8",
    "cmpxchg8",
    "push8",
    "pop8",
    "descriptor",
    "fetch10",
    "readbp8",
    "writebp8",
    "call8",
    "stos8",
)
_SHADOWED: Final = ("wruss8", "read8", "write8", "fetch")


@cache
def systematic() -> tuple[Case, ...]:
    """Every case of the product, each once, those first that show every rule; in every process in the same order."""
    text = (resources.files("fivefold.conform.cases") / "first.txt").read_text(encoding="utf-8")
    first = dict.fromkeys(parse_case(line) for line in text.splitlines())
    return tuple(dict.fromkeys((*first, *strata_in_turn())))


def strata_in_turn() -> tuple[Case, ...]:
    """Every case of the product, each once, strata interleaved."""
    strata: dict[Stratum, list[Case]] = {}
    seen: set[Case] = set()
    themes = (
        bits,
        rights,
        instructions,
        keys,
        edges,
        straddles,
        history,
        registers,
        separation,
        shadow_stacks,
        invalidations,
        stale,
        large_stale,
        twice,
    )
    for stratum, case in chain.from_iterable(theme() for theme in themes):
        if case not in seen and impossible(case) is None:
            seen.add(case)
            strata.setdefault(stratum, []).append(case)
    for number, cases in enumerate(strata.values()):
        Random(number).shuffle(cases)
    rounds = zip_longest(*strata.values())
    return tuple(case for one_round in rounds for case in one_round if case is not None)


def bits() -> CaseStream:
    """Each bit of each entry on the path of each page size, turned over."""
    for (mode, paging), page, action, cpl, flags in cross(
        MODES.items(), PAGE_LEVELS, CORE, (0, 3), (PLAIN, ("wp",), GUARDED)
    ):
        if flags == ("wp",) and action not in ("read8", "fetch"):
            continue
        va, path = va_in_page(paging, action), path_to(mode, page)
        for level in paging.levels:
            if level < page:
                continue
            place = LEVELS[level - 1]
            usual = usual_entry(path, mode, va, place)
            for bit in range(64):
                if flags is GUARDED and bit not in (0, 1, 2, 5, 6, 7, 63):
                    continue
                entries = path | {place: usual ^ 1 << bit}
                stratum = ("bits", mode, page, place, _kind_of_bit(bit))
                yield from ((stratum, case) for case in cases_of(mode, action, cpl, flags, va, entries))


def _kind_of_bit(bit: int) -> object:
    if bit <= 12:
        return bit
    bounds = ((21, "low"), (30, "middle"), (46, "frame"), (52, "high"), (59, "software"), (63, "key"))
    return next((name for end, name in bounds if bit < end), "nx")


def rights() -> CaseStream:
    """R/W, U/S and XD missing at one level or at two, under every protection."""
    protections = tuple(
        tuple(name for name, on in zip(("wp", "nxe", "smep", "smap", "ac"), chosen, strict=True) if on)
        for chosen in cross((0, 1), repeat=5)
    )
    for (mode, paging), page, action, cpl in cross(MODES.items(), (Level.PT, Level.PD), CORE, (0, 3)):
        va, path = va_in_page(paging, action, LOWER), path_to(mode, page)
        above = LEVELS[paging.top - 1]
        leaf = LEVELS[page - 1]
        for flags, missing, places in cross(protections, range(8), ((leaf,), (above,))):
            entries = dict(path)
            for place in places:
                raw = usual_entry(path, mode, va, place)
                entries[place] = raw & ~((missing & 3) << 1) | (NX if missing & 4 and "nxe" in flags else 0)
            stratum = ("rights", mode, action, missing)
            yield from ((stratum, case) for case in cases_of(mode, action, cpl, flags, va, entries))


def instructions() -> CaseStream:
    """Every other instruction: the leaf or the root entry without a right, absent and malformed."""
    protections = (PLAIN, ("nxe",), GUARDED, (*GUARDED, "ac"), ("wp", "nxe", "cet"))
    others = [name for name in ACCESSES if name not in CORE]
    for (mode, paging), action, cpl, flags in cross(MODES.items(), others, (0, 3), protections):
        va = va_in_page(paging, action, LOWER)
        for place, changed in cross(("pt", LEVELS[paging.top - 1]), (0, 1, RW, US, NX, 1 << 51, 1 << 8, 1 << 52)):
            entries = {place: usual_entry({}, mode, va, place) ^ changed}
            for case in cases_of(mode, action, cpl, flags, va, entries):
                yield ("instructions", mode, action, changed), case


def keys() -> CaseStream:
    """Protection keys of user and supervisor pages, with either feature on, both, and none."""
    features = ((), ("pke",), ("pks",), ("pke", "pks"))
    for (mode, paging), page, action, cpl, feature, denied in cross(
        MODES.items(), (Level.PT, Level.PD), (*CORE, "lock8"), (0, 3), features, range(4)
    ):
        for wp, missing, key, which in cross((0, 1), (0, RW, US, RW | US), (1, 15), ("both",)):
            va, path = va_in_page(paging, action), path_to(mode, page)
            leaf = LEVELS[page - 1]
            entries = path | {leaf: (usual_entry(path, mode, va, leaf) & ~missing) | key << 59}
            flags = (("wp",) if wp else ()) + ("nxe", *feature)
            value = denied << 2 * key
            pkru, pkrs = (value if which != "pkrs" else 0), (value if which != "pkru" else 0)
            stratum = ("keys", mode, action, feature, denied)
            yield from ((stratum, case) for case in cases_of(mode, action, cpl, flags, va, entries, pkru, pkrs))


def edges() -> CaseStream:
    """Accesses at and over the edges of the canonical halves, and past 2^64."""
    for (mode, paging), action, cpl, flags in cross(MODES.items(), ACCESSES, (0, 3), (PLAIN, GUARDED)):
        for name, va in edge_addresses(paging):
            for entries in ({}, {"pt": 0}):
                stratum = ("edges", mode, ACTIONS[action].label, name)
                yield from ((stratum, case) for case in cases_of(mode, action, cpl, flags, va, entries))


def straddles() -> CaseStream:
    """Accesses over two pages, of which either may be refused, in one table and across tables."""
    changes = {
        "usual": (0, 0), "absent": (0, 1), "read-only": (0, RW), "supervisor": (0, US), "xd": (NX, 0),
        "high": (1 << 51, 0), "flags": (A | D, 0),
    }  # fmt: skip
    boundaries = {"pt": (PAGE, 0), "pd": (0x1FF, 0)}
    for (mode, paging), action, cpl, flags, (where, (page, _)) in cross(
        MODES.items(), WIDE, (0, 3), (PLAIN, GUARDED), boundaries.items()
    ):
        for offset, first, second in cross((0xFF9, 0xFFC, 0xFFE, 0xFFF), changes, changes):
            if (action == "fetch10") != (offset == 0xFFE):
                continue
            if where == "pd" and (offset != 0xFFC or flags is GUARDED):
                continue
            if action in ("xchg8", "cmpxchg8") and offset != 0xFFC:
                continue
            va = canonical_va(paging, UPPER, page, offset)
            bare = make_case(mode, action, cpl, flags, va)
            entries = {
                place: bare.usual(place) & ~changes[change][1] | changes[change][0]
                for place, change in (("pt", first), ("pt2", second))
            }
            stratum = ("straddles", mode, ACTIONS[action].label, first, second)
            yield from ((stratum, case) for case in cases_of(mode, action, cpl, flags, va, entries))
        if where == "pd" and action != "fetch10":
            yield from _upper_straddles(mode, paging, action, cpl, flags)


def _upper_straddles(mode: str, paging: PagingMode, action: str, cpl: int, flags: tuple[str, ...]) -> CaseStream:
    """The second page absent or malformed at a level above, and either page large."""
    va = canonical_va(paging, UPPER, 0x1FF, 0xFFC)
    bare = make_case(mode, action, cpl, flags, va)
    large = {"pd": large_frame(Level.PD) | USUAL | PS, "pd2": large_frame(Level.PD) + (2 << 20) | USUAL | PS}
    for entries in (
        {"pd2": 0}, {"pd2": bare.usual("pd2") & ~US}, {"pd2": bare.usual("pd2") & ~RW}, {"pd": large["pd"]},
        {"pd2": large["pd2"]}, large, {"pd": large["pd"], "pd2": large["pd2"] & ~RW}, {"pd2": large["pd2"] | 1 << 13},
    ):  # fmt: skip
        for case in cases_of(mode, action, cpl, flags, va, entries):
            yield ("straddles above", mode, action, tuple(entries)), case


def history() -> CaseStream:
    """Accessed and dirty flags that are set already, in any mixture, under accesses that go ahead and that do not."""
    for (mode, paging), page, action, cpl in cross(MODES.items(), PAGE_LEVELS, ACCESSES, (0, 3)):
        if page is not Level.PT and action not in CORE:
            continue
        va, path = va_in_page(paging, action), path_to(mode, page)
        places = [LEVELS[level - 1] for level in paging.levels if level >= page]
        for number, (flags, missing, mask) in enumerate(cross((PLAIN, ("nxe",)), (0, RW, US, 1), range(8))):
            random = Random(f"{mode} {page} {number}")
            entries = {place: usual_entry(path, mode, va, place) | random.choice((0, A, D, A | D)) for place in places}
            entries[places[-1]] = (
                entries[places[-1]] & ~(A | D | missing) | (A if mask & 1 else 0) | (D if mask & 2 else 0)
            )
            stratum = ("history", mode, action, missing)
            yield from ((stratum, case) for case in cases_of(mode, action, cpl, flags, va, entries))


_PAT, _PKRS = 0x277, 0x6E1
_CR0, _CR4, _EFER = 0x8000_0031, 0x20, 0xD00
# A few only: they end the driver where an engine takes them.
_CR3_BITS: Final = (40, 46, 51, 52, 59, 61, 62, 63)
_CR4_BITS: Final = (15, 19, 25, 26, 29, 30, 31, 33, 40, 63)


def registers() -> CaseStream:
    """Writes of control registers and MSRs: each reserved bit, each rule, addresses that are not canonical."""
    for mode, paging in MODES.items():
        la57 = 1 << 12 if mode == "la57" else 0
        values: dict[str, list[int]] = {
            "movcr0": [_CR0 ^ 1 << bit for bit in (16, 18, *range(32, 64), 29, 0, 31)],
            "movcr3": [0x0400_0000 | 1 << bit for bit in (*range(12), *_CR3_BITS)] + [0x0400_0000],
            "movcr4": [_CR4 | la57 | 1 << bit for bit in (2, 7, *_CR4_BITS)] + [_CR4 | la57 ^ 1 << 12, la57],
            "msrc0000080": [_EFER ^ 1 << bit for bit in (*range(1, 8), 8, 9, 10, 12, 13, 14, *range(16, 64))],
        }
        for name, action in ACTIONS.items():
            if action.register is None:
                continue
            more = ("fsgsbase",) if action.needs == "fsgsbase" else ()
            for value in values.get(name) or list(_addresses(paging, action.msr)):
                for flags in (PLAIN, ("wp", "nxe", "pcide")) if name == "movcr3" else ((*PLAIN, *more),):
                    # A rule each, where the register has rules of its own; addresses differ in their highest bit.
                    kind = value if name in values or action.msr in (_PAT, _PKRS) else value.bit_length()
                    yield from (
                        (("registers", mode, name, kind), case) for case in cases_of(mode, name, 0, flags, value)
                    )
        yield from _register_pairs(mode, la57)


def _register_pairs(mode: str, la57: int) -> CaseStream:
    """Writes that another register forbids."""
    for name, value, flags in (
        ("movcr4", _CR4 | la57 | int(Cr4.PCIDE), ("nxe", "pwt")),
        ("movcr4", _CR4 | la57 | int(Cr4.CET), ("nxe",)),
        ("movcr0", _CR0 & ~int(Cr0.WP), ("wp", "nxe", "cet")),
    ):
        yield from ((("registers", name, flags), case) for case in cases_of(mode, name, 0, flags, value))


def shadow_stacks() -> CaseStream:
    """WRUSS, and ordinary accesses with CET on, to pages of every kind: R/W, U/S, D and P, of the leaf and above."""
    for (mode, paging), page, action, cpl in cross(MODES.items(), (Level.PT, Level.PD), _SHADOWED, (0, 3)):
        va, path = va_in_page(paging, action), path_to(mode, page)
        leaf, above = LEVELS[page - 1], LEVELS[page]
        for clear, flags_set, upper in cross((0, RW, US, RW | US, 1), (0, D, A | D), (0, RW, US)):
            entries = path | {
                leaf: usual_entry(path, mode, va, leaf) & ~clear | flags_set,
                above: usual_entry({}, mode, va, above) & ~upper,
            }
            for flags in (("wp", "nxe", "cet"), ("wp", "nxe", "smap", "cet")):
                for case in cases_of(mode, action, cpl, flags, va, entries):
                    yield ("shadow stack", mode, action, clear, upper), case


def _addresses(paging: PagingMode, msr: int | None) -> Iterator[int]:
    """Addresses that are canonical in both modes, in one, and in none."""
    if msr == _PAT:
        yield from (0x0007_0406_0007_0406, 0x0007_0406_0007_0402, 0x0307_0406_0007_0406, 0x0807_0406_0007_0406)
        return
    if msr == _PKRS:
        yield from (0, 1 << 32, 1 << 63)
        return
    for bit in range(46, 64):
        # Bit 3: an LDT's base is not 0 in its lower half.
        yield 1 << bit | 8
        yield MASK64 ^ 1 << bit & ~7
    yield from (
        0x7FFF_FFFF_F000,
        0xFFFF_8000_0000_0000,
        0x00FF_FFFF_FFFF_F000,
        0xFF00_0000_0000_0000,
        0x0000_8000_0000_0000,
    )


def separation() -> CaseStream:
    """LASS, on a CPU that has it."""
    for (mode, paging), action, cpl, slot in cross(MODES.items(), ACCESSES, (0, 3), (LOWER, UPPER)):
        va = va_in_page(paging, action, slot)
        for flags, absent in cross((("smap",), ("smap", "ac"), (), ("smep", "smap")), (False, True)):
            entries = {"pt": 0} if absent else {}
            for case in cases_of(mode, action, cpl, ("wp", "nxe", "lass", *flags), va, entries):
                yield ("lass", mode, ACTIONS[action].label, cpl, slot), case
