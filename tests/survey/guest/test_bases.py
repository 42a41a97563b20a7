"""Bases from the tables alone: equal to what the guests' kernels held in memory, or null with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA48, Level
from fivefold.memory import CpuState, Ram, Source
from fivefold.survey.space import Space
from fivefold.units import GIB, MIB

PAGE_OFFSET = 0xFFFF_8880_0000_0000
VMALLOC = 0xFFFF_C900_0000_0000
VMEMMAP = 0xFFFF_EA00_0000_0000
RW = 0x8000_0000_0000_0163
UNCACHED = RW | 0x10
TEXT = 0x121

DIRECT = [(PAGE_OFFSET + n * 2 * MIB, n * 2 * MIB | RW, Level.PD) for n in range(64)]
STACKS = [(VMALLOC + 0x5000 + n * 0x1000, 0x50_3000 + 0x7000 * n | RW, Level.PT) for n in range(4)]
DESCRIPTORS = [(VMEMMAP, 0x60_0000 | RW, Level.PD)]
IMAGE = [(0xFFFF_FFFF_8120_0000, 0x320_0000 | TEXT, Level.PD), (0xFFFF_FFFF_8140_0000, 0x340_0000 | RW, Level.PD)]

NO_DIRECT_MAP = (
    "no 2M of the kernel half lie at one distance from physical memory that a base can have: nothing lies so"
)

Built = Callable[..., Ram]
Sourced = Callable[..., Source]


@pytest.fixture
def kernel(built: Built, sourced: Sourced) -> Callable[..., Space]:
    def build(*parts: list[tuple[int, int, Level]]) -> Space:
        ram = built(LA48, [page for part in parts for page in part])
        return Space(sourced(ram, (CpuState("test", cr0=1 << 31, cr3=0x10_0000, cr4=0x20),)))

    return build


def test_captures(name: str, captures: Any, look: Callable[..., Space], facts: Callable[[str], Any]) -> None:
    known, bases = facts(name), look(name).bases
    want = {
        key: known["kernel_variables"][key] for key in ("page_offset_base", "vmalloc_base", "vmemmap_base", "phys_base")
    }
    want["kernel_text"] = known["symbols"]["_text"]

    assert {key: found.value for key, found in bases.named().items()} == {
        key: int(text, 16) for key, text in want.items()
    }
    assert bases.kasan is name.startswith("kasan")
    assert look(name).areas.name_at(bases.vmemmap.value or 0) == "vmemmap"


def test_a_small_kernel(kernel: Callable[..., Space]) -> None:
    bases = kernel(DIRECT, STACKS, DESCRIPTORS, IMAGE).bases
    assert bases.page_offset.value == PAGE_OFFSET
    assert bases.page_offset.how == "commonest va - pa in the kernel half: 128M of 128M that could be it"
    assert bases.direct_map_end == PAGE_OFFSET + 128 * MIB
    assert bases.vmalloc.value == VMALLOC
    assert bases.vmalloc.how == "first mapping after the direct map, 0xffffc90000005000, rounded down to 1G"
    assert bases.vmemmap.value == VMEMMAP
    assert bases.kernel_text.value == 0xFFFF_FFFF_8120_0000
    assert bases.phys_base.value == 0x200_0000
    assert not bases.kasan


def test_device_memory_larger_than_ram(kernel: Callable[..., Space]) -> None:
    """Mapped at a distance that a base could have, but uncached."""
    device = [(VMALLOC + GIB + n * 2 * MIB, n * 2 * MIB + GIB | UNCACHED, Level.PD) for n in range(200)]
    bases = kernel(DIRECT, STACKS, device, DESCRIPTORS, IMAGE).bases
    assert (bases.page_offset.value, bases.vmalloc.value, bases.vmemmap.value) == (PAGE_OFFSET, VMALLOC, VMEMMAP)


def test_a_large_allocation_that_begins_like_vmemmap(kernel: Callable[..., Space]) -> None:
    large = [(VMALLOC + 2 * GIB + n * 2 * MIB, (3 * n + 9) * 2 * MIB | RW, Level.PD) for n in range(3)]
    assert kernel(DIRECT, STACKS, large, DESCRIPTORS, IMAGE).bases.vmemmap.value == VMEMMAP
    missing = kernel(DIRECT, STACKS, large, IMAGE).bases.vmemmap
    assert (missing.value, missing.how) == (None, "nothing mapped above vmalloc has the size of the page descriptors")


@pytest.mark.parametrize(
    "found",
    [(VMALLOC + 2 * GIB + 2 * MIB, 0x60_0000 | RW), (VMEMMAP, 0x60_0000 | UNCACHED), (VMEMMAP, 0x60_0000 | RW & ~2)],
    ids=["no multiple of 1G", "uncached", "read-only"],
)
def test_what_vmemmap_cannot_be(kernel: Callable[..., Space], found: tuple[int, int]) -> None:
    assert kernel(DIRECT, STACKS, [(*found, Level.PD)], IMAGE).bases.vmemmap.value is None


@pytest.mark.parametrize("wrong", [0, 7, 511], ids=["first", "inside", "last"])
@pytest.mark.parametrize("raw", [0x163, RW & ~2, RW | 0x10], ids=["W+X", "read-only", "uncached"])
def test_one_page_of_the_descriptors_with_other_rights(kernel: Callable[..., Space], wrong: int, raw: int) -> None:
    """A large page that was split for it: what an audit is to find must not hide where the descriptors are."""
    part = [(VMEMMAP + n * 4096, 0x60_0000 + n * 4096 | (raw if n == wrong else RW), Level.PT) for n in range(512)]
    bases = kernel(DIRECT, STACKS, part, IMAGE).bases
    assert (bases.page_offset.value, bases.vmalloc.value, bases.vmemmap.value) == (PAGE_OFFSET, VMALLOC, VMEMMAP)


@pytest.mark.parametrize(("plain", "found"), [(257, True), (256, False)])
def test_page_descriptors_are_mostly_plain_data(kernel: Callable[..., Space], plain: int, found: bool) -> None:
    part = [(VMEMMAP + n * 4096, 0x60_0000 + n * 4096 | (RW if n < plain else RW & ~2), Level.PT) for n in range(512)]
    assert kernel(DIRECT, STACKS, part, IMAGE).bases.vmemmap.value == (VMEMMAP if found else None)


def test_memory_in_two_parts(kernel: Callable[..., Space]) -> None:
    """Descriptors of the second part lie apart from the first's."""
    high = [(PAGE_OFFSET + 4 * GIB + n * 2 * MIB, 4 * GIB + n * 2 * MIB | RW, Level.PD) for n in range(64)]
    more = [(VMEMMAP + 64 * MIB, 0x80_0000 | RW, Level.PD)]
    assert kernel(DIRECT, high, STACKS, DESCRIPTORS, more, IMAGE).bases.vmemmap.value == VMEMMAP
    assert kernel(DIRECT, high, STACKS, DESCRIPTORS, IMAGE).bases.vmemmap.value is None


