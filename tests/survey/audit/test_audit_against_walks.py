"""The rules about rights and aliases, against page-by-page walks of small spaces that are drawn at random."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from fivefold.arch import LA48, LA57, Flag, Level, Mapped, PagingMode, translate
from fivefold.survey.audit.alias_checks import LINUX_PAT, PATS, is_pat
from fivefold.survey.audit.audit import audit
from fivefold.survey.audit.policy import Policy
from fivefold.survey.space import Space
from fivefold.units import GIB, VirtAddr

P, W, U, PWT, PCD, PAT, NX = (int(flag) for flag in (Flag.P, Flag.RW, Flag.US, Flag.PWT, Flag.PCD, Flag.BIT7, Flag.NX))
USER, KERNEL = 0x40_0000, 0xFFFF_9000_0000_0000
TABLES = range(0x1000, 0xC_9000)


class Page(NamedTuple):
    """What an independent walk says of one page of 4 KiB."""

    va: int
    pa: int
    writable: bool
    user: bool
    executable: bool
    kind: int


def drawn(build: Any, mode: PagingMode, seed: int) -> Any:
    """Some 40 pages of both halves, of few frames, so that most are mapped more than once; some are page tables."""
    draw, built = random.Random(seed), build(mode)
    frames = [GIB + 0x1000 * n for n in range(6)] + [0x1000, 0x3000, 0x4000]
    for base in (USER, KERNEL, KERNEL + GIB):
        for slot in draw.sample(range(64), 14):
            bits = sum(bit for bit in (W, U, PWT, PCD, PAT, NX) if draw.random() < 0.3)
            built.page(base + 0x1000 * slot, draw.choice(frames) | P | bits)
    large = draw.choice([W, W | NX, NX, U | NX])
    return built.page(KERNEL + 2 * GIB, GIB | P | large, Level.PD)


def pages(space: Space) -> Iterator[Page]:
    spots = [base + 0x1000 * n for base in (USER, KERNEL, KERNEL + GIB) for n in range(64)]
    for va in (*spots, *range(KERNEL + 2 * GIB, KERNEL + 2 * GIB + 0x20_0000, 0x1000)):
        found = translate(space.tables, VirtAddr(va))
        if isinstance(found, Mapped):
            raw = found.steps[-1].entry.raw
            kind = raw >> 3 & 3 | (raw >> (7 if found.steps[-1].entry.level == Level.PT else 12) & 1) << 2
            rights = found.rights
            yield Page(va, int(found.pa), rights.write, rights.user, rights.execute, kind)


def expected(space: Space) -> dict[str, set[int]]:
    """The physical pages that each rule has to tell; of the first rules virtual ones."""
    found: dict[str, set[int]] = defaultdict(set)
    behind: dict[int, list[Page]] = defaultdict(list)
    for page in pages(space):
        behind[page.pa].append(page)
        if page.writable and page.executable:
            found["wx-user" if page.user and page.va < KERNEL else "wx-kernel"].add(page.va)
        if page.user and page.va >= KERNEL:
            found["user-kernel-half"].add(page.va)
    tables = {step.at & ~0xFFF for page in pages(space) for step in translate(space.tables, VirtAddr(page.va)).steps}
    for pa, places in behind.items():
        code = [one for one in places if one.executable and not one.writable]
        if any(not one.user for one in code) and any(one.writable for one in places):
            found["writable-code-alias"].add(pa)
        if any(one.user for one in code) and any(one.writable and one.user for one in places):
            found["user-writable-code-alias"].add(pa)
        if len({one.kind for one in places}) > 1:
            found["memory-type-conflict"].add(pa)
        if pa in tables:
            found["table-user"] |= {pa for one in places if one.user}
            found["table-writable-alias"] |= {pa for _ in [one for one in places if one.writable][1:]}
    return {name: places for name, places in found.items() if places}


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
@pytest.mark.parametrize("seed", range(6))
def test_all_rules_tell_what_walks_show(build: Any, mode: PagingMode, seed: int) -> None:
    space = drawn(build, mode, seed).space()
    want, got = expected(space), defaultdict[str, set[int]](set)
    virtual = {"wx-user", "wx-kernel", "user-kernel-half"}
    for finding in audit(space, Policy(exceptions=())).findings:
        name = finding.rule.name
        assert finding.window is not None and finding.phys is not None, name
        assert len(finding.window) == len(finding.phys) == finding.size
        told = finding.window if name in virtual else finding.phys
        got[name] |= set(range(told.start, told.stop, 0x1000))
        leads = translate(space.tables, VirtAddr(finding.window.start))
        assert isinstance(leads, Mapped) and leads.pa == finding.phys.start
        for va in finding.aliases:
            other = translate(space.tables, VirtAddr(va))
            assert isinstance(other, Mapped) and other.pa == leads.pa and va != finding.window.start
    assert {name: found for name, found in got.items() if name in want} == want
    assert set(want) >= set(got) and len(want) > 5


def test_the_pat_of_linux() -> None:
    """By the manual's numbers of types: UC 0, WC 1, WT 4, WP 5, WB 6, UC- 7."""
    wb, wc, uc_minus, uc, wp, wt = 6, 1, 7, 0, 5, 4
    assert LINUX_PAT.to_bytes(8, "little") == bytes([wb, wc, uc_minus, uc, wb, wp, uc_minus, wt])
    assert PATS["reset"].to_bytes(8, "little") == bytes([wb, wt, uc_minus, uc, wb, wt, uc_minus, uc])


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        *((value, True) for value in (0, 0x0706_0504_0100_0001, 7 << 56)),
        *((value, False) for value in (2, 3 << 56, 8, 0xF7 << 56, (1 << 64) - 1, 1 << 64, -1)),
    ],
)
def test_what_the_pat_can_hold(value: int, is_one: bool) -> None:
    assert is_pat(value) is is_one
