from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.arch import (
    LA48,
    LA57,
    AddressSpace,
    Cpu,
    Entry,
    Frames,
    Level,
    Mapped,
    MappingConflict,
    OutOfFrames,
    PagingMode,
    map_page,
    map_range,
    regions,
    translate,
)
from fivefold.memory import Ram
from fivefold.units import GIB, MIB, PhysAddr, VirtAddr

BASE = VirtAddr(0xFF11_0000_0000_0000)


def fresh(mode: PagingMode = LA57, frames: int = 64, cpu: Cpu | None = None) -> tuple[Ram, AddressSpace, Frames]:
    """An empty root at 0x1000 and frames from 0x2000."""
    ram = Ram.of_size(0x1000 * (frames + 1), start=0x1000)
    space = AddressSpace(ram, PhysAddr(0x1000), mode, cpu or Cpu(phys_bits=46))
    return ram, space, Frames(ram, PhysAddr(0x2000), frames)


def runs(space: AddressSpace) -> list[str]:
    return [str(run) for run in regions(space, contiguous=True)]


def content(ram: Ram) -> bytes:
    return b"".join(bytes(data) for _, data in ram.banks())


@pytest.mark.parametrize(("level", "tables"), [(Level.PT, 4), (Level.PD, 3), (Level.PDPT, 2)])
def test_map_then_translate(level: Level, tables: int) -> None:
    ram, space, frames = fresh()
    size_bit = 0x80 if level > Level.PT else 0
    map_page(ram, space, BASE, Entry(5 * GIB | 3 | size_bit, level), frames)
    found = translate(space, VirtAddr(BASE + level.span - 1))

    assert isinstance(found, Mapped)
    assert (found.pa, found.page) == (5 * GIB + level.span - 1, level)
    assert frames.taken == tables


def test_mapping_twice_is_refused_and_writes_nothing() -> None:
    ram, space, frames = fresh()
    map_page(ram, space, BASE, Entry(0x9003, Level.PT), frames)
    before = content(ram)
    with pytest.raises(
        MappingConflict,
        match=r"^cannot map 0xff11000000000000: PT entry at 0x0{12}2000 already holds 0x0{12}9003$",
    ):
        map_page(ram, space, BASE, Entry(0xA003, Level.PT), frames)
    with pytest.raises(MappingConflict, match=r"PD entry at 0x0{12}3000 already holds 0x0{12}2007$"):
        map_page(ram, space, BASE, Entry(0x20_0083, Level.PD), frames)

    assert content(ram) == before
    assert frames.taken == 4


def test_nothing_is_linked_when_frames_run_out() -> None:
    """An allocation that fails at any table level leaves no entry behind."""
    for have in range(4):
        ram, space, frames = fresh(frames=have)
        with pytest.raises(OutOfFrames, match=rf"^all {have} table frames from 0x0{{12}}2000 are taken$"):
            map_page(ram, space, BASE, Entry(0x9003, Level.PT), frames)

        assert ram.read(PhysAddr(0x1000), 4096) == bytes(4096)


def test_the_link_is_the_last_write() -> None:
    ram, space, frames = fresh()
    order: list[int] = []

    class Recording:
        def read(self, pa: PhysAddr, size: int, /) -> bytes:
            return ram.read(pa, size)

        def write(self, pa: PhysAddr, data: bytes, /) -> None:
            order.append(pa)
            ram.write(pa, data)

    map_page(Recording(), space, BASE, Entry(0x9003, Level.PT), frames)
    assert order == [0x2000, 0x3000, 0x4000, 0x5000, 0x1888]
    order.clear()
    map_range(Recording(), space, range(BASE + GIB, BASE + GIB + 0x2000), 0x9003, frames)
    assert order == [0x7000, 0x6000, 0x4008]


@pytest.mark.parametrize(
    ("va", "leaf", "message"),
    [
        (BASE, Entry(0x9002, Level.PT), "0x0000000000009002 is not a present leaf at PT"),
        (BASE, Entry(0x9003, Level.PD), "0x0000000000009003 is not a present leaf at PD"),
        (BASE, Entry(0x200083, Level.PML4), "0x0000000000200083 is not a present leaf at PML4"),
        (BASE, Entry(0x202083, Level.PD), "0x0000000000202083 at PD sets reserved bits 0x0000000000002000"),
        (BASE, Entry(1 << 46 | 3, Level.PT), "0x0000400000000003 at PT sets reserved bits 0x0000400000000000"),
        (BASE + 0x1000, Entry(0x200083, Level.PD), "0xff11000000001000 is not the canonical start of a PD page"),
        (0x7 << 60, Entry(0x9003, Level.PT), "0x7000000000000000 is not the canonical start of a PT page"),
    ],
)
def test_a_leaf_that_would_not_map_is_refused(va: int, leaf: Entry, message: str) -> None:
    ram, space, frames = fresh()
    with pytest.raises(ValueError, match=f"^{message}$"):
        map_page(ram, space, VirtAddr(va), leaf, frames)


