"""What the final tables hold besides physical memory: the image with its rights, and a page in every area.

The image's text is executable and not writable, its read-only data neither, its data writable
and not executable; below the boot stack one page stays unmapped. The other areas get what a
kernel puts there first, so that each can be touched, and each ends at something that refuses.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging import layout, memblock
from fivefold.kernel.paging.cpu import load_gdt, load_idt, load_task_register
from fivefold.kernel.paging.layout import CPU_ENTRY_AREA, ESPFIX_BASE, FIXADDR_TOP, LDT_BASE, MODULES_VADDR
from fivefold.kernel.paging.mapping import map_page, map_range
from fivefold.kernel.paging.pgtable import KERNEL_RO, KERNEL_RW, KERNEL_RX, PTE_LEVEL
from fivefold.kernel.paging.phys import PAGE_SIZE, kernel_to_phys, phys_to_virt
from fivefold.kernel.process import traps
from fivefold.metal.lang import fill64, load64, noinline, store16, store64, symbol, u64
from fivefold.units import PhysAddr, VirtAddr

ENTRY_IDT: Final = 0
ENTRY_GUARD_LOW: Final = 1
ENTRY_DOUBLE_FAULT_STACK: Final = 2
ENTRY_GUARD_MIDDLE: Final = 3
ENTRY_NMI_STACK: Final = 4
ENTRY_GUARD_HIGH: Final = 5
ENTRY_STACKS: Final = 2
"""Pages of the CPU entry area: what must be reachable whatever else is broken, with a hole on both sides of a stack.

The stacks of `IST_VECTORS`, in that order, are every second page from `ENTRY_STACKS`.
"""

IST_STACKS: Final = 4
IST_VECTORS: Final = (traps.DOUBLE_FAULT, traps.NMI, traps.MACHINE_CHECK, traps.DEBUG)
"""Vectors that get stacks of their own, IST1 first, in every layout and on every CPU.

They arrive where RSP is not the kernel's: between SYSCALL and the load of RSP, and between its restoration and SYSRET,
it is whatever the program chose, the address of kernel data included. NMI and #MC may arrive there by themselves; #DB
by a breakpoint on data that the entry touches; #DF when the stack itself is the fault.
"""
TSS_RSP0: Final = 0x04
TSS_IST: Final = 0x24
"""Offset of IST1 in the 64-bit TSS."""
TSS_IO_MAP: Final = 0x66
"""16 bits: where the I/O permission map begins. At or beyond the limit there is none, and ring 3 has no port at all;
left 0, the TSS itself is the map, and every zero in it opens a port (Intel SDM volume 1, "I/O Permission Bit Map")."""
TSS_SIZE: Final = 104
TSS_SELECTOR: Final = 0x28
TSS_DESCRIPTOR_FLAGS: Final = 0x89 << 40
GDT_SIZE: Final = 80

VMALLOC_PAGES: Final = 3


@noinline
def map_image_part(top: VirtAddr, start: VirtAddr, end: VirtAddr, protection: u64) -> bool:
    """Map one part of the image, page by page: parts share no page, but they share 2 MiB."""
    return map_range(top, start, kernel_to_phys(start), end - start, protection, PTE_LEVEL) == 0


@noinline
def map_image(top: VirtAddr) -> bool:
    """Map the image in the kernel window; False without memory for tables."""
    guard = symbol("stack_guard")
    done = map_image_part(top, VirtAddr(symbol("_text")), VirtAddr(symbol("_etext")), KERNEL_RX)
    done = map_image_part(top, VirtAddr(symbol("_rodata")), VirtAddr(symbol("_erodata")), KERNEL_RO) and done
    done = map_image_part(top, VirtAddr(symbol("_data")), VirtAddr(guard), KERNEL_RW) and done
    return map_image_part(top, VirtAddr(guard + PAGE_SIZE), VirtAddr(symbol("_end")), KERNEL_RW) and done


@noinline
def map_fresh(top: VirtAddr, va: VirtAddr, protection: u64) -> bool:
    """Map a cleared page of memory at *va*."""
    page = memblock.allocate(PAGE_SIZE, PAGE_SIZE)
    if page == 0:
        return False
    fill64(phys_to_virt(page), 0, PAGE_SIZE // 8)
    return map_page(top, va, page, protection)


@noinline
def map_areas(top: VirtAddr) -> bool:
    """Put the first pages into the areas; False without memory."""
    done = True
    for i in range(VMALLOC_PAGES):
        done = map_fresh(top, vmalloc_page(i), KERNEL_RW) and done
    done = map_fresh(top, last_vmalloc_page(), KERNEL_RW) and done
    done = map_fresh(top, VirtAddr(ESPFIX_BASE), KERNEL_RO) and done
    done = map_fresh(top, VirtAddr(FIXADDR_TOP - PAGE_SIZE), KERNEL_RW) and done
    stub = VirtAddr(symbol("module_stub") & ~(PAGE_SIZE - 1))
    done = map_page(top, VirtAddr(MODULES_VADDR), kernel_to_phys(stub), KERNEL_RX) and done
    if LDT_BASE[layout.column()] != 0:
        done = map_fresh(top, VirtAddr(LDT_BASE[layout.column()]), KERNEL_RW) and done
    if has_entry_area():
        idt = kernel_to_phys(VirtAddr(traps.idt))
        done = map_page(top, entry_area(ENTRY_IDT), idt, KERNEL_RO) and done
        for i in range(IST_STACKS):
            done = map_fresh(top, entry_area(ENTRY_STACKS + 2 * i), KERNEL_RW) and done
    return done


def vmalloc_page(i: u64) -> VirtAddr:
    """Allocation *i* of one page at the start of the area; a guard page follows each."""
    return VirtAddr(layout.vmalloc_base + 2 * PAGE_SIZE * i)


def last_vmalloc_page() -> VirtAddr:
    """The highest place for one page and its guard."""
    return VirtAddr(layout.vmalloc_end() - 2 * PAGE_SIZE)


def entry_area(page: u64) -> VirtAddr:
    """Address of a page of the CPU entry area."""
    return VirtAddr(CPU_ENTRY_AREA[layout.column()] + PAGE_SIZE * page)


def has_entry_area() -> bool:
    """Whether the chosen map has the area; the proposal's has not."""
    return CPU_ENTRY_AREA[layout.column()] != 0


