"""QEMU's registers and log, from samples of QEMU 7.2."""

from __future__ import annotations

from dataclasses import fields

import pytest

from fivefold.errors import MachineError
from fivefold.machine import ExceptionRecord, Registers
from fivefold.machine.qemu.text import (
    cpu_of,
    ends_in_triple_fault,
    is_halted,
    last_story,
    parse_exceptions,
    parse_registers,
)

LONG = """
CPU#0
RAX=0000000080000001 RBX=1122334455667788 RCX=00000000c0000080 RDX=0000000000000000
RSI=00000000000011c0 RDI=0000000000304000 RBP=0000000000000000 RSP=0000000000320000
R8 =0000000000000008 R9 =0000000000000009 R10=000000000000000a R11=000000000000000b
R12=000000000000000c R13=000000000000000d R14=000000000000000e R15=ff1100000000000f
RIP=000000000020011e RFL=00000046 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=1
ES =0010 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
CS =0023 0000000000000000 ffffffff 00af9a00 DPL=0 CS64 [-R-]
SS =001b 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
LDT=0000 0000000000000000 0000ffff 00008200 DPL=0 LDT
TR =0028 0000000000200190 00000067 00008b00 DPL=0 TSS64-busy
GDT=     0000000000200150 00000037
IDT=     0000000000308000 00000fff
CR0=80000011 CR2=ff11000000001234 CR3=0000000000300000 CR4=00001020
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000500
"""
PROTECTED = """
EAX=00000007 EBX=000021e0 ECX=00200000 EDX=000003f8
ESI=000011c0 EDI=00006ef4 EBP=00000000 ESP=00006edc
EIP=00200014 EFL=00000006 [-----P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
CS =0008 00000000 ffffffff 00cf9a00 DPL=0 CS32 [-R-]
SS =0010 00000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
GDT=     000c0118 00000027
IDT=     00000000 000003ff
CR0=00000011 CR2=00000000 CR3=00000000 CR4=00000000
EFER=0000000000000000
"""
LOG = b"""
check_exception old: 0xffffffff new 0x6
     4: v=06 e=0000 i=0 cpl=0 IP=0008:0000000000200118 pc=0000000000200118 SP=0010:0000000000320000 env->regs[R_EAX]=0
     5: v=80 e=0000 i=1 cpl=0 IP=0008:0000000000200118 pc=0000000000200118 SP=0010:0000000000320000 env->regs[R_EAX]=0
check_exception old: 0xffffffff new 0xe
     6: v=0e e=0002 i=0 cpl=0 IP=0008:0000000000200126 pc=0000000000200126 SP=0010:0000000040000120 CR2=0000000040000118
CR0=80000011 CR2=0000000040000118 CR3=0000000000301000 CR4=00000020
check_exception old: 0xe new 0xe
     7: v=08 e=0000 i=0 cpl=0 IP=0008:0000000000200126 pc=0000000000200126 SP=0010:0000000040000120 env->regs[R_EAX]=1
check_exception old: 0x8 new 0xe
Triple fault
"""


def test_long_mode_registers():
    registers = parse_registers(LONG)

    assert (registers.rax, registers.rbx, registers.r8, registers.r15) == (
        0x80000001,
        0x1122334455667788,
        8,
        0xFF1100000000000F,
    )
    assert (registers.rip, registers.rflags, registers.cpl, registers.cs, registers.ss) == (
        0x20011E,
        0x46,
        3,
        0x23,
        0x1B,
    )
    assert (registers.cr2, registers.cr3, registers.cr4, registers.efer) == (
        0xFF11000000001234,
        0x300000,
        0x1020,
        0x500,
    )
    assert (registers.gdt, registers.idt) == ((0x200150, 0x37), (0x308000, 0xFFF))
    assert is_halted(LONG)


def test_protected_mode_registers():
    registers = parse_registers(PROTECTED)

    assert (registers.rax, registers.rbx, registers.rsp, registers.rip, registers.r8) == (
        7,
        0x21E0,
        0x6EDC,
        0x200014,
        0,
    )
    assert registers.rflags == 6
    assert not is_halted(PROTECTED)


def test_anything_else_is_refused():
    with pytest.raises(MachineError, match=r"^QEMU's registers lack CR0: 'unknown command'$"):
        parse_registers("unknown command")


def test_exceptions_of_the_log():
    assert [record.vector for record in parse_exceptions(LOG)] == [6, 14, 14, 8, 14]
    assert last_story(LOG, 0x40000110) == (
        ExceptionRecord(14, 2, 0x40000118, 0x200126, 0x40000120),
        ExceptionRecord(14, None, None, 0x200126, 0x40000120),
        ExceptionRecord(8, 0, None, 0x200126, 0x40000120),
        ExceptionRecord(14, None, 0x40000110, 0x200126, 0x40000120),
    )
    assert last_story(b"", 0) == ()


def test_the_cpu_that_an_exception_struck_is_the_one_that_is_there() -> None:
    def at(rip: int, rsp: int) -> Registers:
        numbers = dict.fromkeys((field.name for field in fields(Registers) if field.name not in ("gdt", "idt")), 0)
        return Registers(**{**numbers, "rip": rip, "rsp": rsp})

    record = ExceptionRecord(14, 0, 0x1000, 0x5000, 0x9000)
    assert cpu_of([record], [at(1, 2)]) == 0
    assert cpu_of([record], [at(0x5000, 0x8000), at(0x5000, 0x9000)]) == 1
    assert cpu_of([record], [at(0x5000, 0x9000), at(0x5000, 0x9000)]) is None, "both are there"
    assert cpu_of([record], [at(1, 2), at(3, 4)]) is None
    assert cpu_of([], [at(1, 2), at(3, 4)]) is None


@pytest.mark.parametrize(
    ("log", "triple"),
    [
        (b"     7: v=0e e=0000 i=0\ncheck_exception old: 0x8 new 0xd\nTriple fault\nCPU Reset (CPU 0)\n", True),
        (b"Triple fault\n", False),
        (b"\nTriple fault\n     7: v=0e e=0000 i=0\nCPU Reset (CPU 0)\n", False),
        (b"     7: v=0e e=0000 i=0\nCPU Reset (CPU 0)\n", False),
        (b"", False),
    ],
)
def test_a_reset_is_a_triple_fault_where_the_log_says_so(log: bytes, triple: bool) -> None:
    assert ends_in_triple_fault(log) == triple
