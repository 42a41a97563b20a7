"""The ELF file of our image: written once at its default place, then placed anywhere by patching.

Four kinds of bytes depend on where the image is loaded: the physical addresses of the
segments, the ELF entry, the 32-bit entry in the PVH note, and the multiboot2 header. The code
itself finds out where it is. A symbol table goes along, for debuggers and for those who look in from outside.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from fivefold.boot.image.multiboot2 import HEADER_SIZE, ImageExtent, multiboot2_header
from fivefold.errors import ImageError
from fivefold.units import MIB, PAGE, PhysAddr, VirtAddr, hex64

ALIGNMENT: Final = 2 * MIB
LOWEST_LOAD_ADDRESS: Final = 2 * MIB
"""Below lie the loader's own structures and what firmware keeps."""
DEFAULT_LOAD_ADDRESS: Final = 16 * MIB
HIGHEST_32BIT_END: Final = 1 << 32
MOST_BYTES: Final = 64 * MIB
"""Of a file that may be an image of ours; one has a few hundred KiB."""

_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_SHDR: Final = struct.Struct("<IIQQQQIIQQ")
_SYM: Final = struct.Struct("<IBBHQQ")
_IDENT: Final = b"\x7fELF\x02\x01\x01" + bytes(9)
_PT_LOAD, _PT_NOTE = 1, 4
_NOTE_HEAD: Final = struct.pack("<III", 4, 4, 18) + b"Xen\0"
_OWN_NOTE_HEAD: Final = struct.pack("<III", 9, 4, 1) + b"Fivefold\0\0\0\0"
CAN_BE_ENTERED_WITH_FIVE_LEVELS: Final = 1
"""What our note says to a kernel that would start this one (`kernel/handover/kexec.py`)."""
_NEEDED: Final = (
    "_text", "_rodata", "_data", "_end", "pvh_entry", "entry_64", "startup.table", "stack_guard",
    "multiboot2_header", "multiboot2_entry",
)  # fmt: skip
_MOST_MEMORY: Final = 1 << 30


class Part(NamedTuple):
    """A run of the image with one set of rights: virtual *start*, file bytes, size in memory, ELF flags."""

    start: int
    data: bytes
    size: int
    flags: int


@dataclass(frozen=True)
class Image:
    """A linked image: its parts ascending by address, and where its names are."""

    link_address: VirtAddr
    parts: tuple[Part, ...]
    symbols: Mapping[str, int]
    load_address: int = DEFAULT_LOAD_ADDRESS
    """Where the file that it was read from is to be loaded."""

    @property
    def size(self) -> int:
        """Bytes of memory that the image takes, .bss included."""
        return self.parts[-1].start + self.parts[-1].size - self.link_address

    def symbol(self, name: str) -> VirtAddr:
        """Virtual address of *name*; `ImageError` if there is no such symbol."""
        try:
            return VirtAddr(self.symbols[name])
        except KeyError:
            raise ImageError(f"the image has no symbol {name!r}") from None

    def physical(self, name: str, load: int) -> PhysAddr:
        """Physical address of *name* in an image that is loaded at *load*; `ImageError` if it is outside the image."""
        offset = self.symbol(name) - self.link_address
        if not 0 <= offset <= self.size:
            raise ImageError(f"the image has the symbol {name!r} outside itself, at {hex64(self.symbol(name))}")
        return PhysAddr(offset + load)

    def sites(self, load: int) -> frozenset[int]:
        """Where the instructions are that engines police: physical and virtual addresses."""
        virtual = [at for name, at in self.symbols.items() if name.startswith("site_")]
        return frozenset(virtual) | frozenset(at - self.link_address + load for at in virtual)

    def place(self, load: int = DEFAULT_LOAD_ADDRESS, entry: str = "pvh_entry") -> bytes:
        """The ELF file for load address *load*, whose 32-bit entry is the symbol *entry*.

        Raises `ImageError` for an address that no machine could use.
        """
        check_load_address(load)
        entry_at = self.physical(entry, load)
        parts = _with_header(self.parts, self.symbol("multiboot2_header"), self._header(load))
        segments = [_segment(part, part.start - self.link_address + load) for part in parts]
        # A 32-bit entry above 4 GiB cannot be used, and the note has no room for it: 0 stands for none.
        note = _NOTE_HEAD + struct.pack("<I", entry_at if entry_at < HIGHEST_32BIT_END else 0)
        note += _OWN_NOTE_HEAD + struct.pack("<I", CAN_BE_ENTERED_WITH_FIVE_LEVELS)
        return _write(segments, note, self.symbols, self.physical("entry_64", load))

    def _header(self, load: int) -> bytes:
        """The multiboot2 header for *load*, where a loader is to put the file's bytes as they are."""
        last = self.parts[-1]
        data_end = last.start + len(last.data) - self.link_address + load
        extent = ImageExtent(self.physical("multiboot2_header", load), load, data_end, load + self.size)
        return multiboot2_header(extent, self.physical("multiboot2_entry", load))


def check_load_address(load: int) -> None:
    """Raise `ImageError` unless *load* is 2 MiB-aligned, from 2 MiB up, within 52 bits."""
    if load % ALIGNMENT:
        raise ImageError(f"load address {hex64(load)} is not aligned to 2 MiB")
    if load < LOWEST_LOAD_ADDRESS:
        raise ImageError(f"load address {hex64(load)} is below the lowest that is possible, 0x200000")
    if load >> 52:
        raise ImageError(f"load address {hex64(load)} is beyond 52 physical address bits")


