"""Differences between spaces, against page-by-page translation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.arch import LA48, LA57, Flag, Level, Mapped, translate
from fivefold.survey.diff import diff_windows
from fivefold.survey.diff.diff import Diff, DiffSettings, Nature, diff
from fivefold.survey.guest.identify import GivenPaging
from fivefold.survey.space import Space, open_space
from fivefold.units import GIB, MIB, VirtAddr

GUESTS = Path(__file__).parents[2] / "data" / "guests"
P, W, U = 1, 2, 4
A, G, NX = int(Flag.A), int(Flag.G), int(Flag.NX)
KERNEL = 0xFFFF_9000_0000_0000

Build = Callable[..., Any]


def told(found: Diff) -> list[str]:
    """Nature, addresses and what differs."""
    return [f"{one.nature} {one.start:x}+{one.size:x} {','.join(one.what)}".rstrip() for one in found.changes]


def compared(before: Any, after: Any, **changes: Any) -> list[str]:
    return told(diff(before.space(), after.space(), DiffSettings(**changes)))


def test_the_same(build: Build) -> None:
    built = build(LA57).pages(GIB, 0x5000, GIB | P | U)
    assert compared(built, built) == []


def test_a_notebook_shows_what_changed(build: Build) -> None:
    before, after = build(LA57).page(GIB, GIB | P | U).space(), build(LA57).pages(GIB, 0x2000, GIB | P | U).space()
    shown = diff(before, after)._repr_html_()
    assert f"<caption>{before.source.name} and {after.source.name}: 1 changes</caption>" in shown
    (row,) = ([cell.text for cell in row] for row in ElementTree.fromstring(shown).iter("tr") if row[0].tag == "td")
    assert row[:3] == ["added", "0x0000000040001000", "4K"]


def test_added_removed_changed(build: Build) -> None:
    before = build(LA57).pages(GIB, 0x4000, GIB | P | U).page(3 * GIB, GIB | P)
    after = build(LA57).pages(GIB, 0x2000, GIB | P | U).pages(GIB + 0x2000, 0x2000, GIB + 0x2000 | P | W | U)
    after.page(5 * GIB, GIB | P)
    assert compared(before, after) == [
        "changed 40002000+2000 rights,flags",
        "removed c0000000+1000",
        "added 140000000+1000",
    ]
    change = diff(before.space(), after.space()).changes[0]
    assert change.before is not None and change.after is not None
    assert (change.before.effective.write, change.after.effective.write) == (False, True)
    assert (change.before.phys, change.after.phys) == (GIB + 0x2000, GIB + 0x2000)


def test_rights_of_a_table_entry_change_what_is_below(build: Build) -> None:
    before, after = (build(LA48).pages(KERNEL, 0x3000, GIB | P | W) for _ in range(2))
    entry = int.from_bytes(after.ram.read(0x1000 + 8 * 288, 8), "little")
    after.entry(0x1000, 288, entry & ~W)
    assert compared(before, after) == ["changed ffff900000000000+3000 rights"]


def test_a_page_size_that_changed(build: Build) -> None:
    before = build(LA48).page(KERNEL, 2 * MIB | P, Level.PD)
    after = build(LA48).pages(KERNEL, 2 * MIB, 2 * MIB | P, Level.PT)
    assert compared(before, after) == ["changed ffff900000000000+200000 page,flags"]


def test_where_it_leads(build: Build) -> None:
    before, after = build(LA48).page(GIB, GIB | P), build(LA48).page(GIB, 2 * GIB | P)
    assert compared(before, after) == ["changed 40000000+1000 phys"]
    assert compared(before, after, phys=False) == []


def test_bits_that_the_cpu_sets_count_only_when_asked(build: Build) -> None:
    before, after = build(LA48).page(GIB, GIB | P), build(LA48).page(GIB, GIB | P | A)
    assert compared(before, after) == []
    assert compared(before, after, all_bits=True) == ["changed 40000000+1000 flags"]


def test_malformed_and_unreadable_are_compared_too(build: Build) -> None:
    before, after = (build(LA48).page(KERNEL, GIB | P) for _ in range(2))
    after.entry(0x3000, 5, 0x5000_0000 | P)
    after.entry(0x3000, 9, 0x20_2000 | P | int(Flag.BIT7))
    assert compared(before, after) == ["added ffff900000a00000+200000", "added ffff900001200000+200000"]


def test_spaces_of_four_and_five_levels(build: Build) -> None:
    before, after = (build(mode).pages(GIB, 0x3000, GIB | P) for mode in (LA48, LA57))
    assert compared(before, after) == []
    after.page(1 << 50, GIB | P)
    assert compared(before, after) == ["added 4000000000000+1000"]


def test_a_window(build: Build) -> None:
    before, after = build(LA48).page(GIB, GIB | P), build(LA48).page(3 * GIB, GIB | P)
    assert compared(before, after, window=range(2 * GIB, 4 * GIB)) == ["added c0000000+1000"]


def test_a_table_that_contains_itself_ends(build: Build) -> None:
    before, after = (build(LA48).page(GIB, GIB | P).entry(0x1000, 300, 0x1000 | P) for _ in range(2))
    assert compared(before, after) == []
    after.page(3 * GIB, GIB | P)
    assert "added c0000000+1000" in compared(before, after)


def shared(built: Any, table: int, leaves: int) -> Any:
    """A PT of many leaves at *table*, mapped four times from 4 GiB on, and once elsewhere."""
    built.page(4 * GIB + 100 * MIB, GIB | P)
    for i in range(leaves):
        built.entry(table, 2 * i, GIB + 0x1000 * i | P | NX)
    for slot in (0, 1, 2, 3):
        built.entry(0x3000, slot, table | P | W | U)
    return built


def test_shared_tables_are_compared_by_what_they_map(build: Build) -> None:
    """At another place they are the same; a leaf that differs is told where the table is first, and that it repeats."""
    before, after = shared(build(LA48), 0x60000, 30), shared(build(LA48), 0x70000, 30)
    assert compared(before, after) == []
    after.entry(0x70000, 8, 0)
    assert compared(before, after) == ["removed 100008000+1000", "changed 100200000+600000 table"]


def test_a_shared_table_against_another_that_is_not_shared(build: Build) -> None:
    before, after = shared(build(LA48), 0x60000, 30), shared(build(LA48), 0x60000, 30)
    for i in range(30):
        after.entry(0x70000, 2 * i, GIB + 0x1000 * i | P | NX)
    after.entry(0x3000, 2, 0x70000 | P | W | U)
    assert compared(before, after) == []
    after.entry(0x70000, 6, GIB | P | W)
    assert compared(before, after) == ["changed 100406000+1000 rights,flags,phys"]
    after.page(4 * GIB - 0x1000, GIB | P)  # now both are looked at from before the shared table's first place
    assert compared(before, after) == ["added fffff000+1000", "changed 100406000+1000 rights,flags,phys"]


def test_areas_are_laid_over_each_other(build: Build) -> None:
    """The kernel of one boot 32 MiB above the other's; the same but for one page."""
    before, after = build(LA48).linux(), build(LA48)
    after.pages(0xFFFF_8880_0000_0000, 16 * MIB, P | W | NX | G)
    after.pages(0xFFFF_8880_0100_0000, 2 * MIB, 16 * MIB | P | NX | G)
    after.pages(0xFFFF_8880_0120_0000, 46 * MIB, 18 * MIB | P | W | NX | G)
    after.pages(0xFFFF_FFFF_8300_0000, 2 * MIB, 16 * MIB | P | G)
    assert len(compared(before, after)) == 2
    assert compared(before, after, relative=True) == []
    after.page(0xFFFF_FFFF_8320_0000, 18 * MIB | P | NX)
    (change,) = diff(before.space(), after.space(), DiffSettings(relative=True)).changes
    assert (change.nature, change.start, change.shift, change.area) == (
        Nature.ADDED,
        0xFFFF_FFFF_8120_0000,
        0x200_0000,
        "kernel_image",
    )