def test_a_range_takes_the_largest_pages_that_fit() -> None:
    ram, space, frames = fresh()
    map_range(ram, space, range(BASE + 0x1000, BASE + 3 * GIB + 0x20_3000), 0x1003, frames)

    assert runs(space) == [
        "0xff11000000001000-0xff110000001fffff PT   rwx- 0x0000000000001000 0x3",
        "0xff11000000200000-0xff1100003fffffff PD   rwx- 0x0000000000200000 0x83",
        "0xff11000040000000-0xff110000bfffffff PDPT rwx- 0x0000000040000000 0x83",
        "0xff110000c0000000-0xff110000c01fffff PD   rwx- 0x00000000c0000000 0x83",
        "0xff110000c0200000-0xff110000c0202fff PT   rwx- 0x00000000c0200000 0x3",
    ]
    assert frames.taken == 6


def test_a_cpu_without_gib_pages_gets_none() -> None:
    ram, space, frames = fresh(LA48, cpu=Cpu(phys_bits=40, gib_pages=False))
    map_range(ram, space, range(GIB, 3 * GIB), GIB | 3, frames)

    assert runs(space) == ["0x0000000040000000-0x00000000bfffffff PD   rwx- 0x0000000040000000 0x83"]


def test_a_misaligned_range_goes_down_to_the_level_where_both_sides_agree() -> None:
    ram, space, frames = fresh()
    map_range(ram, space, range(BASE, BASE + 4 * MIB), 8 * MIB + 0x1000 | 3, frames)

    assert runs(space) == ["0xff11000000000000-0xff110000003fffff PT   rwx- 0x0000000000801000 0x3"]


def test_the_end_of_the_address_space_can_be_mapped() -> None:
    ram, space, frames = fresh()
    map_range(ram, space, range((1 << 64) - 2 * MIB, 1 << 64), 2 * MIB | 3, frames)

    assert runs(space) == ["0xffffffffffe00000-0xffffffffffffffff PD   rwx- 0x0000000000200000 0x83"]


def test_a_range_over_something_is_refused_before_the_first_write() -> None:
    ram, space, frames = fresh()
    map_page(ram, space, VirtAddr(BASE + 0x40_3000), Entry(0x9003, Level.PT), frames)
    before, taken = content(ram), frames.taken
    with pytest.raises(MappingConflict, match=r"^cannot map 0xff11000000403000: PT entry at"):
        map_range(ram, space, range(BASE + 0x40_1000, BASE + 0x40_5000), 0x1003, frames)
    with pytest.raises(MappingConflict, match=r"^cannot map 0xff11000000400000: PD entry at"):
        map_range(ram, space, range(BASE, BASE + 8 * MIB), 0x3, frames)

    assert (content(ram), frames.taken) == (before, taken)


@pytest.mark.parametrize(
    ("start", "end", "raw", "message"),
    [
        (BASE, BASE, 3, "0xff11000000000000 to 0xff11000000000000: expected whole pages, at least one"),
        (BASE, BASE + 1, 3, "0xff11000000000000 to 0xff11000000000001: expected whole pages, at least one"),
        (0xFF_FFFF_FFFF_F000, 0x100_0000_0000_1000, 3, "0x00fffffffffff000 to 0x0100000000001000 is not canonical"),
        (0x1000, 1 << 64, 3, "0x0000000000001000 to 0x10000000000000000 is not canonical throughout"),
        (BASE, BASE + 0x2000, (1 << 46) - 0x1000 | 3, "0x00003ffffffff003 for 2 pages: not present, or bits"),
        (BASE, BASE + 0x1000, 0x9002, "0x0000000000009002 for 1 pages: not present, or bits 0x0000000000000000 set"),
        (BASE, BASE + 0x1000, 0x9083, "0x0000000000009083 for 1 pages: not present, or bits 0x0000000000000080 set"),
    ],
)
def test_a_range_that_cannot_be_is_refused(start: int, end: int, raw: int, message: str) -> None:
    ram, space, frames = fresh()
    with pytest.raises(ValueError, match=f"^{message}"):
        map_range(ram, space, range(start, end), raw, frames)

    assert frames.taken == 0


def test_frames_start_on_a_frame() -> None:
    with pytest.raises(ValueError, match=r"^table frames from 0x0{12}2010; expected a multiple of 4096$"):
        Frames(Ram.of_size(0x8000, start=0x1000), PhysAddr(0x2010), 1)


PAGES = st.integers(0, 3 << 18)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([LA48, LA57]), PAGES, PAGES, PAGES, st.booleans())
def test_a_range_is_one_map(mode: PagingMode, first: int, pages: int, frame: int, gib: bool) -> None:
    """Whatever the alignment: both ends and nothing beyond, each page where it belongs."""
    ram, space, frames = fresh(mode, frames=1600, cpu=Cpu(phys_bits=40, gib_pages=gib))
    start = mode.gap.stop + 0x1000 * first
    window = range(start, start + 0x1000 * (pages % 4000 + 1))
    map_range(ram, space, window, 0x1000 * frame | 7, frames)
    found = list(regions(space, contiguous=True))

    assert (found[0].start, found[-1].end) == (window.start, window.stop)
    assert all(one.end == other.start for one, other in pairwise(found))
    assert all(run.phys - run.start == 0x1000 * frame - start for run in found)
    sizes = [run.level for run in found]
    assert sizes == [*sorted(sizes[: sizes.index(max(sizes))]), *sorted(sizes[sizes.index(max(sizes)) :], reverse=True)]
