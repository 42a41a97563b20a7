"""Random bases: order, gaps, alignment and window for every draw, the worst ones too; entropy; mistakes put back."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from fivefold.arch import LA48, LA57, PagingMode
from fivefold.boot.judge.kaslr_areas import moved_areas
from fivefold.boot.result import Bounds
from fivefold.errors import LayoutError
from fivefold.kernel.paging.layout import AREAS, LAYOUT_NAMES
from fivefold.layout import check_tiling, image_areas, kaslr_bases
from fivefold.units import GIB, TIB

Guards = Callable[..., None]
KERNEL = "fivefold.kernel"
MODES = {"la48": LA48, "la57": LA57}
SETTINGS = [(mode, which, shadow) for mode in MODES for which in LAYOUT_NAMES for shadow in (False, True)]
SEEDS = 200
MEMORY = (GIB, 8 * TIB, 63 * TIB + GIB)
DRAWS = {
    "drawn": (0x1234_5678_9ABC_DEF0, 0x0FED_CBA9_8765_4321, 0xDEAD_BEEF_CAFE_F00D),
    "zeros": (0, 0, 0),
    "ones": ((1 << 64) - 1,) * 3,
}
GIVEN = (
    ("state: u64 = 0\n", "state: u64 = 0\ngiven1: u64 = 0\ngiven2: u64 = 0\ngiven3: u64 = 0\n"),
    (
        '    """The next 64 random bits."""\n    global state\n',
        '    """The next 64 random bits."""\n    global state, given1, given2, given3\n'
        "    now = given1\n    given1 = given2\n    given2 = given3\n",
    ),
    ("    return z ^ z >> 31\n", "    return now + 0 * z\n"),
)
"""A kernel whose random numbers are given."""
MOVE = "    return draw() % (left // areas + 1) & ~(step() - 1)\n"
WORST = (MOVE, "    return left // areas & ~(step() - 1)\n")
"""The largest that any draw can give, all three times."""


class Drawn(NamedTuple):
    """One draw: the three areas, and the window."""

    areas: tuple[Bounds, Bounds, Bounds]
    window: Bounds
    free: int
    step: int


def prepared(code: Any, package: str, mode: PagingMode, which: str, shadow: bool) -> Any:
    helpers = code(mode, "kaslr", "layout", package=package, extents=[(0x1000, 0x2000)])
    helpers.set("layout.has_shadow", shadow)
    helpers.call("layout.layout_init", LAYOUT_NAMES.index(which))
    return helpers


def choose(helpers: Any, which: str, memory: int) -> Drawn:
    """Draw from the generator as it is; the bases start where the map has them."""
    helpers.call("layout.layout_init", LAYOUT_NAMES.index(which))
    helpers.call("kaslr.choose_bases", memory)
    names = (("page_offset", "direct_map"), ("vmalloc", "vmalloc"), ("vmemmap", "vmemmap"))
    starts = [helpers.get(f"layout.{base}_base") for base, _ in names]
    sizes = [helpers.get(f"layout.{size}_size") for _, size in names]
    one, two, three = (Bounds(start, start + size) for start, size in zip(starts, sizes, strict=True))
    window = Bounds(helpers.get("kaslr.window_start"), helpers.get("kaslr.window_end"))
    return Drawn((one, two, three), window, helpers.get("kaslr.free_space"), helpers.call("kaslr.step"))


def lawful(drawn: Drawn, mode: PagingMode, memory: int) -> None:
    """What every draw must keep."""
    direct_map, _, vmemmap = drawn.areas
    assert drawn.window.start <= direct_map.start
    assert vmemmap.end <= drawn.window.end
    for low, high in pairwise(drawn.areas):
        assert high.start >= low.end + drawn.step, "one step stays empty between two areas"
    assert not any(area.start % drawn.step for area in drawn.areas)
    room = direct_map.end - direct_map.start
    assert min(memory, 1 << (46 if mode is LA48 else 52)) <= room <= 1 << (46 if mode is LA48 else 52)
    assert vmemmap.end - vmemmap.start >= room // 4096 * 64
    assert drawn.free < 1 << 63, "what is left has not wrapped"


@pytest.mark.parametrize(("name", "which", "shadow"), SETTINGS)
def test_200_seeds(code: Any, name: str, which: str, shadow: bool) -> None:
    """Each seed is one draw: no clash, no unaligned base, nothing outside; no two seeds alike."""
    helpers = prepared(code, KERNEL, MODES[name], which, shadow)
    seen = set()
    for seed in range(SEEDS):
        helpers.call("kaslr.seed", seed)
        memory = MEMORY[seed % len(MEMORY)]
        drawn = choose(helpers, which, memory)
        lawful(drawn, MODES[name], memory)
        seen.add(drawn.areas)
    assert len(seen) == SEEDS


@pytest.mark.parametrize(("name", "which", "shadow"), SETTINGS)
def test_inv_13_areas_ascend_and_tile_for_every_seed(code: Any, name: str, which: str, shadow: bool) -> None:
    """Both the kernel's own table of areas and the map that a reader outside makes of it."""
    mode = MODES[name]
    helpers = prepared(code, KERNEL, mode, which, shadow)
    levels, column = len(mode.levels), helpers.call("layout.column")
    for seed in range(0, SEEDS, 20):
        helpers.call("kaslr.seed", seed)
        drawn = choose(helpers, which, 8 * TIB)
        rows = [
            Bounds(start, helpers.call("layout.area_end", row.movable, row.end[column]))
            for row in AREAS
            if (start := helpers.call("layout.area_start", row.movable, row.start[column]))
        ]
        assert all(low.end <= high.start for low, high in pairwise(rows))
        said = dict(zip(("direct_map", "vmalloc", "vmemmap"), drawn.areas, strict=True))
        slot = 1 << mode.top.shift
        check_tiling(moved_areas(image_areas(which, levels), said, shadow, slot, 8 * TIB))


