"""What a guest on Unicorn finds when it starts: its memory, and the processor as the entry promises it."""

from __future__ import annotations

from typing import Final

from fivefold.errors import MachineError
from fivefold.machine.loading.loader import GuestPlacement
from fivefold.machine.loading.loader_state import CODE_SELECTOR, DATA_SELECTOR, Handover
from fivefold.machine.mapped_ram import MappedRam
from fivefold.machine.unicorn.core import (
    CR0_LONG,
    CS,
    DS,
    EFER_LMA,
    EFER_LME,
    ES,
    FS,
    GS,
    MSR_EFER,
    SS,
    TR,
    UnicornCore,
)
from fivefold.machine.vcpu import FLAT_CODE32, FLAT_CODE64, FLAT_DATA, PRESENT, VcpuSegment
from fivefold.units import GIB, format_size

_POISON_LIMIT: Final = GIB


def poison(ram: MappedRam, byte: int | None) -> None:
    """Fill RAM with *byte*, or leave it zero if that is None; `MachineError` if that would touch too much."""
    if byte is None:
        return
    size = sum(extent.end - extent.start for extent in ram.extents)
    if size > _POISON_LIMIT:
        raise MachineError(f"poisoning touches all RAM; expected at most {format_size(_POISON_LIMIT)}")
    ram.fill(byte)


def map_memory(core: UnicornCore, ram: MappedRam, end: int) -> None:
    """RAM where it is; everywhere else up to *end*, exclusive, a bus on which no device answers."""
    at = 0
    for extent, pointer in ram.pointers():
        if at < extent.start:
            core.map_empty_bus(at, extent.start - at)
        core.map_ram(extent.start, extent.end - extent.start, pointer)
        at = extent.end
    if at < end:
        core.map_empty_bus(at, end - at)


def enter(core: UnicornCore, placement: GuestPlacement) -> None:
    """Put the processor before the first instruction of what was loaded."""
    if placement.handover is None:
        _protected_mode(core, placement)
    else:
        _long_mode(core, placement, placement.handover)


def _protected_mode(core: UnicornCore, placement: GuestPlacement) -> None:
    """The PVH start: 32-bit protected mode, no paging, flat segments, EBX = start information."""
    core.leave_long_mode()
    code, data = VcpuSegment.from_descriptor(0x08, FLAT_CODE32), VcpuSegment.from_descriptor(0x10, FLAT_DATA)
    # A busy 32-bit TSS at 0, as the ABI promises; no GDT, because it promises none.
    task = VcpuSegment(0, 0, 0x67, 0x0B00 | PRESENT)
    segments = {ES: data, CS: code, SS: data, DS: data, FS: data, GS: data, TR: task}
    core.load_segments(segments, cpl=0, long_mode=False)
    core.write("rbx", placement.start_info)
    core.write("rip", placement.entry)


def _long_mode(core: UnicornCore, placement: GuestPlacement, handover: Handover) -> None:
    """The 64-bit start of `fivefold.machine.loading.loader_state`: RSI = start information."""
    core.set_msr(MSR_EFER, EFER_LME | EFER_LMA)
    core.write("cr4", handover.cr4)
    core.write("cr3", handover.root)
    core.write("cr0", CR0_LONG)
    core.set_gdt(handover.gdt)
    code = VcpuSegment.from_descriptor(CODE_SELECTOR, FLAT_CODE64)
    data = VcpuSegment.from_descriptor(DATA_SELECTOR, FLAT_DATA)
    segments = {ES: data, CS: code, SS: data, DS: data, FS: data, GS: data}
    core.load_segments(segments, cpl=0, long_mode=True)
    core.write("rsi", placement.start_info)
    core.write("rsp", handover.stack)
    core.write("rip", placement.entry)
