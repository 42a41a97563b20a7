"""The image as an EFI application: take memory for it, its memory map and its command line, and leave boot services.

The firmware loads a file of its own format (PE32+) wherever it likes; this code in it runs there, puts the image at a
multiple of 2 MiB, and turns what the firmware knows into PVH's start information. From there on all is as with every
other loader: the 64-bit entry decides the mode. Source: UEFI Specification 2.10, "Services - Boot Services" and
"EFI System Table".
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.boot.start_info import (
    MAGIC,
    MAP_ENTRY_SIZE,
    MAX_MAP_ENTRIES,
    OFFSET_CMDLINE,
    OFFSET_MEMORY_COUNT,
    OFFSET_MEMORY_MAP,
    OFFSET_MODULE_LIST,
    OFFSET_MODULES,
    OFFSET_RSDP,
    OFFSET_VERSION,
)
from fivefold.kernel.paging.cpu import CR4_LA57
from fivefold.kernel.paging.pgtable import FRAME_MASK, TABLE
from fivefold.kernel.paging.phys import PAGE_SIZE
from fivefold.metal.lang import (
    buffer,
    copy64,
    export,
    extern,
    fill64,
    load16,
    load32,
    load64,
    noinline,
    read_cr3,
    read_cr4,
    store8,
    store32,
    store64,
    symbol,
    u64,
)

WORD_PAYLOAD: Final = 0
WORD_PAYLOAD_SIZE: Final = 8
WORD_IMAGE_SIZE: Final = 16
WORD_ENTRY: Final = 24
WORD_PREFERRED: Final = 32
WORD_LEVELS: Final = 40
"""Offsets from `efi_words`: where the image's bytes are, how many, its size in memory, entry,
favourite place, and how many levels paging shall have before anything else: 0 for as many as the firmware gave it."""

SYSTEM_RUNTIME: Final = 88
SYSTEM_BOOT: Final = 96
ALLOCATE_PAGES: Final = 40
GET_MEMORY_MAP: Final = 56
HANDLE_PROTOCOL: Final = 152
EXIT_BOOT_SERVICES: Final = 232
LOADED_OPTIONS_SIZE: Final = 48
LOADED_OPTIONS: Final = 56

ANY_PAGES: Final = 0
BELOW: Final = 1
AT_ADDRESS: Final = 2
LOADER_CODE: Final = 1
LOADER_DATA: Final = 2
CONVENTIONAL: Final = 7
BOOT_DATA: Final = 4
ACPI_RECLAIM: Final = 9
ACPI_NVS: Final = 10
TYPE_RAM: Final = 1
TYPE_RESERVED: Final = 2
TYPE_ACPI: Final = 3
TYPE_NVS: Final = 4

ERROR: Final = 1 << 63
LOAD_ERROR: Final = ERROR | 1
BUFFER_TOO_SMALL: Final = ERROR | 5

EFI_MAGIC: Final = int.from_bytes(b"FF-EFI\0\1", "little")
HANDOFF_INFO: Final = 0
HANDOFF_MODULE: Final = 0x40
HANDOFF_ROWS: Final = 0x100
HANDOFF_CMDLINE: Final = 0x3200
HANDOFF_EFI: Final = 0x4000
HANDOFF_MAP: Final = 0x4080
HANDOFF_ATTRIBUTES: Final = 0xC000
HANDOFF_SIZE: Final = 0x10000
MAP_ROOM: Final = HANDOFF_ATTRIBUTES - HANDOFF_MAP
ATTRIBUTES_ROOM: Final = HANDOFF_SIZE - HANDOFF_ATTRIBUTES
MOST_OPTIONS: Final = 2048
"""What the kernel is handed, in one run of pages: start information, one module, rows, command line; the module's
content is the firmware's own: system table, size of the map and of a descriptor, its version, the map, and its table
of memory attributes with the size of that, 0 without one."""

EFI_SYSTEM_TABLE: Final = 8
EFI_MAP_SIZE: Final = 16
EFI_DESCRIPTOR_SIZE: Final = 24
EFI_DESCRIPTOR_VERSION: Final = 32
EFI_ATTRIBUTES_SIZE: Final = 40

DESCRIPTOR_SIZE: Final = 40
"""The least that a memory descriptor has; firmware's may be larger."""
MOST_PAGES: Final = (1 << 52) - 1
SYSTEM_TABLE_COUNT: Final = 104
SYSTEM_TABLES: Final = 112
MOST_TABLES: Final = 256
ATTRIBUTES_GUID: Final = (0x469F_26EB_DCFA_911D, 0x2012_46DC_B738_20A2)
"""EFI_MEMORY_ATTRIBUTES_TABLE_GUID, as two numbers."""
ACPI_GUID: Final = (0x11D3_E4F1_8868_E871, 0x8188_3CC7_8000_22BC)
"""EFI_ACPI_20_TABLE_GUID, as two numbers: where the root pointer of ACPI's tables is."""
ATTRIBUTES_HEAD: Final = 16
NEWEST_ATTRIBUTES: Final = 2
"""Version of the table of memory attributes."""

