"""Just enough of the instruction set to see what a policed instruction is about to do.

Source: Intel SDM volume 2, "Instruction Format", "ModR/M and SIB Bytes" and the pages of
MOV to control registers, WRMSR, LGDT/LIDT, HLT and INT n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fivefold.units import MASK64

ReadGpr = Callable[[int], int]
"""The value of general register 0 (RAX) to 15 (R15), in the manual's numbering."""


class MovToCr(NamedTuple):
    """``mov crN, gpr``."""

    number: int
    gpr: int


class WriteMsr(NamedTuple):
    """``wrmsr``: index in ECX, value in EDX:EAX."""


class LoadTable(NamedTuple):
    """``lgdt`` or ``lidt``: *name* and the offset of its operand in the data segment."""

    name: str
    address: int


Policed = MovToCr | WriteMsr | LoadTable


def decode(code: bytes, rip: int, bits: int, gpr: ReadGpr) -> Policed | None:
    """What the instruction at *rip* is, None if it is none of those.

    *bits* is the size of the code segment: 64, 32 or 16. Too few bytes of *code* is None too.
    """
    at, rex, address_size = 0, 0, bits
    while at < len(code) and code[at] in b"\x66\x67\xf0\xf2\xf3\x2e\x36\x3e\x26\x64\x65":
        if code[at] == 0x67:
            address_size = {64: 32, 32: 16, 16: 32}[bits]
        at += 1
    if bits == 64 and at < len(code) and code[at] & 0xF0 == 0x40:
        rex, at = code[at], at + 1
    opcode, rest = code[at : at + 2], code[at + 2 :]
    if opcode == b"\x0f\x30":
        return WriteMsr()
    if not rest:
        return None
    if opcode == b"\x0f\x22":
        return MovToCr(rest[0] >> 3 & 7 | rex << 1 & 8, rest[0] & 7 | rex << 3 & 8)
    name = {2: "gdt", 3: "idt"}.get(rest[0] >> 3 & 7)
    if opcode != b"\x0f\x01" or name is None or rest[0] >> 6 == 3:
        return None
    operand = _Operand(rest, rex, address_size, rip + at + 2, gpr)
    address = operand.address()
    return None if address is None else LoadTable(name, address)


def interrupt_length(before: bytes, vector: int) -> int:
    """The length of the software interrupt that ends *before* and raised *vector*: 2 for ``int n``, else 1."""
    return 2 if before == bytes((0xCD, vector)) else 1


class _Operand:
    """The memory operand after an opcode: ModR/M, SIB, displacement."""

    def __init__(self, code: bytes, rex: int, size: int, rip: int, gpr: ReadGpr) -> None:
        self._code, self._rex, self._size, self._rip, self._gpr = code, rex, size, rip, gpr
        self._mod, self._rm = code[0] >> 6, code[0] & 7

    def address(self) -> int | None:
        """The effective address, None if the bytes end too early."""
        try:
            wide = self._wide() if self._size != 16 else self._narrow()
        except IndexError:
            return None
        return wide & ((1 << self._size) - 1)

    def _displacement(self, at: int, size: int) -> int:
        raw = self._code[at : at + size]
        if len(raw) < size:
            raise IndexError
        return int.from_bytes(raw, "little", signed=True)

    def _wide(self) -> int:
        at = 1
        if self._rm == 4:
            base, at = self._sib(), 2
            no_base = self._code[1] & 7 == 5 and self._mod == 0
        else:
            no_base = self._rm == 5 and self._mod == 0
            base = 0 if no_base else self._gpr(self._rm | self._rex << 3 & 8)
        size = 4 if no_base else {0: 0, 1: 1, 2: 4}[self._mod]
        displacement = self._displacement(at, size)
        if no_base and self._rm == 5 and self._size == 64:
            # RIP-relative: from the end of the instruction, which ends with the displacement.
            base = self._rip + at + size
        return base + displacement & MASK64

    def _sib(self) -> int:
        sib = self._code[1]
        index = sib >> 3 & 7 | self._rex << 2 & 8
        value = 0 if index == 4 else self._gpr(index) << (sib >> 6)
        if sib & 7 == 5 and self._mod == 0:
            return value
        return value + self._gpr(sib & 7 | self._rex << 3 & 8)

    def _narrow(self) -> int:
        registers = ((3, 6), (3, 7), (5, 6), (5, 7), (6,), (7,), (5,), (3,))[self._rm]
        if self._rm == 6 and self._mod == 0:
            return self._displacement(1, 2)
        base = sum(self._gpr(number) & 0xFFFF for number in registers)
        return base + self._displacement(1, {0: 0, 1: 1, 2: 2}[self._mod])