def test_a_cpu_without_nx(kernel: Callable[..., Space]) -> None:
    """All is executable, page descriptors too; where anything is not, they cannot be."""
    parts = [[(va, raw & ~(1 << 63), level) for va, raw, level in part] for part in (DIRECT, STACKS, DESCRIPTORS)]
    assert kernel(*parts, IMAGE[:1]).bases.vmemmap.value == VMEMMAP
    assert kernel(*parts, IMAGE).bases.vmemmap.value is None


def test_page_descriptors_before_vmalloc_is_used(kernel: Callable[..., Space]) -> None:
    """Early in a boot they are the first thing after the direct map."""
    bases = kernel(DIRECT, DESCRIPTORS, IMAGE).bases
    assert (bases.vmalloc.value, bases.vmemmap.value) == (None, VMEMMAP)
    assert bases.vmalloc.how == "nothing is mapped between the direct map and vmemmap at 0xffffea0000000000"


@pytest.mark.parametrize("level", [Level.PT, Level.PD], ids=["4K", "2M"])
def test_page_descriptors_that_are_not_complete(kernel: Callable[..., Space], level: Level) -> None:
    more = [(PAGE_OFFSET + 512 * MIB, 512 * MIB | RW, Level.PD)]
    part = [(VMEMMAP + at, 0x60_0000 + at | RW, level) for at in range(0, 2 * MIB, level.span)]
    bases = kernel(DIRECT, more, part, IMAGE).bases
    assert (bases.vmalloc.value, bases.vmemmap.value) == (None, None)
    assert bases.vmalloc.how == "first mapping after the direct map, 0xffffea0000000000, may be page descriptors"
    smaller = kernel(DIRECT, more, part[: len(part) // 2], STACKS, IMAGE).bases
    assert smaller.vmalloc.value == VMALLOC


@pytest.mark.parametrize(("size", "found"), [(64, True), (56, True), (48, False), (72, False)])
def test_how_large_page_descriptors_may_be(kernel: Callable[..., Space], size: int, found: bool) -> None:
    gibibytes = [(PAGE_OFFSET + n * GIB, n * GIB | RW, Level.PDPT) for n in range(1, 4)]
    described = range(0, 4 * GIB // 4096 * size, 2 * MIB)
    descriptors = [(VMEMMAP + at, 0x60_0000 + 2 * at | RW, Level.PD) for at in described]
    low = [(PAGE_OFFSET + n * 2 * MIB, n * 2 * MIB | RW, Level.PD) for n in range(512)]
    bases = kernel(low, gibibytes, STACKS, descriptors, IMAGE).bases
    assert bases.vmemmap.value == (VMEMMAP if found else None)


def test_no_direct_map(kernel: Callable[..., Space]) -> None:
    space = kernel(IMAGE)
    bases = space.bases
    reason = "no 2M of the kernel half lie at one distance from physical memory that a base can have: nothing lies so"
    assert (bases.page_offset.value, bases.page_offset.how) == (None, reason)
    assert (bases.vmalloc.value, bases.vmalloc.how) == (None, "follows from the direct map, which was not found")
    assert bases.kernel_text.value is None
    assert bases.phys_base.value is None
    assert (space.areas.areas, space.areas.how) == ((), f"no names: nothing shows Linux: {reason}")


def test_nothing_but_user_space(kernel: Callable[..., Space]) -> None:
    bases = kernel([(0x40_0000, 0x7000 | 7, Level.PT)]).bases
    assert {found.value for found in bases.named().values()} == {None}
    assert all(found.how for found in bases.named().values())


def test_the_user_half_of_an_isolated_pair_is_answered_by_the_kernels(look: Callable[..., Space]) -> None:
    kernel, user = look("debian-la57-kaslr-pti"), look("debian-la57-kaslr-pti", 0x255_7000)
    assert user.root.value == kernel.root.value | 0x1000
    assert user.bases.named() == kernel.bases.named()
    assert [region.area for region in user.regions()][-1] == "kernel_image"


def test_areas_without_vmemmap_are_the_fixed_ones(kernel: Callable[..., Space]) -> None:
    moved = [(va - PAGE_OFFSET + 0xFFFF_9000_0000_0000, raw, level) for va, raw, level in DIRECT]
    areas = kernel(moved, STACKS, IMAGE).areas
    assert areas.name_at(0xFFFF_9000_0000_0000) == "direct_map"
    assert areas.name_at(VMALLOC) is None
    assert areas.name_at(0xFFFF_FFFF_8120_0000) == "kernel_image"
    assert "not all areas are named: vmalloc: first mapping" in areas.how


def test_areas_cover_default_kernels_whole(kernel: Callable[..., Space]) -> None:
    areas = kernel(DIRECT, STACKS, DESCRIPTORS, IMAGE).areas
    assert areas.name_at(VMALLOC) == "vmalloc"
    assert areas.name_at(0) == "user"
    assert areas.how == (
        "Linux 6.1 assumed: the map since 4.20, which the direct map fits "
        "(no VMCOREINFO in the source, and no banner), 1G of kernel image assumed; bases are the defaults"
    )


@pytest.mark.parametrize("wrong", [-1, 0, 1])
@pytest.mark.parametrize("size", [64, 56])
def test_page_descriptors_end_with_a_section(kernel: Callable[..., Space], size: int, wrong: int) -> None:
    """Those of 100 sections, the last one begun: two MiB less leave out the last page, two more are not Linux'."""
    memory = 12800 * MIB
    gibibytes = [(PAGE_OFFSET + n * GIB, n * GIB | RW, Level.PDPT) for n in range(1, 12)]
    large = [
        (PAGE_OFFSET + at, at | RW, Level.PD) for at in (*range(0, GIB, 2 * MIB), *range(12 * GIB, memory, 2 * MIB))
    ]
    descriptors = [
        (VMEMMAP + at, 0x60_0000 + 2 * at | RW, Level.PD)
        for at in range(0, memory // 4096 * size + 2 * MIB * wrong, 2 * MIB)
    ]
    for missing in (0, 63) if size == 64 else (0,):
        direct = large[: len(large) - missing]
        found = kernel(direct, gibibytes, STACKS, descriptors, IMAGE).bases
        assert found.direct_map_end == PAGE_OFFSET + memory - missing * 2 * MIB
        assert found.vmemmap.value == (None if wrong else VMEMMAP)


def test_borders_of_what_can_move(kernel: Callable[..., Space]) -> None:
    """The CPU entry area begins where movable areas end; modules begin where the window of the image does."""
    entry_area = [(0xFFFF_FE00_0000_0000, 0x50_3000 | RW, Level.PT)]
    nothing = "nothing is mapped between the direct map and the CPU entry area"
    found = kernel(DIRECT, entry_area, IMAGE).bases
    assert (found.vmalloc.value, found.vmalloc.how) == (None, nothing)
    last = [(0xFFFF_FDFF_FFFF_F000, 0x50_3000 | RW, Level.PT)]
    assert kernel(DIRECT, last, entry_area, IMAGE).bases.vmalloc.value == 0xFFFF_FDFF_C000_0000
    adjacent = [(PAGE_OFFSET + 128 * MIB, 0x50_3000 | RW, Level.PT)]
    assert kernel(DIRECT, adjacent, IMAGE).bases.vmalloc.value == PAGE_OFFSET

    for at, is_image in ((0xFFFF_FFFF_7FE0_0000, False), (0xFFFF_FFFF_8000_0000, True), (0xFFFF_FFFF_C000_0000, False)):
        found = kernel(DIRECT, STACKS, [(at, 0x320_0000 | TEXT, Level.PD)]).bases
        assert found.kernel_text.value == (at if is_image else None)
        assert found.phys_base.value == (0x320_0000 if is_image else None)
    low = kernel(DIRECT, STACKS, [(0xFFFF_FFFF_8120_0000, 0x20_0000 | TEXT, Level.PD)]).bases
    assert low.phys_base.value == (1 << 64) - 0x100_0000
    assert low.phys_base.how == "code at 0xffffffff81200000 lies at physical 0x0000000000200000"


def test_where_a_direct_map_can_lie(kernel: Callable[..., Space]) -> None:
    """Not below that of old releases, nor at a distance that is no multiple of 1 GiB, nor with less than 2 MiB."""

    def found(base: int, size: int = 4 * MIB, raw: int = RW) -> tuple[int | None, str]:
        space = kernel([(base + at, at | raw, Level.PT) for at in range(0, size, 4096)], IMAGE)
        return space.bases.page_offset.value, space.bases.page_offset.how

    least = "no 2M of the kernel half lie at one distance from physical memory that a base can have: "
    lowest = 0xFFFF_8800_0000_0000
    assert found(lowest)[0] == lowest
    assert found(lowest - GIB) == (None, f"{least}nothing lies so")
    assert found(lowest + 2 * MIB) == (None, f"{least}nothing lies so")
    assert found(lowest, raw=UNCACHED) == (None, f"{least}nothing lies so")
    assert found(lowest, 2 * MIB)[0] == lowest
    assert found(lowest, 2 * MIB - 4096) == (None, f"{least}the most at one distance is 2044K")
    two = kernel(
        [(lowest + at, at | RW, Level.PT) for at in range(0, 2 * MIB, 4096)],
        [(lowest + 8 * GIB + at, at | RW, Level.PT) for at in range(0, 3 * MIB, 4096)],
        IMAGE,
    ).bases.page_offset
    assert (two.value, two.how) == (lowest + 8 * GIB, "commonest va - pa in the kernel half: 3M of 5M that could be it")


def test_bases_that_are_no_linux_are_disowned(kernel: Callable[..., Space]) -> None:
    """All that was found goes, for one reason; what was not found keeps its own."""
    found = kernel(DIRECT, IMAGE).bases
    without = found.disowned("another system")
    assert {name: (base.value, base.how) for name, base in without.named().items()} == {
        "page_offset_base": (None, "another system"),
        "vmalloc_base": (None, "nothing is mapped between the direct map and the CPU entry area"),
        "vmemmap_base": (None, "nothing mapped above vmalloc has the size of the page descriptors"),
        "phys_base": (None, "another system"),
        "kernel_text": (None, "another system"),
    }
    assert (without.direct_map_end, without.kasan) == (None, False)
    shown = found._repr_html_()
    assert shown.count("not known") == 2 and "0xffff888000000000" in shown and "0xffffffff81200000" in shown


@pytest.mark.parametrize(("moved", "has_shadow"), [(0, True), (-1, False)])
def test_a_shadow_is_told_by_its_beginning(kernel: Callable[..., Space], moved: int, has_shadow: bool) -> None:
    """It is where the areas that move end; an area that ends one page below it is none."""
    shadow = 0xFFFF_EC00_0000_0000
    pages = [(shadow - 0x2000 + n * 0x1000, 0x50_0000 + n * 0x1000 | RW, Level.PT) for n in range(3 + moved)]
    found = kernel(DIRECT, STACKS, pages, [(shadow + GIB, 0x60_0000 | RW, Level.PD)], IMAGE).bases
    assert found.kasan is has_shadow
    assert found.vmalloc.value == VMALLOC


@pytest.mark.parametrize(
    ("parts", "missing"),
    [
        ([IMAGE], NO_DIRECT_MAP),
        ([DIRECT, STACKS], "nothing executable is mapped in the kernel's window"),
        ([STACKS], NO_DIRECT_MAP),
    ],
)
def test_a_linux_by_its_word_alone_has_no_areas(
    built: Built, sourced: Sourced, parts: list[list[tuple[int, int, Level]]], missing: str
) -> None:
    """Its release is known, and nothing shows where it has its direct map or its code."""
    ram = built(LA48, [page for part in parts for page in part])
    cpu = CpuState("test", cr0=1 << 31, cr3=0x10_0000, cr4=0x20)
    space = Space(sourced(ram, (cpu,), vmcoreinfo={"OSRELEASE": "6.1.0-13-amd64"}))
    assert (space.system.name.value, space.release.value) == ("Linux", "6.1.0-13-amd64")
    assert (space.areas.areas, space.areas.how) == ((), f"no names: {missing}")
    whole = built(LA48, [*DIRECT, *STACKS, *DESCRIPTORS, *IMAGE])
    named = Space(sourced(whole, (cpu,), vmcoreinfo={"OSRELEASE": "6.1.0-13-amd64"})).areas
    assert named.how.startswith("Linux 6.1.0-13-amd64 (OSRELEASE in VMCOREINFO)") and len(named.areas) > 10
