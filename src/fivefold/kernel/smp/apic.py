"""The local APIC, as far as CPUs use it to start and to interrupt each other (Intel SDM volume 3, "APIC").

It is driven through memory, at a page of the fixmap; in x2APIC mode, which firmware may leave on, it is not.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.paging import cpu
from fivefold.kernel.paging.layout import FIXADDR_TOP
from fivefold.kernel.paging.mapping import map_page
from fivefold.kernel.paging.pgtable import KERNEL_RW, UNCACHED, entry_frame
from fivefold.kernel.paging.phys import PAGE_SIZE
from fivefold.metal.lang import cpuid, load32, noinline, pause, rdmsr, rdtsc, store32, u64
from fivefold.units import VirtAddr

APIC: Final = FIXADDR_TOP - 3 * PAGE_SIZE
"""Where the fixmap shows the local APIC (Intel SDM volume 3, "Local APIC Registers")."""
APIC_EOI: Final = 0xB0
APIC_SPURIOUS: Final = 0xF0
APIC_COMMAND: Final = 0x300
APIC_ENABLED: Final = 0x100
APIC_SENDING: Final = 1 << 12
ALL_OTHERS: Final = 0xC_4000
"""Destination shorthand "all excluding self", level assert, edge triggered."""
INIT: Final = 0x500
STARTUP: Final = 0x600
SPURIOUS_VECTOR: Final = 0xFF

MSR_APIC_BASE: Final = 0x1B
X2APIC: Final = 1 << 10
CPUID_APIC: Final = 1 << 9

AFTER_INIT: Final = 1 << 25
BETWEEN_STARTUPS: Final = 1 << 21
PATIENCE: Final = 1 << 34
"""Ticks of the time-stamp counter: some 10 ms, some 1 ms, and several seconds."""


@noinline
def map_apic(top: VirtAddr) -> None:
    """Show the local APIC in the fixmap, and turn it on."""
    if cpuid(1, 0, cpu.EDX) & CPUID_APIC == 0:
        report.panic("smp= on the command line, but this CPU has no local APIC")
    base = rdmsr(MSR_APIC_BASE)
    if base & X2APIC != 0:
        report.panic("the local APIC is in x2APIC mode, which is not driven here")
    if not map_page(top, VirtAddr(APIC), entry_frame(base), KERNEL_RW | UNCACHED):
        report.panic("no memory to map the local APIC")
    turn_on()


def turn_on() -> None:
    """Let this CPU's APIC take interrupts."""
    store32(APIC + APIC_SPURIOUS, APIC_ENABLED | SPURIOUS_VECTOR)


def end_interrupt() -> None:
    """Tell it that an interrupt was taken, so that the next can come."""
    store32(APIC + APIC_EOI, 0)


@noinline
def wait_ticks(ticks: u64) -> None:
    """Do nothing for a while."""
    began = rdtsc()
    while rdtsc() - began < ticks:
        pause()


@noinline
def tell_others(what: u64) -> None:
    """Send an interprocessor interrupt to all other CPUs, once the one before has left."""
    while load32(APIC + APIC_COMMAND) & APIC_SENDING != 0:
        pause()
    store32(APIC + APIC_COMMAND, ALL_OTHERS | what)
