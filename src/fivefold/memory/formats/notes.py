"""The notes of ELF cores and kdump files: registers of CPUs and what Linux says of itself.

Layouts: ELF notes as in the *System V ABI*, "Note Section"; NT_PRSTATUS as x86-64 Linux'
``struct elf_prstatus``; QEMU's as ``QEMUCPUState`` of its ``target/i386/arch_dump.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from fivefold.errors import FormatError
from fivefold.memory.registers import CpuState, Segment
from fivefold.units import MIB

NT_PRSTATUS: Final = 1
MAX_NOTES: Final = 1 << 16
MAX_NOTE_BYTES: Final = 64 * MIB
"""Together, in one file: 65,536 CPUs need about half of it."""

_HEADER: Final = struct.Struct("<III")

_PRSTATUS_REGISTERS: Final = struct.Struct("<27Q")
_PRSTATUS_OFFSET: Final = 112
_PRSTATUS_SIZE_32: Final = 144
_PRSTATUS_NAMES: Final = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)

_QEMU_HEAD: Final = struct.Struct("<II18Q")
_QEMU_SEGMENT: Final = struct.Struct("<IIIIQ")
_QEMU_CONTROL: Final = struct.Struct("<5Q")
_QEMU_SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")
_QEMU_NAMES: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{number}" for number in range(8, 16)),
    *("rip", "rflags"),
)
_QEMU_SIZE: Final = _QEMU_HEAD.size + len(_QEMU_SEGMENTS) * _QEMU_SEGMENT.size + _QEMU_CONTROL.size


class Note(NamedTuple):
    """One note; *name* without its NUL, *kind* the number that its owner gives a meaning."""

    name: str
    kind: int
    data: bytes


def split_notes(raw: bytes, where: str) -> Iterator[Note]:
    """The notes in *raw*; `FormatError` that begins with *where* when sizes do not fit."""
    at = 0
    for _ in range(MAX_NOTES):
        # Writers pad the end of the segment with zeros.
        if len(raw) - at < _HEADER.size or not any(raw[at : at + _HEADER.size]):
            return
        name_size, data_size, kind = _HEADER.unpack_from(raw, at)
        name_at = at + _HEADER.size
        data_at = name_at + _padded(name_size)
        if data_at + data_size > len(raw):
            raise FormatError(
                f"{where}: note at {at:#x} claims {name_size} + {data_size} bytes, {len(raw) - name_at} are left"
            )
        name = raw[name_at : name_at + name_size].rstrip(b"\0").decode("latin-1")
        yield Note(name, kind, raw[data_at : data_at + data_size])
        at = data_at + _padded(data_size)
    raise FormatError(f"{where}: more than {MAX_NOTES} notes")


def _padded(size: int) -> int:
    return size + 3 & ~3


def cpus_of(notes: Iterable[Note], where: str) -> tuple[CpuState, ...]:
    """The CPUs in *notes*, in their order: QEMU's notes where there are any, else PRSTATUS.

    QEMU writes both; its own has the control registers and the same general ones.
    """
    kept = list(notes)
    qemu = [note for note in kept if note.name == "QEMU"]
    if qemu:
        return tuple(_qemu_cpu(note, where) for note in qemu)
    status = [note for note in kept if note.name == "CORE" and note.kind == NT_PRSTATUS]
    return tuple(_prstatus_cpu(note, where) for note in status)


def _prstatus_cpu(note: Note, where: str) -> CpuState:
    if len(note.data) == _PRSTATUS_SIZE_32:
        raise FormatError(
            f"{where} is a core of a 32-bit system (PRSTATUS of 144 bytes), whose tables are those of 32-bit or PAE "
            "paging; expected 4- or 5-level paging"
        )
    if len(note.data) < _PRSTATUS_OFFSET + _PRSTATUS_REGISTERS.size:
        raise FormatError(
            f"{where}: PRSTATUS note has {len(note.data)} bytes, expected 336 as x86-64 kernels write them"
        )
    values = _PRSTATUS_REGISTERS.unpack_from(note.data, _PRSTATUS_OFFSET)
    return CpuState("PRSTATUS note", general=dict(zip(_PRSTATUS_NAMES, values, strict=True)))


def _qemu_cpu(note: Note, where: str) -> CpuState:
    if len(note.data) < _QEMU_SIZE:
        raise FormatError(f"{where}: QEMU's CPU note has {len(note.data)} bytes, expected {_QEMU_SIZE} or more")
    version, _, *general = _QEMU_HEAD.unpack_from(note.data)
    if version != 1:
        raise FormatError(f"{where}: QEMU's CPU note has version {version}, expected 1")
    segments = {}
    at = _QEMU_HEAD.size
    for name in _QEMU_SEGMENTS:
        selector, limit, flags, _, base = _QEMU_SEGMENT.unpack_from(note.data, at)
        segments[name] = Segment(selector, base, limit, flags)
        at += _QEMU_SEGMENT.size
    cr0, _, cr2, cr3, cr4 = _QEMU_CONTROL.unpack_from(note.data, at)
    names = dict(zip(_QEMU_NAMES, general, strict=True))
    return CpuState("QEMU CPU note", cr0=cr0, cr2=cr2, cr3=cr3, cr4=cr4, general=names, segments=segments)


def vmcoreinfo_of(notes: Iterable[Note]) -> dict[str, str]:
    """What Linux says of itself for readers of dumps; empty without a VMCOREINFO note."""
    for note in notes:
        if note.name == "VMCOREINFO":
            return parse_vmcoreinfo(note.data)
    return {}


def parse_vmcoreinfo(raw: bytes) -> dict[str, str]:
    """``KEY=VALUE`` lines as a dict, in their order; the first of equal keys stays.

    >>> parse_vmcoreinfo(b"OSRELEASE=6.1\\nNUMBER(pgtable_l5_enabled)=1\\n")
    {'OSRELEASE': '6.1', 'NUMBER(pgtable_l5_enabled)': '1'}
    """
    facts: dict[str, str] = {}
    for line in raw.rstrip(b"\0").decode("utf-8", "replace").splitlines():
        key, equals, value = line.partition("=")
        if equals:
            facts.setdefault(key.strip(), value.strip())
    return facts