def test_bases_for_given_draws(code: Any, mutated: Callable[..., str], kaslr_vector: list[str]) -> None:
    """Vectors of our own: unlike Linux', the two gaps are taken off what is shared out."""
    name, which, window, memory, draws, bases = kaslr_vector
    helpers = prepared(code, given_kernel(mutated), MODES[name], which, window == "kasan")
    for variable, value in zip(("given1", "given2", "given3"), DRAWS[draws], strict=True):
        helpers.set(f"kaslr.{variable}", value)
    drawn = choose(helpers, which, int(memory) * TIB)
    assert [area.start for area in drawn.areas] == [int(base, 16) for base in bases.split()]


_made: list[str] = []


def given_kernel(mutated: Callable[..., str]) -> str:
    """The kernel with `GIVEN`, made once."""
    if not _made:
        _made.append(mutated("kaslr.py", *GIVEN))
    return _made[0]


def test_ours_and_linux_agree_where_nothing_moves(code: Any, mutated: Callable[..., str]) -> None:
    """Linux' draw, kept as `layout.kaslr_bases`, leaves the same gaps; it differs in what it shares out."""
    for mode in MODES.values():
        helpers = prepared(code, given_kernel(mutated), mode, "linux", False)
        ours = [area.start for area in choose(helpers, "linux", 8 * TIB).areas]
        assert ours == list(kaslr_bases("6.12", len(mode.levels), (0, 0, 0), 8 * TIB))


@pytest.mark.parametrize(("name", "which", "shadow"), SETTINGS)
@pytest.mark.parametrize("memory", [GIB, 46 * TIB, 4096 * TIB])
def test_the_largest_draws_end_inside_the_window(
    code: Any, mutated: Callable[..., str], name: str, which: str, shadow: bool, memory: int
) -> None:
    drawn = choose(prepared(code, worst_kernel(mutated), MODES[name], which, shadow), which, memory)
    lawful(drawn, MODES[name], memory)
    assert drawn.window.end - drawn.areas[2].end < 3 * drawn.step, "the whole of the window can be reached"


_worst: list[str] = []


def worst_kernel(mutated: Callable[..., str]) -> str:
    if not _worst:
        _worst.append(mutated("kaslr.py", WORST))
    return _worst[0]


