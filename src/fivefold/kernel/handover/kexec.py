"""Start another kernel from the running one, in either mode [proposal: part 6; the proposal's base could not].

The next kernel comes as a module of the loader. It is entered in 64 bits, at its own address, in the mode that is on:
clearing LA57 in long mode would fault, so CR4 keeps it, and the next kernel changes the mode if it wants the other. One
that cannot be entered with five levels lacks a note that says it can; a five-level kernel refuses it, or with
``kexec_down`` goes down itself first.

::

    … kexec -- the next kernel's command line
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import params, report
from fivefold.kernel.boot import start_info
from fivefold.kernel.handover import ident_map
from fivefold.kernel.paging import memblock
from fivefold.kernel.paging.cpu import CR4_LA57
from fivefold.kernel.paging.pgtable import FRAME_MASK, p4d_folded
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.kernel.smp import smp
from fivefold.metal.lang import (
    byte_at,
    copy64,
    extern,
    fill64,
    load8,
    load16,
    load32,
    load64,
    noinline,
    read_cr4,
    store8,
    store32,
    store64,
    symbol,
    u64,
)
from fivefold.units import PhysAddr, VirtAddr

ELF_MAGIC: Final = int.from_bytes(b"\x7fELF\x02\x01\x01", "little")
ELF_MAGIC_MASK: Final = (1 << 56) - 1
ELF_ENTRY: Final = 24
ELF_HEADERS: Final = 32
ELF_HEADER_SIZE: Final = 54
ELF_HEADER_COUNT: Final = 56
HEADER_SIZE: Final = 56
MAX_HEADERS: Final = 16
PT_LOAD: Final = 1
PT_NOTE: Final = 4
P_OFFSET: Final = 8
P_PHYSICAL: Final = 24
P_FILE_SIZE: Final = 32
P_MEMORY_SIZE: Final = 40

NOTE_NAME: Final = int.from_bytes(b"Fivefold", "little")
NOTE_ENTRY: Final = 1
FLAG_FIVE_LEVELS: Final = 1
"""The image can be entered in 64 bits with five levels on."""

MOST_EARLIER: Final = 16
MOST_MEMORY: Final = 1 << 30
ALIGN: Final = 1 << 21

OK: Final = 0
NO_MODULE: Final = 1
NOT_AN_IMAGE: Final = 2
CUT_SHORT: Final = 3
CANNOT_FIVE_LEVELS: Final = 4
NO_MEMORY: Final = 5
MAP_TOO_LONG: Final = 6
NOT_IN_MEMORY: Final = 7
CMDLINE_TOO_LONG: Final = 8

first: u64 = 0
end: u64 = 0
"""Physical addresses that the image asks for, of its first and after its last byte of memory."""


has_whole_map: bool = True
"""Whether what was kept of the loader's memory map is all of it: a lost row may be one that takes memory back."""


@extern
def kexec_jump(root: PhysAddr, entry: PhysAddr, info: PhysAddr) -> None:
    """Load *root*, which has an identity map and this code, and go to *entry* with *info* in RSI."""


@extern
def kexec_jump_down(root: PhysAddr, entry: PhysAddr, info: PhysAddr, pages: PhysAddr) -> None:
    """The same through the trampoline in the second of two low *pages*, whose first holds the other mode's root."""


def header(image: u64, i: u64) -> u64:
    """Address of program header *i*."""
    return image + load64(image + ELF_HEADERS) + HEADER_SIZE * i


