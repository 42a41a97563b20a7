"""Build the payload, and the ELF file that has a table of cases built in."""

from __future__ import annotations

import functools
import struct
from importlib import resources
from typing import Final, NamedTuple

from fivefold.conform.places import CASES, IMAGE
from fivefold.metal.build import cached
from fivefold.metal.emit.link import Group, link
from fivefold.metal.program import Program

PACKAGE: Final = "fivefold.conform.payload"
_GROUPS: Final = (
    Group(".text", (".head", ".text")),
    Group(".rodata", (".rodata",)),
    Group(".data", (".data",)),
    Group(".bss", (".bss",)),
)
_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_IDENT: Final = b"\x7fELF\x02\x01\x01" + bytes(9)
_NOTE_HEAD: Final = struct.pack("<III", 4, 4, 18) + b"Xen\0"
_FIRST: Final = 0x1000
"""Where in the file the first segment lies."""
_ENTRIES: Final = ("pvh_entry", "efi_entry")
_EFI_BASE: Final = IMAGE - 0x1_0000
"""Where firmware loads the EFI file: headers first. It has no relocations, so there or nowhere."""


class Payload(NamedTuple):
    """The payload's bytes from `places.IMAGE` up, its size in memory, its 32-bit entry and UEFI's."""

    data: bytes
    size: int
    entry: int
    efi_entry: int


@functools.cache
def payload() -> Payload:
    """The payload, compiled once."""
    program = Program((f"{PACKAGE}.main",))
    asm = (resources.files(PACKAGE) / "start.S").read_text()

    def make() -> bytes:
        from fivefold.metal.emit.objects import compile_object

        linked = link({"payload": compile_object(program, asm=asm)}, base=IMAGE, groups=_GROUPS)
        flat = linked.flat()
        return struct.pack("<3Q", linked.end - linked.base, *(linked.symbols[name] for name in _ENTRIES)) + flat

    made = cached(f"conform payload {asm!r}", program, make)
    return Payload(made[24:], *struct.unpack_from("<3Q", made))


def elf_file(table: bytes) -> bytes:
    """The ELF file that runs the cases of *table*: PVH and multiboot2 loaders, and those of ELF files, start it."""
    made = payload()
    table_at = _FIRST + len(made.data) + -len(made.data) % 4096
    note = _NOTE_HEAD + struct.pack("<I", made.entry)
    note_at = _EHDR.size + 3 * _PHDR.size
    headers = (
        _PHDR.pack(1, 7, _FIRST, IMAGE, IMAGE, len(made.data), made.size, 0x1000)
        + _PHDR.pack(1, 6, table_at, CASES, CASES, len(table), len(table), 0x1000)
        + _PHDR.pack(4, 4, note_at, 0, 0, len(note), len(note), 4)
    )
    head = _EHDR.pack(_IDENT, 2, 62, 1, made.entry, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, 3, 64, 0, 0)
    out = bytearray(table_at + len(table))
    out[: len(head + headers + note)] = head + headers + note
    out[_FIRST : _FIRST + len(made.data)] = made.data
    out[table_at:] = table
    return bytes(out)


def efi_file(table: bytes) -> bytes:
    """The EFI application that runs the cases of *table*. Sources: Microsoft, "PE Format"; UEFI, "UEFI Images".

    Firmware loads it at `_EFI_BASE`, with all that it uses up to the end of the table as its image, or refuses it.
    """
    made = payload()
    code, cases = made.data + bytes(-len(made.data) % 0x1000), table + bytes(-len(table) % 0x1000)
    size = CASES + len(cases) - _EFI_BASE
    dos = b"MZ" + bytes(58) + struct.pack("<I", 64)
    # Relocations stripped, executable, large address aware.
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 2, 0, 0, 0, 240, 0x23)
    optional = struct.pack(
        "<HBBIIIII", 0x20B, 1, 0, len(code), len(cases), 0, made.efi_entry - _EFI_BASE, IMAGE - _EFI_BASE
    ) + struct.pack(
        "<QIIHHHHHHIIIIHHQQQQII", _EFI_BASE, 0x1000, 0x1000, 0, 0, 1, 0, 0, 0, 0, size, _FIRST, 0, 10, 0,
        0x10000, 0x10000, 0, 0, 0, 16,
    )  # fmt: skip
    sections = b"".join(
        struct.pack("<8sIIIIIIHHI", name, in_memory, at - _EFI_BASE, length, place, 0, 0, 0, 0, 0xE000_0060)
        for name, in_memory, at, length, place in (
            (b".text", made.size, IMAGE, len(code), _FIRST),
            (b".cases", len(cases), CASES, len(cases), _FIRST + len(code)),
        )
    )
    head = dos + coff + optional + bytes(16 * 8) + sections
    return head + bytes(_FIRST - len(head)) + code + cases
