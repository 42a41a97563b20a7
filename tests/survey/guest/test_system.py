"""Which system a guest is: Linux by VMCOREINFO, banner or its map, Xen by its own, else nothing of Linux is assumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.arch import LA48, LA57, Level, PagingMode
from fivefold.layout import check_tiling, linux_areas
from fivefold.memory import Bank, BankedMemory, Extent, Ram, Source, open_source
from fivefold.survey.guest.areas import detect_areas
from fivefold.survey.guest.bases import KernelBases
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.guest.info import About
from fivefold.survey.guest.system import GuestSystem
from fivefold.survey.guest.vmcoreinfo import MOST_TEXTS, kernel_notes
from fivefold.survey.space import Space
from fivefold.survey.stats import stats
from fivefold.units import GIB, MIB, PAGE, PhysAddr

IMAGE = 16 * MIB
NOTES_AT = 0x0120_3000
BANNER = b"Linux version 6.12.117+deb12-amd64 (somebody@somewhere) #1 SMP"
ROOT = 0x1000
STEXT = 0xFFFF_FFFF_8100_0000


def text(**changes: str | None) -> bytes:
    """VMCOREINFO of the kernel that `world` builds; None leaves a line out."""
    facts: dict[str, str | None] = {
        "OSRELEASE": "6.12.117+deb12-cloud-amd64",
        "SYMBOL(_stext)": f"{STEXT:x}",
        "SYMBOL(init_top_pgt)": f"{STEXT + ROOT - IMAGE:x}",
        "NUMBER(phys_base)": "0",
        "NUMBER(pgtable_l5_enabled)": "0",
        "NUMBER(KERNEL_IMAGE_SIZE)": "536870912",
    }
    facts |= {name.replace("__", "(") + ")" if "__" in name else name: value for name, value in changes.items()}
    return "".join(f"{name}={value}\n" for name, value in facts.items() if value is not None).encode()


@pytest.fixture
def world(build: Callable[..., Any]) -> Callable[..., Space]:
    """A Linux of 64 MiB with its tables and its image in memory, and *pages* of bytes by address."""

    def make(pages: dict[int, bytes], mode: PagingMode = LA48) -> Space:
        ram = Ram([Extent(0x1000, 0xCA000), Extent(IMAGE, IMAGE + 4 * MIB)])
        for at, data in pages.items():
            ram.write(PhysAddr(at), data)
        space: Space = build(mode, ram=ram).linux().space()
        return space

    return make


def test_vmcoreinfo_in_memory_is_believed_where_the_tables_confirm_it(world: Callable[..., Space]) -> None:
    space = world({NOTES_AT: text()})
    assert space.system.name.value == "Linux"
    assert space.release.value == "6.12.117+deb12-cloud-amd64"
    assert space.release.how == ("OSRELEASE in VMCOREINFO in memory at 0x0000000001203000, confirmed by the tables")
    # 512 MiB of kernel image, as the text says: modules begin there.
    assert space.areas.name_at(0xFFFF_FFFF_A000_0000) == "modules"
    assert "assumed" not in space.areas.how


@pytest.mark.parametrize(
    "changes",
    [
        {"NUMBER__phys_base": "4096"},
        {"SYMBOL___stext": "ffffffff81001000", "SYMBOL__init_top_pgt": "ffffffff90000000"},
        {"SYMBOL___stext": "ffffffff90000000"},
        {"NUMBER__pgtable_l5_enabled": "1"},
        {"NUMBER__phys_base": None},
        {"SYMBOL___stext": "zz"},
    ],
)
def test_a_text_that_the_tables_refute_counts_for_nothing(
    world: Callable[..., Space], changes: dict[str, str | None]
) -> None:
    changed = text(**changes)
    if changes == {"SYMBOL___stext": "zz"}:  # the next symbol is asked instead, and is not mapped
        changed = text(**changes, SYMBOL__init_top_pgt="ffffffff90000000")
    space = world({NOTES_AT: changed})
    assert space.release.value is None
    assert kernel_notes(space.source).unconfirmed == (NOTES_AT,)
    assert "the text at 0x0000000001203000 they do not" in space.areas.how
    assert space.areas.name_at(0xFFFF_8880_0000_0000) == "direct_map"


def test_without_registers_root_and_levels_follow_from_it(world: Callable[..., Space]) -> None:
    source = world({NOTES_AT: text()}).source
    space = Space(Source(source.memory, "no registers"))
    assert (space.root.value, space.levels) == (ROOT, 4)
    assert space.root.how.startswith("init_top_pgt and phys_base in VMCOREINFO in memory at ")


def test_two_copies_are_one_kernel_and_two_texts_are_none(world: Callable[..., Space]) -> None:
    assert world({NOTES_AT: text(), NOTES_AT + PAGE: text()}).release.value is not None
    space = world({NOTES_AT: text(), NOTES_AT + PAGE: text(OSRELEASE="5.10.0")})
    assert space.release.value is None
    assert "memory holds the VMCOREINFO of 2 kernels, at 0x0000000001203000, 0x0000000001204000" in space.release.how


def test_forged_texts_are_read_so_far_only(world: Callable[..., Space]) -> None:
    pages = {NOTES_AT + n * PAGE: text(NUMBER__phys_base=str(4096 * (n + 1))) for n in range(MOST_TEXTS + 4)}
    assert len(kernel_notes(world(pages).source).unconfirmed) == MOST_TEXTS


@pytest.mark.parametrize("at", [IMAGE, IMAGE + 0x1234, IMAGE + MIB - 20, IMAGE + 2 * MIB - len(BANNER)])
def test_the_banner_in_the_image(world: Callable[..., Space], at: int) -> None:
    space = world({at: BANNER})
    assert space.release.value == "6.12.117+deb12-amd64"
    assert space.release.how == f"the banner in the kernel image, at physical 0x{at:016x}"


def test_a_banner_elsewhere_is_none_of_this_kernel(world: Callable[..., Space]) -> None:
    assert world({IMAGE + 2 * MIB: BANNER, IMAGE: b"code"}).release.value is None


def test_code_without_a_banner_is_not_linux(world: Callable[..., Space]) -> None:
    space = world({IMAGE: b"\xf4"})
    assert (space.system.name.value, space.areas.areas, space.bases.page_offset.value) == (None, (), None)
    assert "comes without a banner of Linux" in space.system.name.how
    assert space.bases.page_offset.how == "a base of Linux, and this is not known to be Linux"


def test_an_empty_image_says_nothing(world: Callable[..., Space]) -> None:
    space = world({})
    assert space.system.name.value == "Linux"
    assert space.areas.how.startswith("Linux 6.1 assumed: the map since 4.20")


@pytest.mark.parametrize("release", ["foo", "2.6.32", "", "4.12.\x1b[2J"])
def test_a_release_that_says_nothing_hides_nothing(world: Callable[..., Space], release: str) -> None:
    space = world({NOTES_AT: text(OSRELEASE=release)})
    assert space.areas.name_at(0xFFFF_8880_0000_0000) == "direct_map"
    assert space.areas.name_at(STEXT) == "kernel_image"
    assert "\x1b" not in space.areas.how.partition("(")[0]


def test_the_direct_map_of_before_4_20(build: Callable[..., Any]) -> None:
    for mode, base, vmalloc in (
        (LA48, 0xFFFF_8800_0000_0000, 0xFFFF_C900_0000_0000),
        (LA57, 0xFF10_0000_0000_0000, 0xFFA0_0000_0000_0000),
    ):
        built = build(mode).pages(base, 64 * MIB, 1 << 63 | 3).pages(vmalloc, 2 * MIB, 0x300_0000 | 1 << 63 | 3)
        space = built.pages(STEXT, 2 * MIB, IMAGE | 1).space()
        assert space.areas.how.startswith("Linux 4.19 assumed: the direct map begins where it did before 4.20")
        assert space.areas.name_at(base) == "direct_map"
        assert sum(stats(space).mapped.by_area.values()) == 68 * MIB
        check_tiling(space.areas.areas)


def test_a_release_that_the_direct_map_refutes(build: Callable[..., Any]) -> None:
    built = build(LA48).pages(0xFFFF_8800_0000_0000, 64 * MIB, 1 << 63 | 3).pages(STEXT, 2 * MIB, IMAGE | 1)
    source = built.space().source
    space = Space(Source(source.memory, "test", source.cpus, vmcoreinfo={"OSRELEASE": "6.1.0"}))
    assert "(not where 6.1 has it)" in space.areas.how
    old = Space(Source(source.memory, "test", source.cpus, vmcoreinfo={"OSRELEASE": "4.14.5"}))
    assert old.areas.how.startswith("Linux 4.14.5 (OSRELEASE in VMCOREINFO)")


@pytest.mark.parametrize("name", ["xen-4.20-dom0-6.12", "memtest-ia32-wp0"])
def test_others_get_nothing_of_linux(others: Path, name: str) -> None:
    with open_source(str(others / f"{name}.elf.xz")) as source:
        space = Space(source, GivenPaging())
        assert {base.value for base in space.bases.named().values()} == {None}
        assert "6.1" not in space.areas.how + space.release.how
        names = {region.area for region in space.regions(repeat_above=0)}
        assert names == ({"hypervisor", None} if name.startswith("xen") else {None})
        counted = stats(space)
        assert sum(counted.mapped.by_area.values()) == sum(counted.mapped.by_half.values())


def test_xen_is_named_by_its_text(build: Callable[..., Any]) -> None:
    space = build(LA48).page(0xFFFF_82D0_4020_0000, 0x40_0000 | 1, Level.PD).space()
    assert space.system.name.value == "Xen"
    assert space.areas.name_at(0xFFFF_82D0_4020_0000) == "hypervisor"
    assert space.areas.name_at(0xFFFF_8800_0000_0000) is None
    gap = next(area for area in space.areas.areas if area.kind == "non_canonical")
    assert (gap.start, gap.end) == (1 << 47, 2**64 - 2**47)
    for wrong in (0xFFFF_82CF_FFE0_0000, 0xFFFF_82E0_0000_0000):
        assert build(LA48).page(wrong, 0x40_0000 | 1, Level.PD).space().system.name.value is None
    user = build(LA48).page(0xFFFF_82D0_4020_0000, 0x40_0000 | 5, Level.PD).space()
    assert user.system.name.value is None


def test_memory_that_cannot_be_searched_is_not(world: Callable[..., Space]) -> None:
    space = world({NOTES_AT: text(), IMAGE: b"\xf4"})
    memory = BankedMemory([Bank(one.start, one.data) for one in space.source.memory.banks()], "slow")
    memory.searchable = False
    slow = Space(Source(memory, "test", space.source.cpus))
    assert (slow.system.name.value, slow.release.value) == ("Linux", None)
    assert "memory was not searched" in slow.release.how


LINUX = GuestSystem(Found("Linux", "test"), Found(None, "test"))
addresses = (
    st.none()
    | st.integers(0, (1 << 33) - 1).map(lambda n: n << 30 | 0xFF00 << 48)
    | st.sampled_from(
        [
            area.start
            for levels in (4, 5)
            for release in ("4.12", "4.19.1", "6.1")
            for area in linux_areas(release, levels)
        ]
    )
)


@settings(deadline=None, max_examples=300)
@given(
    levels=st.sampled_from([4, 5]),
    found=st.tuples(addresses, addresses, addresses, addresses),
    release=st.sampled_from([None, "4.12", "4.14", "4.19.4", "4.19.5", "6.1", "7.2", "foo"]),
    limit=st.sampled_from([None, GIB // 2, GIB]),
)
def test_whatever_is_found_areas_tile(
    levels: int, found: tuple[int | None, ...], release: str | None, limit: int | None
) -> None:
    page_offset, vmalloc, vmemmap, end = found
    low = {4: 0xFFFF_8800_0000_0000, 5: 0xFF10_0000_0000_0000}[levels]  # `find_bases` finds none lower
    page_offset = None if page_offset is None else max(page_offset, low)
    bases = KernelBases(
        page_offset=Found(page_offset, "test"),
        vmalloc=Found(vmalloc, "test"),
        vmemmap=Found(vmemmap, "test"),
        kernel_text=Found(STEXT, "test"),
        phys_base=Found(0, "test"),
        direct_map_end=end if page_offset is None or end is None else max(end, page_offset + PAGE),
        kasan=False,
    )
    system = GuestSystem(LINUX.name, Found(release, "test"))
    areas = detect_areas(levels, bases, system, limit).areas
    assert bool(areas) == (page_offset is not None)
    if areas:
        check_tiling(areas)


def test_what_vmcoreinfo_claims_is_held_against_the_tables(world: Callable[..., Space]) -> None:
    source = world({}).source
    right = {"NUMBER(pgtable_l5_enabled)": "0", "NUMBER(phys_base)": "0", "KERNELOFFSET": "0"}
    about = About(source, Space(Source(source.memory, "test", source.cpus, vmcoreinfo=right)))
    fact = about.facts()["vmcoreinfo"]
    assert (fact.value, fact.against) == ("the tables confirm levels, phys_base, kernel_text", None)
    wrong = {"NUMBER(pgtable_l5_enabled)": "1", "NUMBER(phys_base)": "4096", "KERNELOFFSET": "200000"}
    about = About(source, Space(Source(source.memory, "test", source.cpus, vmcoreinfo=wrong)))
    fact = about.facts()["vmcoreinfo"]
    assert fact.value == "the tables confirm nothing of it"
    assert fact.against == (
        "the tables contradict it: levels is 0x4, not 0x5, phys_base is 0x0, not 0x1000, "
        "kernel_text is 0xffffffff81000000, not 0xffffffff81200000"
    )
    assert about.to_json()["vmcoreinfo"]["contradicted_by"] == fact.against


XEN_TEXT, XEN_TEXT_END, XEN_MEMORY = 0xFFFF_82D0_0000_0000, 0xFFFF_82E0_0000_0000, 0xFFFF_8300_0000_0000
XEN_END = 0xFFFF_8800_0000_0000


@pytest.mark.parametrize(
    ("pages", "sign"),
    [
        ([(XEN_TEXT, 0x20_0001)], f"code at {XEN_TEXT:#x}, where Xen keeps its own text"),
        ([(XEN_TEXT_END - 0x1000, 0x20_0001)], f"code at {XEN_TEXT_END - 0x1000:#x}, where Xen keeps its own text"),
        ([(XEN_TEXT, 0x20_0005)], None),
        ([(XEN_TEXT, 1 << 63 | 0x20_0001)], None),
        ([(XEN_TEXT - 0x1000, 0x20_0001), (XEN_TEXT_END, 0x20_0001)], None),
        *(
            (
                [(XEN_MEMORY + at, at | flags) for at in range(first, first + size, 0x1000)],
                f"{size >> 10}K of memory mapped from {XEN_MEMORY:#x} on, where Xen maps all of it" if is_xen else None,
            )
            for first, size, flags, is_xen in (
                (0x1000, 2 * MIB + 0x1000, 3, True),
                (0, 2 * MIB - 0x1000, 3, False),
                (0, 4 * MIB, 7, False),
                (XEN_END - XEN_MEMORY, 4 * MIB, 3, False),
                (0x30_0000, 0x20_4000, 3 | 1 << 63, True),
            )
        ),
        ([(XEN_MEMORY + at, at + 0x1000 | 3) for at in range(0, 4 * MIB, 0x1000)], None),
    ],
)
def test_signs_of_xen(build: Callable[..., Any], pages: list[tuple[int, int]], sign: str | None) -> None:
    """Its own text, the supervisor's and executable, or 2 MiB of memory and more from its base on."""
    built = build(LA48)
    for va, raw in pages:
        built.page(va, raw)
    found = built.space().system.name
    assert (found.value, found.how if sign else None) == (("Xen", sign) if sign else (None, None))


def test_two_mebibytes_of_memory_are_a_sign_of_xen(build: Callable[..., Any]) -> None:
    built = build(LA48).pages(XEN_MEMORY, 2 * MIB, 3)
    assert built.space().system.name.how == f"2M of memory mapped from {XEN_MEMORY:#x} on, where Xen maps all of it"
