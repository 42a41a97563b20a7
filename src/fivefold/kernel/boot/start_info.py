"""What the loader hands over: PVH's start information (Xen: "x86/HVM direct boot ABI").

The same structure serves the 32-bit entry and ours in 64 bits. It lies wherever the loader
put it, and is read through `phys_to_virt`.
"""

from __future__ import annotations

from typing import Final

from fivefold.kernel.paging import memblock
from fivefold.kernel.paging.phys import PAGE_SIZE, kernel_to_phys, phys_to_virt
from fivefold.metal.lang import (
    buffer,
    copy64,
    fill64,
    inline,
    load8,
    load32,
    load64,
    noinline,
    store8,
    store32,
    store64,
    u64,
)
from fivefold.units import PhysAddr, VirtAddr

MAGIC: Final = 0x336E_C578
SIZE: Final = 56
OFFSET_VERSION: Final = 4
OFFSET_MODULES: Final = 12
OFFSET_MODULE_LIST: Final = 16
OFFSET_CMDLINE: Final = 24
OFFSET_RSDP: Final = 32
OFFSET_MEMORY_MAP: Final = 40
OFFSET_MEMORY_COUNT: Final = 48

MAP_ENTRY_SIZE: Final = 24
MAP_TYPE: Final = 16
TYPE_RAM: Final = 1
MAX_MAP_ENTRIES: Final = 512
"""A count above this is a loader's mistake; the rest is not read."""

MODULE_ENTRY_SIZE: Final = 32
MAX_MODULES: Final = 16
MAX_CMDLINE: Final = 4096
"""Bytes of the command line that are looked at, with its NUL; one that has none in them is refused."""


@inline
def field64(info: PhysAddr, offset: u64) -> u64:
    """64-bit field of the structure at *info*."""
    return load64(phys_to_virt(PhysAddr(info + offset)))


@inline
def field32(info: PhysAddr, offset: u64) -> u64:
    """32-bit field of the structure at *info*."""
    return load32(phys_to_virt(PhysAddr(info + offset)))


def is_valid(info: PhysAddr) -> bool:
    """Whether *info* points to the structure, in a version that has a memory map."""
    return info != 0 and field32(info, 0) == MAGIC and field32(info, OFFSET_VERSION) >= 1


def map_count(info: PhysAddr) -> u64:
    """Entries of the memory map."""
    return min(field32(info, OFFSET_MEMORY_COUNT), MAX_MAP_ENTRIES)


@inline
def map_entry(info: PhysAddr, i: u64) -> PhysAddr:
    """Address of entry *i* of the memory map: start, size, type."""
    return PhysAddr(field64(info, OFFSET_MEMORY_MAP) + MAP_ENTRY_SIZE * i)


def add_memory(info: PhysAddr) -> None:
    """Give memblock every range that the loader calls RAM, and take back what it also calls something else."""
    for i in range(map_count(info)):
        entry = map_entry(info, i)
        if field32(entry, MAP_TYPE) == TYPE_RAM:
            memblock.add(PhysAddr(field64(entry, 0)), field64(entry, 8))
    for i in range(map_count(info)):
        entry = map_entry(info, i)
        if field32(entry, MAP_TYPE) != TYPE_RAM:
            memblock.remove(PhysAddr(field64(entry, 0)), field64(entry, 8))


def reserve_memory(info: PhysAddr) -> None:
    """Keep the structure and all that it points to from being handed out."""
    memblock.reserve(info, SIZE)
    memblock.reserve(PhysAddr(field64(info, OFFSET_MEMORY_MAP)), map_count(info) * MAP_ENTRY_SIZE)
    cmdline = PhysAddr(field64(info, OFFSET_CMDLINE))
    if cmdline != 0:
        memblock.reserve(cmdline, cmdline_size(cmdline) + 1)
    modules = min(field32(info, OFFSET_MODULES), MAX_MODULES)
    list_at = PhysAddr(field64(info, OFFSET_MODULE_LIST))
    if list_at != 0:
        memblock.reserve(list_at, modules * MODULE_ENTRY_SIZE)
        for i in range(modules):
            module = PhysAddr(list_at + MODULE_ENTRY_SIZE * i)
            memblock.reserve(PhysAddr(field64(module, 0)), field64(module, 8))


def has_endless_cmdline(info: PhysAddr) -> bool:
    """Whether there is a command line without a NUL in its first `MAX_CMDLINE` bytes.

    Its words would be looked for in whatever follows: other structures, or a hole that reads as ones up to its end.
    """
    cmdline = PhysAddr(field64(info, OFFSET_CMDLINE))
    return cmdline != 0 and cmdline_size(cmdline) == MAX_CMDLINE


def cmdline_size(cmdline: PhysAddr) -> u64:
    """Bytes of the command line, without its NUL."""
    size = 0
    while size < MAX_CMDLINE and load8(phys_to_virt(PhysAddr(cmdline + size))) != 0:
        size += 1
    return size


COPY_MAP: Final = 0x100
COPY_CMDLINE: Final = 0x1000
COPY_MODULES: Final = 0x2000
COPY_SIZE: Final = 0x3000
COPY_ROWS: Final = (COPY_CMDLINE - COPY_MAP) // MAP_ENTRY_SIZE
kept: Final = buffer(COPY_SIZE, PAGE_SIZE)


@noinline
def copy_to(at: VirtAddr, at_phys: PhysAddr, info: PhysAddr) -> None:
    """Copy the structure and what it points to, but not what the modules hold, to one place of `COPY_SIZE` bytes."""
    rows = min(map_count(info), COPY_ROWS)
    modules = min(field32(info, OFFSET_MODULES), MAX_MODULES)
    fill64(at, 0, COPY_SIZE // 8)
    copy64(at + COPY_MAP, phys_to_virt(map_entry(info, 0)), rows * MAP_ENTRY_SIZE // 8)
    cmdline = field64(info, OFFSET_CMDLINE)
    if cmdline != 0:
        for i in range(cmdline_size(PhysAddr(cmdline))):
            store8(at + COPY_CMDLINE + i, load8(phys_to_virt(PhysAddr(cmdline + i))))
    if field64(info, OFFSET_MODULE_LIST) != 0:
        source = phys_to_virt(PhysAddr(field64(info, OFFSET_MODULE_LIST)))
        copy64(at + COPY_MODULES, source, modules * MODULE_ENTRY_SIZE // 8)
        store32(at + OFFSET_MODULES, modules)
        store64(at + OFFSET_MODULE_LIST, at_phys + COPY_MODULES)
    store32(at, MAGIC)
    store32(at + OFFSET_VERSION, 1)
    store64(at + OFFSET_CMDLINE, at_phys + COPY_CMDLINE)
    store64(at + OFFSET_RSDP, field64(info, OFFSET_RSDP))
    store64(at + OFFSET_MEMORY_MAP, at_phys + COPY_MAP)
    store32(at + OFFSET_MEMORY_COUNT, rows)


def keep(info: PhysAddr) -> PhysAddr:
    """Copy it into the image and return where the copy is: loaders put it where the final tables map nothing."""
    copy_to(VirtAddr(kept), kernel_to_phys(VirtAddr(kept)), info)
    return kernel_to_phys(VirtAddr(kept))