@noinline
def load_task_state() -> None:
    """Load the TSS: the stack for exceptions from ring 3, those of `IST_VECTORS`, and no ports for ring 3."""
    tss = symbol("task_state")  # its 64-bit fields are aligned to 4 bytes only
    store64(tss + TSS_RSP0, symbol("trap_stack_top"))
    for i in range(IST_STACKS):
        store64(tss + TSS_IST + 8 * i, exception_stack_top(i))
    close_ports(tss)
    gdt = symbol("kernel_gdt")
    set_tss_descriptor(gdt, tss)
    load_gdt(VirtAddr(gdt), GDT_SIZE)
    load_task_register(TSS_SELECTOR)


def exception_stack_top(i: u64) -> VirtAddr:
    """End of the first CPU's stack number *i*: between guards in the entry area, in the image where there is none."""
    if has_entry_area():
        return entry_area(ENTRY_STACKS + 1 + 2 * i)
    return VirtAddr(symbol("exception_stacks") + PAGE_SIZE * (i + 1))


def close_ports(tss: u64) -> None:
    """Put the I/O permission map of the TSS at *tss* beyond its limit."""
    store16(tss + TSS_IO_MAP, TSS_SIZE)


def set_tss_descriptor(gdt: u64, tss: u64) -> None:
    """Describe the TSS at *tss* in the GDT at *gdt*, as available: loading it makes it busy."""
    low = TSS_SIZE - 1 | (tss & 0xFF_FFFF) << 16 | TSS_DESCRIPTOR_FLAGS | (tss >> 24 & 0xFF) << 56
    store64(gdt + TSS_SELECTOR, low)
    store64(gdt + TSS_SELECTOR + 8, tss >> 32)


def load_idt_in_use() -> None:
    """Load the IDT: its read-only alias where there is one."""
    load_idt(entry_area(ENTRY_IDT) if has_entry_area() else VirtAddr(traps.idt), traps.IDT_SIZE)


@noinline
def use_exception_stacks() -> None:
    """Give `IST_VECTORS` stacks of their own, which the TSS that is loaded has; load the IDT that is to stay."""
    set_own_stack(0, IST_VECTORS[0])
    set_own_stack(1, IST_VECTORS[1])
    set_own_stack(2, IST_VECTORS[2])
    set_own_stack(3, IST_VECTORS[3])
    load_idt_in_use()


def set_own_stack(i: u64, vector: u64) -> None:
    """Have *vector* take stack number *i* of the TSS; 0 in a gate means none."""
    traps.set_gate(vector, trap_stub(vector), i + 1)


def trap_stub(vector: u64) -> VirtAddr:
    """Address of the entry of *vector*."""
    return VirtAddr(symbol("trap_stubs") + traps.STUB_SIZE * vector)


def image_text_phys() -> PhysAddr:
    """Where the part of the image that is read-only starts."""
    return kernel_to_phys(VirtAddr(symbol("_text")))


def image_read_only_end() -> PhysAddr:
    """Where that part ends."""
    return kernel_to_phys(VirtAddr(symbol("_erodata")))


def is_top_slot_empty(top: VirtAddr, slot: u64) -> bool:
    """Whether a slot of the top table is unused."""
    return load64(top + 8 * slot) == 0
