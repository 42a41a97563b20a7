"""The batch walk against the walk of `arch`, one address at a time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.arch import LA48, LA57, AddressSpace, Cause, Cpu, Mapped, PagingMode, Vendor
from fivefold.errors import MemoryReadError
from fivefold.memory import Extent, Ram
from fivefold.metal.run import interpreter
from fivefold.survey.paths import path_of
from fivefold.survey.scan.scan_result import Contiguity, RegionKind, expand_leaves
from fivefold.survey.scan.table_store import bring_from
from fivefold.survey.scan.translator import ABSENT, NON_CANONICAL, Translator, translator_of
from fivefold.survey.space import open_space
from fivefold.units import GIB, PhysAddr, VirtAddr

GUESTS = Path(__file__).parents[2] / "data" / "guests"
FIRST = 0x10_0000
KINDS = {Cause.NON_CANONICAL: NON_CANONICAL, Cause.NOT_PRESENT: ABSENT, Cause.RESERVED: int(RegionKind.MALFORMED)}


def hostile(seed: int, tables: int = 6) -> Ram:
    """Tables in three extents whose entries point anywhere, mostly at each other."""
    draw = random.Random(seed)
    starts = [FIRST, FIRST + 0x4000, FIRST + 0x9000]
    ram = Ram([Extent(start, start + 0x2000) for start in starts])
    frames = [start + step for start in starts for step in (0, 0x1000)][:tables]
    for frame in frames:
        words = []
        for _ in range(512):
            to = draw.choice([*frames, FIRST + 0x2000, draw.getrandbits(52) & ~0xFFF, draw.getrandbits(15) << 30])
            flags = draw.choice([0, 1, 3, 7, 0x67, 0x83, 0x1083, 0x183, 1 << 63 | 3, 0x20_0083])
            words.append(to | flags)
        ram.write(PhysAddr(frame), b"".join(word.to_bytes(8, "little") for word in words))
    return ram


def expected(tables: AddressSpace, va: int) -> tuple[int, ...]:
    """Kind, and what goes with it, as the plain walk says."""
    path = path_of(tables, VirtAddr(va))
    found = path.end
    if found is None:
        return int(RegionKind.UNREADABLE), path.steps[-1].entry.level - 1, path.missing or 0
    if isinstance(found, Mapped):
        return (int(RegionKind.MAPPED), found.pa, int(found.page), *(int(right) for right in found.rights))
    level = int(found.steps[-1].entry.level) if found.steps else 0
    return KINDS[found.cause], level


def compare(ram: Ram, mode: PagingMode, cpu: Cpu, addresses: list[int], **how: Any) -> None:
    tables = AddressSpace(ram, PhysAddr(FIRST), mode, cpu)
    found = Translator(ram.banks(), PhysAddr(FIRST), int(mode.top), cpu, **how).batch(np.array(addresses, np.uint64))
    rights = [found.right(name).tolist() for name in ("write", "user", "execute")]
    for i, va in enumerate(addresses):
        kind = int(found.kind[i])
        got: tuple[int, ...] = (kind, int(found.level[i]))
        if kind == RegionKind.UNREADABLE:
            got = (*got, int(found.phys[i]))
        if kind == RegionKind.MAPPED:
            got = (kind, int(found.phys[i]), int(found.level[i]), *(int(right[i]) for right in rights))
        assert got == expected(tables, va), hex(va)


def addresses_in(mode: PagingMode, count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    inside = [mode.sign_extend(draw.getrandbits(64)) for _ in range(count)]
    return [
        *inside,
        *(draw.getrandbits(64) for _ in range(count // 8)),
        0,
        (1 << 64) - 1,
        mode.gap.start,
        mode.gap.stop - 1,
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1 << 32), st.sampled_from([LA48, LA57]), st.sampled_from([Vendor.INTEL, Vendor.AMD]), st.booleans()
)
def test_hostile_tables(seed: int, mode: PagingMode, vendor: Vendor, gib_pages: bool) -> None:
    cpu = Cpu(phys_bits=46, vendor=vendor, gib_pages=gib_pages)
    compare(hostile(seed), mode, cpu, addresses_in(mode, 150, seed))


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_the_same_as_plain_python(mode: PagingMode) -> None:
    compare(hostile(3), mode, Cpu(phys_bits=46), addresses_in(mode, 40, 3), load=interpreter.load)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 129])
def test_every_size_of_batch(count: int) -> None:
    compare(hostile(5), LA48, Cpu(), addresses_in(LA48, 200, 5)[:count])


@pytest.mark.parametrize("path", sorted(GUESTS.glob("*.elf.xz")), ids=lambda path: path.name.partition(".")[0])
def test_every_leaf_of_a_guest(path: Path) -> None:
    with open_space(str(path)) as space:
        leaves = expand_leaves(
            space.scan(contiguity=Contiguity.BREAK, window=range(1 << 63, 0xFFFF_FF00_0000_0000), repeat_above=16)
        )
        found = translator_of(space).batch(leaves["start"])
        assert found.mapped.all() and (found.phys == leaves["phys"]).all() and (found.level == leaves["level"]).all()


def test_memory_of_the_callers() -> None:
    ram = hostile(1)
    translator = Translator(ram.banks(), PhysAddr(FIRST), 4)
    room = translator.batch([GIB, 2 * GIB])
    first = room.kind.tolist()
    again = translator.batch([2 * GIB, GIB], room)
    assert again.rows is room.rows and again.kind.tolist() == first[::-1]
    with pytest.raises(ValueError, match=r"^room for 2 answers to 1 addresses; expected as many$"):
        translator.batch([GIB], room)


def test_a_root_that_is_not_there() -> None:
    with pytest.raises(MemoryReadError) as caught:
        Translator([(FIRST, bytes(4096))], PhysAddr(0x9000), 4).batch([GIB])
    assert str(caught.value) == "the memory to translate in has no memory at 0x0000000000009000 (+4096 bytes)"
    with pytest.raises(ValueError, match=r"^3 levels of page tables; expected 4 or 5$"):
        Translator([], PhysAddr(FIRST), 3)


@pytest.mark.parametrize("path", sorted(GUESTS.glob("*.elf.xz")), ids=lambda path: path.name.partition(".")[0])
def test_tables_that_are_brought_give_the_same(path: Path) -> None:
    with open_space(path) as space:
        asked: list[int] = []
        bring = bring_from(space.source.memory)

        def noted(frames: Any) -> Any:
            asked.extend(frames.tolist())
            return bring(frames)

        found = space.scan(repeat_above=64)
        addresses = np.concatenate([found.start, found.last, found.last + np.uint64(1)])
        brought = Translator((), space.root.value, space.levels, space.cpu, bring=noted)
        few = brought.batch(addresses[:1])
        assert len(asked) <= space.levels
        assert few.rows.tolist() == translator_of(space).batch(addresses[:1]).rows.tolist()
        assert brought.batch(addresses).rows.tolist() == translator_of(space).batch(addresses).rows.tolist()
        assert len(asked) == len(set(asked))


def test_a_root_that_is_not_brought() -> None:
    def none(frames: Any) -> Any:
        return np.zeros(len(frames), np.bool_), np.zeros((0, 512), np.uint64)

    with pytest.raises(MemoryReadError):
        Translator((), PhysAddr(0x1000), 4, bring=none).batch([0])