@pytest.mark.parametrize("bit", [W, U, NX], ids=["W", "U", "NX"])
@pytest.mark.parametrize("level", [Level.PML4, Level.PDPT, Level.PD, Level.PT])
@pytest.mark.parametrize("leaf", [P, P | W | U, P | U, P | W | NX])
def test_one_right_less_at_every_level(build: Build, bit: int, level: Level, leaf: int) -> None:
    """Told where the leaf grants it, or as a flag of the leaf itself; both ways round."""
    sides = [build(LA48).page(GIB, GIB | leaf).page(GIB + 0x1000, GIB | leaf) for _ in range(2)]
    table = {Level.PML4: 0x1000, Level.PDPT: 0x4000, Level.PD: 0x3000, Level.PT: 0x2000}[level]
    index = GIB >> 9 * level + 3 & 511
    entry = int.from_bytes(sides[1].ram.read(table + 8 * index, 8), "little")
    sides[1].entry(table, index, entry ^ bit)
    lost = not leaf & NX if bit == NX else bool(leaf & bit)
    size = 0x1000 if level == Level.PT else 0x2000
    what = "rights,flags" if level == Level.PT else "rights"
    is_told = lost or level == Level.PT
    for before, after in (sides, reversed(sides)):
        assert compared(before, after) == ([f"changed {GIB:x}+{size:x} {what}"] if is_told else [])