@noinline
def check_image(image: u64, size: u64) -> u64:
    """Whether *size* bytes at *image* are a kernel that can be started from this mode; sets `first` and `end`."""
    global first, end
    if size < 64 or load64(image) & ELF_MAGIC_MASK != ELF_MAGIC:
        return NOT_AN_IMAGE
    count = load16(image + ELF_HEADER_COUNT)
    at = load64(image + ELF_HEADERS)
    if load16(image + ELF_HEADER_SIZE) != HEADER_SIZE or count > MAX_HEADERS:
        return NOT_AN_IMAGE
    if at > size or HEADER_SIZE * count > size - at:
        return CUT_SHORT
    first = FRAME_MASK
    end = 0
    flags = u64(0)
    for i in range(count):
        entry = header(image, i)
        offset = load64(entry + P_OFFSET)
        in_file = load64(entry + P_FILE_SIZE)
        if offset > size or in_file > size - offset:
            return CUT_SHORT
        if load32(entry) == PT_LOAD:
            if in_file > load64(entry + P_MEMORY_SIZE) or load64(entry + P_MEMORY_SIZE) > MOST_MEMORY:
                return NOT_AN_IMAGE
            if load64(entry + P_PHYSICAL) > FRAME_MASK:
                return NOT_AN_IMAGE  # its end would wrap, and what is copied would lie before the place for it
            first = min(first, load64(entry + P_PHYSICAL))
            end = max(end, load64(entry + P_PHYSICAL) + load64(entry + P_MEMORY_SIZE))
        elif load32(entry) == PT_NOTE:
            flags = flags | note_flags(image + offset, in_file)
    if end <= first or end - first > MOST_MEMORY or load64(image + ELF_ENTRY) - first >= end - first:
        return NOT_AN_IMAGE
    if not p4d_folded() and flags & FLAG_FIVE_LEVELS == 0:
        return CANNOT_FIVE_LEVELS
    return OK


def note_flags(notes: u64, size: u64) -> u64:
    """Flags of our note among *size* bytes of notes; 0 without one."""
    at = u64(0)
    while at + 24 < size:
        name = load32(notes + at) + 3 & ~3
        text = load32(notes + at + 4) + 3 & ~3
        if name > size or text > size:
            return 0
        if load32(notes + at + 8) == NOTE_ENTRY and name == 12 and load64(notes + at + 12) == NOTE_NAME:
            return load32(notes + at + 24)
        at += 12 + name + text
    return 0


