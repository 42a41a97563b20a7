"""A saved kernel: what may be resumed, and that whatever is wrong is found before anything is overwritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, Mapped, PagingMode, regions, translate
from fivefold.kernel.report import WORDS
from fivefold.units import MIB, VirtAddr

Guards = Callable[..., None]
KERNEL = "fivefold.kernel"
PAGE = 4096
OK, NOT_AN_IMAGE, CUT_SHORT, OTHER_MODE, OTHER_KERNEL, OTHER_PLACE, CORRUPT, IN_THE_WAY, NO_MEMORY, OTHER_MEMORY = (
    range(10)
)
LOAD = 2 * MIB
TEXT = 0x5800_0000_0000
COUNT, DATA = 3, 2 * PAGE
SIZE = DATA + COUNT * PAGE
LEVELS, KERNEL_SUM, LOAD_AT, ROOT, CONTEXT, PAGES, SUM, DATA_AT = range(8, 72, 8)
SYMBOLS = {
    "trap_stubs": TEXT,
    "_erodata": TEXT + 256,
    "hibernate_loop": TEXT,
    "hibernate_loop_end": TEXT + 64,
    "hibernate_return": TEXT,
}


class Sleeper:
    """A kernel with memory, a report and an image of three pages at *at*."""

    def __init__(self, code: Any, mode: PagingMode, package: str = KERNEL, at: int = 5 * MIB) -> None:
        names = ("check_image", "image_sum", "kernel_sum", "used_pages", "map_temporary", "sum_of")
        modules = [f"hibernate.{name}" for name in names]
        self.helpers = code(mode, *modules, "memblock", package=package, extents=[(MIB, 6 * MIB)], symbols=SYMBOLS)
        self.mode, self.at = mode, at
        self.helpers.add_memory()
        self.text = bytearray(range(256))
        self.helpers.plain.map(self.text, at=TEXT)
        self.report = bytearray(1 << 16)
        self.helpers.set("report.table", self.helpers.plain.map(self.report))
        self.word(WORDS.index("load_address"), LOAD)
        self.fill()

    def close(self) -> None:
        self.helpers.plain.unmap(TEXT)

    def word(self, index: int, value: int) -> None:
        self.report[8 * index : 8 * index + 8] = value.to_bytes(8, "little")

    def put(self, offset: int, value: int) -> None:
        self.helpers.ram.write(self.at + offset, value.to_bytes(8, "little"))

    def call(self, name: str, *args: int) -> int:
        return int(self.helpers.call(f"hibernate.{name}", *args))

    def fill(self) -> None:
        """Pages 0x100000, 0x101000 and 0x102000, whose bytes differ."""
        self.helpers.ram.write(self.at, bytes(DATA))
        for i in range(COUNT):
            self.put(PAGE + 8 * i, MIB + i * PAGE)
            self.helpers.ram.write(self.at + DATA + i * PAGE, bytes([i + 1]) * PAGE)
        header = {LEVELS: len(self.mode.levels), KERNEL_SUM: self.call("kernel_sum"), LOAD_AT: LOAD}
        header |= {ROOT: 3 * MIB, CONTEXT: 0x1234, PAGES: COUNT, DATA_AT: DATA}
        for offset, value in header.items():
            self.put(offset, value)
        self.put(0, int.from_bytes(b"5FOLDHIB", "little"))
        self.put(SUM, self.call("image_sum", self.at + self.helpers.window, DATA, COUNT))

    def check(self, size: int = SIZE) -> int:
        return self.call("check_image", self.at + self.helpers.window, size)


@pytest.fixture
def sleeper(code: Any, mode: PagingMode) -> Any:
    made = Sleeper(code, mode)
    yield made
    made.close()


@pytest.fixture
def asleep(code: Any) -> Any:
    """Make a sleeper of a kernel package; undone at the end."""
    made: list[Sleeper] = []

    def make(mode: PagingMode, package: str) -> Sleeper:
        made.append(Sleeper(code, mode, package))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_an_image_of_this_kernel_is_taken(sleeper: Sleeper) -> None:
    assert sleeper.check() == OK


HEADER = [
    (0, 0, NOT_AN_IMAGE),
    (LEVELS, 3, OTHER_MODE),
    (KERNEL_SUM, 1, OTHER_KERNEL),
    (LOAD_AT, LOAD + 2 * MIB, OTHER_PLACE),
    (ROOT, 3 * MIB + PAGE, CORRUPT),
    (CONTEXT, 0x1238, CORRUPT),
    (SUM, 0, CORRUPT),
    (PAGES, 2, CORRUPT),
    (PAGES, 4, CUT_SHORT),
    (PAGES, 1 << 61, CUT_SHORT),
    (DATA_AT, PAGE, CUT_SHORT),
    (DATA_AT, SIZE + 8, CUT_SHORT),
    (DATA_AT, (1 << 64) - PAGE, CUT_SHORT),
    (PAGE, 0x10_0008, CORRUPT),
    (DATA, 0, CORRUPT),
    (SIZE - 8, 0, CORRUPT),
]


@pytest.mark.parametrize(("offset", "value", "want"), HEADER)
def test_what_is_wrong_is_said(sleeper: Sleeper, offset: int, value: int, want: int) -> None:
    sleeper.put(offset, value)
    assert sleeper.check() == want


@pytest.mark.parametrize("size", [0, 8, PAGE - 1, PAGE, DATA, SIZE - 1])
def test_cut_short(sleeper: Sleeper, size: int) -> None:
    assert sleeper.check(size) == (NOT_AN_IMAGE if size < PAGE else CUT_SHORT)


def test_another_build_of_the_kernel_is_refused(sleeper: Sleeper) -> None:
    sleeper.text[17] ^= 1
    assert sleeper.check() == OTHER_KERNEL


def test_rfc_b24_and_r2_8_an_image_of_the_other_mode_is_refused(guards: Guards, asleep: Any) -> None:
    """Linux' header has no word for it; its root would be read at the wrong depth."""

    def check(package: str) -> None:
        for mode in (LA48, LA57):
            one = asleep(mode, package)
            one.put(LEVELS, 9 - len(mode.levels))
            one.put(SUM, one.call("image_sum", one.at + one.helpers.window, DATA, COUNT))
            assert one.check() == OTHER_MODE

    guards(check, "hibernate.py", ("    if load64(at + HEADER_LEVELS) != levels():\n        return OTHER_MODE\n", ""))


