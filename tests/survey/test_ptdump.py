"""The kernel's own dump, line for line: against what the guests printed, and rule by rule."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, AddressSpace, Level, PagingMode
from fivefold.errors import FivefoldError, LayoutError, MemoryReadError
from fivefold.layout import Marker, shadow_bounds, to_shadow
from fivefold.memory import Ram
from fivefold.report.ptdump_headings import headings, parse_build
from fivefold.report.ptdump_lines import write_ptdump
from fivefold.survey.ptdump_walk import TableWalk, early_shadow, narrowed
from fivefold.survey.space import Space
from fivefold.units import PhysAddr

VECTORS = Path(__file__).parent / "vectors"
GUESTS = ("plain-la57-kaslr", "plain-la48-kaslr", "plain-la57-kaslr-smp2", "kasan-la57-nokaslr", "kasan-la48-kaslr")
TWO = (Marker("User Space", 0), Marker("Kernel Space", 1 << 63))
RW_NX, RO_NX, RX = 0x8000_0000_0000_0163, 0x8000_0000_0000_0161, 0x161


@cache
def dumped(space: Space) -> list[str]:
    markers, _ = headings(space, {})
    return written(space.tables, markers)


def written(space: AddressSpace, markers: Sequence[Marker]) -> list[str]:
    found: list[str] = []
    write_ptdump(TableWalk(space), markers, found.append)
    return found


def printed(captures: Path, guest: str, file: str) -> list[str]:
    return (captures / f"{guest}.ptdump-{file}.txt").read_text().splitlines()


def differences(theirs: list[str], ours: list[str]) -> tuple[list[str], list[str]]:
    """Lines of each side that the other has not, in order."""
    found = list(difflib.unified_diff(theirs, ours, n=0, lineterm=""))[2:]
    return [line[1:] for line in found if line[0] == "-"], [line[1:] for line in found if line[0] == "+"]


def stated(guest: str) -> tuple[list[str], list[str]]:
    text = (VECTORS / "ptdump_differences.txt").read_text().splitlines()
    rows = [[column.strip() for column in row.split("|")] for row in text if not row.startswith("#")]
    mine = [row for row in rows if row[0] == guest]
    return [row[1] for row in mine if row[1]], [row[2] for row in mine if row[2]]


@pytest.mark.parametrize("guest", GUESTS)
def test_the_kernels_own_text(
    guest: str, captures: Path, look: Callable[..., Space], facts: Callable[[str], Any]
) -> None:
    space = look(guest, int(facts(guest)["roots"]["init_top_pgt"], 16))
    found = differences(printed(captures, guest, "kernel"), dumped(space))

    assert found == stated(guest)
    for line in (*found[0], *found[1]):
        assert in_vmalloc(space, int(line[:18], 16)), line


def in_vmalloc(space: Space, va: int) -> bool:
    """Whether it is in vmalloc or in its shadow."""
    start, end = space.bases.vmalloc.value or 0, space.bases.vmemmap.value or 0
    return start <= va < end or to_shadow(start) <= va < to_shadow(end)


@pytest.mark.parametrize("file", ["current_kernel", "current_user"])
@pytest.mark.parametrize("guest", GUESTS)
def test_the_kernel_half_of_a_process(
    guest: str, file: str, captures: Path, look: Callable[..., Space], facts: Callable[[str], Any]
) -> None:
    """The text is of the process that read it, this dump of the one in CR3: their lower halves differ."""
    space = look(guest, int(facts(guest)["cpus"][-1]["cr3"], 16))
    for line in [line for side in differences(printed(captures, guest, file), dumped(space)) for line in side]:
        assert line.startswith("0x0000") or in_vmalloc(space, int(line[:18], 16)), line


def toy(ram: Ram, mode: PagingMode, markers: Sequence[Marker] = TWO) -> list[str]:
    return written(AddressSpace(ram, PhysAddr(0x10_0000), mode), markers)


def test_holes_have_the_level_they_were_found_at(built: Callable[..., Ram]) -> None:
    ram = built(LA57, [(0x1000, 0x5000 | 7, Level.PT), (0xFF11_0000_0020_0000, 0x20_0000 | RX, Level.PD)])
    assert toy(ram, LA57) == [
        "---[ User Space ]---",
        "0x0000000000000000-0x0000000000001000           4K                               pte",
        "0x0000000000001000-0x0000000000002000           4K USR RW                     x  pte",
        "0x0000000000002000-0x0000000000200000        2040K                               pte",
        "0x0000000000200000-0x0000000040000000        1022M                               pmd",
        "0x0000000040000000-0x0000008000000000         511G                               pud",
        "0x0000008000000000-0x0001000000000000      261632G                               p4d",
        "0x0001000000000000-0xff10000000000000    16715520T                               pgd",
        "---[ Kernel Space ]---",
        "0xff10000000000000-0xff11000000000000         256T                               pgd",
        "0xff11000000000000-0xff11000000200000           2M                               pmd",
        "0xff11000000200000-0xff11000000400000           2M     ro         PSE     GLB x  pmd",
        "0xff11000000400000-0xff11000040000000        1020M                               pmd",
        "0xff11000040000000-0xff11008000000000         511G                               pud",
        "0xff11008000000000-0xff12000000000000      261632G                               p4d",
        "0xff12000000000000-0x0000000000000000       60928T                               pgd",
    ]


def test_a_folded_level_has_no_name(built: Callable[..., Ram]) -> None:
    found = toy(built(LA48, [(0x1000, 0x5000 | 7, Level.PT)]), LA48)
    assert not any(line.endswith("p4d") for line in found)
    assert found[-3:] == [
        "0x0000008000000000-0xffff880000000000   17179745792G                               pgd",
        "---[ Kernel Space ]---",
        "0xffff880000000000-0x0000000000000000         120T                               pgd",
    ]


def test_the_guard_hole_is_passed_over(built: Callable[..., Ram]) -> None:
    mapped = built(LA57, [(0xFF00_0000_0000_0000, 0x5000 | RW_NX, Level.PT)])
    empty = built(LA57, [])
    assert toy(mapped, LA57) == toy(empty, LA57)


def test_every_flag_has_its_column(built: Callable[..., Ram]) -> None:
    ram = built(LA48, [(0x1000, 0x5000 | 0x1FF, Level.PT), (0x2000, 0x6000 | RO_NX, Level.PT)])
    assert toy(ram, LA48)[2:4] == [
        "0x0000000000001000-0x0000000000002000           4K USR RW PWT PCD     PAT GLB x  pte",
        "0x0000000000002000-0x0000000000003000           4K     ro                 GLB NX pte",
    ]


def test_bits_that_are_not_printed_break_lines(built: Callable[..., Ram]) -> None:
    """Accessed, dirty and software bits; also of an entry that is not present."""
    leaves = [0x5000 | 7, 0x6000 | 0x27, 0x7000 | 0x67, 0x8000 | 0x467]
    ram = built(LA48, [(0x1000 * n, raw, Level.PT) for n, raw in enumerate(leaves, 1)])
    slot = place_of(ram, leaves[0])
    ram.write(PhysAddr(slot + 8 * 5), (1 << 60 | 0x9000).to_bytes(8, "little"))
    found = toy(ram, LA48)
    assert found[2] == "0x0000000000001000-0x0000000000002000           4K USR RW                     x  pte"
    assert [line[:38] for line in found[2:8]] == [
        f"0x{start:016x}-0x{start + 0x1000:016x} " for start in (0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000)
    ]
    assert found[7] == "0x0000000000006000-0x0000000000007000           4K                               pte"


def place_of(ram: Ram, raw: int) -> int:
    """Where an entry lies."""
    return 0x10_0000 + ram.read(PhysAddr(0x10_0000), 0x10_000).index(raw.to_bytes(8, "little"))


def test_pat_of_a_large_page_counts_as_address(built: Callable[..., Ram]) -> None:
    ram = built(LA48, [(0x20_0000, 0x20_1000 | 7, Level.PD), (0x40_0000, 0x40_0000 | 7, Level.PD)])
    assert "0x0000000000200000-0x0000000000600000           4M USR RW         PSE         x  pmd" in toy(ram, LA48)


def test_effective_protection_breaks_lines_too(built: Callable[..., Ram]) -> None:
    ram = built(LA48, [(0x1F_F000, 0x5000 | 7, Level.PT), (0x20_0000, 0x6000 | 7, Level.PT)])
    whole = "0x00000000001ff000-0x0000000000201000           8K USR RW                     x  pte"
    assert whole in toy(ram, LA48)
    # The table of the second page: written as a whole, it lies at a page's start.
    link = (place_of(ram, 0x6000 | 7) | 7).to_bytes(8, "little")
    at = 0x10_0000 + ram.read(PhysAddr(0x10_0000), 0x10_000).index(link)
    ram.write(PhysAddr(at), (int.from_bytes(link, "little") & ~2).to_bytes(8, "little"))
    assert [line for line in toy(ram, LA48) if "USR" in line] == [
        "0x00000000001ff000-0x0000000000200000           4K USR RW                     x  pte",
        "0x0000000000200000-0x0000000000201000           4K USR RW                     x  pte",
    ]


def test_one_heading_for_an_entry(built: Callable[..., Ram]) -> None:
    """A heading waits for the next entry when two are due at once."""
    ram = built(LA48, [(0x1000 * n, 0x5000 + 0x1000 * n | 7, Level.PT) for n in range(1, 5)])
    markers = [Marker("User Space", 0), Marker("first", 0x1000), Marker("second", 0x1000), Marker("third", 0x2800)]
    assert toy(ram, LA48, markers)[:9] == [
        "---[ User Space ]---",
        "0x0000000000000000-0x0000000000001000           4K                               pte",
        "---[ first ]---",
        "0x0000000000001000-0x0000000000002000           4K USR RW                     x  pte",
        "---[ second ]---",
        "0x0000000000002000-0x0000000000003000           4K USR RW                     x  pte",
        "---[ third ]---",
        "0x0000000000003000-0x0000000000005000           8K USR RW                     x  pte",
        "0x0000000000005000-0x0000000000200000        2028K                               pte",
    ]


def test_two_headings_at_once_inside_a_run(built: Callable[..., Ram]) -> None:
    ram = built(LA48, [(0x1000 * n, 0x5000 + 0x1000 * n | 7, Level.PT) for n in range(4)])
    markers = [Marker("User Space", 0), Marker("first", 0x1800), Marker("second", 0x1800)]
    assert [line[:39] for line in toy(ram, LA48, markers)[:6]] == [
        "---[ User Space ]---",
        "0x0000000000000000-0x0000000000002000  ",
        "---[ first ]---",
        "0x0000000000002000-0x0000000000003000  ",
        "---[ second ]---",
        "0x0000000000003000-0x0000000000004000  ",
    ]


@pytest.mark.parametrize(
    ("pages", "last"),
    [(8, "0x000000000000e000"), (9, "... 1 entry skipped ... "), (10, "... 3 entries skipped ... ")],
)
def test_espfix_is_cut_after_sixteen_lines(built: Callable[..., Ram], pages: int, last: str) -> None:
    ram = built(LA48, [(0x2000 * n, 0x5000 | 7, Level.PT) for n in range(pages)])
    found = toy(ram, LA48, [Marker("ESPfix Area", 0), Marker("after", 0x2000 * pages - 0x1000)])
    end = found.index("---[ after ]---")
    assert found[end - 1].startswith(last)
    assert sum(line.startswith("0x") for line in found[:end]) == min(2 * pages - 1, 16)


def test_a_table_that_is_not_in_memory(built: Callable[..., Ram]) -> None:
    ram = built(LA48, [(0x1000, 0x5000 | 7, Level.PT)])
    ram.write(PhysAddr(0x10_0000 + 8 * 3), (0x80_0000_0000 | 7).to_bytes(8, "little"))
    walk = TableWalk(AddressSpace(ram, PhysAddr(0x10_0000), LA48))
    sizes: list[int] = []
    walk.each(lambda piece: sizes.append(piece.end - piece.start))
    assert sum(sizes) == (1 << 48) - 16 * (1 << 39)
    assert [(found.va, found.level.name, found.table) for found in walk.unreadable] == [
        (3 << 39, "PDPT", 0x80_0000_0000)
    ]
    with pytest.raises(MemoryReadError):
        TableWalk(AddressSpace(ram, PhysAddr(0x5000), LA48)).each(print)


def test_a_table_that_points_at_itself_is_bounded(built: Callable[..., Ram]) -> None:
    ram = built(LA57, [])
    for n in range(0, 256, 2):
        ram.write(PhysAddr(0x10_0000 + 8 * n), (0x10_0000 | 7).to_bytes(8, "little"))
    walk = TableWalk(AddressSpace(ram, PhysAddr(0x10_0000), LA57))
    with pytest.raises(FivefoldError) as caught:
        write_ptdump(walk, TWO, lambda line: None, limit=10_000)
    assert str(caught.value) == "more than 10000 runs of entries; the tables may be forged: --all goes on"


def test_early_shadow_of_the_captures(look: Callable[..., Space], facts: Callable[[str], Any]) -> None:
    names = {Level.PT: "pte", Level.PD: "pmd", Level.PDPT: "pud", Level.PML4: "p4d"}
    for guest in ("kasan-la57-nokaslr", "kasan-la48-kaslr"):
        space = look(guest)
        known = facts(guest)["physical_addresses"]
        found = early_shadow(space.tables)
        assert len(found) == space.levels - 1
        assert {names[level]: table for level, table in found.items()} == {
            names[level]: int(known[f"kasan_early_shadow_{names[level]}"], 16) for level in found
        }
    assert early_shadow(look("plain-la57-kaslr").tables) == {}


def test_the_early_shadow_is_met_entry_by_entry(built: Callable[..., Ram]) -> None:
    """A heading in the middle of a shared top-level slot shows at the next entry of the level below."""
    start = shadow_bounds(5).start
    ram = built(LA57, [(start, 0x5000 | RO_NX, Level.PT)])
    space = AddressSpace(ram, PhysAddr(0x10_0000), LA57)
    table = PhysAddr(0x10_0000)
    for level in LA57.levels:
        raw = ram.read(PhysAddr(table + 8 * level.index(start)), 8)
        if level < LA57.top:
            ram.write(table, raw * 512)
        table = PhysAddr(int.from_bytes(raw, "little") & 0x000F_FFFF_FFFF_F000)
    assert len(early_shadow(space)) == 4
    slot = start & ~((1 << 48) - 1)
    found = toy(ram, LA57, [*TWO, Marker("KASAN shadow", start), Marker("late", start + 0x1000)])
    at = found.index("---[ KASAN shadow ]---")
    ro = "    ro                 GLB NX pte"
    assert found[at - 1 : at + 4] == [
        f"0x{slot:016x}-0x{start:016x}         252T {ro}",
        "---[ KASAN shadow ]---",
        f"0x{start:016x}-0x{start + (1 << 39):016x}         512G {ro}",
        "---[ late ]---",
        f"0x{start + (1 << 39):016x}-0x{slot + (1 << 48):016x}        3584G {ro}",
    ]


def test_narrowed() -> None:
    assert narrowed(None, 7) == 6
    assert narrowed(6, 1 << 63 | 3) == 1 << 63 | 2
    assert narrowed(1 << 63, 7) == 1 << 63


def test_headings_say_what_was_guessed(look: Callable[..., Space]) -> None:
    markers, guessed = headings(look("plain-la57-kaslr"), {})
    assert [marker.text for marker in markers][2:6] == ["LDT remap", "Low Kernel Mapping", "vmalloc() Area", "Vmemmap"]
    assert guessed == (
        "headings depend on the kernel's build; guessed: release 6.1, ldt=yes, efi=yes, "
        "fixmap_start=0xffffffffff57c000, image_limit=1G"
    )
    given = parse_build("release=6.1,ldt=no,efi=no,kasan=yes,fixmap_start=0xffffffffff500000,image_limit=512M")
    markers, guessed = headings(look("kasan-la48-kaslr"), given)
    assert guessed == ""
    assert {"LDT remap", "EFI Runtime Services"} & {marker.text for marker in markers} == set()
    assert Marker("Fixmap Area", 0xFFFF_FFFF_FF50_0000) in markers
    assert Marker("Modules", 0xFFFF_FFFF_A000_0000) in markers


@pytest.mark.parametrize("text", ["colour=red", "ldt", "kasan="])
def test_a_build_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a build of a kernel; expected kasan=yes"):
        parse_build(text)


def test_values_of_a_build_that_make_no_sense(look: Callable[..., Space]) -> None:
    with pytest.raises(ValueError, match="ldt=maybe; expected yes or no"):
        headings(look("plain-la48-kaslr"), {"ldt": "maybe"})
    with pytest.raises(LayoutError):
        headings(look("plain-la48-kaslr"), {"release": "2.6"})
