"""Encodings of the policed instructions, as an assembler gives them."""

from __future__ import annotations

import pytest

from fivefold.machine.unicorn.decode import LoadTable, MovToCr, WriteMsr, decode, interrupt_length

RIP = 0x201000
# Register n holds n * 0x1000 + 0x100.
VECTORS = """
64 0f22d8              cr3 gpr 0                   mov cr3, rax
64 410f22e1            cr4 gpr 9                   mov cr4, r9
64 440f22c0            cr8 gpr 0                   mov cr8, rax
32 0f22c1              cr0 gpr 1                   mov cr0, ecx
16 660f22c0            cr0 gpr 0                   mov cr0, eax
64 0f30                wrmsr                      wrmsr
64 0f0118              idt 0x100                   lidt [rax]
64 0f011590000000      gdt 0x201097                lgdt [rip+0x90]
64 410f015908          idt 0x9108                  lidt [r9+8]
64 0f019424f0ffffff    gdt 0x40f0                  lgdt [rsp-0x10]
64 0f015c8b04          idt 0x7504                  lidt [rbx+rcx*4+4]
64 420f01146e          gdt 0x20300                 lgdt [rsi+r13*2]
64 0f011425003020ff    gdt 0xffffffffff203000      lgdt [0xffffffffff203000]
64 670f0110            gdt 0x100                   lgdt [eax]
32 0f0115041f2000      gdt 0x201f04                lgdt [0x201f04]
32 0f011c24            idt 0x4100                  lidt [esp]
16 0f01160080          gdt 0x8000                  lgdt [0x8000]
16 0f011f              idt 0x3100                  lidt [bx]
16 0f0118              idt 0x9200                  lidt [bx+si]
16 670f0118            idt 0x100                   lidt [eax]
64 0f20d8              none                        mov rax, cr3
64 0f01f8              none                        swapgs
64 0f0120              none                        smsw [rax]
64 0f01d0              none                        xgetbv
64 0f32                none                        rdmsr
64 0f22                none                        cut short
64 0f0115900000        none                        cut short
64 0f0114              none                        cut short
64 66                  none                        cut short
"""


def spelled(found):
    match found:
        case MovToCr(number, gpr):
            return f"cr{number} gpr {gpr}"
        case LoadTable(name, address):
            return f"{name} {address:#x}"
        case WriteMsr():
            return "wrmsr"
    return "none"


@pytest.mark.parametrize("line", VECTORS.strip().splitlines())
def test_vectors(line):
    bits, code, want = line.split(maxsplit=2)
    found = decode(bytes.fromhex(code), RIP, int(bits), lambda number: number * 0x1000 + 0x100)

    assert want.startswith(spelled(found) + " ")


@pytest.mark.parametrize(
    ("before", "vector", "length"), [(b"\xcd\x80", 0x80, 2), (b"\x90\xcc", 3, 1), (b"\xcd\x03", 3, 2), (b"", 4, 1)]
)
def test_length_of_software_interrupts(before, vector, length):
    assert interrupt_length(before, vector) == length