def test_rs_22_gaps_are_deducted_before_anything_is_drawn(code: Any, mutated: Callable[..., str]) -> None:
    """Linux does not: its worst draw ends 2 GiB past the window, in the CPU entry area."""
    wrong = mutated("kaslr.py", WORST, (" - used - (AREAS - 1) * step()", " - used"))
    drawn = choose(prepared(code, wrong, LA57, "linux", False), "linux", GIB)
    with pytest.raises(AssertionError):
        lawful(drawn, LA57, GIB)
    assert drawn.areas[2].end - drawn.window.end == 2 * GIB
    lawful(choose(prepared(code, worst_kernel(mutated), LA57, "linux", False), "linux", GIB), LA57, GIB)


def many(code: Any, package: str, mode: PagingMode, which: str, shadow: bool, memory: int) -> None:
    helpers = prepared(code, package, mode, which, shadow)
    for seed in range(40):
        helpers.call("kaslr.seed", seed)
        lawful(choose(helpers, which, memory), mode, memory)


def test_rs_22_and_rfc_b16_vmemmap_is_computed(code: Any, guards: Guards) -> None:
    """1 TiB, as it was in both modes, is too small for more than 64 TiB."""
    guards(
        lambda package: many(code, package, LA57, "linux", False, 500 * TIB),
        "kaslr.py",
        ("    return round_up_tib((direct_map >> PAGE_SHIFT) * STRUCT_PAGE_SIZE)", "    return u64(TIB)"),
    )


def test_rs_22_direct_map_follows_the_mode(code: Any, guards: Guards) -> None:
    """Sized by the mask of 52 bits it is larger than four levels can have."""
    guards(
        lambda package: many(code, package, LA48, "linux", False, 60 * TIB),
        "kaslr.py",
        ("1 << max_physmem_bits())", "1 << 52)"),
    )


def test_rfc_b16_the_window_starts_where_the_mode_has_it(code: Any, guards: Guards) -> None:
    """Hard-wired to the four-level base, five levels lose all of their space but the last slot."""

    def check(package: str) -> None:
        drawn = choose(prepared(code, package, LA57, "linux", False), "linux", TIB)
        lawful(drawn, LA57, TIB)

    guards(
        check,
        "kaslr.py",
        ("    window_start = layout.page_offset_base\n", "    window_start = layout.PAGE_OFFSET[2 * layout.choice]\n"),
    )


def test_bases_that_are_not_aligned_are_noticed(code: Any, guards: Guards) -> None:
    guards(
        lambda package: many(code, package, LA48, "linux", False, TIB),
        "kaslr.py",
        ("(left // areas + 1) & ~(step() - 1)", "(left // areas + 1)"),
    )


def test_r6_3_the_proposals_map_moves_in_512_gib_steps(code: Any, guards: Guards) -> None:
    """In five levels only; today's map moves in 1 GiB steps in both modes."""

    def check(package: str) -> None:
        steps = {
            (name, which): prepared(code, package, MODES[name], which, False).call("kaslr.step")
            for name in MODES
            for which in LAYOUT_NAMES
        }
        assert steps.pop(("la57", "proposal")) == 512 * GIB
        assert set(steps.values()) == {GIB}

    guards(check, "kaslr.py", (" == layout.PROPOSAL and not p4d_folded():", " == layout.PROPOSAL:"))


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_with_the_shadow_the_window_ends_below_it(code: Any, guards: Guards, mode: PagingMode) -> None:
    """At a top-level entry: what lies in the shadow's first slot would share its tables."""

    def check(package: str) -> None:
        drawn = choose(prepared(code, package, mode, "linux", True), "linux", TIB)
        start = 0xFFFF_EC00_0000_0000 if mode is LA48 else 0xFFDF_FC00_0000_0000
        assert drawn.window.end == start >> mode.top.shift << mode.top.shift

    wrong = "        return u64(SHADOW_START[layout.column()] + pgd_size())"
    guards(check, "kaslr.py", ("        return SHADOW_START[layout.column()] & ~(pgd_size() - 1)", wrong))


