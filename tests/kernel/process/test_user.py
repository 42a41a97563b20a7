"""Address spaces of processes: who gets what address, copies, and a ledger that balances; mistakes put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.arch import LA48, LA57, PagingMode, regions
from fivefold.units import GIB, MIB

Guards = Callable[..., None]
KERNEL = "fivefold.kernel"
PAGE = 4096
NONE = (1 << 64) - 1
SWITCH = 1 << 47
WINDOW = SWITCH - PAGE
LOW, HIGH = GIB, 1 << 48
PLACE = 0xFFFF_C900_0000_0000
RW = 0x8000_0000_0000_0007


def spaces(code: Any, mode: PagingMode, package: str = KERNEL, size: int = 2 * MIB) -> tuple[Any, int]:
    """The kernel with memory and a reference table that has something in its upper half."""
    helpers = code(mode, "user", "mapping", "memblock", "sync", "layout", package=package, extents=[(MIB, MIB + size)])
    helpers.call("layout.layout_init", 0)
    helpers.add_memory()
    top = helpers.table()
    assert helpers.call("mapping.map_page", top, PLACE, 0x5000, 0x163) == 1
    return helpers, top


def choose(helpers: Any, space: int, hint: int, pages: int, fixed: bool = False) -> int:
    return int(helpers.call("user.choose_address", space, hint, pages * PAGE, fixed))


def ledger(helpers: Any) -> tuple[int, int]:
    return helpers.get("memblock.table_pages"), helpers.get("memblock.data_pages")


def hints_are_kept(code: Any, package: str, mode: PagingMode, rows: list[list[str]]) -> None:
    helpers, top = spaces(code, mode, package)
    space = helpers.call("user.create", top)
    for hint, pages, four, five in rows:
        got = choose(helpers, space, int(hint, 16), int(pages))
        wanted = four if mode is LA48 else five
        ends = got + int(pages) * PAGE
        if wanted == "hint":
            assert got == int(hint, 16) & -PAGE, hint
        elif wanted == "low":
            assert got < ends <= WINDOW and got != int(hint, 16), hint
        else:
            assert WINDOW < got < ends <= mode.gap.start - PAGE, hint


def test_hints(code: Any, mode: PagingMode, hints_vector: list[str]) -> None:
    hints_are_kept(code, KERNEL, mode, [hints_vector])


INV_10 = [["0x0000000000000000", "1", "low", "low"], ["0x00007ffffffff000", "1", "low", "low"]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    high = hint > DEFAULT_WINDOW and", "    high = hint < DEFAULT_WINDOW and"),
        ("(hint > DEFAULT_WINDOW) ==", "(hint >= DEFAULT_WINDOW) =="),
    ],
    ids=["without a hint", "a hint at the end of the window"],
)
def test_inv_10_no_address_above_the_window_without_a_hint_above_it(
    code: Any, guards: Guards, old: str, new: str
) -> None:
    guards(lambda package: hints_are_kept(code, package, LA57, INV_10), "user.py", (old, new))


def test_inv_10_for_every_hint(code: Any, mode: PagingMode) -> None:
    """Whatever is asked for: nowhere, or in bounds, and above the window only for a hint above it."""
    helpers, top = spaces(code, mode)
    space = helpers.call("user.create", top)
    borders = st.sampled_from([0, 0x10000, WINDOW, SWITCH, mode.gap.start - PAGE, mode.gap.start, 1 << 63, 1 << 64])

    @settings(max_examples=40, deadline=None)
    @given(borders, st.integers(-3 * PAGE, 3 * PAGE), borders, st.integers(-2, 5), st.booleans())
    def law(border: int, by: int, size: int, pages: int, fixed: bool) -> None:
        hint, size = (border + by) % (1 << 64), (size + pages * PAGE) % (1 << 64)
        got = int(helpers.call("user.choose_address", space, hint, size, fixed))
        if got == NONE:
            return
        assert 0x10000 <= got < got + size <= mode.gap.start - PAGE
        if got + size > WINDOW and not fixed:
            assert hint > WINDOW
        if fixed:
            assert got == hint & -PAGE

    law()


@pytest.mark.parametrize(
    ("hint", "size", "fixed"),
    [
        (0, 0, False),
        (0, NONE - PAGE + 1, False),
        (LOW, NONE - PAGE + 1, False),
        (LOW, 1 << 57, False),
        (0, PAGE, True),
        (LOW, 1 << 63, True),
        (NONE, PAGE, True),
    ],
)
def test_sizes_that_cannot_be_and_the_null_page(code: Any, mode: PagingMode, hint: int, size: int, fixed: bool) -> None:
    helpers, top = spaces(code, mode)
    space = helpers.call("user.create", top)
    before = ledger(helpers)
    assert helpers.call("user.map_memory", space, hint, size, fixed, RW) == NONE
    assert ledger(helpers) == before


def test_rs_32_no_low_hint_gives_a_mapping_across_the_window(code: Any, guards: Guards) -> None:
    rows = [["0x00007fffffffe000", "2", "low", "low"]]
    guards(
        lambda package: hints_are_kept(code, package, LA57, rows),
        "user.py",
        ("    return (hint > DEFAULT_WINDOW) == (hint + size > DEFAULT_WINDOW)\n", "    return True\n"),
    )


def test_rs_52_and_r4_6_stack_and_unasked_mappings_stay_in_the_window(code: Any, guards: Guards) -> None:
    """A random place above the stack was once clamped to what the mode can address."""

    def check(package: str) -> None:
        for mode in (LA48, LA57):
            helpers, top = spaces(code, mode, package)
            assert helpers.call("user.stack_top") == WINDOW
            assert choose(helpers, helpers.call("user.create", top), 0, 1) <= WINDOW - (128 << 20)

    guards(check, "user.py", ("    return VirtAddr(DEFAULT_WINDOW)\n", "    return task_size_max()\n"))
    guards(check, "user.py", ("if high else DEFAULT_WINDOW) - STACK_GAP", "if high else DEFAULT_WINDOW)"))


def test_rs_37_the_last_page_of_the_lower_half_is_never_mapped(code: Any, guards: Guards) -> None:
    """A system call as its last instruction would return to an address that is not canonical."""

    def check(package: str) -> None:
        for mode in (LA48, LA57):
            helpers, top = spaces(code, mode, package)
            space = helpers.call("user.create", top)
            for fixed in (False, True):
                assert choose(helpers, space, mode.gap.start - PAGE, 1, fixed) != mode.gap.start - PAGE

    guards(
        check,
        "user.py",
        ("    return VirtAddr(lower_half_size() - PAGE_SIZE)\n", "    return VirtAddr(lower_half_size())\n"),
    )


SELF_TEST = [
    (SWITCH - PAGE, 1, False, "low", False),
    (SWITCH - PAGE, 2, False, "low", False),
    (SWITCH, 1, False, "hint", True),
    (SWITCH, 2, True, "hint", False),
    (0, 2, False, "low", False),
    (LOW, 2, False, "low", False),
    (HIGH, 2, False, "hint", True),
    (HIGH, 2, False, "high", True),
    (HIGH, 2, True, "hint", False),
    (NONE, 2, False, "high", True),
    (NONE, 2, False, "high", False),
    (SWITCH - PAGE, 1, False, "low", False),
    (SWITCH - PAGE, 2, False, "low", True),
    (SWITCH - PAGE // 2, 2, False, "low", True),
    (SWITCH, 1, False, "hint", False),
    (SWITCH, 2, True, "hint", False),
]
"""Linux' va_high_addr_switch: hint, pages, fixed, where with five levels, and whether it stays mapped."""


