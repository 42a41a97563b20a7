"""The symbol table of a 64-bit little-endian ELF file. Source: System V ABI, "Symbol Table"; gABI for x86-64."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

from fivefold.errors import FormatError

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_SYMTAB: Final = 2
_UNDEFINED: Final = 0
_NAMED_KINDS: Final = frozenset({0, 1, 2, 10})
"""STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_GNU_IFUNC; sections and files are no symbols here."""
_MOST_BYTES: Final = 512 << 20


def elf_symbols(file: BinaryIO, name: str) -> Iterator[tuple[int, str, int]]:
    """Address, name and size of each defined symbol in ``.symtab``. `FormatError` for what is no such file."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or header[4:6] != b"\2\1":
        raise FormatError(f"{name} is not a 64-bit little-endian ELF file")
    fields = _HEADER.unpack(header)
    offset, size, count = fields[6], fields[11], fields[12]
    if not offset or size != _SECTION.size:
        raise FormatError(f"{name} has no sections, and so no symbols: it was stripped")
    sections = list(_SECTION.iter_unpack(_part(file, name, offset, size * count)))
    table = next((section for section in sections if section[1] == _SYMTAB), None)
    if table is None or table[6] >= count:
        raise FormatError(f"{name} has no .symtab: it was stripped")
    names = _part(file, name, sections[table[6]][4], sections[table[6]][5])
    raw = _part(file, name, table[4], table[5] - table[5] % _SYMBOL.size)
    for at, info, _, section, value, length in _SYMBOL.iter_unpack(raw):
        if section != _UNDEFINED and value and info & 0xF in _NAMED_KINDS and at < len(names):
            yield value, names[at : names.find(b"\0", at)].decode("utf-8", "replace"), length


def _part(file: BinaryIO, name: str, offset: int, size: int) -> bytes:
    if size > _MOST_BYTES:
        raise FormatError(f"{name} has a table of {size} bytes; it is damaged")
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise FormatError(f"{name} ends in its symbol table; it was cut")
    return data