def swapped(asleep: Any, package: str) -> int:
    """Two pages of the image have changed places."""
    one = asleep(LA57, package)
    first, second = (one.helpers.ram.read(one.at + DATA + i * PAGE, PAGE) for i in range(2))
    one.helpers.ram.write(one.at + DATA, second + first)
    return int(one.check())


def test_pages_that_changed_places_are_corrupt(guards: Guards, asleep: Any) -> None:
    """A sum that only turns and adds repeats itself every 64 words: a page is 512."""

    def check(package: str) -> None:
        assert swapped(asleep, package) == CORRUPT

    guards(check, "hibernate.py", ("load64(at + 8 * i)) * STIR\n", "load64(at + 8 * i))\n"))


def test_a_header_that_is_not_in_the_sum_would_be_believed(guards: Guards, asleep: Any) -> None:
    """The root and the context are where the resumed kernel goes on."""

    def check(package: str) -> None:
        one = asleep(LA48, package)
        one.put(CONTEXT, 0xBAD)
        assert one.check() == CORRUPT

    guards(check, "hibernate.py", ("    return header ^ data ^ sum_of(", "    return data ^ sum_of("))


def test_pages_in_use_are_listed_once_and_holes_are_not(sleeper: Sleeper) -> None:
    """Reserved ranges reach over holes, and below 1 MiB all is the loader's."""
    helpers = sleeper.helpers
    for start, size in ((0, 2 * MIB + PAGE), (4 * MIB, 2 * PAGE), (6 * MIB - PAGE, 8 * MIB)):
        helpers.call("memblock.reserve", start, size)
    to = helpers.plain.map(bytearray(8 * 1024))
    count = sleeper.call("used_pages", 4 * MIB, 4 * MIB + PAGE, to)
    listed = [int.from_bytes(helpers.plain.read(to + 8 * i, 8), "little") for i in range(count)]
    assert listed == [*range(MIB, 2 * MIB + PAGE, PAGE), 4 * MIB + PAGE, 6 * MIB - PAGE]
    assert sleeper.call("used_pages", 4 * MIB, 4 * MIB + PAGE, 0) == count


def temporary(asleep: Any, package: str, mode: PagingMode) -> None:
    """Physical memory through the direct map, the image window, the loop's page: all where the jump needs them."""
    one = asleep(mode, package)
    helpers = one.helpers
    helpers.call("layout.layout_init", 0)
    helpers.set("phys.phys_base", (LOAD - 0x100_0000) & (1 << 64) - 1)
    one.word(WORDS.index("image_end"), LOAD + MIB)
    top, code_page = helpers.table(), helpers.call("memblock.allocate_page")
    assert helpers.call("hibernate.map_temporary", top, code_page, 2) == 1
    space = helpers.space(top)
    base = helpers.get("layout.page_offset_base")
    for va, pa in ((base + MIB, MIB), (base + 6 * MIB - 1, 6 * MIB - 1), (0xFFFF_FFFF_8100_0123, LOAD + 0x123)):
        assert helpers.physical(top, va) == pa
    found = translate(space, VirtAddr(code_page))
    assert isinstance(found, Mapped)
    assert found.pa == code_page and found.rights.execute
    assert len(found.steps) == len(mode.levels)
    assert not any(run.rights.user for run in regions(space))


def test_rs_31_temporary_tables_have_the_levels_of_the_mode(guards: Guards, asleep: Any) -> None:
    """Folded, the text's top entry once led to a P4D table that the CPU reads as a PUD table."""
    temporary(asleep, KERNEL, LA57)
    guards(
        lambda package: temporary(asleep, package, LA48),
        "pgtable.py",
        ("    return l5_enabled == 0\n", "    return False\n"),
    )
