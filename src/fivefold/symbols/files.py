"""Symbols from a file: System.map, a copy of /proc/kallsyms, or vmlinux with its symbol table.

A file that was made at build time has addresses before the kernel was moved (KASLR): `moved` adds what it was moved
by. Source for ELF: "ELF-64 Object File Format", sections "Section header" and "Symbol table".
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import BinaryIO, Final, NamedTuple, cast

from fivefold.errors import FormatError, cannot, printable
from fivefold.opening import open_to_read
from fivefold.symbols.symbols import KernelSymbol, Symbols, SymbolSpan
from fivefold.units import MASK64, MIB, PAGE, hex64

MOST_BYTES: Final = 256 * MIB
"""Of one table of vmlinux."""
LONGEST_LINE: Final = 4096
MOST_SYMBOLS: Final = 1 << 22
KERNEL_HALF: Final = 1 << 63

_LINE: Final = re.compile(rb"([0-9a-fA-F]{8,16}) ([A-Za-z?]) ([^\s]+)(?:[ \t]+\[([^\]\s]+)\])?[ \t\r]*")
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_SYMTAB: Final = 2
_NOBITS: Final = 8
_WRITE, _EXECUTE = 1, 4
_X86_64: Final = 62


def read_symbols(path: str | os.PathLike[str]) -> Symbols:
    """The symbols in *path*, as the file has them, unpacked if it is gzip or xz.

    `FormatError` for another kind of file, or one without addresses of a kernel; `CannotOpenError` where it cannot be
    read.
    """
    path = os.fspath(path)
    try:
        with open_to_read(path) as packed, _unpacked(packed, path) as file:
            is_elf = file.read(4) == b"\x7fELF"
            found = list(_of_elf(_ElfFile(file, path)) if is_elf else _of_text(file, path))
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError) as error:
        raise FormatError(f"{path}: broken or cut gzip or xz data: {error}") from error
    except OSError as error:
        raise cannot("read", path, error) from error
    if not found:
        raise FormatError(f"{path}: no symbols; expected System.map, /proc/kallsyms or vmlinux with a symbol table")
    kernel = [symbol for symbol in found if symbol.address >= KERNEL_HALF]
    if not kernel:
        shown_to_root = not any(symbol.address for symbol in found)
        hidden = " (all are 0, as /proc/kallsyms shows them to users)" if shown_to_root else ""
        raise FormatError(
            f"{path}: no symbol lies in a kernel's half{hidden}; expected addresses from {KERNEL_HALF:#x}"
        )
    # Modules, and names of BPF programs, are in kallsyms only: its addresses are those of the running kernel.
    is_running = any(symbol.module for symbol in kernel) or "kallsyms" in os.path.basename(path)  # noqa: PTH119
    return Symbols(_spans(kernel), f"{path}, {'vmlinux' if is_elf else 'a list of symbols'}", is_running=is_running)


def _unpacked(file: BinaryIO, path: str) -> BinaryIO:
    if not file.seekable():
        raise FormatError(f"{path} can be read only once; expected a file")
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    return cast(BinaryIO, lzma.LZMAFile(file)) if magic == b"\xfd7zXZ\0" else file


def moved(symbols: Symbols, by: int) -> Symbols:
    """The same symbols *by* bytes further, modulo 2**64: where a kernel lies that was moved after its build."""
    if not by:
        return symbols
    spans = [
        replace(
            span,
            addresses=[at + by & MASK64 for at in span.addresses],
            end=(span.end - 1 + by & MASK64) + 1,
            _known={},
        )
        for span in symbols.spans
    ]
    how = f"{symbols.how}, moved by {hex64(by & MASK64)}"
    return Symbols(spans, how, is_running=symbols.is_running)


def _spans(symbols: list[KernelSymbol]) -> Iterator[SymbolSpan]:
    """A span for the kernel, and one for each run of symbols of one module."""
    symbols.sort(key=lambda symbol: symbol[:3])
    own = [symbol for symbol in symbols if symbol.module is None]
    if own:
        yield SymbolSpan.of((symbol[:3] for symbol in own), own[-1].address + 1)
    others = [symbol for symbol in symbols if symbol.module is not None]
    for module, run in groupby(others, key=lambda symbol: symbol.module):
        members = list(run)
        # How long the last one is is not told: no longer than its page, as modules get whole pages.
        yield SymbolSpan.of((symbol[:3] for symbol in members), (members[-1].address | PAGE - 1) + 1, module)


def _of_text(file: BinaryIO, path: str) -> Iterator[KernelSymbol]:
    file.seek(0)
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
        if number > MOST_SYMBOLS:
            raise FormatError(f"{path} has more than {MOST_SYMBOLS} lines; expected a list of symbols")
        if not line.strip():
            continue
        if (found := _LINE.fullmatch(line.rstrip(b"\n"))) is None:
            shown = line[:40].decode("ascii", "backslashreplace")
            raise FormatError(
                f"{path}, line {number}: {shown!r}; expected an address, a letter and a name, as in System.map"
            )
        address, kind, name, module = (
            printable(one.decode("utf-8", "backslashreplace")) if one else None for one in found.groups()
        )
        yield KernelSymbol(int(address or "", 16), kind or "?", name or "", module)


@dataclass(frozen=True, slots=True)
class _ElfFile:
    file: BinaryIO
    path: str

    def part(self, at: int, size: int) -> bytes:
        """Exactly *size* bytes from *at* on."""
        data = b""
        if size <= MOST_BYTES and at < 1 << 63:
            self.file.seek(at)
            data = self.file.read(size)
        if len(data) != size:
            raise FormatError(f"{self.path}: the file lacks {size} bytes at {at:#x} that its headers name")
        return data


class _Section(NamedTuple):
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    entry: int


def _of_elf(file: _ElfFile) -> Iterator[KernelSymbol]:
    sections = _sections(file)
    for table in sections:
        if table.kind != _SYMTAB or table.entry != _SYMBOL.size:
            continue
        if table.size // table.entry > MOST_SYMBOLS or table.link >= len(sections):
            raise FormatError(f"{file.path}: a symbol table of {table.size} bytes with names in section {table.link}")
        texts = sections[table.link]
        raw = file.part(table.offset, table.size // table.entry * table.entry)
        yield from _rows(raw, file.part(texts.offset, texts.size), sections)


def _sections(file: _ElfFile) -> list[_Section]:
    head = _HEADER.unpack(file.part(0, _HEADER.size))
    if head[0][4:6] != b"\x02\x01" or head[2] != _X86_64:
        raise FormatError(f"{file.path} is an ELF file for another machine; expected x86-64, of 64 bits")
    at, size, count = head[6], head[11], head[12]
    if size != _SECTION.size or not at:
        raise FormatError(f"{file.path}: an ELF file without sections; expected vmlinux with a symbol table")
    return [
        _Section(kind, flags, offset, length, link, entry)
        for _, kind, flags, _, offset, length, link, _, _, entry in _SECTION.iter_unpack(file.part(at, size * count))
    ]


def _rows(raw: bytes, texts: bytes, sections: list[_Section]) -> Iterator[KernelSymbol]:
    for text, info, _, section, value, _ in _SYMBOL.iter_unpack(raw):
        # Kinds 3 and 4 are names of sections and of files.
        if not text or not section or info & 0xF in (3, 4):
            continue
        name = printable(texts[text : texts.find(b"\0", text)].decode("utf-8", "backslashreplace"))
        yield KernelSymbol(value, _letter(info, section, sections), name)


def _letter(info: int, section: int, sections: list[_Section]) -> str:
    """nm's letter for a symbol, as far as it matters here."""
    if section >= len(sections):
        letter = "a"
    else:
        kind, flags = sections[section].kind, sections[section].flags
        letter = "t" if flags & _EXECUTE else "b" if kind == _NOBITS else "d" if flags & _WRITE else "r"
    binding = info >> 4
    return {0: letter, 1: letter.upper()}.get(binding, "W")
