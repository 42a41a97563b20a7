"""The entry helpers: the law of folding, and the arithmetic of both modes, against vectors and `arch`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.arch import LA48, LA57, PagingMode

TABLE = 0x67
MODES = (LA48, LA57)


@pytest.fixture(scope="module")
def codes(code: Any) -> dict[PagingMode, Any]:
    """The helpers in both modes, with a page of memory."""
    return {mode: code(mode, "pgtable", "memblock", "mapping", extents=[(0x10_0000, 0x14_0000)]) for mode in MODES}


@pytest.fixture
def helpers(codes: dict[PagingMode, Any], mode: PagingMode) -> Any:
    return codes[mode]


SLOT = 0x10_0800
"""Physical address of an entry."""


def read(helpers: Any, at: int = SLOT) -> int:
    return int.from_bytes(helpers.ram.read(at, 8), "little")


def write(helpers: Any, value: int, at: int = SLOT) -> int:
    """Write an entry; return the address at which the code sees it."""
    helpers.ram.write(at, value.to_bytes(8, "little"))
    return at + int(helpers.window)


def test_fold_truth_table_of_questions(codes: dict[PagingMode, Any], fold_vector: list[str]) -> None:
    name, entry, five, folded = fold_vector
    answers = [codes[mode].call(f"pgtable.{name}", int(entry, 16)) for mode in (LA57, LA48)]
    assert answers == [int(five), int(folded)]


@pytest.mark.parametrize(
    ("name", "args", "five", "folded"),
    [
        ("pgd_clear", [], 0, 0x5067),
        ("pgd_populate", [0x7000], 0x7000 | TABLE, 0x5067),
        ("set_pgd", [0x9067], 0x9067, 0x9067),
        ("set_p4d", [0x9067], 0x9067, 0x9067),
        ("p4d_clear", [], 0, 0),
        ("p4d_populate", [0x7000], 0x7000 | TABLE, 0x7000 | TABLE),
    ],
)
def test_fold_truth_table_of_writes(
    codes: dict[PagingMode, Any], name: str, args: list[int], five: int, folded: int
) -> None:
    for mode, left in ((LA57, five), (LA48, folded)):
        at = write(codes[mode], 0x5067)
        codes[mode].call(f"pgtable.{name}", at, *args)
        assert read(codes[mode]) == left, mode


def test_folded_p4d_offset_is_the_pgd_entry_itself(codes: dict[PagingMode, Any]) -> None:
    va = 0xFFFF_8880_0000_0000
    at = write(codes[LA48], 0x11_0067)
    assert codes[LA48].call("pgtable.p4d_offset", at, va) == at
    at = write(codes[LA57], 0x11_0067)
    assert codes[LA57].call("pgtable.p4d_offset", at, va) == codes[LA57].window + 0x11_0000 + 8 * 273


def test_sizes_of_the_top_entry(codes: dict[PagingMode, Any]) -> None:
    assert [codes[mode].call("pgtable.pgd_size") for mode in MODES] == [512 << 30, 256 << 40]
    assert [codes[mode].call("pgtable.levels") for mode in MODES] == [4, 5]
    assert [codes[mode].call("pgtable.va_bits") for mode in MODES] == [48, 57]
    assert [codes[mode].call("pgtable.max_physmem_bits") for mode in MODES] == [46, 52]


def slots(helpers: Any, va: int) -> list[int]:
    """Slots by the kernel's helpers, from the top; the P4D's only where it has a table."""
    names = ("pgd", "p4d", "pud", "pmd", "pte") if helpers.mode is LA57 else ("pgd", "pud", "pmd", "pte")
    return [helpers.call(f"pgtable.{name}_index", va) for name in names]


def test_index_vectors(codes: dict[PagingMode, Any], indices_vector: list[str]) -> None:
    va, five, four = indices_vector
    for mode, want in ((LA57, five), (LA48, four)):
        assert codes[mode].call("pgtable.is_canonical", int(va, 16)) == (want != "GP")
        if want != "GP":
            assert slots(codes[mode], int(va, 16)) == [int(slot) for slot in want.split()]


def test_folded_p4d_index_is_0(codes: dict[PagingMode, Any], indices_vector: list[str]) -> None:
    assert codes[LA48].call("pgtable.p4d_index", int(indices_vector[0], 16)) == 0


def test_canonical_vectors(codes: dict[PagingMode, Any], canonical_vector: list[str]) -> None:
    va, four, five = canonical_vector
    assert [codes[mode].call("pgtable.is_canonical", int(va, 16)) for mode in MODES] == [int(four), int(five)]


@given(va=st.integers(0, (1 << 64) - 1))
def test_addresses_agree_with_arch(codes: dict[PagingMode, Any], va: int) -> None:
    for mode, helpers in codes.items():
        assert helpers.call("pgtable.is_canonical", va) == mode.is_canonical(va)
        assert tuple(slots(helpers, va)) == mode.indices(mode.sign_extend(va))


ALGEBRA = ("pgd_bad", "pgd_clear", "pgd_populate", "p4d_bad", "p4d_clear", "p4d_populate", "pud", "pmd", "pte")
"""What is asked at every level: a populated entry is not bad, a cleared one is none, whatever was in it."""


def algebra(helpers: Any, name: str) -> bool:
    """Whether the law that *name* stands for holds on random content; False where the level is folded away."""
    pgtable = "pgtable."
    at = write(helpers, 0x5A5A_5A5A_5A5A_5A5A & ~1)
    level = name[:3]
    operation = name[4:]
    if level in ("pud", "pmd", "pte"):
        return bool(
            helpers.call(pgtable + "entry_none", 0x60)
            and not helpers.call(pgtable + "entry_none", 0x1000)
            and helpers.call(pgtable + "entry_present", 0x1001)
            and helpers.call(pgtable + "entry_large", 0x1081)
        )
    if operation == "bad":
        return bool(helpers.call(pgtable + name, 0x5A5A))
    if operation == "clear":
        helpers.call(pgtable + name, at)
        return bool(helpers.call(pgtable + f"{level}_none", read(helpers)))
    helpers.call(pgtable + name, at, 0x7000)
    return read(helpers) == 0x7067 and not helpers.call(pgtable + f"{level}_bad", read(helpers))


def test_the_same_list_for_both_modes_skips_only_the_folded_level(codes: dict[PagingMode, Any]) -> None:
    held = {mode: {name for name in ALGEBRA if algebra(helpers, name)} for mode, helpers in codes.items()}
    assert held[LA57] == set(ALGEBRA)
    assert held[LA57] - held[LA48] == {"pgd_bad", "pgd_clear", "pgd_populate"}


def test_p4d_free_gives_back_a_page_only_where_there_is_one(codes: dict[PagingMode, Any]) -> None:
    for mode, freed in ((LA57, 1), (LA48, 0)):
        helpers = codes[mode]
        helpers.set("memblock.memory_count", 0)
        helpers.call("memblock.add", 0x12_0000, 0x1_0000)
        page = helpers.call("memblock.allocate_table")
        before = helpers.get("memblock.table_pages")
        helpers.call("mapping.p4d_free", page)
        assert before - helpers.get("memblock.table_pages") == freed
        assert (helpers.call("memblock.allocate_table") == page) == bool(freed)


def test_default_mode_is_folded(code: Any) -> None:
    """Code runs before detection, so what is there before anything ran must be the mode that always works."""
    helpers = code(None, "pgtable")
    assert [helpers.get(f"pgtable.{name}") for name in ("l5_enabled", "pgdir_shift", "ptrs_per_p4d")] == [0, 39, 1]


@pytest.mark.parametrize(("five", "triple"), [(1, [1, 48, 512]), (0, [0, 39, 1])])
def test_set_mode_sets_all_three_numbers(code: Any, five: int, triple: list[int]) -> None:
    helpers = code(None, "pgtable")
    helpers.call("pgtable.set_mode", 1 - five)
    helpers.call("pgtable.set_mode", five)
    assert [helpers.get(f"pgtable.{name}") for name in ("l5_enabled", "pgdir_shift", "ptrs_per_p4d")] == triple


def test_helpers_never_change_flags_of_a_leaf(helpers: Any) -> None:
    assert helpers.call("pgtable.entry_frame", 0x8000_4567_89AB_C1E3) == 0x0000_4567_89AB_C000
    assert helpers.call("pgtable.entry_frame", 0xFFF4_4567_89AB_CFFF) == 0x0004_4567_89AB_C000
