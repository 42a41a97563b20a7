"""One address at a time, natively: the answers and steps of the plain walk, for all captures and odd addresses."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fivefold as ff
from fivefold.arch import (
    LA48,
    LA57,
    AddressSpace,
    Cpu,
    Level,
    Mapped,
    PagingMode,
    Step,
    Vendor,
    translate,
    walk,
)
from fivefold.errors import MemoryReadError
from fivefold.memory import Bank, BankedMemory
from fivefold.survey import space as module
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.scan.one_address import LightMapped, OneAddress
from fivefold.survey.space import Space, open_space
from fivefold.units import PhysAddr, VirtAddr

GUESTS = Path(__file__).parents[2] / "data" / "guests"
CAPTURES = sorted(path.name for path in GUESTS.glob("*.elf.xz"))
ODD = (0, 1 << 47, 1 << 56, 1 << 63, (1 << 64) - 1, 0xFFFF_FFFF_FF00_0000, 0xDEAD_0000_0000_0000)


def asked_often(space: Space) -> Space:
    """*space* once it has native code for one address."""
    for _ in range(module.FEW + 1):
        space.translate(0)
    assert space.one is not None
    return space


def addresses(space: Space, count: int = 200) -> list[int]:
    """Mapped addresses of all sizes of pages, and what lies beside them."""
    rng = np.random.default_rng(4)
    found = space.scan(repeat_above=64)
    rows = rng.integers(0, len(found), count)
    inside = found.start[rows] + (rng.random(count) * found.size[rows]).astype(np.uint64)
    beside = [*found.start[rows[:30]].tolist(), *found.last[rows[:30]].tolist()]
    return [*inside.tolist(), *beside, *((one + 1) % (1 << 64) for one in beside), *ODD]


@pytest.mark.parametrize("name", CAPTURES)
def test_every_answer_is_the_plain_walks(name: str) -> None:
    with open_space(GUESTS / name) as opened:
        space = asked_often(opened)
        tables = space.tables
        for va in map(VirtAddr, addresses(space)):
            assert told(space.translate, va) == told(translate, tables, va), hex(va)
            if space.mode.value.is_canonical(va):
                assert told(steps, ff.walk, space, va) == told(steps, walk, tables, va), hex(va)


def steps(walk: Callable[..., Iterable[Step]], *asked: object) -> list[Step]:
    return list(walk(*asked))


def told(ask: Callable[..., object], *asked: object) -> object:
    """An answer, or which table is missing."""
    try:
        return ask(*asked)
    except MemoryReadError as error:
        return error.pa, error.size


def light(space: Space) -> tuple[LightMapped, Mapped]:
    va = next(va for va in addresses(space) if isinstance(translate(space.tables, VirtAddr(va)), Mapped))
    found, whole = asked_often(space).translate(va), translate(space.tables, VirtAddr(va))
    assert isinstance(found, LightMapped)
    assert isinstance(whole, Mapped)
    return found, whole


def test_a_light_answer_is_as_good_as_a_whole_one() -> None:
    with open_space(GUESTS / CAPTURES[0]) as space:
        found, whole = light(space)
        assert found == whole and whole == found and found == copy.copy(found) and hash(found) == hash(whole)
        assert found != replace(whole, pa=PhysAddr(whole.pa + 1))
        assert (str(found), repr(found), found._repr_html_()) == (str(whole), repr(whole), whole._repr_html_())
        assert (found.va, found.pa, found.page, found.rights) == (whole.va, whole.pa, whole.page, whole.rights)
        assert (found.leaf, found.steps, found.restarted) == (whole.leaf, whole.steps, ())
        assert pickle.loads(pickle.dumps(found)) == whole
        assert replace(found, page=Level.PD) == replace(whole, page=Level.PD)
        with pytest.raises(AttributeError):
            found.pa = PhysAddr(1)  # type: ignore[misc]


def test_a_few_addresses_need_no_native_code_and_a_closed_space_has_none() -> None:
    with open_space(GUESTS / CAPTURES[0]) as space:
        va = addresses(space)[0]
        assert type(space.translate(va)) is Mapped
        asked_often(space)
        assert isinstance(space.translate(va), LightMapped)
        for wrong in (-1, 1 << 64, 1.5, True, "0"):
            with pytest.raises((TypeError, ValueError)):
                space.translate(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="space is closed"):
        space.translate(va)
    with pytest.raises(ValueError, match="space is closed"):
        list(ff.walk(space, va))


CPUS = [
    Cpu(),
    Cpu(phys_bits=40),
    Cpu(phys_bits=46, gib_pages=False),
    Cpu(phys_bits=48, vendor=Vendor.AMD),
]


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
@pytest.mark.parametrize("cpu", CPUS, ids=["widest", "40", "46", "AMD"])
@pytest.mark.parametrize("nxe", [True, False])
def test_reserved_bits_are_those_of_the_cpu(build: Callable[..., Any], mode: PagingMode, cpu: Cpu, nxe: bool) -> None:
    """Each bit of an entry by itself, at every level, on the way to one page."""
    va = VirtAddr(0xFFFF_FFFF_8000_0000)
    built = build(mode).page(va, 0x20_0007)
    memory = BankedMemory([Bank(start, memoryview(data)) for start, data in built.ram.banks()], "drawn")
    tables = AddressSpace(memory, PhysAddr(0x1000), mode, cpu, nxe)
    one, path = OneAddress(memory, tables), translate(tables, va).steps
    for step in path:
        for bit in range(64):
            built.ram.write(step.at, (step.entry.raw ^ 1 << bit).to_bytes(8, "little"))
            found: list[object] = []
            for ask in (lambda: translate(tables, va), lambda: one.translate(va)):
                try:
                    found.append(ask())
                except MemoryReadError as error:
                    found.append(str(error))
            assert found[0] == found[1], (step, bit)
        built.ram.write(step.at, step.entry.raw.to_bytes(8, "little"))


def test_an_encryption_bit_is_cut_out_however_often_is_asked(build: Callable[..., Any]) -> None:
    """Tables that are not encrypted may map pages that are."""
    built = build(LA48).page(0x40_0000, 0x20_0007).page(0x40_1000, 0x20_1007 | 1 << 47)
    space = Space(built.space().source, GivenPaging(c_bit=47))
    found = [space.translate(0x40_1234) for _ in range(2 * module.FEW)]
    assert {one.pa for one in found if isinstance(one, Mapped)} == {0x20_1234} and space.one is None