@noinline
def place_image(image: u64) -> PhysAddr:
    """Copy the checked image to free memory; return where it is now, 0 without memory. It is position independent."""
    size = (end - first + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
    place = memblock.allocate(size, ALIGN)
    if place == 0:
        return place
    to = phys_to_virt(place)
    fill64(to, 0, size // 8)
    for i in range(load16(image + ELF_HEADER_COUNT)):
        entry = header(image, i)
        if load32(entry) == PT_LOAD:
            source = image + load64(entry + P_OFFSET)
            copy_bytes(to + load64(entry + P_PHYSICAL) - first, source, load64(entry + P_FILE_SIZE))
    return place


def copy_bytes(to: u64, source: u64, size: u64) -> None:
    """Copy *size* bytes."""
    copy64(to, source, size // 8)
    for i in range(size & ~7, size):
        store8(to + i, load8(source + i))


@noinline
def make_start_info(old: PhysAddr, cmdline: VirtAddr, load: u64, load_end: u64) -> PhysAddr:
    """Start information for the next kernel: the same memory map and first module, and its command line.

    That begins with where this kernel lies, and those before it, whose reports are still to be read. The module stays,
    so that the next kernel can start another. 0 without memory for it; `CMDLINE_TOO_LONG`, which is no address, where
    words would be lost.
    """
    info = memblock.allocate(start_info.COPY_SIZE, PAGE_SIZE)
    if info == 0:
        return info
    at = phys_to_virt(info)
    start_info.copy_to(at, info, old)
    store32(at + start_info.OFFSET_MODULES, 1)
    fill64(at + start_info.COPY_CMDLINE, 0, PAGE_SIZE // 8)
    to = put_number(put_text(at + start_info.COPY_CMDLINE, "previous="), load)
    to = put_earlier(put_number(put_text(to, " previous_end="), load_end), cmdline)
    store8(to, 32)
    to += 1
    rest = params.after_end_mark(cmdline)
    if rest != params.ABSENT:
        while load8(rest) != 0 and to < at + start_info.COPY_MODULES - 1:
            store8(to, load8(rest))
            to += 1
            rest += 1
        if load8(rest) != 0:
            return PhysAddr(CMDLINE_TOO_LONG)
    return info


def put_earlier(to: u64, cmdline: VirtAddr) -> u64:
    """Write what this kernel knows of earlier ones, the latest `MOST_EARLIER` of them; return where that ends."""
    start = params.find_option(cmdline, "previous=")
    for _i in range(MOST_EARLIER):
        upto = params.find_option(VirtAddr(start), "previous_end=")
        if start == params.ABSENT or upto == params.ABSENT:
            break
        if params.is_number_at(start) and params.is_number_at(upto):
            to = put_number(put_text(to, " previous="), params.number_at(start))
            to = put_number(put_text(to, " previous_end="), params.number_at(upto))
        start = params.find_option(VirtAddr(start), "previous=")
    return to


def put_text(to: u64, text: str) -> u64:
    """Write *text* at *to*; return where it ends."""
    i = 0
    while byte_at(text, i) != 0:
        store8(to + i, byte_at(text, i))
        i += 1
    return to + i


def put_number(to: u64, value: u64) -> u64:
    """Write *value* as 0x and 16 digits; return where it ends."""
    at = put_text(to, "0x")
    for i in range(16):
        digit = value >> (60 - 4 * i) & 15
        store8(at + i, digit + (48 if digit < 10 else 87))
    return at + 16


@noinline
def start(old: PhysAddr, top: VirtAddr, cmdline: VirtAddr, largest: u64) -> u64:
    """Start the first module that *old* lists; return why it cannot be. Nothing is changed before all is ready."""
    if start_info.field32(old, start_info.OFFSET_MODULES) == 0:
        return NO_MODULE
    if not has_whole_map:
        return MAP_TOO_LONG
    module = PhysAddr(start_info.field64(old, start_info.OFFSET_MODULE_LIST))
    if not memblock.is_memory(PhysAddr(start_info.field64(module, 0)), start_info.field64(module, 8)):
        return NOT_IN_MEMORY
    image = phys_to_virt(PhysAddr(start_info.field64(module, 0)))
    outcome = check_image(image, start_info.field64(module, 8))
    down = outcome == CANNOT_FIVE_LEVELS and params.has_word(cmdline, "kexec_down")
    if outcome != OK and not down:
        return outcome
    load = report.get_word(report.W_LOAD_ADDRESS)
    info = make_start_info(old, cmdline, load, report.get_word(report.W_IMAGE_END))
    if info == CMDLINE_TOO_LONG:
        return CMDLINE_TOO_LONG
    place = place_image(image)
    root = ident_map.map_all_memory(largest)
    if info == 0 or place == 0 or root == 0 or (down and smp.place == 0):
        return NO_MEMORY
    entry = PhysAddr(place + load64(image + ELF_ENTRY) - first)
    ident_map.add_kernel_half(phys_to_virt(root), top)
    smp.release_cpus()
    report.conclude()
    report.put("# kexec: starting the next kernel\n")
    if down:
        kexec_jump_down(root, entry, info, prepare_trampoline(root, entry))
    kexec_jump(root, entry, info)
    return OK


def prepare_trampoline(root: PhysAddr, entry: PhysAddr) -> PhysAddr:
    """Put a four-level root and the trampoline's code, which goes on to *entry*, into the low pages.

    Those in which other CPUs started, which `release_cpus` has taken from them: no others are known to be free.
    """
    pages = PhysAddr(smp.place)
    at = phys_to_virt(pages)
    copy64(at, phys_to_virt(PhysAddr(load64(phys_to_virt(root)) & FRAME_MASK)), PAGE_SIZE // 8)
    copy64(at + PAGE_SIZE, symbol("trampoline_start"), PAGE_SIZE // 8)
    store64(at + PAGE_SIZE + (symbol("trampoline_back") - symbol("trampoline_start")), entry)
    return pages


def keeps_mode() -> bool:
    """Whether CR4 still has the mode that the tables are built for; the jump does not touch it."""
    return (read_cr4() & CR4_LA57 == 0) == p4d_folded()
