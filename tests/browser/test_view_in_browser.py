"""The page of `fivefold view` in Chromium: what its scripts draw is what the instruments say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fivefold as ff
from fivefold.report.page.view_page import view_page
from fivefold.report.page.walk_page import split_address, walk_page
from fivefold.report.text.walk import entry_index
from fivefold.survey.scan.regions import RegionKind, spell
from fivefold.units import MASK64, hex64

pytestmark = pytest.mark.browser
GUESTS = Path(__file__).parents[1] / "data" / "guests"
NAMES = ("plain-la57-kaslr", "kasan-la48-kaslr")


@pytest.fixture(scope="module", params=NAMES)
def space(request: pytest.FixtureRequest) -> Any:
    with ff.open(GUESTS / f"{request.param}.elf.xz") as opened:
        yield opened


@pytest.fixture(scope="module")
def drawn(space: Any, tab: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("view") / "view.html"
    path.write_text(view_page(space))
    tab.goto(path.as_uri())
    tab.wait_for_selector("body[data-ready]")
    return tab


def test_rows_are_those_of_dump(space: Any, drawn: Any) -> None:
    regions = list(space.regions(all_bits=False, repeat_above=16))
    rows = drawn.evaluate("Array.from({length: state.columns.start.rows}, (_, i) => cells(region(i)))")
    assert len(rows) == len(regions)
    for region, row in zip(regions, rows, strict=True):
        assert (row[0], row[1]) == (hex64(region.start), hex64(region.end - 1))
        assert row[-2] == (region.area or "")
        if region.kind is RegionKind.MAPPED:
            assert row[3:5] == [region.page, spell(region.effective)]
            assert row[5] == ("scattered" if region.phys is None else hex64(region.phys))
        else:
            assert f"{region.repeats} times" in row[3]


def test_walks_are_those_of_the_instruments(space: Any, drawn: Any) -> None:
    regions = list(space.regions(all_bits=False, repeat_above=16))
    edges = [va for one in regions[::3] for va in (one.start, one.end - 1, one.end & MASK64)]
    addresses = [va for va in edges if space.path(va).steps]
    script = """(addresses) => addresses.map((va) => {
        const walk = state.tables.walk(root().root, root().levels, BigInt(va));
        const steps = walk.steps.map((s) => [s.index, hex(s.at), hex(s.raw), spell(s.rights)]);
        return [steps, walk.phys === undefined ? null : hex(walk.phys)];
    })"""
    for va, (steps, phys) in zip(addresses, drawn.evaluate(script, [hex64(va) for va in addresses]), strict=True):
        path = space.path(va)
        ours = [[entry_index(step), hex64(step.at), hex64(step.entry.raw), spell(step.rights)] for step in path.steps]
        last = ours.pop() if not path.steps[-1].entry.is_present else None
        assert steps[: len(ours)] == ours and (last is None or steps[-1][:3] == last[:3])
        assert phys == (hex64(path.end.pa) if isinstance(path.end, ff.arch.Mapped) else None)


def test_an_address_is_found_and_walked_by_keyboard_alone(space: Any, drawn: Any) -> None:
    region = next(one for one in space.regions(all_bits=False, repeat_above=16) if one.area == "kernel_image")
    drawn.keyboard.press("Tab")
    drawn.keyboard.press("Tab")
    assert drawn.evaluate("document.activeElement.id") == "q"
    drawn.keyboard.type(f"{region.start + 0x123:#x}")
    drawn.keyboard.press("Enter")
    assert f"{hex64(region.start + 0x123)} is in" in drawn.inner_text("#answer")
    assert hex64((region.phys or 0) + 0x123) in drawn.inner_text("#walk .end")
    taken_apart = drawn.locator("#walk .split .part").all_inner_texts()
    parts = [part for part in split_address(region.start + 0x123, space.levels).parts if not part.folded]
    assert [text.split() for text in taken_apart] == [[part.name, part.bits, part.value] for part in parts]
    drawn.focus("#grid [tabindex='0']")
    before = drawn.inner_text("#square")
    drawn.keyboard.press("End")
    assert drawn.inner_text("#square") != before
    drawn.keyboard.press("Enter")
    assert "entry 511" in drawn.inner_text("#crumbs")


def test_the_choice_of_a_root_stays_beside_its_label(drawn: Any) -> None:
    drawn.evaluate("document.getElementById('root-choice').hidden = false")
    for width in (420, 1280):
        drawn.set_viewport_size({"width": width, "height": 900})
        label, choice = (drawn.locator(one).bounding_box() for one in ("label[for=root]", "#root"))
        assert choice["y"] < label["y"] + label["height"] and choice["x"] + choice["width"] <= width
    drawn.evaluate("document.getElementById('root-choice').hidden = true")


def test_no_figure_of_an_area_is_cut_on_a_phone(drawn: Any) -> None:
    drawn.set_viewport_size({"width": 360, "height": 900})
    edges = "(one) => [one.closest('.scroll'), one].map((box) => box.getBoundingClientRect().right)"
    for figure in drawn.locator("#areas td.n").all():
        shown, end = figure.evaluate(edges)
        assert end <= shown


def test_odd_searches_are_answered(drawn: Any) -> None:
    for text in ("0x8000000000000000", "nothing has this", "0xffffffffffffffff", "<b>", "0x0"):
        drawn.fill("#q", text)
        drawn.press("#q", "Enter")
        assert drawn.inner_text("#answer") or text in drawn.inner_text("#h-walk")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_and_no_rule_of_accessibility_is_broken(drawn: Any, scheme: str, serious_faults: Any) -> None:
    drawn.emulate_media(color_scheme=scheme)
    drawn.fill("#q", "0xffffffffffffffff")
    drawn.press("#q", "Enter")
    drawn.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    for width in (420, 1280):
        drawn.set_viewport_size({"width": width, "height": 900})
        assert drawn.evaluate("document.documentElement.scrollWidth") <= width
        assert not serious_faults(drawn)


def test_a_page_of_walks_is_whole_and_legible(space: Any, tab: Any, tmp_path: Path, serious_faults: Any) -> None:
    image = next(one.start for one in space.regions() if one.area == "kernel_image")
    path = tmp_path / "walk.html"
    path.write_text(walk_page(space, [space.path(va) for va in (image, 0, 1 << 63)]))
    tab.goto(path.as_uri())
    # A symbol of the kernel may have 512 characters.
    tab.evaluate("document.querySelector('h2:has(code)').append('very_long_'.repeat(50))")
    tab.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    for scheme, width in (("light", 420), ("dark", 1280)):
        tab.emulate_media(color_scheme=scheme)
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert not serious_faults(tab)
