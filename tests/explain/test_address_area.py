"""What is said of an address by itself: its place among the tables that the registers name, and constants."""

from __future__ import annotations

import pytest

from fivefold.explain.address_area import describe, notable_registers
from fivefold.explain.area_names import AreaNames
from fivefold.explain.logs.trace import Placement
from fivefold.explain.rules.situation import situation
from fivefold.memory import CpuState, Segment

RSP, IDT, GDT, TSS = 0xFFFF_C900_0000_8000, 0xFFFF_FE00_0000_0000, 0xFFFF_FE00_0000_1000, 0xFFFF_FE00_0000_3000
REGISTERS = CpuState(
    "test", cr0=0x8005_0033, cr3=0x1000, cr4=0x20, efer=0xD01, general={"rsp": RSP, "rip": 0xFFFF_FFFF_8123_4567},
    segments={"tr": Segment(0x40, TSS, 0x4087, 0x8B00), "idt": Segment(0, IDT, 0xFFF, 0),
              "gdt": Segment(0, GDT, 0x7F, 0)},
)  # fmt: skip

# address, and what is said of its neighbourhood: none, or words
NEIGHBOURS = """
ffffc90000008000  where RSP points
ffffc90000007fff  1 bytes below RSP
ffffc90000007fc0  64 bytes below RSP
ffffc90000007fbf
ffffc90000008001
fffffe0000000000  in the IDT, the gate of #DE
fffffe00000000ef  in the IDT, the gate of #PF
fffffe00000000e0  in the IDT, the gate of #PF
fffffe00000000df  in the IDT, the gate of #GP
fffffe0000000fff  in the IDT, the gate of vector 255
fffffe0000001000  in the GDT, entry 0
fffffe0000001008  in the GDT, entry 1
fffffe000000107f  in the GDT, entry 15
fffffe0000001080
fffffe0000003000  in the TSS
fffffe0000003067  in the TSS
fffffe0000003068
fffffe0000002fff
"""


def said(va: int, registers: CpuState = REGISTERS) -> str:
    names = AreaNames(placement=Placement(fixed=True))
    sentence = describe(situation(registers, 0, None), va, names).sentence
    return sentence.partition("; ")[2]


@pytest.mark.parametrize("line", NEIGHBOURS.strip().split("\n"), ids=lambda line: line.split()[0])
def test_neighbourhood(line: str) -> None:
    va, _, words = line.partition(" ")
    assert said(int(va, 16)) == words.strip()


def test_tables_that_are_not_set_are_no_neighbours() -> None:
    unset = Segment(0, 0, 0, 0)
    segments = {"tr": Segment(0, 0, 0xFFFF, 0), "idt": unset, "gdt": unset}
    empty = CpuState("test", cr0=0x8005_0033, cr3=0x1000, cr4=0x20, efer=0xD01, general={}, segments=segments)
    assert said(0, empty) == said(8, empty) == ""


@pytest.mark.parametrize(
    ("va", "is_linux", "area"),
    [
        (0xE000_0000_0000_0010, True, "user"),
        (0xDFFF_FC00_0000_0000, True, "NULL"),
        (0xDFFF_FC00_0000_01FF, True, "NULL"),
        (0xDFFF_FC00_0000_0200, True, "user"),
        (0xDFFF_FBFF_FFFF_FFFF, True, ""),
        (0x8000_0000_0000_0010, True, ""),
        (0xDFFF_FC00_0000_0000, False, ""),
        (0xE000_0C00_0000_0000, True, ""),
    ],
)
def test_a_shadow_that_kasan_would_read(va: int, is_linux: bool, area: str) -> None:
    names = AreaNames(dialect="Linux oops" if is_linux else "Xen report")
    text = describe(situation(REGISTERS, 0, None), va, names).sentence
    assert ("KASAN" in text) == bool(area)
    assert ("a NULL pointer" in text, "a user address" in text) == (area == "NULL", area == "user")


def test_registers_that_are_constants() -> None:
    registers = CpuState(
        "test", general={"rax": 0xDFFF_FC00_0000_0000, "rbx": 0xDFFF_FC00_0000_0001, "r8": 0xDFFF_E000_0000_0000,
                         "rsp": 0xFFFF_FFFF_8000_0000},
    )  # fmt: skip
    found = notable_registers(situation(registers, 0, None))
    assert found[0] == "RAX = 0xdffffc0000000000 is the KASAN shadow offset (both modes since 4.15)"
    assert [text.split()[0] for text in found] == ["RAX", "RSP"]
    assert "the next push goes below it" in found[-1]


def test_areas_of_two_modes() -> None:
    unknown = situation(CpuState("test", general={}), None, None)
    names = AreaNames(placement=Placement(fixed=True), dialect="Linux oops")
    assert describe(unknown, 0xFFFF_8880_0000_1000, names).sentence.endswith(
        "is in the upper half; its area depends on the number of levels, which is not known"
    )
    assert describe(unknown, 0xFFFF_FFFF_8100_0000, names).area == "kernel_image"
    assert describe(unknown, 0x10_0000_0000_0000, names).sentence.endswith(
        "is in the lower half; its area depends on the number of levels, which is not known"
    )
