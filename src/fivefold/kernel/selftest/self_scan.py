"""The kernel dumps its own tables with the same scan that reads a guest's from outside.

The ranges stay in memory, and the report says where, so that the host can
hold them against a dump of its own.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.areas import kasan
from fivefold.kernel.boot.detect import cpu_has_gib_pages, cpu_has_nx, cpu_phys_bits
from fivefold.kernel.paging import layout, memblock, phys
from fivefold.kernel.paging.pgtable import FRAME_MASK, NX
from fivefold.kernel.paging.phys import PAGE_SHIFT, PAGE_SIZE, phys_to_virt
from fivefold.kernel.scan import scan, scan_counts, scan_entries
from fivefold.kernel.scan import scan_ranges as ranges
from fivefold.metal.lang import fill64, u64
from fivefold.units import PhysAddr, VirtAddr

RANGES_SIZE: Final = 1 << 18
WALK_SIZE: Final = 64


def take(size: u64) -> VirtAddr:
    """Cleared memory for the scan; 0 without any."""
    bytes_needed = (size + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
    place = memblock.allocate(bytes_needed, PAGE_SIZE)
    if place == 0:
        return VirtAddr(0)
    fill64(phys_to_virt(place), 0, bytes_needed // 8)
    return phys_to_virt(place)


def dump_own_tables(top: VirtAddr) -> None:
    """Scan the tables that the kernel runs on; check and report what was found."""
    frames = memblock.total() >> PAGE_SHIFT
    walks = 2 * memblock.table_pages
    records = take(RANGES_SIZE)
    index = take(4 * frames)
    memo = take(WALK_SIZE * walks)
    if records == 0 or index == 0 or memo == 0:
        report.panic("no memory for the dump of the page tables")
    scan_entries.reserved = FRAME_MASK & ~((1 << cpu_phys_bits()) - 1) | (0 if cpu_has_nx() else NX)
    scan_entries.gib_pages = cpu_has_gib_pages()
    if layout.has_shadow:  # one zero page for everything: every page of it would be a range of its own
        ranges.contiguity = ranges.IGNORE
    scan.scan_init(records, RANGES_SIZE // ranges.RANGE_SIZE, index, frames, memo, walks)
    status = scan.scan(PhysAddr(top - phys.phys_window))
    report.check("scan_complete", status == scan.DONE, status, scan.DONE)
    report.check("scan_no_writable_executable", scan_counts.wx_bytes == 0, scan_counts.wx_bytes, 0)
    report.check("scan_no_malformed_entries", scan_counts.malformed_entries == 0, scan_counts.malformed_entries, 0)
    report.check("scan_tables_are_memory", scan_counts.unreadable_tables == 0, scan_counts.unreadable_tables, 0)
    others = report.get_word(report.W_USER_TABLES) + report.get_word(report.W_EFI_TABLES)
    counted = memblock.table_pages - others - report.get_word(report.W_HANDOVER_TABLES)
    counted += kasan.zero_tables_in_use() if layout.has_shadow else 0
    report.set_word(report.W_TABLES, counted)
    report.check(
        "scan_tables_are_counted",
        scan_counts.tables_met == counted,
        scan_counts.tables_met,
        counted,
    )
    report.set_word(report.W_SCAN_RANGES, ranges.count)
    report.set_word(report.W_SCAN_BYTES, scan_counts.mapped_bytes)
    report.set_word(report.W_SCAN_TABLES, scan_counts.tables_met)
    report.set_word(report.W_SCAN_WRITABLE_EXECUTABLE, scan_counts.wx_bytes)
    report.set_word(report.W_SCAN_RECORDS, records - phys.phys_window)
    report.set_word(report.W_SCAN_RECORD_SIZE, ranges.RANGE_SIZE)
