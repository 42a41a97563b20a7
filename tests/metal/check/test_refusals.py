"""What the subset does not have is refused with line, construct and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from fivefold.errors import CompileError
from fivefold.metal.check.check import check
from fivefold.metal.emit.objects import compile_object
from fivefold.metal.program import Program

VECTORS = Path(__file__).parents[1] / "vectors" / "refusals.txt"
HEAD_LINES = 5


def cases():
    """Yield title, code and the message with the line counted from the code's first."""
    for block in VECTORS.read_text(encoding="utf-8").split("=== ")[1:]:
        title, _, rest = block.partition("\n")
        code, _, message = rest.partition("--> ")
        yield pytest.param(code, message.strip(), id=title)


@pytest.mark.parametrize(("code", "message"), list(cases()))
def test_refused(make_module, code, message):
    name = make_module(code)
    with pytest.raises(CompileError) as caught:
        check(Program((name,)))
    error = caught.value

    assert Path(error.file).name == f"{name}.py"
    assert message == f"{error.line - HEAD_LINES}: {error.construct}; {error.remedy}"
    assert str(error) == f"{error.file}:{error.line}: {error.construct}; {error.remedy}"


BASE = """
width: u64 = 4
@extern
def outside(a: u64) -> u64: ...
def one(a: u64) -> u64:
    return a
def two(a: u64, b: u64) -> u64:
    return a
@export
def root(a: u64) -> u64:
    return one(a) + outside(a) + width
"""


def refused(name, **options):
    with pytest.raises(CompileError) as caught:
        check(Program((name,), **options))
    return f"{caught.value.construct}; {caught.value.remedy}"


def test_bad_bindings_and_replacements(make_module):
    name = make_module(BASE)

    assert (
        refused(name, bindings={f"{name}.height": 1})
        == f"the binding {name}.height names no variable; bind a module variable"
    )
    assert refused(name, bindings={f"{name}.width": -1}) == (
        "variable width of type u64 is bound to -1; give it a number from 0 to 2**64 - 1"
    )
    assert refused(name, replace={f"{name}.one": f"{name}.none"}) == (
        f"the replacement {name}.none names no function; name a function"
    )
    assert refused(name, replace={f"{name}.one": f"{name}.two"}) == (
        f"{name}.two replaces {name}.one with another signature; take and return the same kinds"
    )
    assert refused("no_such_module") == "there is no module no_such_module; name an importable module"
    assert refused("itertools") == "module itertools has no Python source; name a module of the subset"


def test_two_exports_of_one_name(make_module):
    first, second = (make_module("@export\ndef same() -> u64:\n    return 1\n") for _ in range(2))

    with pytest.raises(
        CompileError, match=rf"{second}.same has the same exported name as {first}.same; rename one of them$"
    ):
        check(Program((first, second)))


IN_32_BITS = {
    "v": "a module variable in 32-bit code; pass its value as an argument, or bind it",
    "BUF": "a buffer in 32-bit code; pass its address as an argument",
    "text_address('x')": "a string in 32-bit code; pass its address as an argument",
    "TABLE[a]": "an indexed tuple in 32-bit code; loop over it, or pass the address of a table",
    "address_of(f)": "address_of in 32-bit code; pass the address as an argument",
    "symbol('x')": "symbol in 32-bit code; pass its address as an argument",
    "a // 3": "a division in 32-bit code; divide by a constant power of two",
    "8 % a": "a division in 32-bit code; divide by a constant power of two",
}


GLOBALS = "v: u64 = 1\nBUF: Final = buffer(8)\nTABLE: Final = (1, 2)\n"


@pytest.mark.parametrize("expression", IN_32_BITS)
def test_refused_in_32_bits(make_module, expression):
    name = make_module(f"{GLOBALS}@export\ndef f(a: u64) -> u64:\n    return {expression}\n")
    with pytest.raises(CompileError) as caught:
        compile_object(Program((name,)), arch="i386")

    assert f"{caught.value.construct}; {caught.value.remedy}" == IN_32_BITS[expression]
    assert caught.value.line == HEAD_LINES + 6
    compile_object(Program((name,)))
