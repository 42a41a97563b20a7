"""Raw images of machines that leave addresses below 4 GiB to devices: the split follows from the direct map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA48, Level
from fivefold.memory import Bank, BankedMemory, PhysReader, Ram, Source
from fivefold.memory.formats.raw_image import NO_MAP
from fivefold.survey.guest import ram_holes
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.guest.ram_holes import with_hole
from fivefold.survey.guest.roots import find_roots
from fivefold.survey.space import Space
from fivefold.units import GIB, MIB, PhysAddr

BASE, STEXT, IMAGE = 0xFFFF_8880_0000_0000, 0xFFFF_FFFF_8100_0000, 16 * MIB
SIZE, ROOT = 64 * MIB, 0x1000
P, W, NX = 1, 2, 1 << 63
NOTES_AT = 0x20_0000


def image(build: Callable[..., Any], split: int, *, high: bool, notes: bool = True) -> Source:
    """64 MiB of a Linux with a hole from *split* to 4 GiB, as a file has it: the process' tables lie *high*."""
    ram = Ram.of_size(SIZE)
    built = build(LA48, ram=ram)
    built.pages(BASE, split, P | W | NX, Level.PD)
    built.pages(BASE + 4 * GIB, SIZE - split, 4 * GIB | P | W | NX, Level.PD)
    built.pages(STEXT, 2 * MIB, IMAGE | P, Level.PD)
    if high:
        # The table behind the direct map's first slot, moved above the hole.
        (step,) = (step for step in built.space().path(BASE).steps if step.entry.level == Level.PML4)
        pdpt = step.entry.raw & ~0xFFF
        moved = 4 * GIB + 0x3000
        ram.write(PhysAddr(split + 0x3000), ram.read(PhysAddr(pdpt), 4096))
        ram.write(PhysAddr(pdpt), bytes(4096))
        built.entry(ROOT, 273, moved | P | W)
    if notes:
        text = (
            f"OSRELEASE=6.1.0\nSYMBOL(_stext)={STEXT:x}\nSYMBOL(init_top_pgt)={STEXT + ROOT - IMAGE:x}\n"
            "NUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\n"
        )
        ram.write(PhysAddr(NOTES_AT), text.encode())
    ((start, data),) = ram.banks()
    return Source(BankedMemory([Bank(start, memoryview(data))], "toy"), "raw image", notes=(NO_MAP,))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The known splits, as small as these images."""
    monkeypatch.setattr(ram_holes, "SPLITS", (32 * MIB, 44 * MIB, 48 * MIB, 56 * MIB))
    monkeypatch.setattr(ram_holes, "FIRMWARE", MIB)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("split", [32 * MIB, 44 * MIB, 48 * MIB, 56 * MIB])
@pytest.mark.parametrize("high", [False, True])
def test_a_known_split(build: Callable[..., Any], split: int, high: bool) -> None:
    found = with_hole(image(build, split, high=high))
    low = split // MIB
    assert found.notes == (
        "no header was recognised: the only hole that its tables fit is as by "
        f"--ram-map 0-{low}M,4G-{4096 + 64 - low}M={low}M",
    )
    assert found.extents == [(0, split), (4 * GIB, 4 * GIB + SIZE - split)]
    space = Space(found)
    assert space.areas.name_at(BASE + 4 * GIB) == "direct_map"
    assert sum(extent.end - extent.start for extent in found.memory.written()) == SIZE


@pytest.mark.usefixtures("small")
def test_a_split_that_nobody_knows_follows_from_the_direct_map(build: Callable[..., Any]) -> None:
    """As `max-ram-below-4g=20M` makes it: the kernel's own tables lie low, so any reading shows where memory ends."""
    found = with_hole(image(build, 20 * MIB, high=False))
    assert "--ram-map 0-20M,4G-4140M=20M" in found.notes[0]
    # With the tables above the hole no known split leads to them.
    lost = with_hole(image(build, 20 * MIB, high=True))
    assert lost.extents == [(0, SIZE)]


@pytest.mark.usefixtures("small")
def test_without_vmcoreinfo_a_root_is_enough(build: Callable[..., Any]) -> None:
    source = image(build, 48 * MIB, high=True, notes=False)
    assert with_hole(source, GivenPaging(cr3=ROOT, levels=4)).extents[0] == (0, 48 * MIB)


@pytest.mark.usefixtures("small")
def test_without_either_the_roots_decide(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A root of a kernel, with all its tables above the hole but the one that all of them share."""
    source = image(build, 48 * MIB, high=True, notes=False)
    memory: PhysReader = source.memory
    # The root itself moves above the hole, too: no other reading has it whole.
    whole = bytearray(memory.read(PhysAddr(0), SIZE))
    whole[48 * MIB + 0x5000 : 48 * MIB + 0x6000] = whole[ROOT : ROOT + 0x1000]
    image_pdpt = int.from_bytes(whole[ROOT + 511 * 8 : ROOT + 512 * 8], "little") & ~0xFFF
    whole[48 * MIB + 0x6000 : 48 * MIB + 0x7000] = whole[image_pdpt : image_pdpt + 0x1000]
    whole[48 * MIB + 0x5FF8 : 48 * MIB + 0x6000] = (4 * GIB + 0x6000 | P | W).to_bytes(8, "little")
    whole[ROOT : ROOT + 0x1000] = bytes(0x1000)
    moved = Source(BankedMemory([Bank(0, memoryview(whole))], "toy"), "raw image", notes=(NO_MAP,))
    found = with_hole(moved)
    assert found.extents[0] == (0, 48 * MIB)
    assert 4 * GIB + 0x5000 in {root.root for root in find_roots(found)}
    monkeypatch.setattr(ram_holes, "MAX_SEARCHED", SIZE - 1)
    assert with_hole(moved).extents == [(0, SIZE)]


@pytest.mark.usefixtures("small")
def test_memory_without_a_hole_stays_as_it_lies(build: Callable[..., Any]) -> None:
    ram = Ram.of_size(SIZE)
    build(LA48, ram=ram).pages(BASE, SIZE - MIB // 2, P | W | NX).pages(STEXT, 2 * MIB, IMAGE | P, Level.PD)
    ((start, data),) = ram.banks()
    source = Source(BankedMemory([Bank(start, memoryview(data))], "toy"), "raw image", notes=(NO_MAP,))
    assert with_hole(source, GivenPaging(cr3=ROOT, levels=4)) is source


def test_a_map_that_is_given_and_other_formats_are_left_alone(build: Callable[..., Any]) -> None:
    source = image(build, 48 * MIB, high=True)
    given = Source(source.memory, "raw image")
    assert with_hole(given) is given
