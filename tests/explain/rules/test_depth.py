"""A root of the other depth, where one sign alone tells it: trees that are made by hand, entry by entry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fivefold.arch import LA48, READ, Flag
from fivefold.explain.rules.depth import other_reading, wrong_depth
from fivefold.explain.rules.situation import Situation, situation
from fivefold.memory import CpuState, Ram, Segment
from fivefold.units import PhysAddr

ROOT, UPPER, LOWER = 0x30_0000, 0x30_1000, 0x30_2000
TABLE, LEAF = int(Flag.P | Flag.RW), int(Flag.P | Flag.RW | Flag.BIT7)
FIRST = 0x4000_0000
"""What four levels map with a page of 1 GiB, and five with an entry of a table of the wrong level."""


def put(ram: Ram, table: int, index: int, entry: int) -> None:
    ram.write(PhysAddr(table + 8 * index), entry.to_bytes(8, "little"))


@pytest.fixture
def four_levels() -> Ram:
    """The first 6 MiB in pages of 2 MiB, and a page of 1 GiB: read with five levels the first is one of 1 GiB."""
    ram = Ram.of_size(2 << 20, 0x20_0000)
    put(ram, ROOT, 0, UPPER | TABLE)
    put(ram, UPPER, 0, LOWER | TABLE)
    put(ram, UPPER, 1, FIRST | LEAF)
    for index in range(3):
        put(ram, LOWER, index, index << 21 | LEAF)
    return ram


def reading(ram: Ram | None, cr4: int, **general: int) -> Situation:
    registers = CpuState(
        "test", cr0=0x8000_0011, cr3=ROOT, cr4=cr4, efer=0x500, general={"rip": 0x20_0026, "rax": 0x1111, **general}
    )
    return situation(registers, 0, ram)


def test_malformed_entries_alone(four_levels: Ram) -> None:
    found = wrong_depth(reading(four_levels, 0x1020), FIRST, READ)
    assert found is not None and found.fits is LA48
    # The page of 1 GiB is none at the level above, and two pages of 2 MiB are none of 1 GiB.
    assert found.evidence == (
        "read with 4 levels the root maps the address 0x0000000040000000, RIP 0x0000000000200026",
        "read with 5 levels, as CR4.LA57=1 asks, 3 entries in the tables in use are malformed, the other way none",
    )


def test_malformed_entries_both_ways_say_nothing(four_levels: Ram) -> None:
    put(four_levels, LOWER, 9, 0x1000 | LEAF | 1 << 13)
    assert wrong_depth(reading(four_levels, 0x1020), FIRST, READ) is None


def test_what_the_instruction_touches_alone(four_levels: Ram) -> None:
    put(four_levels, UPPER, 1, 0)
    put(four_levels, LOWER, 1, 0x20_0000 | TABLE)
    put(four_levels, LOWER, 2, 0)
    assert wrong_depth(reading(four_levels, 0x1020), FIRST, READ) is None


def test_where_the_mode_fits_nothing_is_said(four_levels: Ram) -> None:
    assert wrong_depth(reading(four_levels, 0x20), 0x80_0000_0000, READ) is None
    assert wrong_depth(reading(four_levels, 0x1020), 0x1000, READ) is None
    assert wrong_depth(reading(None, 0x1020), FIRST, READ) is None


def test_a_stack_that_only_the_other_reading_maps(four_levels: Ram) -> None:
    found = wrong_depth(reading(four_levels, 0x1020, rsp=FIRST + 8), FIRST, READ)
    assert found is not None
    assert "RIP 0x0000000000200026, the stack 0x0000000040000000" in found.evidence[0]
    assert found.evidence[1] == "read with 5 levels, as CR4.LA57=1 asks, it does not map the stack"
    # RSP may be left over: where no reading maps it, it is no sign, and does not speak against the other.
    left_over = wrong_depth(reading(four_levels, 0x1020, rsp=0x7000_0000_0000), FIRST, READ)
    assert left_over is not None and len(left_over.evidence) == 2 and "stack" not in "".join(left_over.evidence)


def test_no_paging_has_no_other_reading(four_levels: Ram) -> None:
    here = reading(four_levels, 0x20)
    other = other_reading(here)
    assert other is not None and other.state.cr4 == 0x1020
    assert other_reading(here.with_state(replace(here.state, cr0=0x11))) is None


@pytest.mark.parametrize(("register", "name"), [("idt", "the IDT"), ("gdt", "the GDT")])
def test_the_tables_of_the_cpu_are_read_by_itself(register: str, name: str, four_levels: Ram) -> None:
    """A process could not read them, and the CPU does it for the process all the same."""
    user = int(Flag.US)
    put(four_levels, ROOT, 0, UPPER | TABLE | user)
    put(four_levels, UPPER, 0, LOWER | TABLE | user)
    put(four_levels, UPPER, 1, FIRST | LEAF | user)
    put(four_levels, UPPER, 2, 2 * FIRST | LEAF)
    for index in range(3):
        put(four_levels, LOWER, index, index << 21 | LEAF | user)
    registers = CpuState(
        "test", cr0=0x8000_0011, cr3=ROOT, cr4=0x1020, efer=0x500, general={"rip": 0x20_0026},
        segments={register: Segment(0, 2 * FIRST, 0xFFF, 0)},
    )  # fmt: skip
    found = wrong_depth(situation(registers, 3, four_levels), FIRST, READ)
    assert found is not None
    assert f"{name} 0x0000000080000000" in found.evidence[0]
    assert found.evidence[1] == f"read with 5 levels, as CR4.LA57=1 asks, it does not map {name}"
