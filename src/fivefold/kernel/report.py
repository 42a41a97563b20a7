"""What the booted kernel reports: TAP 14 on the serial port, and a table at a fixed place in memory.

The text is for machines with memory out of reach: ``fivefold judge`` reads it. The table is the buffer `table` of the
boot code, so its address is a symbol of the image. It starts with words that are read by number (`WORD_…`), then come
the areas and the checks as records of four words. A name in them is the address of text in the image, up to a NUL.
"""

from __future__ import annotations

from typing import Final

from fivefold.metal.lang import byte_at, cli, hlt, inb, inline, load64, noinline, outb, store64, text_address, u64
from fivefold.units import VirtAddr

COM1: Final = 0x3F8
"""The first serial port. Source for its registers: National Semiconductor, "PC16550D Universal Asynchronous
Receiver/Transmitter with FIFOs", register summary."""
INTERRUPTS: Final = COM1 + 1
FIFO_CONTROL: Final = COM1 + 2
LINE_CONTROL: Final = COM1 + 3
MODEM_CONTROL: Final = COM1 + 4
LINE_STATUS: Final = COM1 + 5
DIVISOR_LATCH: Final = 0x80
EIGHT_BITS: Final = 0x03
"""And no parity, one stop bit."""
DIVISOR: Final = 1
"""115200 baud, from the clock of 1.8432 MHz that divides by 16."""
FIFO_CLEARED: Final = 0x07
READY: Final = 0x03
"""DTR and RTS."""
HOLDING_EMPTY: Final = 0x20
ALL_SENT: Final = 0x40
NOTHING_THERE: Final = 0xFF
"""What a port reads that no device answers; no UART has all bits of its line status set."""
PATIENCE: Final = 100_000
"""Looks at the line status; a byte takes 87 microseconds at 115200 baud, a look one or so."""

PORT_UNKNOWN: Final = 0
PORT_OPEN: Final = 1
PORT_ABSENT: Final = 2

EXIT_PORT: Final = 0xF4
"""Where QEMU's isa-debug-exit and the embedded engine listen."""

EXIT_PASSED: Final = 0x10
EXIT_FAILED: Final = 0x11
EXIT_PANIC: Final = 0x12
EXIT_HIBERNATED: Final = 0x13

MAGIC: Final = int.from_bytes(b"FIVEFOLD", "little")
VERSION: Final = 1

STATE_RUNNING: Final = 1
STATE_DONE: Final = 2
STATE_PANIC: Final = 3

WORDS: Final = (
    "magic", "version", "state", "levels", "l5_enabled", "pgdir_shift", "ptrs_per_p4d", "page_offset_base",
    "vmalloc_base", "vmemmap_base", "phys_base", "layout", "cr0", "cr3", "cr4", "efer", "reason",
    "entered_levels", "phys_bits", "start_info", "load_address", "image_end", "trampoline", "borrowed",
    "early_top", "early_pool", "early_used", "early_kernel_tables", "early_faults", "early_wipes",
    "ram_bytes", "ram_end", "cut_bytes", "direct_4k", "direct_2m", "direct_1g", "tables", "scan_ranges",
    "scan_bytes", "scan_tables", "scan_writable_executable", "scan_records", "scan_record_size", "previous",
    "kexec_outcome", "hibernate_at", "hibernate_size", "user_root", "user_tables", "efi_root", "efi_tables",
    "efi_attributes", "handover_root", "handover_tables", "hibernate_sample", "fast_returns", "safe_returns",
    "syscall_stays", "nmis", "panic_vector", "panic_error", "panic_rip", "panic_address", "panic_text", "areas",
    "checks", "failed", "skipped",
)  # fmt: skip
"""Names of the words from the start of the table, in order."""

TABLE_SIZE: Final = 0x8000
AREAS_OFFSET: Final = 0x400
CHECKS_OFFSET: Final = 0x1000
RECORD_WORDS: Final = 4
MAX_AREAS: Final = (CHECKS_OFFSET - AREAS_OFFSET) // (8 * RECORD_WORDS)
MAX_CHECKS: Final = (TABLE_SIZE - CHECKS_OFFSET) // (8 * RECORD_WORDS)

SKIPPED: Final = 2
"""In the place of a check's outcome: it was not made, and the next word is the address of the reason."""
AREA_MAPPED: Final = 1
AREA_HOLE: Final = 0

