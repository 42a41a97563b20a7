"""`@cold`: never inlined, and its callers keep their registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from unicorn import x86_const as uc

from fivefold.metal.program import Program
from fivefold.metal.run import host, interpreter

SOURCE = """
PLACE: Final = buffer(64)
hits: u64 = 0

@cold
def rare(value: u64, count: u64) -> u64:
    global hits
    hits += 1
    fill64(PLACE, value, count)
    return load64(PLACE) * 3 ^ count

@export
def total(a: u64, b: u64) -> u64:
    found = a ^ b
    for i in range(4):
        if (a >> i) & 1 != 0:
            found = found * 5 + rare(b + i, 1 + i)
    return found ^ a
"""
KEPT = {
    name: getattr(uc, f"UC_X86_REG_{name}") for name in ("RCX", "RDX", "RSI", "RDI", "R8", "R9", "R10", "RBX", "R12")
}


@pytest.fixture(scope="module")
def program(make_module: Callable[[str], str]) -> Program:
    """A function that calls a cold one in some rounds; the latter is a root too."""
    name = make_module(SOURCE)
    return Program((name,), roots=(f"{name}.rare",))


@pytest.mark.parametrize("a", [0, 1, 5, 0xFFFF_FFFF_FFFF_FFFE])
def test_same_results_everywhere(program: Program, emulated: Callable[..., Any], a: int) -> None:
    name = f"{program.modules[0]}.total"
    want = interpreter.load(program).call(name, a, 77)

    assert want == host.load(program).call(name, a, 77)
    assert want == emulated(program).call(name, a, 77)


def test_callers_keep_their_registers(program: Program, emulated: Callable[..., Any]) -> None:
    machine = emulated(program)
    for number, register in enumerate(KEPT.values(), 0x1000):
        machine.uc.reg_write(register, number)
    machine.call(f"{program.modules[0]}.rare", 3, 4)

    assert {name: machine.uc.reg_read(register) for name, register in KEPT.items()} == {
        name: {"RDI": 3, "RSI": 4}.get(name, number) for number, name in enumerate(KEPT, 0x1000)
    }
    assert machine.get(f"{program.modules[0]}.hits") == 1


def test_in_32_bit_code(make_module: Callable[[str], str], emulated: Callable[..., Any]) -> None:
    name = make_module(
        "@cold\ndef rare(a: u64) -> u64:\n    return a * 3\n\n@export\ndef f(a: u64) -> u64:\n    return rare(a) + 1\n"
    )

    assert emulated(Program((name,)), arch="i386").call(f"{name}.f", 1 << 40) == (3 << 40) + 1
