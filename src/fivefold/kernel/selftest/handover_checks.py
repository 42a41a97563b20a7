"""Checks of what is needed to hand over to another kernel, short of doing it."""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.handover import hibernate, ident_map, kexec
from fivefold.kernel.paging import memblock
from fivefold.kernel.paging.mapping import lookup
from fivefold.kernel.paging.pgtable import PSE, entry_frame, levels, p4d_folded
from fivefold.kernel.paging.phys import kernel_to_phys, phys_to_virt
from fivefold.kernel.report import equals
from fivefold.metal.lang import buffer, fill64, noinline, store8, store16, store32, store64, u64
from fivefold.units import VirtAddr

sample: Final = buffer(1024, 64)
SAMPLE_SIZE: Final = 512
NOTE_OFFSET: Final = 256


def check_handover(largest: u64) -> None:
    """Identity maps and image checks; the ledger balances around them. A sound image stays, for who looks outside."""
    before = memblock.table_pages
    root = ident_map.map_all_memory(largest)
    report.check("ident_map_built", root != 0, root, 1)
    if root != 0:
        check_ident_map(phys_to_virt(root))
        ident_map.discard(root)
    equals("ident_map_balance", memblock.table_pages, before)
    check_images()
    check_hibernation()
    equals("kexec_keeps_mode", u64(kexec.keeps_mode()), 1)
    make_saved()
    report.set_word(report.W_HIBERNATE_SAMPLE, kernel_to_phys(VirtAddr(saved)))


@noinline
def check_ident_map(top: VirtAddr) -> None:
    """The identity map has both ends of memory, and nothing after them."""
    last = memblock.end_of_memory()
    first = memblock.range_start(memblock.memory, 0)
    low = lookup(top, VirtAddr(first))
    high = lookup(top, VirtAddr(last - 4096))
    equals("ident_map_first", entry_frame(low) & ~0xFFF, first)
    size = u64(1 << 12)
    if high & PSE != 0:
        size = 1 << 21
    ok = high != 0 and (entry_frame(high) & ~(size - 1)) <= last - 4096
    report.check("ident_map_last", ok, high, last - 4096)
    equals("ident_map_end", lookup(top, VirtAddr(last)), 0)


@noinline
def check_images() -> None:
    """What is not an image, is cut short, or cannot be entered in this mode is refused before anything is changed."""
    make_sample(kexec.FLAG_FIVE_LEVELS)
    equals("kexec_takes_image", kexec.check_image(sample, SAMPLE_SIZE), kexec.OK)
    equals("kexec_refuses_cut_short", kexec.check_image(sample, NOTE_OFFSET), kexec.CUT_SHORT)
    make_sample(0)
    four_only = kexec.OK if p4d_folded() else kexec.CANNOT_FIVE_LEVELS
    equals("kexec_four_level_image", kexec.check_image(sample, SAMPLE_SIZE), four_only)
    store8(sample, 0)
    equals("kexec_refuses_no_image", kexec.check_image(sample, SAMPLE_SIZE), kexec.NOT_AN_IMAGE)


def make_sample(flags: u64) -> None:
    """The smallest file that passes: a segment to load and a note with *flags*."""
    fill64(sample, 0, 128)
    store64(sample, kexec.ELF_MAGIC)
    store64(sample + kexec.ELF_ENTRY, 0x200000)
    store64(sample + kexec.ELF_HEADERS, 64)
    store16(sample + kexec.ELF_HEADER_SIZE, kexec.HEADER_SIZE)
    store16(sample + kexec.ELF_HEADER_COUNT, 2)
    store32(sample + 64, kexec.PT_LOAD)
    store64(sample + 64 + kexec.P_PHYSICAL, 0x200000)
    store64(sample + 64 + kexec.P_FILE_SIZE, 16)
    store64(sample + 64 + kexec.P_MEMORY_SIZE, 4096)
    note = 64 + kexec.HEADER_SIZE
    store32(sample + note, kexec.PT_NOTE)
    store64(sample + note + kexec.P_OFFSET, NOTE_OFFSET)
    store64(sample + note + kexec.P_FILE_SIZE, 28)
    store32(sample + NOTE_OFFSET, 9)
    store32(sample + NOTE_OFFSET + 4, 4)
    store32(sample + NOTE_OFFSET + 8, kexec.NOTE_ENTRY)
    store64(sample + NOTE_OFFSET + 12, kexec.NOTE_NAME)
    store32(sample + NOTE_OFFSET + 24, flags)


SAVED_SIZE: Final = 3 * 4096
saved: Final = buffer(SAVED_SIZE, 4096)


def make_saved() -> None:
    """An image of one page of zeros, as this kernel would save it."""
    fill64(saved, 0, SAVED_SIZE // 8)
    store64(saved + hibernate.HEADER_MAGIC, hibernate.MAGIC)
    store64(saved + hibernate.HEADER_LEVELS, levels())
    store64(saved + hibernate.HEADER_KERNEL, hibernate.kernel_sum())
    store64(saved + hibernate.HEADER_LOAD, report.get_word(report.W_LOAD_ADDRESS))
    store64(saved + hibernate.HEADER_PAGES, 1)
    store64(saved + hibernate.HEADER_DATA, 2 * 4096)
    store64(saved + hibernate.HEADER_SUM, hibernate.image_sum(saved, 2 * 4096, 1))


@noinline
def check_hibernation() -> None:
    """An image of one page: taken as it is, refused in the other mode, of another kernel, corrupt, or cut short."""
    size = u64(SAVED_SIZE)
    make_saved()
    equals("hibernate_takes_image", hibernate.check_image(saved, size), hibernate.OK)
    equals("hibernate_refuses_cut_short", hibernate.check_image(saved, size - 8), hibernate.CUT_SHORT)
    store64(saved + 4096, 1)
    equals("hibernate_refuses_corrupt", hibernate.check_image(saved, size), hibernate.CORRUPT)
    store64(saved + hibernate.HEADER_KERNEL, 0)
    equals("hibernate_refuses_other_kernel", hibernate.check_image(saved, size), hibernate.OTHER_KERNEL)
    store64(saved + hibernate.HEADER_LEVELS, 9 - levels())
    equals("hibernate_refuses_other_mode", hibernate.check_image(saved, size), hibernate.OTHER_MODE)
    store64(saved, 0)
    equals("hibernate_refuses_no_image", hibernate.check_image(saved, size), hibernate.NOT_AN_IMAGE)
