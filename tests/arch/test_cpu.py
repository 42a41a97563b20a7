from __future__ import annotations

from dataclasses import replace

import pytest

from fivefold.arch import LA48, LA57, Cpu, Vendor, cpu_from_cpuid

Answers = dict[tuple[int, int], tuple[int, int, int, int]]

INTEL = (0x756E_6547, 0x6C65_746E, 0x4965_6E69)  # EBX, ECX, EDX of leaf 0
AMD = (0x6874_7541, 0x444D_4163, 0x6974_6E65)
LAST = (1 << 32) - 1


def answer(answers: Answers) -> Cpu:
    return cpu_from_cpuid(lambda leaf, subleaf: answers.get((leaf, subleaf), (0, 0, 0, 0)))


FULL: Answers = {
    (0, 0): (0x1B, *INTEL),
    (1, 0): (0, 0, 1 << 3 | 1 << 17 | 1 << 26, 1 << 13),
    (7, 0): (0, 1 | 1 << 7 | 1 << 10 | 1 << 20 | 1 << 23 | 1 << 24, 1 << 2 | 1 << 3 | 1 << 16, 0),
    (0x8000_0000, 0): (0x8000_0008, 0, 0, 0),
    (0x8000_0001, 0): (0, 0, 0, 1 << 20 | 1 << 26 | 1 << 29),
    (0x8000_0008, 0): (0x3934, 0, 0, 0),
}


def test_a_full_cpu() -> None:
    cpu = answer(FULL)

    assert cpu == Cpu(phys_bits=52, pks=False)
    assert cpu.widest is LA57


def test_the_maximum_leaf_comes_first() -> None:
    """A CPU whose maximum leaf is below 7 answers leaf 7 with another leaf's values."""
    cpu = answer(FULL | {(0, 0): (6, *INTEL), (7, 0): (LAST, LAST, LAST, LAST)})

    assert cpu.widest is LA48
    assert not (cpu.smep or cpu.smap or cpu.pku or cpu.umip or cpu.lam)


def test_leaf_7_without_la57() -> None:
    cpu = answer(FULL | {(7, 0): (0, 1 << 7, LAST & ~(1 << 16), 0)})

    assert (cpu.la57, cpu.smep, cpu.pku, cpu.pks) == (False, True, True, True)


def test_lam_is_in_a_subleaf_that_must_exist() -> None:
    lam: Answers = {(7, 1): (1 << 26, 0, 0, 0)}

    assert not answer(FULL | lam).lam
    assert answer(FULL | lam | {(7, 0): (1, *FULL[7, 0][1:])}).lam


def test_without_the_width_leaf_it_is_36_bits() -> None:
    cpu = answer(FULL | {(0x8000_0000, 0): (0x8000_0001, 0, 0, 0)})

    assert (cpu.phys_bits, cpu.nx, cpu.gib_pages) == (36, True, True)


def test_without_extended_leaves_there_is_no_long_mode() -> None:
    cpu = answer({(0, 0): (2, *INTEL), (0x8000_0001, 0): (LAST, LAST, LAST, LAST)})

    assert (cpu.long_mode, cpu.nx, cpu.gib_pages, cpu.phys_bits) == (False, False, False, 36)


@pytest.mark.parametrize(
    ("name", "leaf", "register", "bit"), [("monitor", 1, 2, 3), ("clflushopt", 7, 1, 23), ("clwb", 7, 1, 24)]
)
def test_instructions_that_are_checked_as_a_read(name: str, leaf: int, register: int, bit: int) -> None:
    words = list(FULL[leaf, 0])
    words[register] &= ~(1 << bit)
    without = (words[0], words[1], words[2], words[3])
    assert getattr(answer(FULL), name)
    assert answer(FULL | {(leaf, 0): without}) == replace(answer(FULL), **{name: False})


def test_vendor() -> None:
    assert answer(FULL).vendor is Vendor.INTEL
    assert answer(FULL | {(0, 0): (0xD, *AMD)}).vendor is Vendor.AMD


@pytest.mark.parametrize("width", [0, 31, 53])
def test_an_impossible_width_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"^{width} physical address bits; expected 32 to 52$"):
        Cpu(phys_bits=width)
