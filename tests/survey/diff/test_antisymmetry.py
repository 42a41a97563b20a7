"""`diff` of two spaces, swapped, is the same with before and after exchanged; each address is compared once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.arch import LA48, LA57, Level, TooManyRuns
from fivefold.survey.diff import diff as diff_module
from fivefold.survey.diff.diff import Diff, DiffSettings, Nature, diff
from fivefold.survey.scan.regions import Region
from fivefold.survey.scan.scan_result import RegionKind
from fivefold.survey.space import Space
from fivefold.units import MIB, PhysAddr

PAIRS = [
    ("debian-la57-kaslr-pti", "debian-no5lvl-kaslr"),
    ("plain-la57-kaslr", "plain-la57-kaslr-smp2"),
    ("plain-la48-kaslr", "kasan-la48-kaslr"),
]


def content(region: Region | None) -> tuple[Any, ...] | None:
    return None if region is None else region[2:8]


def told(found: Diff) -> list[tuple[Any, ...]]:
    """Each change at its addresses in both spaces, with what is there."""
    return sorted(
        (one.start, one.end, one.start + one.shift, one.what, content(one.before), content(one.after))
        for one in found.changes
    )


def swapped(found: Diff) -> list[tuple[Any, ...]]:
    return sorted(
        (one.start + one.shift, one.end + one.shift, one.start, one.what, content(one.after), content(one.before))
        for one in found.changes
    )


def check(one: Space, other: Space, **how: Any) -> Diff:
    forth, back = diff(one, other, DiffSettings(**how)), diff(other, one, DiffSettings(**how))
    assert told(forth) == swapped(back)
    assert forth.slides == {name: -by for name, by in back.slides.items()}
    assert sorted(forth.limits) == sorted(back.limits)
    for side in (0, 1):
        places = sorted((one.start + side * one.shift, one.end + side * one.shift) for one in forth.changes)
        assert all(low[1] <= high[0] for low, high in pairwise(places)), "an address comes twice"
    return forth


@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("phys", [False, True])
def test_captures(look: Callable[..., Space], one: str, other: str, phys: bool) -> None:
    check(look(one), look(other), relative=True, phys=phys)


def test_no_modules_are_invented(look: Callable[..., Space]) -> None:
    """The image's window, slid, must not swallow the other side's modules: each side has 2 MiB of them."""
    found = diff(look("debian-la57-kaslr-pti"), look("debian-no5lvl-kaslr"), DiffSettings(relative=True, phys=False))
    # The same 2 MiB, from another page on.
    assert not [one for one in found.changes if one.area == "modules" and one.nature is not Nature.CHANGED]
    assert found.slides["modules"] == 0xFFFF_FFFF_C00F_6000 - 0xFFFF_FFFF_C03B_6000
    assert found.slides["kernel_image"] == 0x140_0000


places = st.lists(
    st.tuples(
        st.sampled_from(
            [0x40_0000, 0x7FFF_FFE0_0000, 0xFFFF_C900_0000_0000, 0xFFFF_FFFF_BFE0_0000, 0xFFFF_FFFF_C000_0000]
        ),
        st.integers(0, 3),
        st.sampled_from([0x300_0003, 0x300_0007, 0x310_0001, 1 << 63 | 0x300_0003]),
    ),
    max_size=4,
)


@pytest.mark.parametrize("relative", [False, True])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ours=places, theirs=places, slide=st.integers(-2, 6))
def test_small_spaces(
    build: Callable[..., Any], relative: bool, ours: list[Any], theirs: list[Any], slide: int
) -> None:
    spaces = []
    for own, moved in ((ours, 0), (theirs, slide)):
        built = build(LA48).pages(0xFFFF_8880_0000_0000, 64 * MIB, 1 << 63 | 3)
        built.pages(0xFFFF_FFFF_8100_0000 + moved * 2 * MIB, 2 * MIB, 16 * MIB | 1)
        for va, number, raw in {(va, number): (va, number, raw) for va, number, raw in own}.values():
            built.page(va + number * 0x1000, raw + number * 0x1000)
        spaces.append(built.space())
    found = check(*spaces, relative=relative)
    assert check(spaces[0], spaces[0], relative=relative).same
    if relative and sorted(ours) == sorted(theirs) == []:
        assert found.same and found.slides == ({"kernel_image": slide * 2 * MIB} if slide else {})


def test_every_address_of_one_side_that_lies_over_nothing_is_told(build: Callable[..., Any]) -> None:
    with_modules = build(LA48).linux().page(0xFFFF_FFFF_C010_0000, 0x300_0001).space()
    without = build(LA57).linux().space()
    found = check(with_modules, without, relative=True, phys=False)
    (one,) = [change for change in found.changes if change.area == "modules"]
    assert (one.nature.value, one.size) == ("removed", 0x1000)


def test_a_window_cuts_pages_and_shared_tables(build: Callable[..., Any]) -> None:
    """A PT that all entries of a PD share, so that it is told as repeats, and a window that begins inside one."""
    built = build(LA48).page(0x4000_0000, 0x300_0007)
    (pd,) = (step.at & ~0xFFF for step in built.space().path(0x4000_0000).steps if step.entry.level == Level.PD)
    link = int.from_bytes(built.ram.read(PhysAddr(pd), 8), "little")
    for number in range(1, 512):
        built.entry(pd, number, link)
    for number in range(0, 512, 2):
        built.entry(link & ~0xFFF, number, 0x300_0007 + number * 0x1000)
    one, other = built.space(), build(LA48).space()
    whole = diff(one, other).changes
    assert whole[-1].before is not None and whole[-1].before.repeats == 511
    window = range(0x4020_1000, 0x4060_3000)
    part = check(one, other, window=window).changes
    assert all(window.start <= change.start < change.end <= window.stop for change in part)
    mapped = sum(change.size for change in part if change.before and change.before.kind is RegionKind.MAPPED)
    shared = sum(change.before.repeats for change in part if change.before and change.before.repeats)
    assert mapped // 0x1000 + 256 * shared == 255 + 256 + 2


def test_too_much_is_refused(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(LA48)
    for number in range(40):
        built.page(0x4000_0000 + number * 0x2000, 0x300_0007 + number * 0x1000)
    one, other = built.space(), build(LA48).space()
    monkeypatch.setattr(diff_module, "MAX_REGIONS", 40)
    assert len(diff(one, other).changes) == 40
    monkeypatch.setattr(diff_module, "MAX_REGIONS", 39)
    with pytest.raises(TooManyRuns):
        diff(one, other)


def test_it_says_what_it_does(build: Callable[..., Any]) -> None:
    said: list[str] = []
    diff(build(LA48).linux().space(), build(LA48).space(), tell=said.append)
    assert said[0] == "looking for tables that differ"
    assert any(line.startswith("comparing from 0xffff88") for line in said)