def _with_header(parts: tuple[Part, ...], at: int, header: bytes) -> tuple[Part, ...]:
    """The parts with *header* at virtual *at*, which is in the first; `ImageError` if it is not."""
    first, offset = parts[0], at - parts[0].start
    if not 0 <= offset <= len(first.data) - len(header):
        raise ImageError(f"not an image of ours: its multiboot2 header is at {hex64(at)}, outside its code")
    data = first.data[:offset] + header + first.data[offset + len(header) :]
    return (first._replace(data=data), *parts[1:])


class _Segment(NamedTuple):
    part: Part
    physical: int


def _segment(part: Part, physical: int) -> _Segment:
    return _Segment(part, physical)


def _write(segments: list[_Segment], note: bytes, symbols: Mapping[str, int], entry: int) -> bytes:
    out = bytearray(PAGE)
    headers = []
    for part, physical in segments:
        out += bytes(-len(out) % PAGE)
        headers.append(
            _PHDR.pack(_PT_LOAD, part.flags, len(out), part.start, physical, len(part.data), part.size, PAGE)
        )
        out += part.data
    note_at = _EHDR.size + _PHDR.size * (len(segments) + 1)
    headers.append(_PHDR.pack(_PT_NOTE, 4, note_at, 0, 0, len(note), len(note), 4))
    section_at, count = _append_symbols(out, symbols)
    header = _EHDR.pack(
        _IDENT, 2, 62, 1, entry, _EHDR.size, section_at, 0, _EHDR.size, _PHDR.size, len(headers), _SHDR.size, count, 3
    )
    head = header + b"".join(headers) + note
    out[: len(head)] = head
    return bytes(out)


def _append_symbols(out: bytearray, symbols: Mapping[str, int]) -> tuple[int, int]:
    """Append a symbol table, its names and the section headers; return the headers' offset and count."""
    names, table = bytearray(1), bytearray(_SYM.size)
    for name, value in sorted(symbols.items(), key=lambda item: (item[1], item[0])):
        table += _SYM.pack(len(names), 0x10, 0, 0xFFF1, value, 0)  # global, absolute
        names += name.encode() + b"\0"
    section_names = b"\0.symtab\0.strtab\0.shstrtab\0"
    out += bytes(-len(out) % 8)
    table_at = len(out)
    out += table
    names_at = len(out)
    out += names
    section_names_at = len(out)
    out += section_names
    out += bytes(-len(out) % 8)
    at = len(out)
    out += bytes(_SHDR.size)
    out += _SHDR.pack(1, 2, 0, 0, table_at, len(table), 2, 1, 8, _SYM.size)
    out += _SHDR.pack(9, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    out += _SHDR.pack(17, 3, 0, 0, section_names_at, len(section_names), 0, 0, 1, 0)
    return at, 4


def parse(data: bytes) -> Image:
    """Read back a file that `Image.place` wrote; `ImageError` if it is something else, or cut short."""
    if data[: len(_IDENT)] != _IDENT:
        raise ImageError("not an image of ours: no ELF64 header")
    try:
        header = _EHDR.unpack_from(data)
        if header[6] + header[12] * _SHDR.size > len(data):
            raise ValueError(f"section headers at offset {header[6]:#x}")
        parts = tuple(_parts(data, header))
        symbols = dict(_symbols(data, header))
        load = next(_loads(data, header))[4]
    except (struct.error, IndexError, ValueError, OverflowError, StopIteration) as error:
        raise ImageError(f"not an image of ours, or cut short at {len(data)} bytes: {error}") from error
    missing = [name for name in _NEEDED if name not in symbols]
    if missing or symbols["_text"] != parts[0].start:
        raise ImageError(f"not an image of ours: no symbol {missing[0] if missing else '_text at its start'}")
    check_load_address(load)
    parts = _with_header(parts, symbols["multiboot2_header"], bytes(HEADER_SIZE))
    return Image(VirtAddr(symbols["_text"]), parts, symbols, load)


def _loads(data: bytes, header: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for i in range(header[10]):
        segment = _PHDR.unpack_from(data, header[5] + i * _PHDR.size)
        if segment[0] == _PT_LOAD:
            yield segment


def _parts(data: bytes, header: tuple[int, ...]) -> Iterator[Part]:
    for _kind, flags, offset, start, _pa, filesz, memsz, _align in _loads(data, header):
        if offset + filesz > len(data) or filesz > memsz or memsz > _MOST_MEMORY:
            raise ValueError(f"a segment of {filesz} bytes at offset {offset:#x}")
        yield Part(start, data[offset : offset + filesz], memsz, flags)


def _symbols(data: bytes, header: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    def section(i: int) -> tuple[int, int]:
        fields = _SHDR.unpack_from(data, header[6] + i * _SHDR.size)
        return fields[4], fields[5]

    table_at, size = section(1)
    names_at, names_size = section(2)
    names = data[names_at : names_at + names_size]
    for name, _info, _other, _section, value, _size in _SYM.iter_unpack(data[table_at + _SYM.size : table_at + size]):
        yield names[name : names.index(b"\0", name)].decode(), value
