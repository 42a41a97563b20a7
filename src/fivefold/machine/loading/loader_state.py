"""The 64-bit entry: what a guest finds when it is started with paging already on.

Our own contract, in the manner of UEFI and kexec: 64-bit mode, interrupts off, four or five
levels of paging that map all RAM (and the holes between) at its own address, writable and
executable, a flat GDT, a small stack, and RSI = physical address of the start information.
All of it lies in RAM that the memory map lists as free: a guest moves to its own tables, GDT
and stack before it hands that RAM out.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from fivefold.arch import LA48, LA57, ControlState, Cpu, Level, PagingMode
from fivefold.errors import MachineError
from fivefold.machine.base import TableRegister
from fivefold.machine.vcpu import FLAT_CODE64, FLAT_DATA
from fivefold.memory import PhysMemory
from fivefold.units import PAGE, PhysAddr

_MODES = {"long48": LA48, "long57": LA57}
_PRESENT_WRITABLE = 0x3
_PAGE_SIZE_BIT = 1 << 7
_STACK = 0x1000
GDT = (0, FLAT_CODE64, FLAT_DATA)
CODE_SELECTOR = 0x08
DATA_SELECTOR = 0x10


class Handover(NamedTuple):
    """The processor state of a 64-bit start: paging in *mode* from *root*."""

    mode: PagingMode
    root: int
    stack: int
    gdt: TableRegister

    @property
    def cr4(self) -> int:
        """CR4 at the start: PAE, and LA57 where *mode* has it."""
        return ControlState.long(self.mode, self.root).cr4


def handover_size(entry: str, top: int, cpu: Cpu) -> int:
    """Bytes that `build_handover` needs. Refuses five levels on a CPU that has four."""
    mode = _MODES[entry]
    if mode.top > cpu.widest.top:
        raise MachineError(f"entry {entry} needs a CPU with LA57, and this one has four levels only")
    tables = sum(_tables(level, top) for level in mode.levels if level >= _leaf_level(cpu))
    return tables * PAGE + _STACK + PAGE


def build_handover(entry: str, top: int, at: int, cpu: Cpu, memory: PhysMemory) -> Handover:
    """Write tables for all of 0 to *top*, a GDT and a stack to *at*; see the module's contract."""
    mode = _MODES[entry]
    memory.write(PhysAddr(at), struct.pack("<3Q", *GDT))
    stack = at + PAGE + _STACK
    root = _identity_tables(mode, top, stack, _leaf_level(cpu), memory)
    return Handover(mode, root, stack, TableRegister(at, 8 * len(GDT) - 1))


def _leaf_level(cpu: Cpu) -> Level:
    return Level.PDPT if cpu.gib_pages else Level.PD


def _tables(level: Level, top: int) -> int:
    return -(-top // (level.span * 512))


def _identity_tables(mode: PagingMode, top: int, at: int, leaf: Level, memory: PhysMemory) -> int:
    """Tables from the leaves up, one level after the other; returns the root, which is last."""
    below, step, flags = 0, leaf.span, _PRESENT_WRITABLE | _PAGE_SIZE_BIT
    for level in reversed([level for level in mode.levels if level >= leaf]):
        entries = -(-top // level.span)
        size = _tables(level, top) * PAGE
        table = b"".join((below + n * step | flags).to_bytes(8, "little") for n in range(entries))
        memory.write(PhysAddr(at), table.ljust(size, b"\0"))
        below, step, flags, at = at, PAGE, _PRESENT_WRITABLE, at + size
    return below
