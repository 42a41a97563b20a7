"""What the booted kernel tells: text on the serial port, and a table at a fixed place in memory.

The table is the buffer `table` of the boot code, so its address is a symbol of the image.
It starts with words that are read by number (`WORD_…`), then come the areas and the checks as
records of four words. A name in a record is the address of NUL-terminated text in the image.
"""

from __future__ import annotations

from typing import Final

from fivefold.metal.lang import byte_at, inb, inline, load64, outb, store64, u64
from fivefold.units import VirtAddr

COM1: Final = 0x3F8
LINE_STATUS: Final = COM1 + 5
TRANSMITTER_EMPTY: Final = 0x20
EXIT_PORT: Final = 0xF4
"""Where QEMU's isa-debug-exit and the embedded engine listen."""

EXIT_PASSED: Final = 0x10
EXIT_FAILED: Final = 0x11
EXIT_PANIC: Final = 0x12

MAGIC: Final = int.from_bytes(b"FIVEFOLD", "little")
VERSION: Final = 1

STATE_RUNNING: Final = 1
STATE_DONE: Final = 2
STATE_PANIC: Final = 3

WORDS: Final = (
    "magic", "version", "state", "levels", "l5_enabled", "pgdir_shift", "ptrs_per_p4d",
    "page_offset_base", "vmalloc_base", "vmemmap_base", "phys_base",
    "cr0", "cr3", "cr4", "efer", "reason", "entered_levels", "entry_cr0", "entry_cr4", "entry_cr3",
    "phys_bits", "load_address", "ram_bytes", "ram_end", "cut_bytes",
    "direct_4k", "direct_2m", "direct_1g", "tables", "static_tables",
    "scan_ranges", "scan_bytes", "scan_tables", "scan_records", "scan_first", "scan_writable_executable",
    "panic_vector", "panic_error", "panic_rip", "panic_address", "panic_text",
    "areas", "checks", "failed", "early_faults", "trampoline", "image_end", "layout",
)  # fmt: skip
"""Names of the words from the start of the table, in order."""

TABLE_SIZE: Final = 0x8000
AREAS_OFFSET: Final = 0x400
CHECKS_OFFSET: Final = 0x1000
RECORD_WORDS: Final = 4
MAX_AREAS: Final = (CHECKS_OFFSET - AREAS_OFFSET) // (8 * RECORD_WORDS)
MAX_CHECKS: Final = (TABLE_SIZE - CHECKS_OFFSET) // (8 * RECORD_WORDS)

AREA_MAPPED: Final = 1
AREA_HOLE: Final = 0

W_STATE: Final = WORDS.index("state")
W_AREAS: Final = WORDS.index("areas")
W_CHECKS: Final = WORDS.index("checks")
W_FAILED: Final = WORDS.index("failed")
W_PANIC_VECTOR: Final = WORDS.index("panic_vector")
W_PANIC_ERROR: Final = WORDS.index("panic_error")
W_PANIC_RIP: Final = WORDS.index("panic_rip")
W_PANIC_ADDRESS: Final = WORDS.index("panic_address")
W_PANIC_TEXT: Final = WORDS.index("panic_text")

table: u64 = 0
"""Address of the table, as the running code reaches it; 0 until it is known."""


def put_byte(byte: u64) -> None:
    """Send one byte; waits until the port takes it, but not for ever."""
    for _attempt in range(100_000):
        if inb(LINE_STATUS) & TRANSMITTER_EMPTY != 0:
            break
    outb(COM1, byte)


def put(text: str) -> None:
    """Send *text*."""
    i = 0
    while byte_at(text, i) != 0:
        put_byte(byte_at(text, i))
        i += 1


def put_hex(value: u64) -> None:
    """Send *value* as 0x and 16 digits."""
    put("0x")
    for i in range(16):
        digit = value >> (60 - 4 * i) & 15
        put_byte(digit + (48 if digit < 10 else 87))


def put_decimal(value: u64) -> None:
    """Send *value* in decimal, without leading zeros."""
    divisor = 1
    while value // divisor >= 10:
        divisor = divisor * 10
    while divisor != 0:
        put_byte(48 + value // divisor % 10)
        divisor = divisor // 10


def put_line(text: str, value: u64) -> None:
    """Send a line: *text*, a space, *value* in hex."""
    put(text)
    put(" ")
    put_hex(value)
    put("\n")


@inline
def set_word(index: u64, value: u64) -> None:
    """Set word *index* of the table."""
    store64(table + 8 * index, value)


@inline
def get_word(index: u64) -> u64:
    """Return word *index* of the table."""
    return load64(table + 8 * index)


def begin(address: VirtAddr) -> None:
    """Start the table at *address*."""
    global table
    table = address
    set_word(0, MAGIC)
    set_word(1, VERSION)
    set_word(W_STATE, STATE_RUNNING)


def area(name: u64, start: VirtAddr, end: VirtAddr, kind: u64) -> None:
    """Record an area: *end* is exclusive, *name* the address of its text."""
    count = get_word(W_AREAS)
    if count < MAX_AREAS:
        record = table + AREAS_OFFSET + 8 * RECORD_WORDS * count
        store64(record, name)
        store64(record + 8, start)
        store64(record + 16, end)
        store64(record + 24, kind)
        set_word(W_AREAS, count + 1)
