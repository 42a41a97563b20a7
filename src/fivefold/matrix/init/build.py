"""The init as a static ELF file, and the initramfs that holds it."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from importlib import resources
from typing import Final, NamedTuple

from fivefold.metal.build import cached
from fivefold.metal.emit.link import Group, Linked, link
from fivefold.metal.program import Program

PACKAGE: Final = "fivefold.matrix.init"
BASE: Final = 0x40_0000
_GROUPS: Final = (
    Group(".text", (".head", ".text")),
    Group(".rodata", (".rodata",)),
    Group(".data", (".data",)),
    Group(".bss", (".bss",)),
)
_RIGHTS: Final = {".text": 5, ".rodata": 4, ".data": 6, ".bss": 6}
"""Of each group's segment: bits R 4, W 2, X 1. Source: gABI, "Segment Permissions"."""
_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_IDENT: Final = b"\x7fELF\x02\x01\x01" + bytes(9)
_PT_LOAD, _PT_GNU_STACK = 1, 0x6474_E551
_PAGE: Final = 4096


@functools.cache
def init_program() -> bytes:
    """The program as an ELF file that needs nothing but a kernel; compiled once."""
    program = Program((f"{PACKAGE}.main",))
    asm = (resources.files(PACKAGE) / "start.S").read_text()

    def make() -> bytes:
        from fivefold.metal.emit.objects import compile_object

        return _elf(link({"init": compile_object(program, asm=asm)}, base=BASE, groups=_GROUPS))

    return cached(f"matrix init {asm!r}", program, make)


def _elf(linked: Linked) -> bytes:
    out = bytearray(_PAGE)
    headers = [_PHDR.pack(_PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 16)]
    for group in linked.groups:
        if group.size:
            headers.append(
                _PHDR.pack(
                    _PT_LOAD, _RIGHTS[group.name], len(out), group.address, group.address,
                    len(group.data), group.size, _PAGE,
                )
            )  # fmt: skip
            out += group.data + bytes(-len(group.data) % _PAGE)
    entry = linked.symbols["_start"]
    head = _EHDR.pack(_IDENT, 2, 62, 1, entry, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, len(headers), 64, 0, 0)
    start = head + b"".join(headers)
    out[: len(start)] = start
    return bytes(out)


class ArchiveEntry(NamedTuple):
    """One entry of an initramfs: *mode* with the kind of file, *device* major and minor of a device node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


_FOLDER: Final = 0o040755
_FILE: Final = 0o100644
_PROGRAM: Final = 0o100755


def initramfs(carried: bytes | None = None, times: int = 0) -> bytes:
    """The initramfs with the init alone, or with the kernel *carried* to be started *times* times from inside.

    Each kernel finds what the next one needs: a kernel, and an initramfs that carries one time less.
    """
    entries = [
        *(ArchiveEntry(name, _FOLDER) for name in ("dev", "proc", "sys")),
        ArchiveEntry("dev/console", 0o020600, device=(5, 1)),
        ArchiveEntry("init", _PROGRAM, init_program()),
    ]
    if carried is not None and times > 0:
        entries += [
            ArchiveEntry("kernel", _FILE, carried),
            ArchiveEntry("initramfs", _FILE, initramfs(carried, times - 1)),
        ]
    return cpio(entries)


def cpio(entries: Iterable[ArchiveEntry]) -> bytes:
    """An archive in the form that kernels unpack. Source: Linux Documentation, *initramfs buffer format*."""
    parts = []
    for number, entry in enumerate([*entries, ArchiveEntry("TRAILER!!!", 0)], 1):
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(entry.name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + entry.name.encode() + b"\0"
        parts += [head, bytes(-len(head) % 4), entry.data, bytes(-len(entry.data) % 4)]
    return b"".join(parts)
