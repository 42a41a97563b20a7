"""Checks of the other CPUs: all there, in one mode, on one root; all see what one maps, none what one removed."""

from __future__ import annotations

from typing import Final

from fivefold.kernel import report
from fivefold.kernel.areas import kernel_map
from fivefold.kernel.paging import cpu, memblock
from fivefold.kernel.paging.mapping import map_page, pte_of
from fivefold.kernel.paging.pgtable import KERNEL_RW, entry_frame
from fivefold.kernel.paging.phys import phys_to_virt
from fivefold.kernel.process import traps
from fivefold.kernel.report import equals
from fivefold.kernel.smp import smp
from fivefold.kernel.smp.smp import (
    AREA_CR3,
    AREA_CR4,
    AREA_EFER,
    AREA_SIZE,
    AREA_TSS,
    AREA_VALUE,
    MAP,
    READ,
    online,
    refused,
    send,
    shoot_down,
)
from fivefold.metal.lang import buffer, load16, load64, noinline, rdmsr, read_cr3, read_cr4, store64, u64
from fivefold.units import PhysAddr, VirtAddr

MARK: Final = 0x5A5A_534D_5000_A5A5
OTHER_MARK: Final = 0x5A5A_534D_5001_A5A5
ABSENT: Final = traps.PROBE_FAULTED | traps.PAGE_FAULT << 32
seen: Final = buffer(8)


def check_cpus(top: VirtAddr) -> None:
    """Check that the other CPUs, which wait for commands, live in the same address space as the first."""
    if smp.wanted == 1:
        return
    check_arrival()
    if online() != 0:
        check_isolation()
        check_mappings(top)
        check_shoot_down(top)


def check_return() -> None:
    """A kernel that was saved comes back to a machine that was restarted: its other CPUs are back, too."""
    if smp.wanted != 1:
        equals("smp_back_after_resume", online() + 1, smp.wanted)


@noinline
def check_arrival() -> None:
    """As many as asked for have come, in one mode, on one root; a CPU without the mode of the first was refused."""
    equals("smp_all_arrived", online() + 1, smp.wanted)
    equals("smp_none_refused", refused(), 0)
    if refused() != 0:
        report.put_line("# fivefold: CPUs refused that lack the paging mode of the first:", refused())
    modes = u64(0)
    roots = u64(0)
    for i in range(online()):
        area = smp.areas + AREA_SIZE * i
        modes += u64((load64(area + AREA_CR4) ^ read_cr4()) & cpu.CR4_LA57 != 0)
        modes += u64(load64(area + AREA_EFER) != rdmsr(cpu.MSR_EFER))
        roots += u64(load64(area + AREA_CR3) != read_cr3())
    equals("smp_same_mode", modes, 0)
    equals("smp_same_root", roots, 0)


@noinline
def check_isolation() -> None:
    """Every other CPU has the first one's protections, no port for ring 3, and stacks for what arrives at any time."""
    ports = u64(0)
    stacks = u64(0)
    protections = u64(0)
    for i in range(online()):
        tss = smp.areas + AREA_SIZE * i + AREA_TSS
        ports += u64(load16(tss + kernel_map.TSS_IO_MAP) < kernel_map.TSS_SIZE)
        protections += u64(load64(smp.areas + AREA_SIZE * i + AREA_CR4) != read_cr4())
        for k in range(kernel_map.IST_STACKS):
            end = load64(tss + kernel_map.TSS_IST + 8 * k)
            stacks += u64(traps.probe_write(VirtAddr(end - 8)) != traps.PROBE_OK)
    equals("smp_io_map_closed", ports, 0)
    equals("smp_same_protections", protections, 0)
    equals("smp_own_stacks", stacks, 0)
    # The page is in the identity map of the trampoline's root only, which all have left.
    equals("smp_low_page_forgotten", how_many_miss(VirtAddr(smp.place)), online())


@noinline
def check_mappings(top: VirtAddr) -> None:
    """What one CPU maps, each of the others reads, whichever CPU it was."""
    first = memblock.allocate_page()
    second = memblock.allocate_page()
    store64(phys_to_virt(first), MARK)
    store64(phys_to_virt(second), OTHER_MARK)
    mapped = map_page(top, test_page(0), first, KERNEL_RW)
    report.check("smp_mapping_seen", mapped and all_read(test_page(0), MARK), u64(mapped), 1)
    done = send(0, MAP, test_page(1), second)
    equals("smp_mapping_by_another", done, 1)
    found = traps.probe_read(test_page(1), VirtAddr(seen))
    ours = found == traps.PROBE_OK and load64(seen) == OTHER_MARK
    report.check("smp_mapping_by_another_seen", ours and all_read(test_page(1), OTHER_MARK), found, 0)


def test_page(i: u64) -> VirtAddr:
    """Where the vmalloc area has room after its first pages."""
    return kernel_map.vmalloc_page(kernel_map.VMALLOC_PAGES + i)


@noinline
def all_read(va: VirtAddr, value: u64) -> bool:
    """Whether every other CPU reads *value* at *va*."""
    same = True
    for i in range(online()):
        same = send(i, READ, va, PhysAddr(0)) == traps.PROBE_OK and same
        same = load64(smp.areas + AREA_SIZE * i + AREA_VALUE) == value and same
    return same


@noinline
def check_shoot_down(top: VirtAddr) -> None:
    """All have read the pages and may remember them; once they are removed, no CPU does."""
    first = entry_frame(load64(pte_of(top, test_page(0))))
    equals("smp_shoot_down_acknowledged", shoot_down(top, test_page(0)), online())
    equals("smp_shoot_down_seen", how_many_miss(test_page(0)) + misses_here(test_page(0)), online() + 1)
    memblock.free_page(first)
    second = entry_frame(load64(pte_of(top, test_page(1))))
    shoot_down(top, test_page(1))
    missed = how_many_miss(test_page(1)) + misses_here(test_page(1))
    equals("smp_shoot_down_of_anothers_page", missed, online() + 1)
    memblock.free_page(second)


def misses_here(va: VirtAddr) -> u64:
    """Return 1 if this CPU, which has read *va*, faults when it reads it again."""
    return u64(traps.probe_read(va, VirtAddr(seen)) == ABSENT)


@noinline
def how_many_miss(va: VirtAddr) -> u64:
    """How many other CPUs fault when they read *va*."""
    missing = u64(0)
    for i in range(online()):
        missing += u64(send(i, READ, va, PhysAddr(0)) == ABSENT)
    return missing
