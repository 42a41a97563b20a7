"""Count the instructions that folding costs, on an emulated CPU: exact, and the same on every machine.

A build with the mode as a variable, one with it as a constant (as the kernel is compiled,
twice), with a jump label patched at boot, and one where the other mode does not exist. The constant
and the last must be the same code.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Final

import unicorn
from unicorn import x86_const as uc

from fivefold.kernel.modes import MODES
from fivefold.metal.emit.elf import read_object
from fivefold.metal.emit.link import DEFAULT_GROUPS, Group, link
from fivefold.metal.emit.objects import compile_object
from fivefold.metal.program import Program
from jump_label import compile_with_jump_label, patches
from measure import Claim, Row, arguments, tell

CALLS: Final = 1000
PGTABLE: Final = "fivefold.kernel.paging.pgtable"
LOOPS: Final = ("not_inlined", "inlined")
ONE_MODE: Final = {"la57": "one_mode.five_levels", "la48": "one_mode.four_levels"}

BASE: Final = 0x40_0000
STACK: Final = 0x7000_0000
RETURN: Final = 0x1000_0000
TABLES: Final = 0x2000_0000
VA: Final = 0xFF11_0000_0000_0000
PAGE: Final = 0x1000


@dataclass(frozen=True)
class Build:
    """One object, with the mode that it is run in."""

    object: bytes
    mode: str
    patched: bool = False
    """Whether its jump labels are patched before it runs."""

    @property
    def text(self) -> bytes:
        """The code, before addresses are filled in."""
        return b"".join(s.data for s in read_object(self.object, self.mode).sections if s.executable)

    def count(self, loop: str) -> int:
        """Instructions of one run of *loop*."""
        linked = link([self.object], base=BASE, groups=(*DEFAULT_GROUPS, Group(".sites", (".sites",))))
        machine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        machine.mem_map(BASE, (linked.end - BASE + PAGE - 1) & -PAGE)
        machine.mem_write(BASE, linked.flat())
        for place in (STACK, RETURN, TABLES):
            machine.mem_map(place, 2 * PAGE)
        # One PGD entry and the P4D table behind it: physical and virtual addresses are the same here.
        machine.mem_write(TABLES, (TABLES + PAGE | 0x67).to_bytes(8, "little"))
        for name, value in MODES[self.mode].items():
            if f"pgtable.{name}" in linked.symbols:
                machine.mem_write(linked.symbols[f"pgtable.{name}"], value.to_bytes(8, "little"))
        if self.patched:
            for at, code in patches(linked, self.mode == "la57").items():
                machine.mem_write(at, code)
        machine.mem_write(STACK + PAGE, RETURN.to_bytes(8, "little"))
        for register, value in (
            (uc.UC_X86_REG_RSP, STACK + PAGE),
            (uc.UC_X86_REG_RDI, TABLES),
            (uc.UC_X86_REG_RSI, VA),
            (uc.UC_X86_REG_RDX, CALLS),
        ):
            machine.reg_write(register, value)
        counted = _count_from(machine)
        machine.emu_start(linked.symbols[loop], RETURN)
        found = machine.reg_read(uc.UC_X86_REG_RAX)
        if found != expected(self.mode):
            raise SystemExit(f"{self.mode}, {loop}: the answers came to {found:#x}, not {expected(self.mode):#x}")
        return counted[0]


@dataclass(frozen=True)
class Counts:
    """Instructions of both loops in one build."""

    not_inlined: int
    inlined: int

    def __str__(self) -> str:
        return f"{self.not_inlined:,} not inlined, {self.inlined:,} inlined"

    def to_json(self) -> dict[str, int]:
        """Both numbers by name."""
        return asdict(self)


def _count_from(machine: unicorn.Uc) -> list[int]:
    counted = [0]

    def one(*_: object) -> None:
        counted[0] += 1

    machine.hook_add(unicorn.UC_HOOK_CODE, one)
    return counted


def expected(mode: str) -> int:
    """What the answers come to, mixed as the loops do."""
    mixed = 0
    for i in range(CALLS):
        mixed ^= TABLES + PAGE + 8 * (i & 511) if mode == "la57" else TABLES
    return mixed


def builds(mode: str) -> dict[str, Build]:
    """The builds for one mode: variable, jump label before and after patching, constant, and no other mode."""
    bound = {f"{PGTABLE}.{name}": value for name, value in MODES[mode].items()}
    only = {f"{PGTABLE}.p4d_offset": ONE_MODE[mode]}
    programs = {
        "plain variable": Program(("fold_loop",)),
        "compile-time constant": Program(("fold_loop",), bindings=bound),
        "one mode only": Program(("fold_loop",), replace=only),
    }
    made = {name: Build(compile_object(program), mode) for name, program in programs.items()}
    # In the arm for five levels there always are 512 entries: the label decides, not the number.
    label = compile_with_jump_label(Program(("fold_loop",), bindings={f"{PGTABLE}.ptrs_per_p4d": 512}))
    made["jump label, before patching"] = Build(label, mode)
    made["jump label, patched"] = Build(label, mode, patched=True)
    return made


def main() -> int:
    """Count both loops in every build."""
    options = arguments("Count what folding costs.", rounds=1)
    rows: dict[str, Row | int | str] = {}
    claims = []
    for mode in MODES:
        made = builds(mode)
        counts = {name: Counts(*map(build.count, LOOPS)) for name, build in made.items()}
        rows |= {f"{mode}, {name}": found for name, found in counts.items()}
        ours, fixed = counts["compile-time constant"], counts["one mode only"]
        claims += [
            Claim(
                f"{mode}, {loop}, beyond one mode only", getattr(ours, loop) - getattr(fixed, loop), 0, "instructions"
            )
            for loop in LOOPS
        ]
        differs = made["compile-time constant"].text != made["one mode only"].text
        claims.append(Claim(f"{mode}, the same machine code", int(differs), 0, "differences"))
    return tell("fivefold.bench.fold/1", rows, claims, options.json, counts=f"instructions per {CALLS} calls")


if __name__ == "__main__":
    sys.exit(main())
