"""What metal objects look like, and that they are the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fivefold.errors import ImageError
from fivefold.metal.check.check import check
from fivefold.metal.emit.elf import read_object
from fivefold.metal.emit.intrinsics import Target
from fivefold.metal.emit.llvm import write
from fivefold.metal.emit.objects import compile_object, emit
from fivefold.metal.program import Program

CONSTRUCTS = Program(("metal_constructs",))
ONE = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from fivefold.metal.emit.objects import compile_object
from fivefold.metal.program import Program
print(hashlib.sha256(compile_object(Program(("metal_constructs",)), prefix="p_")).hexdigest())
"""


def test_same_bytes_in_every_process():
    here = hashlib.sha256(compile_object(CONSTRUCTS, prefix="p_")).hexdigest()
    programs = str(Path(__file__).parents[1] / "programs")
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", ONE, programs],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )

        assert here == run.stdout.strip()


def test_relocations_are_relative_only():
    found = read_object(compile_object(CONSTRUCTS, prefix="p_"))

    assert {relocation.form for relocation in found.relocations} == {"pc32"}
    assert {section.name for section in found.sections if section.size} == {".text", ".rodata", ".data", ".bss"}


def test_32_bit_code_has_no_relocations():
    assert read_object(compile_object(Program(("metal_small",)), arch="i386")).relocations == ()


def symbols(data):
    return {symbol.name for symbol in read_object(data).symbols if symbol.is_global and symbol.section is not None}


def test_symbols_carry_the_prefix_and_the_module():
    found = symbols(compile_object(CONSTRUCTS, prefix="la57_"))

    assert {
        "la57_divide",
        "la57_metal_constructs.counter",
        "la57_metal_constructs.BUF",
        "la57_metal_other.shared",
    } <= found
    assert all(name.startswith("la57_") for name in found)
    assert not any("counted" in name for name in found)


def test_ambiguous_modules_keep_their_full_names(make_module):
    for package in ("pack1", "pack2"):
        (make_module.place / package).mkdir()
        (make_module.place / package / "__init__.py").write_text("")
        text = f"level: u64 = 4\n@export\ndef get_{package}() -> u64:\n    return level\n"
        make_module(text, name=f"{package}/same")
    found = symbols(compile_object(Program(("pack1.same", "pack2.same"))))

    assert {"pack1.same.level", "pack2.same.level"} <= found


def test_variables_are_data_even_when_zero(make_module):
    name = make_module(
        "zero: u64 = 0\nBUF: Final = buffer(64)\n@export\ndef f() -> u64:\n    return zero + load64(BUF)\n"
    )
    sections = {section.name: section for section in read_object(compile_object(Program((name,)))).sections}

    assert (len(sections[".data"].data), len(sections[".bss"].data), sections[".bss"].size) == (8, 0, 64)


def test_bound_mode_costs_nothing(make_module):
    """A helper that folds a level, with the mode bound, is the same code as one written for that mode."""
    text = "top: u64 = 39\n@export\ndef f(a: u64) -> u64:\n    return a >> top if top > 40 else {other}\n"
    folded, written = (
        make_module(text.format(other="a ^ 5")),
        make_module("@export\ndef f(a: u64) -> u64:\n    return a ^ 5\n"),
    )
    code = []
    for program in (Program((folded,), bindings={f"{folded}.top": 39}), Program((written,))):
        code.append(text_of(compile_object(program)))

    assert code[0] == code[1]


def text_of(data):
    return next(section.data for section in read_object(data).sections if section.name == ".text")


def test_loads_happen_as_often_as_they_are_written(make_module):
    """On metal an unused load may be what touches a page; a loop on one may wait for another CPU."""
    name = make_module("@export\ndef f(a: u64) -> None:\n    unused = load64(a)\n    load64(a)\n")

    assert text_of(compile_object(Program((name,)))).count(b"\x48\x8b\x07") == 2  # mov (%rdi), %rax


def test_address_0_is_an_address(make_module):
    """LLVM would take a load from 0 for code that never runs, and drop all that leads to it."""
    name = make_module("@export\ndef f(a: u64) -> u64:\n    return load64(0) + load64(a) if a != 0 else load64(a)\n")
    target = Target("x86_64", host=True)
    code = text_of(emit(write(check(Program((name,))), target), target))

    assert b"\x48\x85\xff" in code  # test %rdi, %rdi: both sides of the choice are there


def test_unknown_architecture():
    with pytest.raises(ImageError, match=r"^no code for 'arm'; expected one of i386, x86_64$"):
        compile_object(CONSTRUCTS, arch="arm")