@pytest.mark.parametrize("which", LAYOUT_NAMES)
def test_rs_21_nothing_else_lies_in_the_window(code: Any, guards: Guards, which: str) -> None:
    """The LDT's area once did, in five levels, and random bases fell on top of it."""

    def check(package: str) -> None:
        helpers = prepared(code, package, LA57, which, True)
        drawn = choose(helpers, which, TIB)
        column = helpers.call("layout.column")
        table = __import__(f"{package}.paging.layout", fromlist=["AREAS"]).AREAS
        fixed = [(row.start[column], row.end[column]) for row in table if row.movable == 0 and row.start[column]]
        assert len(fixed) >= 5
        assert all(end <= drawn.window.start or start >= drawn.window.end for start, end in fixed)

    old = {
        "linux": (
            "0xFF10_0000_0000_0000, 0, 0),\n        (0xFFFF_8880_0000_0000, 0xFF11_0000_0000_0000, 0, 0)",
            "0xFF90_0000_0000_0000, 0, 0),\n        (0xFFFF_8880_0000_0000, 0xFF91_0000_0000_0000, 0, 0)",
        ),
        "proposal": (
            "0xFF10_0000_0000_0000, 0, 0),\n        (0xFFFF_8880_0000_0000, 0xFF11_0000_0000_0000, 0, 0)",
            "0xFF10_0000_0000_0000, 0, 0xFF90_0000_0000_0000),\n"
            "        (0xFFFF_8880_0000_0000, 0xFF11_0000_0000_0000, 0, 0xFF91_0000_0000_0000)",
        ),
    }
    guards(check, "layout.py", old[which])


ENTROPY = [
    (LA48, "linux", 8, 22_699, 14.5),
    (LA57, "linux", 2, 16_509_952, 24.0),
    (LA57, "proposal", 2, 30_028, 14.9),
]


@pytest.mark.parametrize(("mode", "which", "memory", "places", "bits"), ENTROPY)
def test_entropy_of_the_first_area(
    code: Any, mode: PagingMode, which: str, memory: int, places: int, bits: float
) -> None:
    """Places that the direct map can have, of memory in TiB and 10 TiB of padding."""
    helpers = prepared(code, KERNEL, mode, which, False)
    drawn = choose(helpers, which, memory * TIB)
    found = helpers.call("kaslr.positions", drawn.free, 3)
    assert found == places
    assert math.log2(found) == pytest.approx(bits, abs=0.05)


def test_the_same_seed_gives_the_same_bases(code: Any) -> None:
    helpers = prepared(code, KERNEL, LA57, "linux", True)
    drawn = []
    for seed in (7, 8, 7):
        helpers.call("kaslr.seed", seed)
        drawn.append(choose(helpers, "linux", TIB))
    assert drawn[0] == drawn[2] != drawn[1]


SPLITMIX = (0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F)
"""The first numbers of splitmix64 for the seed 0."""


def test_the_generator_is_the_published_one(code: Any) -> None:
    helpers = code(LA48, "kaslr", extents=[(0x1000, 0x2000)])
    helpers.call("kaslr.seed", 0)
    assert tuple(helpers.call("kaslr.draw") for _ in SPLITMIX) == SPLITMIX


BASES = {
    "direct_map": Bounds(0xFFFF_8880_0000_0000, 0xFFFF_9280_0000_0000),
    "vmalloc": Bounds(0xFFFF_A000_0000_0000, 0xFFFF_C000_0000_0000),
    "vmemmap": Bounds(0xFFFF_D000_0000_0000, 0xFFFF_D100_0000_0000),
}
REFUSED = [
    ("vmalloc", 1 << 12, "vmalloc starts at 0xffffa00000001000, which is not aligned to 1 GiB"),
    ("vmalloc", -0x0E00_0000_0000, "vmalloc starts at 0xffff920000000000, direct_map ends at 0xffff928000000000"),
    ("vmemmap", 0x2000_0000_0000, "vmemmap is not inside 0xffff888000000000-0xffffec0000000000"),
    ("direct_map", -0x0080_0000_0000, "direct_map is not inside 0xffff888000000000-0xffffec0000000000"),
]


@pytest.mark.parametrize(("name", "by", "message"), REFUSED, ids=[row[2][:40] for row in REFUSED])
def test_bases_that_a_guest_cannot_have_are_refused_from_outside(name: str, by: int, message: str) -> None:
    said = BASES | {name: Bounds(BASES[name].start + by, BASES[name].end + by)}
    with pytest.raises(LayoutError) as refused:
        moved_areas(image_areas("linux", 4), said, True, 1 << 39, TIB)
    assert str(refused.value) == message
    check_tiling(moved_areas(image_areas("linux", 4), BASES, True, 1 << 39, TIB))
