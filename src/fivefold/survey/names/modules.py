"""Symbols of the modules that a kernel has loaded: each module keeps an ELF symbol table of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from fivefold.errors import FormatError, MemoryReadError
from fivefold.survey.names.btf import Btf
from fivefold.survey.names.kernel_memory import KernelMemory
from fivefold.symbols import Symbols, SymbolSpan
from fivefold.units import MIB

MOST_MODULES: Final = 4096
MOST_SYMBOLS: Final = 1 << 17
"""Of one module."""
MOST_TEXT: Final = 8 * MIB
_NAME_SIZE: Final = 56
_ELF_SYMBOL: Final = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)


@dataclass(frozen=True, slots=True)
class _Members:
    """Offsets in ``struct module``; *parts* are pairs of where a part's base and size stand."""

    list: int
    name: int
    kallsyms: int
    symtab: int
    count: int
    strtab: int
    kinds: int | None
    parts: tuple[tuple[int, int], ...]


def module_spans(memory: KernelMemory, kernel: Symbols, btf: Btf) -> tuple[list[SymbolSpan], str | None]:
    """The modules' symbols, a span for each part of each module, and why that may not be all; None where it is."""
    head, members = kernel.address("modules"), _members(btf)
    if head is None or members is None:
        return [], "modules have no names here: " + ("no symbol 'modules'" if head is None else "BTF has other members")
    spans: list[SymbolSpan] = []
    try:
        for node in memory.ring(head, MOST_MODULES):
            spans += _spans(memory, node - members.list, members)
    except (FormatError, MemoryReadError) as error:
        return spans, f"the list of modules breaks off: {error}"
    return spans, None


def _members(btf: Btf) -> _Members | None:
    of = [btf.offset("module", name) for name in ("list", "name", "kallsyms")]
    tables = [btf.offset("mod_kallsyms", name) for name in ("symtab", "num_symtab", "strtab")]
    parts = _parts(btf)
    if not parts or any(one is None for one in (*of, *tables)):
        return None
    listed, name, kallsyms, symtab, count, strtab = (one or 0 for one in (*of, *tables))
    kinds = btf.offset("mod_kallsyms", "typetab")
    return _Members(listed, name, kallsyms, symtab, count, strtab, kinds, parts)


def _parts(btf: Btf) -> tuple[tuple[int, int], ...]:
    """Where a module says what memory it has: ``mem[7]`` since 6.4, two layouts before that."""
    array, size = btf.offset("module", "mem"), btf.size("module_memory")
    base, length = btf.offset("module_memory", "base"), btf.offset("module_memory", "size")
    if array is not None and size is not None and base is not None and length is not None:
        return tuple((at + base, at + length) for at in (array + n * size for n in range(7)))
    base, length = btf.offset("module_layout", "base"), btf.offset("module_layout", "size")
    found = [at for name in ("core_layout", "init_layout") if (at := btf.offset("module", name)) is not None]
    return () if base is None or length is None else tuple((at + base, at + length) for at in found)


def _spans(memory: KernelMemory, module: int, members: _Members) -> list[SymbolSpan]:
    name = memory.text(module + members.name, _NAME_SIZE)
    table = memory.word(module + members.kallsyms)
    parts = [(memory.word(module + base), memory.half(module + size)) for base, size in members.parts]
    symbols = list(_symbols(memory, table, members)) if table else []
    spans = []
    for base, size in parts:
        inside = [one for one in symbols if base <= one[0] < base + size]
        if base and inside:
            spans.append(SymbolSpan.of(inside, base + size, name))
    return spans


def _symbols(memory: KernelMemory, table: int, members: _Members) -> Iterator[tuple[int, str, str]]:
    count = min(memory.half(table + members.count), MOST_SYMBOLS)
    raw = memory.read(memory.word(table + members.symtab), count * _ELF_SYMBOL.itemsize)
    texts = memory.word(table + members.strtab)
    kinds = b"?" * count if members.kinds is None else memory.read(memory.word(table + members.kinds), count)
    rows = np.frombuffer(raw, _ELF_SYMBOL)
    columns = [rows[column].tolist() for column in ("name", "info", "section", "value")]
    for number, (text, info, section, value) in enumerate(zip(*columns, strict=True)):
        if section and text < MOST_TEXT:
            # Before 5.2 the letter takes the place of what ELF says, and which symbols are global is lost.
            kind = chr(info)
            if members.kinds is not None:
                kind = chr(kinds[number]).upper() if info >> 4 else chr(kinds[number]).lower()
            yield value, kind, memory.text(texts + text, 512)
