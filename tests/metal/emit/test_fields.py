"""Addresses in AArch64's instructions, with Capstone's reading of them as the witness."""

from __future__ import annotations

import capstone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.metal.check.check import check
from fivefold.metal.emit.fields import fill
from fivefold.metal.emit.intrinsics import Target
from fivefold.metal.emit.link import link
from fivefold.metal.emit.llvm import write
from fivefold.metal.emit.objects import emit
from fivefold.metal.program import Program

PLACE = 0x7F00_0000_1234 & ~3
ADRP, BRANCH, CALL, ADD, LOAD64, LOAD32, LOAD16, LOAD8 = (
    *(0x9000_0001, 0x1400_0000, 0x9400_0000, 0x9100_0021),
    *(0xF940_0021, 0xB940_0021, 0x7940_0021, 0x3940_0021),
)


def disassembled(code: bytes, place: int = PLACE) -> list[tuple[str, str]]:
    engine = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    return [(found.mnemonic, found.op_str) for found in engine.disasm(code, place)]


def read(word: int | None) -> str:
    assert word is not None
    ((_, operands),) = disassembled(word.to_bytes(4, "little"))
    return operands.rpartition("#")[2].rstrip("]") if "#" in operands else "0"


@given(st.integers(-(1 << 32) + (1 << 12), (1 << 32) - (1 << 12)))
def test_a_page(distance):
    value = PLACE + distance

    assert int(read(fill("adrp", ADRP, value, PLACE)), 0) == value & ~0xFFF


@given(st.integers(-(1 << 25), (1 << 25) - 1), st.sampled_from([BRANCH, CALL]))
def test_a_branch(words, instruction):
    assert int(read(fill("b26", instruction, PLACE + 4 * words, PLACE)), 0) == PLACE + 4 * words


@given(
    st.integers(0, (1 << 48) - 1),
    st.sampled_from(
        [("lo12", ADD, 0), ("lo12", LOAD8, 0), ("lo12>>1", LOAD16, 1), ("lo12>>2", LOAD32, 2), ("lo12>>3", LOAD64, 3)]
    ),
)
def test_the_low_bits(value, case):
    form, instruction, shift = case
    value = value >> shift << shift

    assert int(read(fill(form, instruction, value, PLACE)), 0) == value & 0xFFF


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("adrp", PLACE + (1 << 32) + (1 << 12)),
        ("adrp", PLACE - (1 << 32) - (1 << 12)),
        ("b26", PLACE + (1 << 27)),
        ("b26", PLACE - (1 << 27) - 4),
        ("b26", PLACE + 2),
        ("lo12>>3", 0x1004),
        ("lo12>>1", 1),
    ],
)
def test_what_does_not_fit(form, value):
    assert fill(form, 0, value, PLACE) is None


def test_linked_code_reaches_its_data(make_module):
    """Variables of two groups far apart, and a call: each address that the code forms is that of the symbol."""
    name = make_module(
        "count: u64 = 7\nBUF: Final = lang.buffer(64)\n@noinline\ndef other(a: u64) -> u64:\n    return a // 3\n"
        "@export\ndef f(a: u64) -> u64:\n    global count\n    count += other(a)\n    return BUF + count\n"
    )
    target = Target("aarch64", host=True)
    linked = link({"p": emit(write(check(Program((name,))), target), target)}, base=0x10000)
    text = linked.group(".text")
    operands = " ".join(" ".join(line) for line in disassembled(text.data, text.address))

    pages = {linked.symbols[f"{name}.{symbol}"] & ~0xFFF for symbol in ("count", "BUF")}
    assert all(f"#{page:#x}" in operands for page in pages), operands
    assert not linked.fixups
