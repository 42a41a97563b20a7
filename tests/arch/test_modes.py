from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.arch import LA48, LA57, Level, PagingMode, extend
from fivefold.units import MASK64, VirtAddr

MODES = (LA48, LA57)


def test_indices(indices_vector: list[str]) -> None:
    address, *wanted = indices_vector
    va = VirtAddr(int(address, 16))
    for mode, want in zip((LA57, LA48), wanted, strict=True):
        if want == "-":
            with pytest.raises(ValueError, match=rf"^{address} is not canonical in {mode.va_bits} bits$"):
                mode.indices(va)
        else:
            indices = tuple(int(index) for index in want.split())

            assert mode.indices(va) == indices
            assert mode.base_of(indices) == va


def test_canonical(canonical_vector: list[str]) -> None:
    address, *wanted = canonical_vector
    va = int(address, 16)

    assert ["ny"[mode.is_canonical(va)] for mode in MODES] == wanted
    assert ["yn"[va in mode.gap] for mode in MODES] == wanted


def test_the_numbers_of_each_mode() -> None:
    assert (LA48.va_bits, LA57.va_bits) == (48, 57)
    assert LA48.levels == (Level.PML4, Level.PDPT, Level.PD, Level.PT)
    assert LA57.levels == (Level.PML5, *LA48.levels)
    assert [level.shift for level in LA57.levels] == [48, 39, 30, 21, 12]
    assert [level.span for level in LA57.levels] == [1 << 48, 512 << 30, 1 << 30, 2 << 20, 4096]
    assert (LA48.gap.start, LA48.gap.stop) == (0x0000_8000_0000_0000, 0xFFFF_8000_0000_0000)
    assert (LA57.gap.start, LA57.gap.stop) == (0x0100_0000_0000_0000, 0xFF00_0000_0000_0000)


def test_base_of_a_cut_path_is_where_its_entry_starts() -> None:
    assert LA57.base_of((273,)) == 0xFF11_0000_0000_0000
    assert LA48.base_of((256,)) == 0xFFFF_8000_0000_0000
    assert LA48.base_of((511, 510)) == 0xFFFF_FFFF_8000_0000


@given(st.integers(0, MASK64), st.sampled_from(MODES))
def test_sign_extension_is_canonical_and_keeps_what_is_translated(raw: int, mode: PagingMode) -> None:
    va = mode.sign_extend(raw)

    assert mode.is_canonical(va)
    assert (va ^ raw) & ((1 << mode.va_bits) - 1) == 0
    assert mode.is_canonical(raw) == (raw not in mode.gap)
    if LA48.is_canonical(raw):
        assert LA57.is_canonical(raw)


def test_extend_at_its_ends() -> None:
    assert extend(0x80, 8) == 0xFFFF_FFFF_FFFF_FF80
    assert extend(0x7F, 8) == 0x7F
    assert extend(1 << 63, 64) == 1 << 63
