"""Switch the machine off by ACPI: find the registers of the sleep state S5, and write to them.

Source: UEFI Forum, "Advanced Configuration and Power Interface Specification": "Root System Description Pointer
(RSDP)", "Fixed ACPI Description Table (FADT)", "PM1 Control Registers", "Sleep Control and Status Registers",
"\\_Sx (System States)"; of AML only the package that gives S5 its numbers is read.

The tables lie where the direct map shows nothing: they are read while early page faults still map what is touched.
Nothing in them is trusted but what an address in them costs, a look.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.boot import start_info
from fivefold.kernel.boot.detect import cpu_phys_bits
from fivefold.kernel.paging.layout import FIXADDR_TOP
from fivefold.kernel.paging.mapping import map_page
from fivefold.kernel.paging.pgtable import KERNEL_RW, UNCACHED, entry_frame
from fivefold.kernel.paging.phys import PAGE_SIZE, phys_to_virt
from fivefold.metal.lang import inw, load8, load16, load32, load64, noinline, outb, outw, store8, u64
from fivefold.units import PhysAddr, VirtAddr

RSDP: Final = int.from_bytes(b"RSD PTR ", "little")
RSDP_SIZE: Final = 20
RSDP_REVISION: Final = 15
RSDP_RSDT: Final = 16
RSDP_XSDT: Final = 24
EBDA_SEGMENT: Final = 0x40E
EBDA_SIZE: Final = 1024
BIOS_START: Final = 0xE0000
BIOS_END: Final = 0x100000

HEADER_SIZE: Final = 36
FACP: Final = int.from_bytes(b"FACP", "little")
DSDT: Final = int.from_bytes(b"DSDT", "little")
FADT_DSDT: Final = 40
FADT_SMI_COMMAND: Final = 48
FADT_ENABLE: Final = 52
FADT_PM1A: Final = 64
FADT_PM1B: Final = 68
FADT_FLAGS: Final = 112
FADT_SIZE: Final = 116
FADT_SLEEP_CONTROL: Final = 244
FADT_SLEEP_SIZE: Final = 256
REDUCED_HARDWARE: Final = 1 << 20
"""The machine has no PM1 registers, but one for sleep alone."""
IN_MEMORY: Final = 0
AT_A_PORT: Final = 1
MOST_TABLES: Final = 128
MOST_BYTES: Final = 1 << 20

S5: Final = int.from_bytes(b"_S5_", "little")
S5_SIZE: Final = 8
"""The least that the package takes: name, its operator, length, count, and a number."""
NAME: Final = 0x08
ROOT: Final = 0x5C
PACKAGE: Final = 0x12
BYTE: Final = 0x0A
ENABLED: Final = 1
SLEEP_TYPE: Final = 10
SLEEP_ENABLE: Final = 1 << 13
SLEEP_BITS: Final = 0x3C00
REDUCED_TYPE: Final = 2
REDUCED_ENABLE: Final = 1 << 5
PATIENCE: Final = 100_000

REGISTER: Final = FIXADDR_TOP - 4 * PAGE_SIZE
"""Where the fixmap shows the page of a sleep control register that lies in memory."""

pm1a: u64 = 0
"""The port of the first PM1 control register; 0 as long as no way to switch off is known."""
pm1b: u64 = 0
type_a: u64 = 0
type_b: u64 = 0
smi_command: u64 = 0
enable: u64 = 0
control: u64 = 0
"""The sleep control register of reduced hardware; 0 without one."""
control_space: u64 = 0


def at8(at: u64) -> u64:
    """The byte at a physical address."""
    return load8(phys_to_virt(PhysAddr(at)))


def at32(at: u64) -> u64:
    """Four bytes at a physical address."""
    return load32(phys_to_virt(PhysAddr(at)))


def is_rsdp(at: u64) -> bool:
    """Whether the root pointer is at physical address *at*: its signature, and bytes that add up to 0."""
    if load64(phys_to_virt(PhysAddr(at))) != RSDP:
        return False
    total = u64(0)
    for i in range(RSDP_SIZE):
        total += at8(at + i)
    return total & 0xFF == 0


def scan(start: u64, end: u64) -> u64:
    """Where the root pointer is between *start* and *end*, on a multiple of 16; 0 if it is not."""
    at = start & ~15
    while at < end:
        if is_rsdp(at):
            return at
        at += 16
    return 0


@noinline
def find_rsdp(info: PhysAddr) -> u64:
    """The root pointer: the one that the loader hands over, or where a BIOS puts it; 0 without one."""
    given = start_info.field64(info, start_info.OFFSET_RSDP)
    if given != 0 and is_rsdp(given):
        return given
    extended = load16(phys_to_virt(PhysAddr(EBDA_SEGMENT))) << 4
    found = u64(0)
    if extended >= 0x80000 and extended < 0xA0000:
        found = scan(extended, min(extended + EBDA_SIZE, 0xA0000))
    return found if found != 0 else scan(BIOS_START, BIOS_END)


@noinline
def find_power_off(info: PhysAddr) -> None:
    """Note how the machine is switched off, if its tables say so; *info* is what the loader handed over."""
    root = find_rsdp(info)
    if root == 0:
        return
    wide = at8(root + RSDP_REVISION) >= 2
    tables = load64(phys_to_virt(PhysAddr(root + RSDP_XSDT))) if wide else at32(root + RSDP_RSDT)
    each = u64(8) if wide else u64(4)
    size = min(at32(tables + 4), HEADER_SIZE + each * MOST_TABLES)
    at = tables + HEADER_SIZE
    while at + each <= tables + size:
        entry = load64(phys_to_virt(PhysAddr(at))) if wide else at32(at)
        if entry != 0 and at32(entry) == FACP and at32(entry + 4) >= FADT_SIZE:
            read_fadt(entry)
        at += each


def read_fadt(fadt: u64) -> None:
    """Take the registers of *fadt*, if its DSDT has the numbers for S5."""
    global pm1a, pm1b, smi_command, enable
    if not read_s5(at32(fadt + FADT_DSDT)):
        return
    if at32(fadt + FADT_FLAGS) & REDUCED_HARDWARE != 0:
        if at32(fadt + 4) >= FADT_SLEEP_SIZE:
            read_sleep_control(fadt + FADT_SLEEP_CONTROL)
        return
    pm1b = at32(fadt + FADT_PM1B) & 0xFFFF
    smi_command = at32(fadt + FADT_SMI_COMMAND) & 0xFFFF
    enable = at8(fadt + FADT_ENABLE)
    pm1a = at32(fadt + FADT_PM1A) & 0xFFFF


def read_sleep_control(register: u64) -> None:
    """Take what the generic address structure at *register* names: a port, or a byte in memory."""
    global control, control_space
    control_space = at8(register)
    place = load64(phys_to_virt(PhysAddr(register + 4)))
    if control_space == AT_A_PORT and place < 0x10000:
        control = place
    if control_space == IN_MEMORY and place < u64(1) << cpu_phys_bits():
        control = place


@noinline
def read_s5(dsdt: u64) -> bool:
    """Find the package \\_S5 in the code of *dsdt*, and take its first two numbers."""
    global type_a, type_b
    if dsdt == 0 or at32(dsdt) != DSDT:
        return False
    end = dsdt + min(at32(dsdt + 4), MOST_BYTES)
    at = dsdt + HEADER_SIZE
    while at + S5_SIZE <= end:
        named = at8(at - 1) == NAME or (at8(at - 1) == ROOT and at8(at - 2) == NAME)
        if named and at32(at) == S5 and at8(at + 4) == PACKAGE:
            first = at + 5 + 1 + (at8(at + 5) >> 6) + 1
            type_a = number(first)
            type_b = number(first + size_of(first))
            return True
        at += 1
    return False


def size_of(at: u64) -> u64:
    """Bytes of the number at *at* in AML: a byte with its prefix, or zero or one by a name of its own."""
    return u64(2) if at8(at) == BYTE else u64(1)


def number(at: u64) -> u64:
    """The number at *at*, of three bits."""
    return (at8(at + 1) if at8(at) == BYTE else at8(at)) & 7


@noinline
def sleep_reduced(top: VirtAddr) -> None:
    """Ask for S5 by the sleep control register, which the tables at *top* show first where it lies in memory."""
    value = type_a << REDUCED_TYPE | REDUCED_ENABLE
    if control_space == AT_A_PORT:
        outb(control, value)
    elif map_page(top, VirtAddr(REGISTER), entry_frame(control), KERNEL_RW | UNCACHED):
        store8(REGISTER + (control & (PAGE_SIZE - 1)), value)


def sleep() -> None:
    """Ask for S5, and wait until it takes effect, but not for ever."""
    outw(pm1a, inw(pm1a) & ~SLEEP_BITS | type_a << SLEEP_TYPE | SLEEP_ENABLE)
    if pm1b != 0:
        outw(pm1b, inw(pm1b) & ~SLEEP_BITS | type_b << SLEEP_TYPE | SLEEP_ENABLE)
    for _look in range(PATIENCE):
        inw(pm1a)


@noinline
def power_off(top: VirtAddr) -> None:
    """Switch the machine off, if a way is known; returns where that does nothing. *top*: the tables in use.

    Chipsets take the request in legacy mode, too. It is tried first: going over to ACPI mode is a system management
    interrupt, from which Bochs 3.0 does not come back with LA57 on.
    """
    if control != 0:
        sleep_reduced(top)
    if pm1a == 0:
        return
    sleep()
    if inw(pm1a) & ENABLED == 0 and smi_command != 0 and enable != 0:
        outb(smi_command, enable)
        looks = 0
        while inw(pm1a) & ENABLED == 0 and looks < PATIENCE:
            looks += 1
        sleep()
