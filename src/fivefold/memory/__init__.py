"""Where physical bytes live: in buffers, in files, in running guests."""

from fivefold.memory.banked import Bank, BankedMemory, PagedMemory, SourceMemory
from fivefold.memory.base import Extent, PhysMemory, PhysReader, Ram
from fivefold.memory.formats.notes import parse_vmcoreinfo
from fivefold.memory.formats.raw_image import parse_ram_map
from fivefold.memory.open_source import LIVE, SourceOptions, is_memory, is_snapshot, open_file, open_source
from fivefold.memory.registers import CpuState, Segment
from fivefold.memory.source import Source

__all__ = [
    "LIVE",
    "Bank",
    "BankedMemory",
    "CpuState",
    "Extent",
    "PagedMemory",
    "PhysMemory",
    "PhysReader",
    "Ram",
    "Segment",
    "Source",
    "SourceMemory",
    "SourceOptions",
    "is_memory",
    "is_snapshot",
    "open_file",
    "open_source",
    "parse_ram_map",
    "parse_vmcoreinfo",
]
