"""Started by a multiboot2 loader, such as GRUB under BIOS: say in PVH's words what it says in its own.

The loader leaves tags wherever it likes: type, size, content, each at a multiple of 8, up to one of type 0. What is
needed of them is copied into a buffer of the image, since the loader's memory map does not list them.
From there on all is as after PVH's entry. Source: Multiboot2 Specification 2.0, "Boot information format".

Nothing is believed that the loader contradicts itself: a tag that is longer than what is left, a map whose entries do
not fill it, information without an end or a map are refused. What the rows of the map say is judged where PVH's are
(`start_info.py`, `memblock.py`).

This file is compiled for i386, for the entry without long mode: no variables, no strings, no tables.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.boot import start_info
from fivefold.metal.lang import copy64, export, fill64, load8, load32, store8, store32, store64, u64

INFO_MODULES: Final = 0x40
INFO_RSDP: Final = 0x800
INFO_CMDLINE: Final = 0x1000
INFO_ROWS: Final = 0x2000
INFO_SIZE: Final = INFO_ROWS + start_info.MAX_MAP_ENTRIES * start_info.MAP_ENTRY_SIZE
"""The buffer that is filled: PVH's structure, the list of modules, ACPI's root pointer, the command line, and the rows
of the map."""

MOST_BYTES: Final = 1 << 20
"""Of the loader's information; GRUB's has a few KiB."""
HEAD: Final = 8
"""Bytes before the first tag, and of the head of a tag."""
TAG_END: Final = 0
TAG_CMDLINE: Final = 1
TAG_MODULE: Final = 3
TAG_MAP: Final = 6
TAG_RSDP: Final = 14
TAG_NEW_RSDP: Final = 15
MOST_RSDP: Final = 36
"""Bytes of ACPI's root pointer; under UEFI the loader's copy is the only way to it."""
MODULE_TEXT: Final = 16
MAP_ROWS: Final = 16
ROW_SIZE: Final = 24
"""The least that a row of the map has: start, size, type."""

DONE: Final = start_info.MAGIC
BAD_PLACE: Final = 0x4D42_3201
BAD_TAG: Final = 0x4D42_3202
NO_MAP: Final = 0x4D42_3203
"""What is left where PVH's magic number would be: it, or why there is no start information."""


@export
def take_multiboot2(given: u64, out: u64, image: u64, image_end: u64) -> u64:
    """Fill *out*, `INFO_SIZE` bytes in the image, from the loader's information at *given*; return `DONE` or why not.

    *out* then begins with that answer. All addresses are physical; paging is off.
    """
    size = load32(given)
    sound = given & 7 == 0 and size >= 2 * HEAD and size <= MOST_BYTES and given + size <= 1 << 32
    fill64(out, 0, INFO_SIZE // 8)
    if not sound or (given < image_end and image < given + size):
        store32(out, BAD_PLACE)
        return BAD_PLACE
    outcome = take_tags(given + HEAD, given + size, out)
    store32(out, outcome)
    store32(out + start_info.OFFSET_VERSION, 1)
    store64(out + start_info.OFFSET_MODULE_LIST, out + INFO_MODULES)
    store64(out + start_info.OFFSET_CMDLINE, out + INFO_CMDLINE)
    store64(out + start_info.OFFSET_MEMORY_MAP, out + INFO_ROWS)
    return outcome


def take_tags(at: u64, end: u64, out: u64) -> u64:
    """Take what is needed of the tags in [at, end); every step goes forward, and none beyond the end."""
    has_map = False
    while at + HEAD <= end:
        kind = load32(at)
        size = load32(at + 4)
        if kind == TAG_END:
            return DONE if has_map else NO_MAP
        if size < HEAD or size > end - at:
            return BAD_TAG
        if kind == TAG_CMDLINE:
            take_cmdline(at + HEAD, at + size, out + INFO_CMDLINE)
        elif kind == TAG_MODULE and not take_module(at, size, out):
            return BAD_TAG
        elif kind == TAG_RSDP or kind == TAG_NEW_RSDP:
            take_rsdp(at + HEAD, min(size - HEAD, MOST_RSDP), out)
        elif kind == TAG_MAP:
            has_map = True
            if not take_rows(at, size, out):
                return BAD_TAG
        at += size + 7 & ~7
    return BAD_TAG


def take_cmdline(at: u64, end: u64, to: u64) -> None:
    """Copy text up to its NUL, to *end*, or to the most that is kept, and end it; of several tags the last counts."""
    end = min(end, at + start_info.MAX_CMDLINE - 1)
    while at < end and load8(at) != 0:
        store8(to, load8(at))
        at += 1
        to += 1
    store8(to, 0)


def take_rsdp(at: u64, size: u64, out: u64) -> None:
    """Copy ACPI's root pointer; of several the last, which is the newer one."""
    fill64(out + INFO_RSDP, 0, MOST_RSDP // 8 + 1)
    for i in range(size):
        store8(out + INFO_RSDP + i, load8(at + i))
    store64(out + start_info.OFFSET_RSDP, out + INFO_RSDP)


def take_module(tag: u64, size: u64, out: u64) -> bool:
    """Add a module to the list; its text is not kept. False if it ends before it starts."""
    if size < MODULE_TEXT or load32(tag + 12) < load32(tag + 8):
        return False
    count = load32(out + start_info.OFFSET_MODULES)
    if count < start_info.MAX_MODULES:
        entry = out + INFO_MODULES + start_info.MODULE_ENTRY_SIZE * count
        store64(entry, load32(tag + 8))
        store64(entry + 8, load32(tag + 12) - load32(tag + 8))
        store32(out + start_info.OFFSET_MODULES, count + 1)
    return True


def take_rows(tag: u64, size: u64, out: u64) -> bool:
    """Add the rows of a map, whose types are PVH's; False if they do not fill the tag.

    More than there is room for are counted only: a count like that has the kernel stop.
    """
    if size < MAP_ROWS:
        return False
    each = load32(tag + HEAD)
    if each < ROW_SIZE or each & 7 != 0:
        return False
    count = load32(out + start_info.OFFSET_MEMORY_COUNT)
    row = tag + MAP_ROWS
    while row + each <= tag + size:
        if count < start_info.MAX_MAP_ENTRIES:
            to = out + INFO_ROWS + start_info.MAP_ENTRY_SIZE * count
            copy64(to, row, 2)
            store64(to + start_info.MAP_TYPE, load32(row + start_info.MAP_TYPE))
        count += 1
        row += each
    store32(out + start_info.OFFSET_MEMORY_COUNT, count)
    return row == tag + size