W_STATE: Final = WORDS.index("state")
W_LEVELS: Final = WORDS.index("levels")
W_L5_ENABLED: Final = WORDS.index("l5_enabled")
W_PGDIR_SHIFT: Final = WORDS.index("pgdir_shift")
W_PTRS_PER_P4D: Final = WORDS.index("ptrs_per_p4d")
W_PAGE_OFFSET_BASE: Final = WORDS.index("page_offset_base")
W_VMALLOC_BASE: Final = WORDS.index("vmalloc_base")
W_VMEMMAP_BASE: Final = WORDS.index("vmemmap_base")
W_PHYS_BASE: Final = WORDS.index("phys_base")
W_LAYOUT: Final = WORDS.index("layout")
W_CR0: Final = WORDS.index("cr0")
W_CR3: Final = WORDS.index("cr3")
W_CR4: Final = WORDS.index("cr4")
W_EFER: Final = WORDS.index("efer")
W_REASON: Final = WORDS.index("reason")
W_ENTERED_LEVELS: Final = WORDS.index("entered_levels")
W_PHYS_BITS: Final = WORDS.index("phys_bits")
W_START_INFO: Final = WORDS.index("start_info")
W_LOAD_ADDRESS: Final = WORDS.index("load_address")
W_IMAGE_END: Final = WORDS.index("image_end")
W_TRAMPOLINE: Final = WORDS.index("trampoline")
W_BORROWED: Final = WORDS.index("borrowed")
W_EARLY_TOP: Final = WORDS.index("early_top")
W_EARLY_POOL: Final = WORDS.index("early_pool")
W_EARLY_USED: Final = WORDS.index("early_used")
W_EARLY_KERNEL_TABLES: Final = WORDS.index("early_kernel_tables")
W_EARLY_FAULTS: Final = WORDS.index("early_faults")
W_EARLY_WIPES: Final = WORDS.index("early_wipes")
W_RAM_BYTES: Final = WORDS.index("ram_bytes")
W_RAM_END: Final = WORDS.index("ram_end")
W_CUT_BYTES: Final = WORDS.index("cut_bytes")
W_DIRECT_4K: Final = WORDS.index("direct_4k")
W_DIRECT_2M: Final = WORDS.index("direct_2m")
W_DIRECT_1G: Final = WORDS.index("direct_1g")
W_TABLES: Final = WORDS.index("tables")
W_SCAN_RANGES: Final = WORDS.index("scan_ranges")
W_SCAN_BYTES: Final = WORDS.index("scan_bytes")
W_SCAN_TABLES: Final = WORDS.index("scan_tables")
W_SCAN_WRITABLE_EXECUTABLE: Final = WORDS.index("scan_writable_executable")
W_SCAN_RECORDS: Final = WORDS.index("scan_records")
W_SCAN_RECORD_SIZE: Final = WORDS.index("scan_record_size")
W_PREVIOUS: Final = WORDS.index("previous")
W_KEXEC_OUTCOME: Final = WORDS.index("kexec_outcome")
W_HIBERNATE_AT: Final = WORDS.index("hibernate_at")
W_HIBERNATE_SIZE: Final = WORDS.index("hibernate_size")
W_HANDOVER_ROOT: Final = WORDS.index("handover_root")
W_HANDOVER_TABLES: Final = WORDS.index("handover_tables")
W_HIBERNATE_SAMPLE: Final = WORDS.index("hibernate_sample")
W_USER_ROOT: Final = WORDS.index("user_root")
W_USER_TABLES: Final = WORDS.index("user_tables")
W_EFI_ROOT: Final = WORDS.index("efi_root")
W_EFI_TABLES: Final = WORDS.index("efi_tables")
W_EFI_ATTRIBUTES: Final = WORDS.index("efi_attributes")
"""Rows of the firmware's table of memory attributes, if they leave no page both writable and executable; else 0."""
W_FAST_RETURNS: Final = WORDS.index("fast_returns")
W_SAFE_RETURNS: Final = WORDS.index("safe_returns")
W_SYSCALL_STAYS: Final = WORDS.index("syscall_stays")
"""1 if SYSCALL does not leave ring 3, `NO_SYSCALL` if the CPU has none; 0 if it does what the manual says."""
NO_SYSCALL: Final = 2
W_NMIS: Final = WORDS.index("nmis")
W_PANIC_VECTOR: Final = WORDS.index("panic_vector")
W_PANIC_ERROR: Final = WORDS.index("panic_error")
W_PANIC_RIP: Final = WORDS.index("panic_rip")
W_PANIC_ADDRESS: Final = WORDS.index("panic_address")
W_PANIC_TEXT: Final = WORDS.index("panic_text")
W_AREAS: Final = WORDS.index("areas")
W_CHECKS: Final = WORDS.index("checks")
W_FAILED: Final = WORDS.index("failed")
W_SKIPPED: Final = WORDS.index("skipped")

table: u64 = 0
"""Address of the table, as the running code reaches it; 0 until it is known."""


port: u64 = PORT_UNKNOWN
"""Whether the serial port was programmed by this code; the code before it may have been a loader's, or firmware's."""


@noinline
def wait_for(bit: u64) -> bool:
    """Wait until the line status has *bit*, but not for ever: False if it never comes."""
    looks = 0
    while inb(LINE_STATUS) & bit == 0:
        looks += 1
        if looks == PATIENCE:
            return False
    return True


@noinline
def open_port() -> None:
    """Program the serial port: 115200 baud, 8 bits, no parity, one stop bit, FIFO on. A reset leaves it at 5 bits.

    What was sent before goes out first: clearing the FIFO would lose it.
    """
    global port
    port = PORT_ABSENT
    if inb(LINE_STATUS) == NOTHING_THERE or not wait_for(ALL_SENT):
        return
    outb(INTERRUPTS, 0)
    outb(LINE_CONTROL, DIVISOR_LATCH)
    outb(COM1, DIVISOR)
    outb(INTERRUPTS, 0)
    outb(LINE_CONTROL, EIGHT_BITS)
    outb(FIFO_CONTROL, FIFO_CLEARED)
    outb(MODEM_CONTROL, READY)
    port = PORT_OPEN


