"""What a boot loader does before the first instruction: place the image and its start information.

Pure Python over a `PhysMemory`, for engines that have no firmware. QEMU brings its own.
Sources: Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from fivefold.arch import Cpu
from fivefold.errors import MachineError
from fivefold.machine.base import Guest, MapRow, Module
from fivefold.machine.loading.elf import LoadSegment, load_segments, pvh_entry
from fivefold.machine.loading.loader_state import Handover, build_handover, handover_size
from fivefold.machine.loading.memory_map import EBDA, RAM
from fivefold.memory import Extent, PhysMemory
from fivefold.units import GIB, MIB, PAGE, PhysAddr, hex64

START_MAGIC: Final = 0x336EC578
"""The first word of the start information: "xEn3" with the top bit of the E set."""

_START_INFO: Final = struct.Struct("<IIIIQQQQII")
_MODULE: Final = struct.Struct("<QQQQ")
_ROW: Final = struct.Struct("<QQII")


class GuestPlacement(NamedTuple):
    """Where the guest starts, and with what. *handover* is None for the 32-bit entry."""

    entry: int
    start_info: int
    handover: Handover | None


class Room:
    """RAM that is not taken yet."""

    def __init__(self, rows: tuple[MapRow, ...]) -> None:
        self._free = [Extent(max(row.start, PAGE), row.end) for row in rows if row.kind == RAM]

    def take_exactly(self, start: int, end: int) -> bool:
        """Take *start* to *end*; False if some of it is not RAM or is taken."""
        for index, free in enumerate(self._free):
            if free.start <= start and end <= free.end:
                self._free[index : index + 1] = [Extent(free.start, start), Extent(end, free.end)]
                return True
        return False

    def take_highest(self, size: int, below: int) -> int | None:
        """Take *size* bytes, page-aligned, ending at or before *below*; None if there is no room."""
        for free in sorted(self._free, reverse=True):
            start = min(free.end, below) - size & ~(PAGE - 1)
            if start >= free.start and self.take_exactly(start, start + size):
                return start
        return None

    def take_low(self, size: int, what: str) -> int:
        """Room below 640 KiB if there is, else the highest below 4 GiB, as loaders like it."""
        start = self.take_highest(size, EBDA)
        if start is None:
            start = self.take_highest(size, 4 * GIB)
        if start is None:
            raise MachineError(f"no room below 4 GiB for {what} ({size} bytes): too little memory")
        return start


def load(guest: Guest, rows: tuple[MapRow, ...], memory: PhysMemory, cpu: Cpu) -> GuestPlacement:
    """Place *guest*'s image, modules and start information in *memory*.

    Raises `ImageError` for a bad image and `MachineError` if something does not fit.
    """
    entry = _entry(guest)
    room = Room(rows)
    for segment in load_segments(guest.image):
        _place_segment(segment, room, memory)
    start_info = _place_start_info(guest, rows, room, memory)
    if guest.entry == "pvh":
        return GuestPlacement(entry, start_info, None)
    top = max(row.end for row in rows if row.kind == RAM)
    size = handover_size(guest.entry, top, cpu)
    if guest.handover is None:
        at = room.take_low(size, "the tables of the 64-bit entry")
    elif room.take_exactly(guest.handover, guest.handover + size):
        at = guest.handover
    else:
        raise MachineError(f"the 64-bit entry's tables do not fit at {hex64(guest.handover)}: not free RAM")
    return GuestPlacement(entry, start_info, build_handover(guest.entry, top, at, cpu, memory))


def _entry(guest: Guest) -> int:
    if guest.entry == "pvh":
        return pvh_entry(guest.image)
    if guest.entry64 is None:
        raise MachineError(f"entry {guest.entry} needs the address of the image's 64-bit entry")
    return guest.entry64


def _place_segment(segment: LoadSegment, room: Room, memory: PhysMemory) -> None:
    if not room.take_exactly(segment.start, segment.end):
        raise MachineError(
            f"the image needs {hex64(segment.start)} to {hex64(segment.end)}, which is not free RAM in this guest"
        )
    zeros = segment.end - segment.start - len(segment.data)
    memory.write(PhysAddr(segment.start), segment.data + bytes(zeros))


def _place_start_info(guest: Guest, rows: tuple[MapRow, ...], room: Room, memory: PhysMemory) -> int:
    modules = [(_place_module(module, room, memory), module) for module in guest.modules]
    texts = [guest.cmdline.encode() + b"\0", *(module.cmdline.encode() + b"\0" for module in guest.modules)]
    size = _START_INFO.size + _ROW.size * len(rows) + _MODULE.size * len(modules) + sum(map(len, texts))
    if guest.start_info is None:
        at = room.take_low(size, "the start information")
    elif room.take_exactly(guest.start_info, guest.start_info + size):
        at = guest.start_info
    else:
        raise MachineError(f"the start information does not fit at {hex64(guest.start_info)}: not free RAM")
    memory.write(PhysAddr(at), _start_info(at, rows, modules, texts))
    return at


def _place_module(module: Module, room: Room, memory: PhysMemory) -> int:
    at = room.take_highest(max(len(module.data), 1), 4 * GIB)
    if at is None or at < MIB:
        raise MachineError(f"no room below 4 GiB for a module of {len(module.data)} bytes: too little memory")
    memory.write(PhysAddr(at), module.data)
    return at


def _start_info(at: int, rows: tuple[MapRow, ...], modules: list[tuple[int, Module]], texts: list[bytes]) -> bytes:
    """The structure and all that it points to, as one run of bytes for address *at*."""
    rows_at = at + _START_INFO.size
    modules_at = rows_at + _ROW.size * len(rows)
    text_at = [modules_at + _MODULE.size * len(modules)]
    for text in texts:
        text_at.append(text_at[-1] + len(text))
    head = _START_INFO.pack(
        START_MAGIC, 1, 0, len(modules), modules_at if modules else 0, text_at[0], 0, rows_at, len(rows), 0
    )
    table = b"".join(_ROW.pack(row.start, row.end - row.start, row.kind, 0) for row in rows)
    listed = b"".join(
        _MODULE.pack(pa, len(module.data), text, 0) for (pa, module), text in zip(modules, text_at[1:], strict=False)
    )
    return head + table + listed + b"".join(texts)
