"""What an instruction is about to touch. The only module that imports capstone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fivefold.arch import FETCH, MSRS, Access, Kind, Register
from fivefold.memory import CpuState
from fivefold.units import MASK64, hex64

ReadMemory = Callable[[int, int], int | None]
"""Read a little-endian number of (address, size) from the guest's virtual memory; None if it cannot be."""

LONGEST: Final = 15

_PUSHES: Final = frozenset({"push", "call", "enter", "pushfq", "pushfd", "pushf", "lcall"})
_POPS: Final = frozenset({"pop", "ret", "popfq", "popfd", "popf", "iretq", "iretd", "iret", "retf", "retfq", "leave"})
_FAR: Final = ("iret", "retf")
"""Returns that pop more than one number; without REX.W these have 4 bytes, in 64-bit mode too."""
_NO_ACCESS: Final = frozenset(
    {"lea", "nop", "invlpg", "prefetch", "prefetchw", "prefetchwt1", "prefetcht0", "prefetcht1", "prefetcht2",
     "prefetchnta", "cldemote"}
)  # fmt: skip
_STORES: Final = ("mov", "vmov", "pextr", "vpextr", "extractps", "vextract", "fst", "fist", "fnst", "stmxcsr", "ins",
                  "vmaskmov", "vpmaskmov", "rol", "ror", "rcl", "rcr", "shl", "shr", "sal", "sar")  # fmt: skip
"""What stores to a first operand in memory; capstone 5 has many of these as reads."""
_EXCHANGES: Final = frozenset({"cmpxchg", "cmpxchg8b", "cmpxchg16b"})
_BIT_STRINGS: Final = frozenset({"bt", "bts", "btr", "btc"})
_AREAS: Final = {"fxsave": 512, "fxsave64": 512, "fxrstor": 512, "fxrstor64": 512, "fnsave": 108, "frstor": 108}
"""Sizes that capstone does not know. The XSAVE area has at least its legacy part and header."""
_XSAVE_AREA: Final = 576
_LOADS: Final = frozenset({"frstor"})
"""What only reads, and capstone 5 has as a write."""
_PRIVILEGED: Final = frozenset({"rdmsr", "clts", "monitor", "mwait"})
"""What needs level 0 and is in no group of capstone 5."""
_SEGMENTS: Final = frozenset({"ds", "es", "fs", "gs", "ss"})
_ON_PURPOSE: Final = frozenset({"int3", "int1", "int", "into", "ud2", "ud1", "ud0"})
_CONTROL: Final = {"cr0": Register.CR0, "cr3": Register.CR3, "cr4": Register.CR4}
_TABLES: Final = {"lgdt": Register.GDTR, "lidt": Register.IDTR}
_BASES: Final = {"wrfsbase": Register.FS_BASE, "wrgsbase": Register.GS_BASE}


class Use(NamedTuple):
    """One access to memory, at its effective address; *text* says which part of the instruction makes it."""

    va: int
    how: Access
    text: str

    @property
    def is_of_stack(self) -> bool:
        """Whether a push or a pop makes it, or RSP addresses it. RBP may hold any pointer."""
        return self.text.startswith(("a push", "a pop")) or "rsp" in self.text or "esp" in self.text

    @property
    def moves_stack(self) -> bool:
        """Whether a push or a pop makes it."""
        return self.text.startswith(("a push", "a pop"))


class ControlWrite(NamedTuple):
    """A write to a control register, an MSR or a descriptor-table register."""

    register: Register
    value: int


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; *at* is None where its address is not known, *uses* in the order in which the CPU makes them.

    *on_purpose*: its whole effect is an exception (INT n, INT3, UD2). *privileged*: it needs privilege level 0.
    """

    at: int | None
    size: int
    text: str
    uses: tuple[Use, ...]
    write: ControlWrite | None = None
    on_purpose: bool = False
    privileged: bool = False


def decode(code: bytes, at: int | None, registers: CpuState, load: ReadMemory, bits: int = 64) -> Instruction | None:
    """The instruction that *code* starts with, None if it is none or too short.

    Addresses come from *registers* as they are before it; what it needs from memory (a
    return address, the operand of LIDT) from *load*. A use whose address is not known is left out. None, too, where
    there is no decoder (`can_decode`), as in a browser.
    """
    if not can_decode():
        return None
    raw = next(_engine(bits).disasm(code[:LONGEST], at or 0, 1), None)
    if raw is None:
        return None
    reader = _Reader(raw, registers, load, bits, at is not None)
    return Instruction(
        at,
        raw.size,
        _text(raw, at is not None),
        tuple(reader.uses()),
        reader.control_write(),
        raw.mnemonic in _ON_PURPOSE,
        reader.is_privileged(),
    )


def _text(raw: Any, knows_rip: bool) -> str:
    """The instruction as it is written; the target of a branch from the instruction's start, if that is not known."""
    import capstone

    if knows_rip or capstone.CS_GRP_BRANCH_RELATIVE not in raw.groups:
        return f"{raw.mnemonic} {raw.op_str}".strip()
    target = raw.operands[0].imm
    return f"{raw.mnemonic} .{'+' if target >= 0 else '-'}{abs(target):#x}"