def unmap(helpers: Any, space: int, start: int, end: int) -> None:
    """Take [start, end) out of a space's record: what a fixed mapping of Linux' does first."""
    record = helpers.address("user.spaces") + 512 * space
    count = int.from_bytes(helpers.plain.read(record + 8, 8), "little")
    words = [int.from_bytes(helpers.plain.read(record + 32 + 8 * i, 8), "little") for i in range(2 * count)]
    kept = [
        (low, high)
        for first, last in zip(words[::2], words[1::2], strict=True)
        for low, high in ((first, min(last, start)), (max(first, end), last))
        if low < high
    ]
    helpers.plain.write(record + 8, len(kept).to_bytes(8, "little"))
    for i, bound in enumerate(bound for pair in kept for bound in pair):
        helpers.plain.write(record + 32 + 8 * i, bound.to_bytes(8, "little"))
    helpers.call("free.free_range", helpers.call("user.top_of", space), start, end - start)


def test_linux_own_self_test(code: Any, mode: PagingMode) -> None:
    """In order, since some mappings stay: with four levels what is high falls back, and fixed high ones fail."""
    helpers, top = spaces(code, mode)
    space = helpers.call("user.create", top)
    for hint, pages, fixed, where, keep in SELF_TEST:
        if fixed and mode is LA57:
            unmap(helpers, space, hint, hint + pages * PAGE)
        got = int(helpers.call("user.map_memory", space, hint, pages * PAGE, fixed, RW))
        if mode is LA48 and fixed:
            assert got == NONE
            continue
        if mode is LA57 and where == "hint":
            assert got == hint
        elif mode is LA57 and where == "high":
            assert got >= SWITCH
        else:
            assert got + pages * PAGE <= SWITCH
        for page in range(pages):
            assert helpers.physical(helpers.call("user.top_of", space), got + page * PAGE) is not None
        if not keep:
            unmap(helpers, space, got, got + pages * PAGE)
    helpers.call("user.destroy", space)
    assert helpers.get("memblock.data_pages") == 0


