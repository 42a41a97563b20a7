"""Symbols of a file where the kernel in memory lies: moved as far as it was, by the best that says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fivefold.errors import FormatError, MemoryReadError
from fivefold.survey.guest.bases import KernelBases
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.vmcoreinfo import KernelNotes
from fivefold.survey.names.fitting import fitted
from fivefold.symbols import Symbols, SymbolSpan
from fivefold.units import PhysAddr

LINKED, SLIDE = 0xFFFF_FFFF_8100_0000, 0x1A00_0000
MODULE = 0xFFFF_FFFF_C000_0000
KERNEL = [(LINKED, "T", "_text"), (LINKED + 0x1000, "T", "_stext"), (LINKED + 0x8000, "R", "linux_banner")]
NOTHING = KernelBases.unknown("made here")
FOUND = replace(NOTHING, kernel_text=Found(LINKED + SLIDE, "made here"))


def symbols(kernel: list[tuple[int, str, str]] = KERNEL) -> Symbols:
    spans = [SymbolSpan.of(kernel, LINKED + 0x10000), SymbolSpan.of([(MODULE, "T", "open")], MODULE + 64, "toy")]
    return Symbols(spans, "a file")


class Banner:
    """Memory that has Linux' banner at one address, another text at all others, or nothing."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def read(self, va: int, size: int) -> bytes:
        if self.at is None:
            raise MemoryReadError(PhysAddr(va), size, "made here")
        return b"Linux version 6.1.0"[:size] if va == self.at else bytes(size)


def fit(bases: KernelBases, facts: dict[str, str], slide: int, kernel: list[tuple[int, str, str]] = KERNEL) -> Symbols:
    memory: Any = Banner(LINKED + 0x8000 + slide)
    return fitted(symbols(kernel), memory, bases, KernelNotes(facts, "a note"))


@pytest.mark.parametrize("name", ["_stext", "_text"])
def test_notes_say_how_far(name: str) -> None:
    """Before what the tables show, which is where the first code is mapped."""
    at = {symbol: at for at, _, symbol in KERNEL}[name]
    wrong = replace(NOTHING, kernel_text=Found(LINKED + 0x20_0000, "made here"))
    found = fit(wrong, {f"SYMBOL({name})": hex(at + SLIDE)}, SLIDE)
    assert found.address("_text") == LINKED + SLIDE and found.at(LINKED + SLIDE + 0x1002) == "_stext+0x2"


def test_the_first_code_says_how_far() -> None:
    assert fit(FOUND, {}, SLIDE).address("_stext") == LINKED + SLIDE + 0x1000
    assert fit(FOUND, {"SYMBOL(_stext)": "junk"}, SLIDE).address("_text") == LINKED + SLIDE


def test_a_kernel_may_have_moved_down() -> None:
    down = {"SYMBOL(_stext)": hex(LINKED + 0x1000 - 0x40_0000)}
    assert fit(NOTHING, down, -0x40_0000).address("_text") == LINKED - 0x40_0000


def test_modules_of_another_boot_are_left_out() -> None:
    assert fit(FOUND, {}, SLIDE).at(MODULE + 1) is None
    stood = fit(replace(NOTHING, kernel_text=Found(LINKED, "made here")), {}, 0)
    assert (str(stood.at(MODULE + 1)), stood.how) == ("open+0x1 [toy]", "a file")


def test_not_moved_where_nothing_says_how_far() -> None:
    found = fit(NOTHING, {}, 0)
    assert found.address("_text") == LINKED
    assert found.how == "a file, not moved: nothing shows where the code begins"
    assert fit(FOUND, {}, 0, KERNEL[1:]).how == found.how


def test_symbols_of_another_kernel_are_refused() -> None:
    with pytest.raises(FormatError):
        fit(FOUND, {}, SLIDE + 8)


def test_a_dump_of_tables_alone_cannot_show_that() -> None:
    memory: Any = Banner(None)
    assert fitted(symbols(), memory, FOUND, KernelNotes({}, "a note")).address("_text") == LINKED + SLIDE
    without = KERNEL[:2]
    assert fit(FOUND, {}, 0, without).address("_text") == LINKED + SLIDE
