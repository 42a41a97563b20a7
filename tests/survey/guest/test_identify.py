"""Root, mode and width: the order of who decides, the evidence, and the refusals word for word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fivefold.arch import LA48, LA57, Level
from fivefold.errors import NotKnownError
from fivefold.memory import CpuState, Ram, Source
from fivefold.survey.guest.identify import GivenPaging, choose_mode, choose_nxe, choose_phys_bits, choose_root, root_of
from fivefold.survey.space import Space
from fivefold.units import PhysAddr

ROOT = 0x10_0000
PAGES = [(0x4000_0000 + n * 0x1000, 0x20_0000 + n * 0x1000 | 7, Level.PT) for n in range(4)]


def cpu(**registers: int) -> CpuState:
    return CpuState("test", **({"cr0": 0x8005_0033, "cr3": ROOT, "cr4": 0x6B0} | registers))  # type: ignore[arg-type]


@pytest.fixture
def five(built: Callable[..., Ram]) -> Ram:
    return built(LA57, PAGES)


@pytest.fixture
def four(built: Callable[..., Ram]) -> Ram:
    return built(LA48, PAGES)


Sourced = Callable[..., Source]


def test_registers_decide(four: Ram, sourced: Sourced) -> None:
    source = sourced(four, (cpu(cr3=ROOT | 0x8000_0000_0000_0ABC),))
    assert choose_root(source, GivenPaging()) == (choose_root(source, GivenPaging()))
    assert str(choose_root(source, GivenPaging())) == f"{ROOT} (CR3 of CPU 0 (test))"
    assert choose_mode(source, PhysAddr(ROOT), GivenPaging()).value is LA48
    assert choose_mode(source, PhysAddr(ROOT), GivenPaging()).how == "CR4.LA57=0 of CPU 0 (test)"


def test_given_overrides_and_says_so(five: Ram, sourced: Sourced) -> None:
    source = sourced(five, (cpu(cr3=0x9000),))
    assert str(choose_root(source, GivenPaging(cr3=ROOT))) == f"{ROOT} (given with --cr3)"
    mode = choose_mode(source, PhysAddr(ROOT), GivenPaging(levels=5))
    assert (mode.value, mode.how) == (LA57, "given with --levels; CR4.LA57=0 of CPU 0 (test) says la48")
    assert choose_mode(source, PhysAddr(ROOT), GivenPaging(cr4=0x16B0)).value is LA57


def test_tables_decide_where_nothing_else_does(five: Ram, four: Ram, sourced: Sourced) -> None:
    assert choose_mode(sourced(five), PhysAddr(ROOT), GivenPaging()).value is LA57
    found = choose_mode(sourced(four), PhysAddr(ROOT), GivenPaging())
    assert (found.value, found.how) == (
        LA48,
        "the tables: 0 entries of the tables speak for five levels, 4 for four",
    )


def test_a_cr4_without_pae_says_nothing(five: Ram, sourced: Sourced) -> None:
    source = sourced(five, (cpu(cr4=0x10),))
    assert choose_mode(source, PhysAddr(ROOT), GivenPaging()).how.startswith("the tables: ")


def test_vmcoreinfo_decides_without_registers(five: Ram, sourced: Sourced) -> None:
    facts = {
        "SYMBOL(swapper_pg_dir)": "ffffffff82a10000",
        "NUMBER(phys_base)": str(ROOT - 0x2A1_0000),
        "NUMBER(pgtable_l5_enabled)": "1",
    }
    source = sourced(five, vmcoreinfo=facts)
    assert str(choose_root(source, GivenPaging())) == f"{ROOT} (init_top_pgt and phys_base in VMCOREINFO)"
    assert choose_mode(source, PhysAddr(ROOT), GivenPaging()).how == "pgtable_l5_enabled=1 in VMCOREINFO"


@pytest.mark.parametrize(("levels", "other"), [(4, 5), (5, 4)])
def test_the_wrong_number_of_levels(five: Ram, four: Ram, sourced: Sourced, levels: int, other: int) -> None:
    source = sourced(five if other == 5 else four)
    with pytest.raises(NotKnownError) as caught:
        choose_mode(source, PhysAddr(ROOT), GivenPaging(levels=levels))
    counts = "1 entries of the tables speak for five levels, 0 for four"
    if other == 4:
        counts = "0 entries of the tables speak for five levels, 4 for four"
    against = f"the tables at 0x0000000000100000 of toy have {other} levels ({counts})"
    assert str(caught.value) == (
        f"{against}, not {levels} as given with --levels; give --levels {other}, "
        "or --force to read them so all the same"
    )
    forced = choose_mode(source, PhysAddr(ROOT), GivenPaging(levels=levels, force=True))
    assert (int(forced.value.top), forced.how, forced.against) == (levels, "given with --levels", against)
    assert forced.evidence == f"given with --levels, but {against}"


def test_force_changes_nothing_that_is_not_contradicted(five: Ram, sourced: Sourced) -> None:
    found = choose_mode(sourced(five), PhysAddr(ROOT), GivenPaging(levels=5, force=True))
    assert (found.how, found.against) == ("given with --levels", None)


def test_another_cpu(five: Ram, four: Ram, sourced: Sourced) -> None:
    """Root, mode and EFER are of the CPU that is asked for."""
    below = Ram.of_size(0x1000, start=ROOT, name="toy")
    source = sourced(below, (cpu(cr3=0x9000), cpu(cr4=0x16B0, efer=0xD00)))
    given = GivenPaging(cpu=1)
    assert str(choose_root(source, given)) == f"{ROOT} (CR3 of CPU 1 (test))"
    assert choose_mode(source, PhysAddr(ROOT), given).how == "CR4.LA57=1 of CPU 1 (test)"
    assert str(choose_nxe(source, given)) == "True (EFER of CPU 1)"
    assert choose_nxe(source, GivenPaging()).value is None


@pytest.mark.parametrize(
    ("cpus", "message"),
    [
        ((cpu(),), "CPU 1: toy (test memory) holds the registers of 1, counted from 0; give another --cpu, or --cr3"),
        ((), "CPU 1: toy (test memory) holds no registers; give another --cpu, or --cr3"),
        ((cpu(), CpuState("notes")), "toy holds no CR3 of CPU 1 (notes); give --cr3 instead of --cpu"),
        (
            (cpu(), cpu(cr0=0x11)),
            "CPU 1 of toy has paging off (CR0.PG=0); expected 4- or 5-level paging: give --cr3 and --levels, "
            "or another --cpu",
        ),
    ],
)
def test_a_cpu_that_is_not_there(five: Ram, sourced: Sourced, cpus: tuple[CpuState, ...], message: str) -> None:
    with pytest.raises(NotKnownError) as caught:
        choose_root(sourced(five, cpus), GivenPaging(cpu=1))
    assert str(caught.value) == message


def test_nothing_says(sourced: Sourced) -> None:
    empty = sourced(Ram.of_size(0x2000, start=ROOT, name="empty"))
    with pytest.raises(NotKnownError) as caught:
        choose_root(empty, GivenPaging())
    assert str(caught.value) == (
        "empty (test memory) holds no CR3; give --cr3, or look for roots with `fivefold roots`"
    )
    with pytest.raises(NotKnownError, match=r"does not say how many levels .*; give --levels$"):
        choose_mode(empty, PhysAddr(ROOT), GivenPaging())


def test_a_hole_where_the_root_should_be(five: Ram, sourced: Sourced) -> None:
    with pytest.raises(NotKnownError) as caught:
        choose_root(sourced(five), GivenPaging(cr3=0x9000))
    assert str(caught.value) == (
        "toy has no memory at the root 0x0000000000009000 (given with --cr3); "
        "expected the top-level table there: give another with --cr3"
    )


@pytest.mark.parametrize(
    ("registers", "wrong"),
    [
        ({"cr0": 0x11}, "paging off (CR0.PG=0)"),
        ({"cr4": 0x10}, "32-bit paging (CR4.PAE=0)"),
        ({"efer": 0x100}, "32-bit or PAE paging (EFER.LMA=0)"),
    ],
)
def test_a_cpu_without_long_paging(five: Ram, sourced: Sourced, registers: dict[str, int], wrong: str) -> None:
    with pytest.raises(NotKnownError) as caught:
        choose_root(sourced(five, (cpu(**registers),)), GivenPaging())
    assert str(caught.value) == (f"CPU 0 of toy has {wrong}; expected 4- or 5-level paging: give --cr3 and --levels")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"levels": 3}, "3 levels of page tables; expected 4 or 5"),
        ({"phys_bits": 53}, "53 physical address bits; expected 32 to 52"),
        ({"cr4": 0x16B0, "levels": 4}, "cr4 0x16b0 means 5 levels, but 4 are given, too"),
        ({"cpu": -1}, "CPU -1; expected a number from 0 on"),
        ({"cr3": 1 << 64}, "cr3 0x10000000000000000 does not fit in 64 bits"),
    ],
)
def test_given_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        GivenPaging(**given)
    assert str(caught.value) == message


def test_forged_vmcoreinfo_says_nothing(five: Ram, sourced: Sourced) -> None:
    source = sourced(five, vmcoreinfo={"SYMBOL(init_top_pgt)": "zz", "NUMBER(phys_base)": "0"})
    with pytest.raises(NotKnownError, match=r"holds no CR3; give --cr3"):
        choose_root(source, GivenPaging())


def test_width_and_nxe(five: Ram, sourced: Sourced) -> None:
    assert choose_phys_bits(GivenPaging()).value is None
    assert str(choose_phys_bits(GivenPaging(phys_bits=46))) == "46 (given with --phys-bits)"
    assert choose_nxe(sourced(five), GivenPaging()).value is None
    assert str(choose_nxe(sourced(five, (cpu(efer=0x500),)), GivenPaging())) == "False (EFER of CPU 0)"


def test_root_of_leaves_out_what_is_not_address() -> None:
    assert root_of(0xE000_0000_0123_4FFF) == 0x123_4000


def test_captures(name: str, captures: Any, look: Callable[..., Space], facts: Callable[[str], Any]) -> None:
    space = look(name)
    assert space.levels == facts(name)["levels"]
    assert space.root.value == int(facts(name)["cpus"][0]["cr3"], 16) & ~0xFFF


def test_registers_are_held_against_the_tables(built: Callable[..., Ram], sourced: Sourced) -> None:
    # Each page of a table of its own: the entries of PDs are what the two readings part over.
    pages = [(0x4000_0000 + n * 0x20_0000, 0x20_0000 + n * 0x1000 | 3, Level.PT) for n in range(40)]
    for mode, wrong, levels in ((LA57, 0x6B0, 5), (LA48, 0x16B0, 4)):
        ram = built(mode, pages)
        if mode is LA57:
            for n in range(40):  # what a PT maps looks like a table from below: as small numbers do not
                ram.write(PhysAddr(0x20_0000 + n * 0x1000), b"\1" + bytes(4095))
        source = sourced(ram, (cpu(cr4=wrong),))
        with pytest.raises(NotKnownError, match=f"have {levels} levels .* not {9 - levels} as CR4.LA57="):
            choose_mode(source, PhysAddr(ROOT), GivenPaging())
        forced = choose_mode(source, PhysAddr(ROOT), GivenPaging(force=True))
        assert int(forced.value.top) == 9 - levels and forced.against is not None
        assert choose_mode(sourced(ram, (cpu(cr4=wrong ^ 0x1000),)), PhysAddr(ROOT), GivenPaging()).against is None


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("cr3", 0, (1 << 64) - 1),
        ("cr4", 0, (1 << 64) - 1),
        ("phys_bits", 32, 52),
        ("c_bit", 32, 51),
        ("levels", 4, 5),
        ("cpu", 0, 1 << 70),
    ],
)
def test_borders_of_what_can_be_given(name: str, low: int, high: int) -> None:
    assert [getattr(GivenPaging(**{name: value}), name) for value in (low, high)] == [low, high]  # type: ignore[arg-type]
    for value in (low - 1, high + 1) if name != "cpu" else (low - 1,):
        with pytest.raises(ValueError, match=r"expected|does not fit in 64 bits"):
            GivenPaging(**{name: value})  # type: ignore[arg-type]
