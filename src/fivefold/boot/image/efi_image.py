"""The image as an EFI application: a PE32+ file with the loader's code, and the linked image behind it.

The code finds itself relative to the instruction, so the file needs no relocations; it says so by an empty
relocation directory. Source: Microsoft, "PE Format"; UEFI Specification 2.10, "UEFI Images".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from importlib import resources
from typing import Final

from fivefold.boot.image.build import image_key
from fivefold.boot.image.elf_image import DEFAULT_LOAD_ADDRESS, Image, check_load_address
from fivefold.kernel.modes import KERNEL
from fivefold.metal import cache
from fivefold.metal.emit.link import Group, link
from fivefold.metal.program import Program
from fivefold.units import PAGE

_GROUPS: Final = (
    Group(".head", (".head",)),
    Group(".text", (".text",)),
    Group(".rodata", (".rodata",)),
    Group(".data", (".data",)),
    Group(".bss", (".bss",)),
)
_BASE: Final = 0x1000
"""Where the loader's code is linked, and its section in memory: after the headers' page."""
_WORDS: Final = struct.Struct("<6Q")
_MACHINE_X86_64: Final = 0x8664
_PE32_PLUS: Final = 0x20B
_EFI_APPLICATION: Final = 10
_CODE_RWX: Final = 0xE000_0060
_DATA_READ: Final = 0x4000_0040
_HEADERS: Final = 0x1000


@dataclass(frozen=True)
class Loader:
    """The linked code of the application: its bytes from `_BASE` on, its entry, and where its words are in it."""

    code: bytes
    entry: int
    words: int


def efi_file(image: Image, load: int = DEFAULT_LOAD_ADDRESS, levels: int = 0) -> bytes:
    """The application that starts *image*, at *load* if the firmware has memory there, else anywhere.

    With *levels* 5 it turns on five levels first, which firmware may not do: a CPU without LA57 cannot run that.
    `ImageError` for a load address that cannot be.
    """
    check_load_address(load)
    loader = _loader()
    flat = _flat(image)
    payload = len(loader.code)
    code = bytearray(loader.code)
    words = (payload, len(flat), _up(image.size), image.physical("entry_64", 0), load, levels)
    code[loader.words : loader.words + _WORDS.size] = _WORDS.pack(*words)
    return _pe(bytes(code) + flat, loader.entry)


def _flat(image: Image) -> bytes:
    """The image's bytes from its first address on; what follows is zeros."""
    out = bytearray()
    for part in image.parts:
        out += bytes(part.start - image.link_address - len(out)) + part.data
    return bytes(out) + bytes(-len(out) % 16)


def _loader() -> Loader:
    """The loader's code, from the cache if its sources have not changed."""
    data = cache.get_or_make(f"{image_key()} efi", _build_loader)
    at, words = struct.unpack_from("<2Q", data)
    return Loader(data[16:], at, words)


def _build_loader() -> bytes:
    from fivefold.metal.emit.objects import compile_object

    names = ("efi/efi_stub.S", "efi/efi_call.S", "efi/efi_up.S")
    text = "".join((resources.files(KERNEL) / name).read_text() for name in names)
    made = compile_object(Program((f"{KERNEL}.efi.efi_stub",)), asm=text)
    linked = link({"efi": made}, base=_BASE, groups=_GROUPS)
    flat = linked.flat()
    end = max(group.end for group in linked.groups) - _BASE
    code = flat + bytes(_up(end) - len(flat))
    return struct.pack("<2Q", linked.symbols["efi_entry"], linked.symbols["efi_words"] - _BASE) + code


def _up(size: int) -> int:
    return size + -size % PAGE


def _pe(code: bytes, entry: int) -> bytes:
    """One section of code that is read, written and executed, and an empty one for relocations."""
    raw = code + bytes(-len(code) % PAGE)
    relocations = _BASE + _up(len(raw))
    size = relocations + PAGE
    dos = b"MZ" + bytes(58) + struct.pack("<I", 64)
    # Executable, large address aware, no line numbers, no local symbols, debug information stripped.
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", _MACHINE_X86_64, 2, 0, 0, 0, 240, 0x022E)
    optional = struct.pack(
        "<HBBIIIII", _PE32_PLUS, 1, 0, len(raw), PAGE, 0, entry, _BASE
    ) + struct.pack(
        "<QIIHHHHHHIIIIHHQQQQII", 0, PAGE, 0x1000, 0, 0, 1, 0, 0, 0, 0, size, _HEADERS, 0, _EFI_APPLICATION, 0,
        0x10000, 0x10000, 0, 0, 0, 16,
    )  # fmt: skip
    directories = bytearray(16 * 8)
    struct.pack_into("<II", directories, 5 * 8, relocations, 12)
    sections = _section(b".text", len(raw), _BASE, len(raw), _HEADERS, _CODE_RWX)
    sections += _section(b".reloc", 12, relocations, PAGE, _HEADERS + len(raw), _DATA_READ | 0x0200_0000)
    head = dos + coff + optional + bytes(directories) + sections
    # An empty block of relocations: a page, its size, and two entries that mean nothing.
    block = struct.pack("<IIHH", _BASE, 12, 0, 0)
    return head + bytes(_HEADERS - len(head)) + raw + block + bytes(PAGE - len(block))


def _section(name: bytes, size: int, address: int, raw_size: int, raw_at: int, flags: int) -> bytes:
    return struct.pack("<8sIIIIIIHHI", name, size, address, raw_size, raw_at, 0, 0, 0, 0, flags)