def listing(code: bytes, bits: int = 64) -> Iterator[tuple[int, bytes, str]]:
    """Offset, bytes and text of each instruction of *code*, up to what is none. Needs the decoder (`can_decode`)."""
    for raw in _engine(bits).disasm(code, 0):
        yield raw.address, bytes(raw.bytes), f"{raw.mnemonic} {raw.op_str}".strip()


@functools.cache
def can_decode() -> bool:
    """Whether instructions can be decoded here at all: capstone is native code, which not every Python can load."""
    try:
        import capstone  # noqa: F401
    except ImportError:
        return False
    return True


@functools.cache
def _engine(bits: int) -> Any:
    import capstone

    modes = {64: capstone.CS_MODE_64, 32: capstone.CS_MODE_32, 16: capstone.CS_MODE_16}
    engine = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
    engine.detail = True
    return engine


class _Reader:
    """One decoded instruction with the registers that it would see."""

    def __init__(self, raw: Any, registers: CpuState, load: ReadMemory, bits: int, knows_rip: bool) -> None:
        self._raw, self._registers, self._load, self._bits = raw, registers, load, bits
        self._knows_rip = knows_rip
        # ``rep movsq`` and ``lock add`` are one mnemonic each.
        self._name: str = raw.mnemonic.split()[-1]

    def uses(self) -> Iterator[Use]:
        """The accesses, reads before writes before what a branch fetches."""
        if self._name in _NO_ACCESS or self._is_idle_string():
            return
        found = [use for number, operand in enumerate(self._raw.operands) for use in self._operand(operand, number)]
        yield from sorted(found, key=lambda use: use.how.kind is Kind.WRITE)
        yield from self._stack()
        if (target := self._target()) is not None:
            yield Use(target, FETCH, "the target of the branch")

    def control_write(self) -> ControlWrite | None:
        """What it writes to a control register or MSR, None if nothing or not known."""
        operands = self._raw.operands
        if self._name == "wrmsr":
            return self._msr()
        if self._name in _TABLES:
            base = self._loaded(operands[0], 2, 8 if self._bits == 64 else 4)
            return None if base is None else ControlWrite(_TABLES[self._name], base)
        if self._name in _BASES or (self._name == "mov" and self._register_name(operands[0]) in _CONTROL):
            value = self._value(operands[-1])
            target = _BASES.get(self._name) or _CONTROL[self._register_name(operands[0])]
            return None if value is None else ControlWrite(target, value)
        return None

    def is_privileged(self) -> bool:
        """Whether the manual has it as an instruction for level 0."""
        import capstone

        if self._name == "mov" and self._register_name(self._raw.operands[0]) in _SEGMENTS:
            return False  # capstone 5 has it as one
        return self._name in _PRIVILEGED or capstone.CS_GRP_PRIVILEGE in self._raw.groups

    def _msr(self) -> ControlWrite | None:
        index, low, high = (self._number(name) for name in ("rcx", "rax", "rdx"))
        if index is None or low is None or high is None or index & 0xFFFFFFFF not in MSRS:
            return None
        return ControlWrite(MSRS[index & 0xFFFFFFFF], (high & 0xFFFFFFFF) << 32 | low & 0xFFFFFFFF)

    # -- operands ------------------------------------------------------------------------

    def _operand(self, operand: Any, number: int) -> Iterator[Use]:
        from capstone import CS_AC_WRITE
        from capstone.x86 import X86_OP_MEM

        if operand.type != X86_OP_MEM or (va := self._address(operand)) is None:
            return
        stores = self._name in _EXCHANGES or (not number and self._name.startswith(_STORES))
        # A read-modify-write is refused as a write.
        writes = stores or (operand.access & CS_AC_WRITE and self._name not in _LOADS)
        kind = Kind.WRITE if writes else Kind.READ
        if self._name in _BIT_STRINGS and (bit := self._bit_offset(operand.size)):
            va = va + bit & MASK64
        yield Use(va, Access(kind, self._size(operand), stack=self._is_on_stack(operand)), self._spelled(operand))

    def _size(self, operand: Any) -> int:
        if self._name.startswith(("xsave", "xrstor")):
            return _XSAVE_AREA
        return _AREAS.get(self._name) or max(1, int(operand.size))

    def _bit_offset(self, size: int) -> int:
        """How far from its operand a bit test in memory goes: by the whole words in the register's signed number."""
        value = self._number(self._register_name(self._raw.operands[1]))
        if value is None:
            return 0
        signed = value - (value >> 8 * size - 1 << 8 * size)
        return signed // (8 * size) * size

    def _address(self, operand: Any) -> int | None:
        memory = operand.mem
        parts = [self._part(memory.base), self._part(memory.index)]
        if None in parts:
            return None
        base, index = parts
        assert base is not None and index is not None
        if memory.base and self._raw.reg_name(memory.base) in ("rip", "eip"):
            if not self._knows_rip:
                return None
            base = self._raw.address + self._raw.size
        offset = base + index * memory.scale + memory.disp & MASK64
        if self._raw.addr_size == 4:
            offset &= 0xFFFFFFFF
        segment = self._segment_base(memory.segment)
        return None if segment is None else segment + offset & (MASK64 if self._bits == 64 else 0xFFFFFFFF)

    def _part(self, register: int) -> int | None:
        if not register:
            return 0
        name = self._raw.reg_name(register)
        return 0 if name in ("rip", "eip", "riz", "eiz") else self._number(name)

    def _segment_base(self, register: int) -> int | None:
        name = self._raw.reg_name(register) if register else "ds"
        if self._bits == 64 and name not in ("fs", "gs"):
            return 0
        known = self._registers.segments.get(name)
        if known is not None:
            return known.base
        # A core's general registers have it as a number of its own.
        base = self._registers.general.get(f"{name}_base")
        return base if base is not None or name in ("fs", "gs") else 0

    def _is_on_stack(self, operand: Any) -> bool:
        base = self._raw.reg_name(operand.mem.base) if operand.mem.base else ""
        return base in ("rsp", "rbp", "esp", "ebp") and not operand.mem.segment

    def _spelled(self, operand: Any) -> str:
        memory = operand.mem
        names = [self._raw.reg_name(memory.base)] if memory.base else []
        if memory.index:
            names.append(self._raw.reg_name(memory.index) + (f" * {memory.scale}" if memory.scale > 1 else ""))
        text = " + ".join(names)
        if memory.disp or not names:
            sign = "-" if memory.disp < 0 and names else "+"
            number = f"{abs(memory.disp):#x}" if names else hex64(memory.disp & MASK64)
            text = f"{text} {sign} {number}" if names else number
        return f"[{text}]"

    # -- what is not in the operands -------------------------------------------------------

    def _word(self) -> int:
        """The size of what a push or a pop moves."""
        if self._raw.prefix[2] == 0x66:
            return 2
        is_short = self._name.startswith(_FAR) and not self._name.endswith("q")
        return min(4, self._bits // 8) if is_short else self._bits // 8

    def _popped(self) -> int:
        """How many words a pop takes. IRET takes the stack pointer in 64-bit mode always."""
        if self._name.startswith("iret"):
            return 5 if self._bits == 64 else 3
        return 2 if self._name.startswith("retf") else 1

    def _stack(self) -> Iterator[Use]:
        word = self._word()
        rsp = self._number("rsp")
        if rsp is None:
            return
        mask = MASK64 if self._bits == 64 else 0xFFFFFFFF
        if self._name in _PUSHES:
            yield Use(rsp - word & mask, Access(Kind.WRITE, word, stack=True), f"a push to RSP - {word}")
        elif self._name in _POPS:
            size = word * self._popped()
            at = self._number("rbp") if self._name == "leave" else rsp
            if at is not None:
                yield Use(at & mask, Access(Kind.READ, size, stack=True), f"a pop from {'RBP' if at != rsp else 'RSP'}")

    def _target(self) -> int | None:
        """Where a branch goes, None if it is none or not known. Conditional ones may stay."""
        import capstone

        groups = self._raw.groups
        if self._name.startswith(("ret", "iret")):
            rsp = self._number("rsp")
            return None if rsp is None else self._load(rsp, self._word())
        if self._name not in ("jmp", "call") or not {capstone.CS_GRP_CALL, capstone.CS_GRP_JUMP} & set(groups):
            return None
        operand = self._raw.operands[0]
        if not self._knows_rip and not self._register_name(operand):
            return None
        value = self._value(operand)
        return value if value is not None else self._loaded(operand, 0, self._bits // 8)

    def _is_idle_string(self) -> bool:
        """A repeated string instruction with a count of zero touches nothing."""
        return self._raw.prefix[0] in (0xF2, 0xF3) and self._raw.mnemonic.startswith("rep") and not self._number("rcx")

    # -- values ----------------------------------------------------------------------------

    def _register_name(self, operand: Any) -> str:
        from capstone.x86 import X86_OP_REG

        return str(self._raw.reg_name(operand.reg)) if operand.type == X86_OP_REG else ""

    def _value(self, operand: Any) -> int | None:
        from capstone.x86 import X86_OP_IMM

        if operand.type == X86_OP_IMM:
            return int(operand.imm) & MASK64
        name = self._register_name(operand)
        return self._number(name) if name else None

    def _loaded(self, operand: Any, offset: int, size: int) -> int | None:
        from capstone.x86 import X86_OP_MEM

        if operand.type != X86_OP_MEM or (va := self._address(operand)) is None:
            return None
        return self._load(va + offset, size)

    def _number(self, name: str) -> int | None:
        """A general register by any of its names; parts of one byte are not asked for."""
        if name in self._registers.general:
            return self._registers.general[name]
        if name.startswith("e") or (name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")):
            wide = self._registers.general.get("r" + name.removeprefix("e"))
            return None if wide is None else wide & (0xFFFFFFFF if name.startswith("e") else 0xFFFF)
        if name[:1] == "r" and name[-1:] in "dw":
            wide = self._registers.general.get(name[:-1])
            return None if wide is None else wide & (0xFFFFFFFF if name[-1] == "d" else 0xFFFF)
        return None