TRIES: Final = 8
ALIGNMENT: Final = 2 << 20

loaded_image_protocol: Final = buffer(16)
answer: Final = buffer(8)
map_key: Final = buffer(8)


@extern
def efi_call(service: u64, a: u64, b: u64, c: u64, d: u64, e: u64) -> u64:
    """Call the firmware; its status, which has the top bit set for an error."""


@extern
def efi_jump(entry: u64, info: u64) -> None:
    """Go to the kernel's 64-bit entry. Does not return."""


@extern
def efi_go_up(root: u64, code: u64) -> None:
    """Turn on five levels with the table at *root*, by the copy of the code at *code*; both below 4 GiB."""


@noinline
def use_five_levels(boot: u64) -> bool:
    """Go to five levels and remain an application; False if there is no memory below 4 GiB."""
    if read_cr4() & CR4_LA57 != 0:
        return True
    pages = allocate(boot, BELOW, LOADER_CODE, 2 * PAGE_SIZE, 0xFFFF_FFFF)
    if pages == 0:
        return False
    fill64(pages, 0, 1024)
    store64(pages, read_cr3() & FRAME_MASK | TABLE)
    copy64(pages + PAGE_SIZE, symbol("efi_up_start"), (symbol("efi_up_end") - symbol("efi_up_start") + 7) // 8)
    efi_go_up(pages, pages + PAGE_SIZE)
    return True


@export
def efi_main(handle: u64, system: u64) -> u64:
    """Start the kernel; return a status only if that cannot be."""
    boot = load64(system + SYSTEM_BOOT)
    if load64(symbol("efi_words") + WORD_LEVELS) == 5 and not use_five_levels(boot):
        report.put("fivefold: the firmware has no memory below 4 GiB\n")
        return LOAD_ERROR
    place = place_image(boot)
    handoff = allocate(boot, ANY_PAGES, LOADER_DATA, HANDOFF_SIZE, 0)
    if place == 0 or handoff == 0:
        report.put("fivefold: the firmware has no memory for the image\n")
        return LOAD_ERROR
    fill64(handoff, 0, HANDOFF_SIZE // 8)
    take_cmdline(boot, handle, handoff)
    report.put_line("fivefold: EFI application, image at", place)
    if not leave_boot_services(boot, handle, handoff):
        report.put("fivefold: the firmware does not let go of its boot services, or its memory map is none\n")
        return LOAD_ERROR
    take_attributes(handoff, system)
    write_start_info(handoff, system)
    efi_jump(place + load64(symbol("efi_words") + WORD_ENTRY), handoff)
    return LOAD_ERROR


@noinline
def allocate(boot: u64, how: u64, kind: u64, size: u64, wanted: u64) -> u64:
    """Take whole pages from the firmware; 0 when it has none."""
    store64(answer, wanted)
    status = efi_call(load64(boot + ALLOCATE_PAGES), how, kind, (size + PAGE_SIZE - 1) // PAGE_SIZE, answer, 0)
    return u64(0) if status & ERROR != 0 else load64(answer)


@noinline
def place_image(boot: u64) -> u64:
    """Copy the image to where it likes to be, or to any multiple of 2 MiB; 0 without memory."""
    words = symbol("efi_words")
    size = load64(words + WORD_IMAGE_SIZE)
    place = allocate(boot, AT_ADDRESS, LOADER_CODE, size, load64(words + WORD_PREFERRED))
    if place == 0:
        place = allocate(boot, ANY_PAGES, LOADER_CODE, size + ALIGNMENT, 0)
        place = (place + ALIGNMENT - 1) & ~(ALIGNMENT - 1)
    if place != 0:
        filled = load64(words + WORD_PAYLOAD_SIZE)
        fill64(place, 0, size // 8)
        copy64(place, symbol("efi_base") + load64(words + WORD_PAYLOAD), filled // 8)
    return place


@noinline
def take_cmdline(boot: u64, handle: u64, handoff: u64) -> None:
    """Take the load options if they are printable text (some firmware puts binary data there)."""
    store64(loaded_image_protocol, 0x11D2_9562_5B1B_31A1)
    store64(loaded_image_protocol + 8, 0x3B72_69C9_A000_3F8E)
    status = efi_call(load64(boot + HANDLE_PROTOCOL), handle, loaded_image_protocol, answer, 0, 0)
    if status & ERROR != 0:
        return
    loaded = load64(answer)
    count = load32(loaded + LOADED_OPTIONS_SIZE) // 2
    text = load64(loaded + LOADED_OPTIONS)
    out = handoff + HANDOFF_CMDLINE
    for i in range(min(count, MOST_OPTIONS)):
        letter = load16(text + 2 * i)
        if letter == 0:
            break
        if letter < 32 or letter > 126:
            store8(out, 0)
            break
        store8(out + i, letter)


@noinline
def leave_boot_services(boot: u64, handle: u64, handoff: u64) -> bool:
    """Take the memory map and leave; again if the map has changed in between, as its key says."""
    efi = handoff + HANDOFF_EFI
    for _attempt in range(TRIES):
        store64(efi + EFI_MAP_SIZE, MAP_ROOM)
        status = efi_call(
            load64(boot + GET_MEMORY_MAP),
            efi + EFI_MAP_SIZE,
            handoff + HANDOFF_MAP,
            map_key,
            efi + EFI_DESCRIPTOR_SIZE,
            efi + EFI_DESCRIPTOR_VERSION,
        )
        if status & ERROR != 0 or not is_map_sound(efi):
            return False
        status = efi_call(load64(boot + EXIT_BOOT_SERVICES), handle, load64(map_key), 0, 0, 0)
        if status & ERROR == 0:
            return True
    return False


def is_map_sound(efi: u64) -> bool:
    """Whether the map has descriptors of a size that can be, and fits the room that the firmware was given."""
    each = load64(efi + EFI_DESCRIPTOR_SIZE)
    return each >= DESCRIPTOR_SIZE and each & 7 == 0 and load64(efi + EFI_MAP_SIZE) <= MAP_ROOM


@noinline
def take_attributes(handoff: u64, system: u64) -> None:
    """Copy the firmware's table of memory attributes, which lies in memory that is free from now on.

    One of an unknown version, or that says it is larger than the room for it, is left out, as if there were none.
    """
    table = find_table(system, ATTRIBUTES_GUID[0], ATTRIBUTES_GUID[1])
    if table != 0:
        size = attributes_size(table)
        copy64(handoff + HANDOFF_ATTRIBUTES, table, size // 8)
        store64(handoff + HANDOFF_EFI + EFI_ATTRIBUTES_SIZE, size)


@noinline
def find_table(system: u64, low: u64, high: u64) -> u64:
    """Address of the firmware's configuration table with that GUID; 0 without one. Of several, the last."""
    found = u64(0)
    for i in range(min(load64(system + SYSTEM_TABLE_COUNT), MOST_TABLES)):
        row = load64(system + SYSTEM_TABLES) + 24 * i
        if load64(row) == low and load64(row + 8) == high:
            found = load64(row + 16)
    return found


def attributes_size(table: u64) -> u64:
    """Bytes of a table of memory attributes; 0 for one that cannot be used."""
    version = load32(table)
    each = load32(table + 8)
    if version == 0 or version > NEWEST_ATTRIBUTES or each < DESCRIPTOR_SIZE or each & 7 != 0:
        return 0
    size = ATTRIBUTES_HEAD + load32(table + 4) * each
    return size if size <= ATTRIBUTES_ROOM else u64(0)


@noinline
def write_start_info(handoff: u64, system: u64) -> None:
    """Say it in PVH's words."""
    store32(handoff, MAGIC)
    store32(handoff + OFFSET_VERSION, 1)
    store64(handoff + OFFSET_CMDLINE, handoff + HANDOFF_CMDLINE)
    store64(handoff + OFFSET_RSDP, find_table(system, ACPI_GUID[0], ACPI_GUID[1]))
    store64(handoff + OFFSET_MEMORY_MAP, handoff + HANDOFF_ROWS)
    store32(handoff + OFFSET_MEMORY_COUNT, write_rows(handoff))
    store32(handoff + OFFSET_MODULES, 1)
    store64(handoff + OFFSET_MODULE_LIST, handoff + HANDOFF_MODULE)
    store64(handoff + HANDOFF_MODULE, handoff + HANDOFF_EFI)
    store64(handoff + HANDOFF_MODULE + 8, HANDOFF_SIZE - HANDOFF_EFI)
    store64(handoff + HANDOFF_EFI, EFI_MAGIC)
    store64(handoff + HANDOFF_EFI + EFI_SYSTEM_TABLE, system)


@noinline
def write_rows(handoff: u64) -> u64:
    """Turn the firmware's map into PVH's, with neighbours of one kind joined; return the number of rows.

    Those that there is no room for are counted only: a count like that has the kernel stop.
    """
    efi = handoff + HANDOFF_EFI
    count = u64(0)
    at = u64(0)
    while at + DESCRIPTOR_SIZE <= load64(efi + EFI_MAP_SIZE):
        entry = handoff + HANDOFF_MAP + at
        start = load64(entry + 8)
        size = min(load64(entry + 24), MOST_PAGES) * PAGE_SIZE
        kind = pvh_type(load32(entry))
        last = handoff + HANDOFF_ROWS + MAP_ENTRY_SIZE * (count - 1)
        if count != 0 and count <= MAX_MAP_ENTRIES and follows(last, start, size) and load32(last + 16) == kind:
            store64(last + 8, load64(last + 8) + size)
        else:
            if count < MAX_MAP_ENTRIES:
                row = last + MAP_ENTRY_SIZE
                store64(row, start)
                store64(row + 8, size)
                store32(row + 16, kind)
            count += 1
        at += load64(efi + EFI_DESCRIPTOR_SIZE)
    return count


def follows(row: u64, start: u64, size: u64) -> bool:
    """Whether *size* bytes at *start* lie right behind a row, and neither wraps."""
    return load64(row) <= start and load64(row) + load64(row + 8) == start and start + size >= start


def pvh_type(kind: u64) -> u64:
    """E820's type for the firmware's: what only boot services used is memory now."""
    if kind == CONVENTIONAL or (kind >= LOADER_CODE and kind <= BOOT_DATA):
        return TYPE_RAM
    if kind == ACPI_RECLAIM:
        return TYPE_ACPI
    if kind == ACPI_NVS:
        return TYPE_NVS
    return TYPE_RESERVED