def test_write_protection_that_was_turned_off(build: Build) -> None:
    """Equal tables, and other rights: what is read-only for the supervisor can be written with CR0.WP=0."""
    built = build(LA48).pages(KERNEL, 0x2000, GIB | P).page(KERNEL + GIB, GIB | P | W).page(GIB, GIB | P | U)
    on, off = (Space(built.space().source, GivenPaging(as_if={"wp": wp})) for wp in (True, False))
    for before, after in ((on, off), (off, on)):
        assert told(diff(before, after)) == [f"changed {KERNEL:x}+2000 rights"]
        assert told(diff(before, before)) == []


def test_areas_of_nothing_lie_over_nothing(build: Build) -> None:
    """Without areas on either side nothing is compared relative to them, and that is told."""
    linux, other = build(LA48).linux(), build(LA48).page(KERNEL, GIB | P)
    for before, after in ((linux, other), (other, linux), (other, other)):
        found = diff(before.space(), after.space(), DiffSettings(relative=True))
        assert (list(found.changes), list(found.limits)) == ([], ["no areas to lay over each other"])
    assert (
        "no areas to lay over each other" not in diff(linux.space(), linux.space(), DiffSettings(relative=True)).limits
    )


def test_too_many_pairs_cost_speed_and_nothing_else(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = build(LA48).page(GIB, GIB | P), build(LA48).page(GIB, GIB | P).page(3 * GIB, GIB | P)
    monkeypatch.setattr(diff_windows, "MAX_PAIRS", 2)
    assert compared(before, after) == ["added c0000000+1000"]


def test_two_cpus_of_one_guest() -> None:
    """The user halves differ, the kernel's are shared."""
    with open_space(str(GUESTS / "plain-la57-kaslr-smp2.elf.xz")) as space:
        cr3 = space.source.cpus[1].cr3
        other = space.with_root(space.root.value.__class__((cr3 or 0) & ~0xFFF), "CR3 of CPU 1")
        found = diff(space, other)
        assert found.changes and all(change.area == "user" for change in found.changes)


PAGES = st.lists(
    st.tuples(
        st.sampled_from([GIB, GIB + 2 * MIB, KERNEL, KERNEL + (1 << 39)]),
        st.integers(0, 5),
        st.sampled_from([P, P | W, P | U, P | W | U | NX, P | A]),
        st.integers(1, 3),
    ),
    max_size=8,
    unique_by=lambda page: page[:2],
)


def answer(space: Space, va: int) -> object:
    found = translate(space.tables, VirtAddr(va))
    return (found.pa, found.rights, found.leaf.raw & ~A) if isinstance(found, Mapped) else None


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PAGES, PAGES, st.booleans())
def test_every_page(build: Build, one: list[Any], other: list[Any], closed: bool) -> None:
    """A page is told exactly if its translation differs; with an entry on the path closed, too."""
    sides = []
    for pages, close in ((one, False), (other, closed)):
        built = build(LA48)
        for base, index, flags, frame in pages:
            built.page(base + 0x1000 * index, GIB * frame | flags)
        if close and pages:
            slot = pages[0][0] >> 39 & 511
            entry = int.from_bytes(built.ram.read(0x1000 + 8 * slot, 8), "little")
            built.entry(0x1000, slot, entry & ~W | NX)
        sides.append(built.space())
    found = diff(sides[0], sides[1])
    for base, index in {page[:2] for page in (*one, *other)}:
        va = base + 0x1000 * index
        is_told = any(change.start <= va < change.end for change in found.changes)
        assert is_told == (answer(sides[0], va) != answer(sides[1], va)), hex(va)