def test_1_gib_chunks_stay_below_the_switch_until_it_is_full(code: Any, mode: PagingMode) -> None:
    """Linux' virtual_address_range, on addresses only: each free place is the highest, each ends below 2^47."""
    helpers, top = spaces(code, mode)
    space = helpers.call("user.create", top)
    record = helpers.address("user.spaces") + 512 * space
    start = WINDOW - (128 << 20)
    for _ in range(20):
        got = choose(helpers, space, 0, GIB // PAGE)
        assert got == start - GIB
        start = got
        helpers.plain.write(record + 8, (1).to_bytes(8, "little"))
        helpers.plain.write(record + 32, got.to_bytes(8, "little") + (WINDOW - (128 << 20)).to_bytes(8, "little"))
    helpers.plain.write(record + 32, (0x10000).to_bytes(8, "little"))
    assert choose(helpers, space, 0, GIB // PAGE) == NONE
    assert (choose(helpers, space, 1 << 52, GIB // PAGE) == 1 << 52) == (mode is LA57)


def test_a_space_and_its_copy(code: Any, mode: PagingMode) -> None:
    """The kernel's half is shared, what the process has is its own: same rights, other pages, same bytes."""
    helpers, top = spaces(code, mode)
    before = ledger(helpers)
    space = helpers.call("user.create", top)
    last = mode.gap.start - 2 * PAGE
    for hint, protection in ((LOW, RW), (last, 5)):
        assert helpers.call("user.map_memory", space, hint, PAGE, True, protection) == hint
    source = helpers.plain.map(b"fivefold" * 512)
    helpers.call("user.write_page", space, LOW, source, 512)
    copy = helpers.call("user.duplicate", space, top)
    assert copy != NONE
    one, other = (helpers.space(helpers.call("user.top_of", number)) for number in (space, copy))
    half = range(mode.gap.start)
    seen = [[(run.start, run.end, run.rights) for run in regions(which, half)] for which in (one, other)]
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2
    frames = [{run.phys for run in regions(which, half)} for which in (one, other)]
    assert not frames[0] & frames[1]
    assert {helpers.ram.read(frame, 8) for frame in frames[1]} == {b"fivefold", bytes(8)}
    assert helpers.physical(one.root + helpers.window, PLACE) == helpers.physical(other.root + helpers.window, PLACE)
    for number in (space, copy):
        helpers.call("user.destroy", number)
    assert ledger(helpers) == before


@pytest.mark.parametrize("pages", range(1, 16, 2))
def test_running_out_of_memory_anywhere_leaves_nothing_behind(code: Any, mode: PagingMode, pages: int) -> None:
    """Creation, mapping and copy, with room for every number of pages; what failed is as if never asked for."""
    helpers, top = spaces(code, mode, size=4 * PAGE + (16 + pages) * PAGE)
    taken = []
    while len(taken) < 16 - ledger(helpers)[0] and (page := helpers.call("memblock.allocate_page")):
        taken.append(page)
    before = ledger(helpers)
    space = helpers.call("user.create", top)
    if space != NONE:
        helpers.call("user.map_memory", space, LOW, 2 * PAGE, True, RW)
        helpers.call("user.map_memory", space, mode.gap.start - 3 * PAGE, 2 * PAGE, True, RW)
        middle = ledger(helpers)
        copy = helpers.call("user.duplicate", space, top)
        if copy != NONE:
            helpers.call("user.destroy", copy)
        assert ledger(helpers) == middle
        helpers.call("user.destroy", space)
    assert ledger(helpers) == before


def test_what_is_lost_is_noticed(code: Any, guards: Guards, mode: PagingMode) -> None:
    def check(package: str) -> None:
        helpers, top = spaces(code, mode, package)
        before = ledger(helpers)
        space = helpers.call("user.create", top)
        helpers.call("user.map_memory", space, LOW, PAGE, True, RW)
        helpers.call("user.destroy", space)
        assert ledger(helpers) == before

    guards(
        check,
        "user.py",
        (
            "    sync.remove_space(root_of(number))\n    free_table(root_of(number))\n",
            "    sync.remove_space(root_of(number))\n",
        ),
    )


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["create", "map", "copy", "destroy"]), st.integers(0, 7), st.integers(1, 4)),
        min_size=4,
        max_size=24,
    )
)
def test_the_ledger_balances_after_any_life(code: Any, mode: PagingMode, steps: list[tuple[str, int, int]]) -> None:
    helpers, top = spaces(code, mode, size=MIB)
    before = ledger(helpers)
    alive: list[int] = []
    for what, which, pages in steps:
        if what == "create" or not alive:
            made = helpers.call("user.create", top)
            alive += [made] if made != NONE else []
        elif what == "copy":
            made = helpers.call("user.duplicate", alive[which % len(alive)], top)
            alive += [made] if made != NONE else []
        elif what == "destroy":
            helpers.call("user.destroy", alive.pop(which % len(alive)))
        else:
            hint = (0, LOW, WINDOW - PAGE, SWITCH, HIGH, NONE, 1 << 39, mode.gap.start - 5 * PAGE)[which]
            helpers.call("user.map_memory", alive[which % len(alive)], hint, pages * PAGE, False, RW)
    for space in alive:
        helpers.call("user.destroy", space)
    assert ledger(helpers) == before
