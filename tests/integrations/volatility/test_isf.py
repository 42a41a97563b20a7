"""What an ISF file says of symbols, and what it is refused for, on a kernel made by hand."""

from __future__ import annotations

import base64
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from fivefold.errors import FormatError, MemoryReadError
from fivefold.integrations.volatility.isf import SymbolFile
from fivefold.survey.names.btf import Btf
from fivefold.symbols import Symbols, SymbolSpan

TEXT = 0xFFFF_FFFF_8100_0000
SLIDE = 0x1480_0000
BANNER = b"Linux version 6.1.0-test (someone) #1\n\0"
TABLE = [(0, "D", "fixed_percpu"), (TEXT, "T", "_text"), (TEXT + 0x100, "t", "twice"), (TEXT + 0x200, "T", "twice")]
TABLE += [(TEXT + 0x1000 * n, "D", name) for n, name in enumerate(("init_task", "init_files", "init_mm"), 1)]
TABLE += [(TEXT + 0x8000, "D", "linux_banner"), (TEXT + 0x9000, "D", "idt_table")]


def btf() -> Btf:
    types, texts = struct.pack("<III", 1, 4 << 24, 8), b"\0task_struct\0"
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(texts))
    return Btf(head + types + texts)


class Memory:
    """The banner where it was moved to, and nothing else."""

    def read(self, va: int, size: int) -> bytes:
        at = va - TEXT - SLIDE - 0x8000
        if not 0 <= at < 4096:
            raise MemoryReadError(va, size, "made")
        return BANNER.ljust(4096, b"x")[at : at + size]


def space(slide: int = SLIDE, facts: dict[str, str] | None = None, without: str = "", types: Btf | None = None) -> Any:
    moved = [(at + slide if at else at, kind, name) for at, kind, name in TABLE if name != without]
    kernel = Symbols([SymbolSpan.of(moved, TEXT + slide + 0xA000)], "made kallsyms")
    names = SimpleNamespace(kernel=kernel, btf=types or btf(), btf_is_missing="no BTF here", memory=Memory())
    notes = SimpleNamespace(facts=facts or {}, symbol=lambda name: int((facts or {})[f"SYMBOL({name})"], 16))
    return SimpleNamespace(names=names, notes=notes, source=SimpleNamespace(name="dump"))


@pytest.mark.parametrize("facts", [{}, {"KERNELOFFSET": f"{SLIDE:x}"}])
def test_addresses_are_those_of_the_build(facts: dict[str, str]) -> None:
    """KASLR's slide is taken off, by VMCOREINFO or by where the code begins; per-CPU offsets stay."""
    found = SymbolFile(space(facts=facts))
    symbols = found.document()["symbols"]
    assert found.slide == SLIDE and found.release == "6.1.0-test"
    assert symbols["_text"]["address"] == TEXT and symbols["init_task"]["address"] == TEXT + 0x1000
    assert symbols["fixed_percpu"]["address"] == 0
    assert symbols["twice"]["address"] == TEXT + 0x200  # the global one


def test_the_banner_is_given_as_it_lies_in_memory() -> None:
    """volatility3 looks for these bytes in the dump, the line's end and the NUL with them."""
    banner = SymbolFile(space()).document()["symbols"]["linux_banner"]
    assert base64.b64decode(banner["constant_data"]) == BANNER


def test_symbols_that_only_vmcoreinfo_has() -> None:
    """Those in the kernel's image, moved like the others; addresses elsewhere are values of this boot."""
    facts = {"SYMBOL(kallsyms_names)": f"{TEXT + SLIDE + 0x500:x}", "SYMBOL(vmemmap)": "fff904c2c0000000"}
    symbols = SymbolFile(space(facts=facts)).document()["symbols"]
    assert symbols["kallsyms_names"]["address"] == TEXT + 0x500 and "vmemmap" not in symbols


def test_structures_that_volatility_wants_are_declared() -> None:
    """A kernel without networking has no sock, and the file loads all the same."""
    types = SymbolFile(space()).document()["user_types"]
    assert types["task_struct"]["size"] == 8 and types["unix_sock"] == {"kind": "struct", "size": 0, "fields": {}}


@pytest.mark.parametrize("name", ["init_task", "init_mm", "linux_banner"])
def test_a_kernel_that_lists_functions_only(name: str) -> None:
    """What volatility3 cannot do without is asked for first."""
    with pytest.raises(FormatError, match=rf"none is {name}.*--symbols"):
        SymbolFile(space(without=name))


def test_a_banner_that_is_none() -> None:
    """Symbols of another kernel, or a page that is not in the dump."""
    with pytest.raises(FormatError, match="linux_banner"):
        SymbolFile(space(slide=SLIDE + 0x10))
    with pytest.raises(FormatError, match="cannot be read"):
        SymbolFile(space(slide=SLIDE + 0x100000))


def test_no_btf() -> None:
    """The reason, and what would have to be different."""
    made = space()
    made.names.btf = None
    with pytest.raises(FormatError, match=r"no BTF here.*CONFIG_DEBUG_INFO_BTF"):
        SymbolFile(made)
