"""A table of symbols: the name at an address, and the address of a name."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

from fivefold.errors import FormatError, MachineError, cannot
from fivefold.symbols.elf_file import elf_symbols
from fivefold.units import MASK64

_LINE: Final = re.compile(rb"^([0-9a-fA-F]{8,16}) ([A-Za-z?]) (\S+)(?:[ \t]+\[(\S+)\])?[ \t\r]*$", re.M)
_MOST_BYTES: Final = 256 << 20
_FARTHEST: Final = 16 << 20
"""No function or object of a kernel is larger; past that an address belongs to no symbol whose size is not known."""
_PAGE: Final = 0x1000
_NOT_CODE: Final = re.compile(r"^(?:__pfx_|__crc_|__ksymtab|__kstrtab|\.L|\$)")
"""Names beside the code proper: padding before a function, checksums, what a linker leaves."""


class Symbol(NamedTuple):
    """A name, the address it begins at, and its size in bytes; 0 where the table does not say."""

    address: int
    name: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class SymbolTable:
    """Symbols by ascending address. *source* is the file; *is_running*: the addresses are those of a running kernel.

    Addresses of a file (System.map, vmlinux) are those that the kernel was linked at; where it runs they are moved by
    the slide of KASLR.
    """

    source: str
    symbols: tuple[Symbol, ...]
    is_running: bool = False
    _starts: list[int] = field(default_factory=list, repr=False)
    _by_name: dict[str, int | None] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, source: str, symbols: Iterable[Symbol], is_running: bool = False) -> SymbolTable:
        """A table of *symbols* in any order; `FormatError` if there are none, or all addresses are hidden."""
        kept = sorted(one for one in symbols if not _NOT_CODE.match(one.name))
        if not kept:
            raise FormatError(f"{source} holds no symbols; expected System.map, kallsyms or an ELF file with .symtab")
        if not kept[-1].address:
            raise FormatError(f"{source} hides the addresses (all are 0); read kallsyms as root")
        names: dict[str, int | None] = {}
        for one in kept:
            names[one.name] = None if one.name in names else one.address
        return cls(source, tuple(kept), is_running, [one.address for one in kept], names)

    def at(self, address: int) -> tuple[Symbol, int] | None:
        """The symbol at *address* and the offset into it, None if there is none.

        Of several at one address the last by name counts; a symbol without a size goes up to the next one.
        """
        index = bisect_right(self._starts, address & MASK64) - 1
        if index < 0:
            return None
        found = self.symbols[index]
        offset = address - found.address
        if offset >= (found.size or _FARTHEST) or (
            not found.size and index == len(self.symbols) - 1 and offset > 0xFFF
        ):
            return None
        return found, offset

    def name_at(self, address: int) -> str | None:
        """``name+0x12`` at *address*, or None."""
        found = self.at(address)
        return None if found is None else f"{found[0].name}+{found[1]:#x}"

    def address_of(self, name: str) -> int | None:
        """Where *name* begins, None if there is none, or more than one (static functions)."""
        return self._by_name.get(name)


def read_symbols(path: str | os.PathLike[str]) -> SymbolTable:
    """The symbols in the file at *path*, unpacked if it is gzip or xz. `FormatError` if it holds none."""
    name = os.fspath(path)
    try:
        with Path(name).open("rb") as file:
            return _parse(_unpacked(file), name)
    except OSError as error:
        raise cannot("read", name, error) from error
    except EOFError as error:
        raise MachineError(f"cannot read {name}: {error}") from error


def _parse(file: BinaryIO, name: str) -> SymbolTable:
    head = file.read(4)
    file.seek(0)
    if head == b"\x7fELF":
        return SymbolTable.of(name, (Symbol(*one) for one in elf_symbols(file, name)))
    text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise FormatError(f"{name} is larger than {_MOST_BYTES >> 20} MiB; expected System.map or kallsyms")
    found = [
        (int(address, 16), kind, symbol.decode("utf-8", "replace"), module)
        for address, kind, symbol, module in _LINE.findall(text)
    ]
    # Modules, and names of BPF programs, are in kallsyms only: its addresses are those of the running kernel.
    is_running = any(module for *_, module in found) or "kallsyms" in Path(name).name
    return SymbolTable.of(name, (Symbol(address, symbol) for address, _, symbol, _ in found), is_running)


def _unpacked(file: BinaryIO) -> BinaryIO:
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        import gzip

        return cast(BinaryIO, gzip.open(file, "rb"))
    if magic == b"\xfd7zXZ\0":
        import lzma

        return cast(BinaryIO, lzma.open(file, "rb"))
    return file
