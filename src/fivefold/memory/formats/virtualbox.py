"""VirtualBox's cores, as ``VBoxManage debugvm NAME dumpvmcore`` writes them: an ELF core with notes of their own.

Source: VirtualBox, ``dbgfcorefmt.h``. Memory is in PT_LOAD segments as in any core; a note VBCPU for each CPU has its
registers. Fields that later versions added follow those that are read here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from fivefold.errors import FormatError
from fivefold.memory.formats.notes import Note
from fivefold.memory.registers import CpuState, Segment

CORE, CPU = "VBCORE", "VBCPU"
NT_CORE, NT_CPU = 0xB00, 0xB01
MAGIC: Final = 0xC01A_C0DE
_CORE: Final = struct.Struct("<II")
_GENERAL: Final = struct.Struct("<18Q")
_SELECTOR: Final = struct.Struct("<QIIHHI")
_CONTROL: Final = struct.Struct("<4Q64x")
_TABLE: Final = struct.Struct("<QII")
_EFER: Final = struct.Struct("<24xQ")
_NAMES: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", *(f"r{number}" for number in range(8, 16))),
    *("rip", "rsp", "rbp", "rflags"),
)
_SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss")
_SIZE: Final = _GENERAL.size + 8 * _SELECTOR.size + _CONTROL.size + 2 * _TABLE.size + _EFER.size


def is_virtualbox(notes: Iterable[Note]) -> bool:
    """Whether the core's first notes say that VirtualBox wrote it."""
    return any(note.name == CORE and note.kind == NT_CORE for note in notes)


def cpus_of(notes: Iterable[Note], where: str) -> tuple[CpuState, ...]:
    """The CPUs in VirtualBox's *notes*; `FormatError` that begins with *where* for those that are cut or forged."""
    kept = list(notes)
    for note in kept:
        if note.name == CORE and note.kind == NT_CORE:
            _check_core(note, where)
    return tuple(_cpu(note, where) for note in kept if note.name == CPU and note.kind == NT_CPU)


def _check_core(note: Note, where: str) -> None:
    if len(note.data) < _CORE.size:
        raise FormatError(f"{where}: VirtualBox's core note has {len(note.data)} bytes, expected 24")
    magic, version = _CORE.unpack_from(note.data)
    if magic != MAGIC or version >> 16 != 1:
        raise FormatError(
            f"{where}: VirtualBox's core note has magic {magic:#x}, version {version:#x}; expected {MAGIC:#x}, 1.x"
        )


def _cpu(note: Note, where: str) -> CpuState:
    if len(note.data) < _SIZE:
        raise FormatError(f"{where}: VirtualBox's CPU note has {len(note.data)} bytes, expected {_SIZE} or more")
    general = dict(zip(_NAMES, _GENERAL.unpack_from(note.data), strict=True))
    at, segments = _GENERAL.size, {}
    for name in _SEGMENTS:
        segments[name], at = _selector(note.data, at)
    cr0, cr2, cr3, cr4 = _CONTROL.unpack_from(note.data, at)
    at += _CONTROL.size
    for name in ("gdt", "idt"):
        base, limit, _ = _TABLE.unpack_from(note.data, at)
        segments[name] = Segment(0, base, limit, 0)
        at += _TABLE.size
    for name in ("ldt", "tr"):
        segments[name], at = _selector(note.data, at)
    (efer,) = _EFER.unpack_from(note.data, at)
    return CpuState(
        "VirtualBox's CPU note", cr0=cr0, cr2=cr2, cr3=cr3, cr4=cr4, efer=efer, general=general, segments=segments
    )


def _selector(raw: bytes, at: int) -> tuple[Segment, int]:
    base, limit, attributes, selector, _, _ = _SELECTOR.unpack_from(raw, at)
    return Segment(selector, base, limit, attributes), at + _SELECTOR.size
