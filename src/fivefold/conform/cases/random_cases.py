"""Random cases by seed: mostly well-formed tables and every mixture of registers, so that accesses get far.

A case depends on the seed and its number alone, so any part of a campaign can be made anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from fivefold.arch import Level, PagingMode
from fivefold.conform.cases.actions import ACTIONS
from fivefold.conform.cases.case import (
    FLAGS,
    LEVELS,
    MODES,
    WANTED,
    Case,
    canonical_va,
    impossible,
    large_frame,
    make_case,
)
from fivefold.conform.cases.stream import ACCESSES, edge_addresses

_P, _RW, _US, _PS, _NX = 1, 1 << 1, 1 << 2, 1 << 7, 1 << 63
_NO_RULE: Final = 0x7FF0_0000_0000_0F78
"""Bits that no rule but those of keys looks at: software's, the key's, G, D, A, PCD, PWT."""
_ODDS: Final = {
    "wp": 0.7,
    "nxe": 0.85,
    "smep": 0.4,
    "smap": 0.4,
    "ac": 0.4,
    "pke": 0.4,
    "pks": 0.3,
    "pge": 0.2,
    "lass": 0.05,
}


def random_case(seed: str, number: int, mode: str) -> Case:
    """Case *number* of *seed* in *mode*; another is drawn where one cannot be run."""
    for attempt in range(1000):
        random = Random(f"{seed} {mode} {number} {attempt}")
        case = _draw(random, mode)
        if impossible(case) is None:
            return case
    raise AssertionError("a thousand draws, and none can be run")


def _draw(random: Random, mode: str) -> Case:
    paging = MODES[mode]
    action = random.choice(ACCESSES)
    va = _address(random, paging, action)
    flags = tuple(flag for flag in FLAGS if random.random() < _ODDS.get(flag, 0))
    if action == "wruss8":
        va, flags = va & ~7, (*flags, "wp", "cet")
    va -= va % ACTIONS[action].align
    flags = (*flags, *(flag for flag in ("sce", "pke") if flag == WANTED.get(ACTIONS[action].needs or "")))
    bare = make_case(mode, action, random.choice((0, 3)), flags, va)
    entries = dict(_entries(random, bare, "pt", ""))
    if any(place.endswith("2") for place, _, _ in bare.path):
        entries |= dict(_entries(random, bare, "pt2", "2"))
    keys = [random.getrandbits(32) & random.getrandbits(32) for _ in range(2)]
    return make_case(mode, action, bare.cpl, flags, va, entries, *keys)


def _address(random: Random, paging: PagingMode, action: str) -> int:
    """Mostly inside a page of data; sometimes over its end, at an edge, or not canonical."""
    kind = random.random()
    if kind < 0.1:
        va = random.choice(list(edge_addresses(paging)))[1]
        return va & ~7 | (6 if action == "fetch10" else 0) if ACTIONS[action].fetches else va
    slot = random.choice((1, 0x7F, 0xF5, 0xFF, 0x100, 0x188, 0x1F0, 0x1FF))
    page = random.choice((0x33, 0x1FF, random.randrange(0x3F0)))
    if action == "fetch10":
        offset = 0xFFE if kind < 0.3 else 0x126 + 16 * random.randrange(100)
    elif ACTIONS[action].fetches:
        offset = 8 * random.randrange(510)
    else:
        offset = random.randrange(0xFF9, 0x1000) if kind < 0.3 else random.randrange(0xFF0)
    va = canonical_va(paging, slot, page, offset, random.choice((1, 2, 511)))
    return va ^ 1 << random.randrange(paging.va_bits - 1, 64) if random.random() < 0.04 else va


def _entries(random: Random, case: Case, leaf: str, suffix: str) -> Iterator[tuple[str, int]]:
    places = [place for place, _, _ in case.path if place.endswith("2") == bool(suffix)]
    for place in places:
        level = Level(LEVELS.index(place.removesuffix("2")) + 1)
        yield place, _entry(random, level, case.usual(place))


def _entry(random: Random, level: Level, usual: int) -> int:
    """An entry that is mostly well formed, mostly present, and mostly allows things."""
    raw = usual & ~0xFFF
    large = level in (Level.PD, Level.PDPT) and random.random() < 0.12
    if large:
        raw = large_frame(level) | _PS | random.getrandbits(1) << 12
    raw |= sum(flag for flag in (_RW, _US) if random.random() < 0.8)
    raw |= _P if random.random() < 0.96 else 0
    raw |= random.getrandbits(64) & random.getrandbits(64) & _NO_RULE
    raw |= _NX if random.random() < 0.1 else 0
    if random.random() < 0.05:
        raw ^= 1 << random.randrange(64)
    if random.random() < 0.03 and level > Level.PDPT:
        raw |= _PS
    return raw


def random_cases(seed: str, numbers: range, modes: tuple[str, ...]) -> Iterator[Case]:
    """The cases of *numbers*, the modes taking turns."""
    for number in numbers:
        yield random_case(seed, number, modes[number % len(modes)])
