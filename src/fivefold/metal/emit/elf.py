"""Read what a linker needs of a relocatable ELF object, 64-bit or 32-bit.

Source: "System V Application Binary Interface", object files; its AMD64 and Intel386
supplements for the relocation types, and "ELF for the Arm 64-bit Architecture (AArch64)".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from fivefold.errors import ImageError

_SHT_SYMTAB: Final = 2
_SHT_RELA: Final = 4
_SHT_NOBITS: Final = 8
_SHT_REL: Final = 9
_SHF_ALLOC: Final = 2
_SHF_WRITE: Final = 1
_SHF_EXECUTE: Final = 4
_SHN_UNDEF: Final = 0
_SHN_ABS: Final = 0xFFF1
_STB_LOCAL: Final = 0
_STT_SECTION: Final = 3
STT_FUNCTION: Final = 2

_MOST_ALIGN: Final = 1 << 21
"""A section aligned to more than a 2 MiB page is a damaged header."""

_EM_X86_64: Final = 62
_EM_386: Final = 3
_EM_AARCH64: Final = 183


class Section(NamedTuple):
    """A section that takes part in the image; *data* is empty where it is only zeros."""

    number: int
    name: str
    size: int
    align: int
    data: bytes
    writable: bool
    executable: bool


class ObjectSymbol(NamedTuple):
    """A symbol; *section* is an index, None where it is undefined, -1 where *value* is absolute."""

    name: str
    value: int
    size: int
    section: int | None
    is_global: bool
    is_function: bool


class Relocation(NamedTuple):
    """A place to fill: *form* names how; *addend* is None where it is in the place itself."""

    section: int
    offset: int
    form: str
    symbol: int
    addend: int | None


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """One relocatable object."""

    sections: tuple[Section, ...]
    symbols: tuple[ObjectSymbol, ...]
    relocations: tuple[Relocation, ...]


_FORMS: Final = {
    _EM_X86_64: {
        1: "64",
        2: "pc32",
        4: "pc32",
        10: "32",
        11: "32s",
        12: "16",
        13: "pc16",
        14: "8",
        15: "pc8",
        24: "pc64",
    },
    _EM_386: {1: "32", 2: "pc32", 4: "pc32", 20: "16", 21: "pc16", 22: "8", 23: "pc8"},
    _EM_AARCH64: {
        257: "64",
        260: "pc64",
        261: "pc32",
        275: "adrp",
        277: "lo12",
        278: "lo12",
        282: "b26",
        283: "b26",
        284: "lo12>>1",
        285: "lo12>>2",
        286: "lo12>>3",
        299: "lo12>>4",
    },
}
"""Relocation types by number; the last ones are for fields of AArch64's instructions (`emit/fields.py`).