@noinline
def put_byte(byte: u64) -> None:
    """Send one byte when the port takes it; a port that is not there, or never does, is left alone from then on."""
    global port
    if port == PORT_UNKNOWN:
        open_port()
    if port == PORT_ABSENT:
        return
    if wait_for(HOLDING_EMPTY):
        outb(COM1, byte)
    else:
        port = PORT_ABSENT


@noinline
def put(text: str) -> None:
    """Send *text*."""
    i = 0
    while byte_at(text, i) != 0:
        put_byte(byte_at(text, i))
        i += 1


@noinline
def put_hex(value: u64) -> None:
    """Send *value* as 0x and 16 digits."""
    put("0x")
    for i in range(16):
        digit = value >> (60 - 4 * i) & 15
        put_byte(digit + (48 if digit < 10 else 87))


@noinline
def put_decimal(value: u64) -> None:
    """Send *value* in decimal, without leading zeros."""
    divisor = 1
    while value // divisor >= 10:
        divisor = divisor * 10
    while divisor != 0:
        put_byte(48 + value // divisor % 10)
        divisor = divisor // 10


@noinline
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


@noinline
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


def wait_until_sent() -> None:
    """Wait until the last byte is out, if there is a port that sends."""
    if port == PORT_OPEN:
        wait_for(ALL_SENT)


@noinline
def stop(code: u64) -> None:
    """Write *code* to the exit port, and halt for ever, once the last word is out."""
    wait_until_sent()
    outb(EXIT_PORT, code)
    while True:
        cli()
        hlt()


@noinline
def check(name: str, ok: bool, got: u64, want: u64) -> None:
    """Record the outcome of a check, and say it on the serial port; *got* and *want* are shown when it failed."""
    count = get_word(W_CHECKS)
    if count < MAX_CHECKS:
        record = table + CHECKS_OFFSET + 8 * RECORD_WORDS * count
        store64(record, text_address(name))
        store64(record + 8, u64(ok))
        store64(record + 16, got)
        store64(record + 24, want)
        set_word(W_CHECKS, count + 1)
    put_result(ok, name)
    put("\n")
    if not ok:
        set_word(W_FAILED, get_word(W_FAILED) + 1)
        put_line("  ---\n  got:", got)
        put_line("  expected:", want)
        put("  ...\n")


@noinline
def put_result(ok: bool, name: str) -> None:
    """Send the test line of the check that was recorded last, without its end."""
    if not ok:
        put("not ")
    put("ok ")
    put_decimal(get_word(W_CHECKS))
    put(" - ")
    put(name)


@noinline
def equals(name: str, got: u64, want: u64) -> None:
    """Record whether two numbers are the same, as a check."""
    check(name, got == want, got, want)


@noinline
def skip(name: str, reason: str) -> None:
    """Record what this machine cannot be asked for, and why."""
    count = get_word(W_CHECKS)
    if count < MAX_CHECKS:
        record = table + CHECKS_OFFSET + 8 * RECORD_WORDS * count
        store64(record, text_address(name))
        store64(record + 8, SKIPPED)
        store64(record + 16, text_address(reason))
        set_word(W_CHECKS, count + 1)
    set_word(W_SKIPPED, get_word(W_SKIPPED) + 1)
    put_result(True, name)
    put(" # SKIP ")
    put(reason)
    put("\n")


@noinline
def introduce(levels: u64, load: u64) -> None:
    """Begin the report in words: TAP's version, and which kernel this is. Each kernel of a chain begins one."""
    put("TAP version 14\n# fivefold: ")
    put_decimal(levels)
    put_line(" levels of page tables, image at", load)


@noinline
def conclude() -> None:
    """End the report in words: the plan, and the sum. Any one damaged line can be made good by the others."""
    count = get_word(W_CHECKS)
    put("1..")
    put_decimal(count)
    put("\n# passed ")
    put_decimal(count - get_word(W_FAILED) - get_word(W_SKIPPED))
    put(" of ")
    put_decimal(count)
    put(", failed ")
    put_decimal(get_word(W_FAILED))
    put(", skipped ")
    put_decimal(get_word(W_SKIPPED))
    put("\n")


@noinline
def panic(text: str) -> None:
    """Say why the kernel cannot go on, and stop the machine."""
    set_word(W_PANIC_TEXT, text_address(text))
    set_word(W_STATE, STATE_PANIC)
    put("Bail out! panic: ")
    put(text)
    put("\n")
    stop(EXIT_PANIC)


@noinline
def panic_on_exception(vector: u64, error: u64, address: u64, rip: u64) -> None:
    """Say in one line which exception was not expected, and stop the machine; *address* is CR2."""
    put("Bail out! panic: unexpected exception ")
    put_decimal(vector)
    put(", error code ")
    put_hex(error)
    put(", address ")
    put_hex(address)
    put_line(", rip", rip)
    stop(EXIT_PANIC)
