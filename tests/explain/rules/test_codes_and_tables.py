"""What an error code leaves over, against all pages that there can be: the rules of `fivefold.arch` refuse them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from fivefold.arch import (
    LA48,
    RFLAGS_AC,
    Access,
    AddressSpace,
    Cr4,
    Entry,
    Fault,
    Flag,
    Frames,
    Kind,
    Level,
    access,
    map_page,
)  # fmt: skip
from fivefold.explain.rules.error_codes import Candidate, rule_from_code
from fivefold.explain.rules.ruling import RULE_OF
from fivefold.explain.rules.situation import GivenState, Situation, situation
from fivefold.memory import CpuState, Ram
from fivefold.units import PhysAddr, VirtAddr

LOW, HIGH = 0x40_0000, 0xFFFF_FFFF_8100_0000
ROOT = 0x1000
PAGES = [sum(flags) for flags in product((0, Flag.RW), (0, Flag.US), (0, Flag.NX))]
PROTECTION = [int(Cr4.PAE) | sum(bits) for bits in product((0, Cr4.SMEP), (0, Cr4.SMAP))]


@pytest.fixture(scope="module")
def memory() -> Ram:
    """Pages of all rights, from `LOW` and from `HIGH` on."""
    ram = Ram.of_size(1 << 20)
    space = AddressSpace(ram, PhysAddr(ROOT), LA48)
    frames = Frames(ram, PhysAddr(ROOT + 0x1000), 30)
    for start in (LOW, HIGH):
        for number, flags in enumerate(PAGES):
            entry = Entry(int(Flag.P) | int(flags) | 0x8_0000, Level.PT)
            map_page(ram, space, VirtAddr(start + 0x1000 * number), entry, frames)
    return ram


def reading(memory: Ram, cr4: int | None, cr0: int = 0x8001_0011, efer: int = 0xD00, ac: bool = False) -> Situation:
    general = {"rip": HIGH, "rflags": 2 | (RFLAGS_AC if ac else 0)}
    return situation(CpuState("test", cr0, 0, ROOT, cr4, efer, general), None, memory, GivenState(levels=4))


def refused(here: Situation, start: int, kind: Kind, cpl: int) -> dict[int, dict[str, set[bool]]]:
    """By error code: the rules that give it, each with whether the page is one of a process."""
    found: dict[int, dict[str, set[bool]]] = {}
    state = replace(here.state, cpl=cpl)
    assert here.space is not None
    for number, flags in enumerate(PAGES):
        verdict = access(here.space, state, VirtAddr(start + 0x1000 * number), Access(kind))
        if isinstance(verdict, Fault):
            rules = found.setdefault(verdict.error_code, {})
            rules.setdefault(RULE_OF[verdict.rule], set()).add(bool(flags & Flag.US))
    return found


def check(found: Candidate, rules: dict[str, set[bool]], is_user: bool) -> None:
    """*rules* are all that give the code; a half holds the pages that are usual there."""
    usual = [rule for rule, owners in rules.items() if is_user in owners]
    assert found.rule in rules
    if found.certain:
        assert set(rules) == {found.rule}
    elif not found.guess and usual:
        assert found.rule in usual
        assert len(rules) > 1


@pytest.mark.parametrize("start", [LOW, HIGH], ids=["low", "high"])
@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("cpl", [0, 3])
def test_a_known_state(start: int, kind: Kind, cpl: int, memory: Ram) -> None:
    seen = 0
    for cr4, cr0, efer, ac in product(PROTECTION, (0x8001_0011, 0x8000_0011), (0xD00, 0x500), (False, True)):
        here = reading(memory, cr4, cr0, efer, ac)
        for code, rules in refused(here, start, kind, cpl).items():
            if code & 8:  # XD without NXE
                continue
            check(rule_from_code(here, code, start, Access(kind)), rules, start == LOW)
            seen += 1
    assert seen


@pytest.mark.parametrize("start", [LOW, HIGH], ids=["low", "high"])
@pytest.mark.parametrize("kind", list(Kind))
def test_an_unknown_cr4(start: int, kind: Kind, memory: Ram) -> None:
    """What SMEP and SMAP would do is a guess: the rule is that of one of the states that there may be."""
    for cr0, ac in product((0x8001_0011, 0x8000_0011), (False, True)):
        rules: dict[str, set[bool]] = {}
        code = 0x1 | (2 if kind is Kind.WRITE else 0) | (0x10 if kind is Kind.FETCH else 0)
        for cr4 in PROTECTION:
            for rule, owners in refused(reading(memory, cr4, cr0, 0xD00, ac), start, kind, 0).get(code, {}).items():
                rules.setdefault(rule, set()).update(owners)
        found = rule_from_code(reading(memory, None, cr0, 0xD00, ac), code, start, Access(kind))
        if rules:
            check(found, rules, start == LOW)
        else:
            assert found.rule == "unknown"


@pytest.mark.parametrize(
    ("code", "kind", "rule"),
    [(0x7, Kind.WRITE, "unknown"), (0x11, Kind.FETCH, "unknown"), (0x5, Kind.READ, "user-supervisor")],
)
@pytest.mark.parametrize("va", [LOW, 0xC100_0000])
def test_halves_of_long_mode_are_no_halves_elsewhere(code: int, kind: Kind, rule: str, va: int) -> None:
    here = situation(CpuState("test", 0x8001_0011, 0, ROOT, 0x10_0020, 0x800, {"rip": 0x1000}), None, None)
    assert not here.is_long
    assert rule_from_code(here, code, va, Access(kind)).rule == rule
    assert not rule_from_code(here, 0x7, va, Access(Kind.WRITE)).certain


@pytest.mark.parametrize(("bit", "word"), [(0x40, "SS"), (0x80, "HLAT"), (0x8000, "SGX"), (1 << 31, "RMP")])
def test_what_is_beyond_the_tables(bit: int, word: str) -> None:
    here = situation(CpuState("test", 0x8001_0011, 0, ROOT, 0x20, 0xD00, {"rip": 0x1000}), None, None)
    found = rule_from_code(here, bit | 1, LOW, Access(Kind.READ))
    assert (found.rule, found.certain) == ("unknown", True) and word in found.reason
    absent = rule_from_code(here, bit, LOW, Access(Kind.READ))
    assert absent.rule == ("not-present" if word == "SS" else "unknown")
