"""Registers as QEMU's monitor prints them."""

from __future__ import annotations

import re

import pytest

from fivefold.errors import FormatError
from fivefold.memory import registers
from fivefold.memory.registers import Segment, parse_info_registers

# Two CPUs, one in long mode and one still in real mode, as QEMU 7.2 prints them.
TWO = """
CPU#0
RAX=000000000001cf60 RBX=0000000000000000 RCX=0000000000000001 RDX=0000000000000001
RSI=0000000000000083 RDI=0000000000005464 RBP=0000000000000000 RSP=ffffffff9ac03e40
R8 =ff15577d1f21f3c0 R9 =0000000000000000 R10=0000000000000001 R11=0000000000000000
R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=0000000000013bd0
RIP=ffffffff9a4804ab RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 00000000 00000000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=000000000042ee70 CR3=0000000011a0a000 CR4=000016b0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80

CPU#1
EAX=00000000 EBX=00000000 ECX=0000b79d EDX=00000663
ESI=0000b79d EDI=00000000 EBP=0000b79d ESP=00006f94
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1
CS =f000 ffff0000 0000ffff 00009b00
GDT=     00000000 0000ffff
IDT=     00000000 0000ffff
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
EFER=0000000000000000
"""


def test_two_cpus() -> None:
    first, second = parse_info_registers(TWO)

    assert (first.cr0, first.cr2, first.cr3, first.cr4, first.efer) == (
        0x80050033,
        0x42EE70,
        0x11A0A000,
        0x16B0,
        0xD01,
    )
    assert (first.rip, first.rsp, first.general["rflags"]) == (0xFFFFFFFF9A4804AB, 0xFFFFFFFF9AC03E40, 0x246)
    assert (first.general["r8"], first.general["r15"]) == (0xFF15577D1F21F3C0, 0x13BD0)
    assert first.segments["cs"] == Segment(0x10, 0, 0xFFFFFFFF, 0xAF9B00)
    assert first.idt == Segment(0, 0xFFFFFE0000000000, 0xFFF, 0)
    assert first.gdt == Segment(0, 0xFFFFFE0000001000, 0x7F, 0)
    assert (second.cr0, second.cr3, second.rip, second.rsp) == (0x60000010, 0, 0xFFF0, 0x6F94)
    assert (second.general["rdx"], second.segments["cs"].base) == (0x663, 0xFFFF0000)


def test_one_cpu_without_a_heading() -> None:
    (only,) = parse_info_registers(TWO.partition("CPU#1")[0].replace("CPU#0", "").replace("\n", "\r\n"), "elsewhere")

    assert (only.cr3, only.source) == (0x11A0A000, "elsewhere")


def test_no_registers() -> None:
    assert parse_info_registers("unknown command") == ()


NAMES = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)), "rip"]


def test_every_general_register_and_segment() -> None:
    """Each has a number of its own, put in place of what QEMU printed."""
    numbers = iter(range(0x1001, 0x1100))
    text = re.sub(r"(?<==)[0-9a-f]{16}", lambda _: f"{next(numbers):016x}", TWO.partition("CR0")[0])
    (cpu,) = parse_info_registers(text + "CR0=1\n")
    assert cpu.general == {name: 0x1001 + at for at, name in enumerate(NAMES)} | {"rflags": 0x246}
    rows = "".join(
        f"{name:3}={at:04x} {at + 1:016x} {at + 2:08x} {at + 3:08x} DPL=0\n"
        for at, name in enumerate(("CS", "DS", "ES", "FS", "GS", "SS", "LDT", "TR"), 5)
    )
    (cpu,) = parse_info_registers(f"{rows}GDT=     {40:016x} {41:08x}\nIDT=     {42:08x} {43:08x}\nCR4=20")
    wanted = {
        name: Segment(at, at + 1, at + 2, at + 3)
        for at, name in enumerate(["cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr"], 5)
    }
    assert cpu.segments == wanted | {"gdt": Segment(0, 40, 41, 0), "idt": Segment(0, 42, 43, 0)}
    assert (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer) == (None, None, None, 0x20, None)


def test_the_number_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registers, "MAX_CPUS", 2)
    assert len(parse_info_registers("CPU#7 (halted)\n" + TWO)) == 2
    with pytest.raises(FormatError, match=r"^info registers shows 3 CPUs, more than 2$"):
        parse_info_registers(TWO + "CPU#2\nCR0=1\n")