What goes through a GOT is not here: every symbol must be hidden.
"""


class _Header(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


def read_object(data: bytes, name: str = "object") -> ObjectFile:
    """Read one relocatable object; raises `ImageError` that begins with *name*."""
    try:
        return _Reader(data, name).read()
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise ImageError(f"{name} is a damaged ELF object: {error}") from error


class _Reader:
    """Reads one object; any wrong offset ends in an exception that `read_object` turns into its own."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        if data[:4] != b"\x7fELF" or len(data) < 52 or data[4] not in (1, 2) or data[5] != 1:
            raise ImageError(f"{name} is not a little-endian ELF object")
        self._is64 = data[4] == 2
        kind, self._machine = struct.unpack_from("<HH", data, 16)
        if kind != 1 or self._machine not in ((_EM_X86_64, _EM_AARCH64) if self._is64 else (_EM_386,)):
            raise ImageError(f"{name} is no relocatable x86 or AArch64 object (type {kind}, machine {self._machine})")

    def read(self) -> ObjectFile:
        headers = self._headers()
        names = headers[struct.unpack_from("<H", self._data, 62 if self._is64 else 50)[0]]
        sections = tuple(
            self._section(index, header, self._string(names, header.name))
            for index, header in enumerate(headers)
            if header.flags & _SHF_ALLOC
        )
        table = next((header for header in headers if header.kind == _SHT_SYMTAB), None)
        symbols = self._symbols(table, headers, names) if table else ()
        kept = {section.number for section in sections}
        relocations = tuple(
            relocation
            for header in headers
            if header.kind in (_SHT_RELA, _SHT_REL) and header.info in kept
            for relocation in self._relocations(header)
        )
        if any(relocation.symbol >= len(symbols) for relocation in relocations):
            raise ValueError("a relocation names no symbol")
        return ObjectFile(sections, symbols, relocations)

    def _headers(self) -> list[_Header]:
        offset = struct.unpack_from("<Q" if self._is64 else "<I", self._data, 40 if self._is64 else 32)[0]
        size, count = struct.unpack_from("<HH", self._data, 58 if self._is64 else 46)
        form = "<IIQQQQIIQQ" if self._is64 else "<IIIIIIIIII"
        return [_Header(*struct.unpack_from(form, self._data, offset + size * i)) for i in range(count)]

    def _slice(self, header: _Header) -> bytes:
        piece = self._data[header.offset : header.offset + header.size]
        if len(piece) != header.size:
            raise ValueError(f"a section of {header.size} bytes at {header.offset:#x} is cut off")
        return piece

    def _section(self, index: int, header: _Header, name: str) -> Section:
        data = b"" if header.kind == _SHT_NOBITS else self._slice(header)
        align = max(1, header.align)
        if align & (align - 1) or align > _MOST_ALIGN:
            raise ValueError(f"section {name} is aligned to {align:#x}")
        flags = header.flags
        return Section(index, name, header.size, align, data, bool(flags & _SHF_WRITE), bool(flags & _SHF_EXECUTE))

    def _string(self, table: _Header, offset: int) -> str:
        start = table.offset + offset
        return self._data[start : self._data.index(b"\0", start)].decode()

    def _symbols(self, table: _Header, headers: list[_Header], names: _Header) -> tuple[ObjectSymbol, ...]:
        step, form = (24, "<IBBHQQ") if self._is64 else (16, "<IIIBBH")
        made = []
        for offset in range(table.offset, table.offset + table.size, step):
            fields = struct.unpack_from(form, self._data, offset)
            if self._is64:
                name, info, _, index, value, size = fields
            else:
                name, value, size, info, _, index = fields
            spelled = self._string(headers[table.link], name)
            if info & 15 == _STT_SECTION:
                spelled = self._string(names, headers[index].name)
            made.append(self._symbol(spelled, value, size, info, index))
        return tuple(made)

    def _symbol(self, name: str, value: int, size: int, info: int, index: int) -> ObjectSymbol:
        section = {_SHN_UNDEF: None, _SHN_ABS: -1}.get(index, index)
        if section is not None and section > _SHN_ABS:
            raise ImageError(f"{self._name}: {name} is a common symbol; give it a section")
        return ObjectSymbol(name, value, size, section, info >> 4 != _STB_LOCAL, info & 15 == STT_FUNCTION)

    def _relocations(self, header: _Header) -> list[Relocation]:
        made = []
        has_addend = header.kind == _SHT_RELA
        for offset in range(header.offset, header.offset + header.size, header.entry_size):
            if self._is64:
                place, info, addend = struct.unpack_from("<QQq", self._data, offset)
                kind, symbol = info & 0xFFFF_FFFF, info >> 32
            else:
                place, info = struct.unpack_from("<II", self._data, offset)
                kind, symbol, addend = info & 0xFF, info >> 8, 0
            if kind not in _FORMS[self._machine]:
                raise ImageError(f"{self._name}: relocation type {kind} is not supported; make every symbol hidden")
            form = _FORMS[self._machine][kind]
            made.append(Relocation(header.info, place, form, symbol, addend if has_addend else None))
        return made
