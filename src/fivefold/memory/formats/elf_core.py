"""ELF cores: QEMU's ``dump-guest-memory``, Linux' ``/proc/vmcore``, and sparse ones.

Physical memory is what the PT_LOAD segments say by ``p_paddr``. A segment whose file part is
shorter than its memory part leaves the rest a hole. Layout: *System V ABI*, "ELF Header",
"Program Header", and "Extended numbering" for PN_XNUM.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final, NamedTuple

from fivefold.errors import FormatError
from fivefold.memory.file_memory import file_memory
from fivefold.memory.files import FileBytes
from fivefold.memory.formats import virtualbox
from fivefold.memory.formats.notes import MAX_NOTE_BYTES, Note, cpus_of, split_notes, vmcoreinfo_of
from fivefold.memory.registers import CpuState
from fivefold.memory.source import Source
from fivefold.memory.spans import MAX_SPANS, Span, without_overlap
from fivefold.units import MASK64

MAGIC: Final = b"\x7fELF"

_FILE: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM: Final = struct.Struct("<IIQQQQQQ")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")

_ET_CORE: Final = 4
_EM_386: Final = 3
_EM_X86_64: Final = 62
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_PN_XNUM: Final = 0xFFFF
_NO_LONG_MODE: Final = "tables are those of 32-bit or PAE paging; expected 4- or 5-level paging"
_TYPES: Final = {1: "a relocatable file", 2: "an executable", 3: "a shared object"}


class _Segment(NamedTuple):
    kind: int
    flags: int
    offset: int
    va: int
    pa: int
    file_size: int
    memory_size: int
    align: int


def read_elf_core(file: FileBytes) -> Source:
    """The memory, CPUs and VMCOREINFO of an ELF64 x86-64 core; takes over *file*.

    `FormatError` for anything else, and for a core whose segments end after the file does. Where
    segments overlap in physical memory the first of them is used, as in ``/proc/vmcore``,
    where the kernel's text comes twice.
    """
    segments, machine = _segments(file)
    spans = [_span(file, index, segment) for index, segment in enumerate(segments) if segment.kind == _PT_LOAD]
    pieces = without_overlap(spans)
    notes = _notes(file, segments)
    return Source(
        memory=file_memory(file, pieces),
        format="VirtualBox core" if virtualbox.is_virtualbox(notes) else "ELF core",
        cpus=_cpus(file, notes, machine),
        vmcoreinfo=vmcoreinfo_of(notes),
        notes=_remarks(spans, pieces, notes, machine),
    )


def has_no_segments(file: FileBytes) -> bool:
    """Whether a 64-bit ELF core has no program headers at all, as Xen's have none."""
    header = _FILE.unpack(file.read_at(0, _FILE.size))
    return header[0][4:6] == b"\2\1" and header[1] == _ET_CORE and not header[10]


def _cpus(file: FileBytes, notes: list[Note], machine: int) -> tuple[CpuState, ...]:
    """The CPUs; the first of QEMU's with what the file's machine number says of it."""
    if virtualbox.is_virtualbox(notes):
        return virtualbox.cpus_of(notes, file.name)
    cpus = cpus_of(notes, file.name)
    if not any(note.name == "QEMU" for note in notes):
        return cpus
    return (replace(cpus[0], elf_machine=machine), *cpus[1:])


def _remarks(spans: list[Span], pieces: list[Span], notes: list[Note], machine: int) -> tuple[str, ...]:
    remarks = []
    claimed = sum(span.end - span.start for span in spans)
    kept = sum(piece.end - piece.start for piece in pieces)
    if kept != claimed:
        remarks.append(f"segments overlap in {claimed - kept} bytes of physical memory; the first one was used")
    if not pieces:
        remarks.append("the core holds no memory")
    if machine == _EM_386:
        remarks.append(f"ELF machine 386: the first CPU is not in long mode, so its {_NO_LONG_MODE}")
    if not notes:
        remarks.append("the core holds no notes, so no registers")
    return tuple(remarks)


def _segments(file: FileBytes) -> tuple[list[_Segment], int]:
    """The program headers, and the machine number."""
    header = _FILE.unpack(file.read_at(0, _FILE.size))
    ident, kind, machine = header[:3]
    _check_identity(file.name, ident, kind, machine)
    table, entry_size, count = header[5], header[9], header[10]
    if count == _PN_XNUM:
        count = _extended_count(file, header[6])
    if count and entry_size != _PROGRAM.size:
        raise FormatError(f"{file.name}: program headers of {entry_size} bytes, expected {_PROGRAM.size}")
    if count > MAX_SPANS:
        raise FormatError(f"{file.name}: {count} program headers, at most {MAX_SPANS} are read")
    raw = file.view(table, count * _PROGRAM.size)
    return [_Segment(*fields) for fields in _PROGRAM.iter_unpack(raw)], machine


def _check_identity(name: str, ident: bytes, kind: int, machine: int) -> None:
    if ident[4:6] == b"\x01\x01":
        raise FormatError(f"{name} is a core of a 32-bit system (ELF class 1), whose {_NO_LONG_MODE}")
    if ident[4] != 2 or ident[5] != 1:
        raise FormatError(f"{name}: ELF class {ident[4]}, data {ident[5]}; expected 64-bit little-endian (2, 1)")
    # QEMU writes 386 while the first CPU is not in long mode yet, with 64-bit headers all the same.
    if machine not in (_EM_X86_64, _EM_386):
        raise FormatError(f"{name}: ELF for machine {machine}; expected x86-64 (62) or 386 (3)")
    if kind != _ET_CORE:
        what = _TYPES.get(kind, f"of type {kind}")
        raise FormatError(f"{name}: the ELF file is {what}, not a core; expected type 4, as of `dump-guest-memory`")


def _extended_count(file: FileBytes, section_table: int) -> int:
    # With 65,535 segments or more the count is in the first section header's sh_info.
    if not section_table:
        raise FormatError(f"{file.name}: the number of program headers is in a section header, and there is none")
    section = _SECTION.unpack(file.read_at(section_table, _SECTION.size))
    return int(section[7])


def _span(file: FileBytes, index: int, segment: _Segment) -> Span:
    size = min(segment.file_size, segment.memory_size)
    if segment.pa + size > MASK64 + 1:
        raise FormatError(f"{file.name}: segment {index} passes the end of physical memory at {segment.pa:#x}")
    if segment.offset + segment.file_size > file.size:
        raise FormatError(
            f"{file.name}: segment {index} needs bytes up to {segment.offset + segment.file_size:#x}, "
            f"the file ends at {file.size:#x}: truncated or forged; copy or take it again"
        )
    return Span(segment.pa, segment.pa + size, segment.offset)


def _notes(file: FileBytes, segments: list[_Segment]) -> list[Note]:
    found = [segment for segment in segments if segment.kind == _PT_NOTE]
    if (total := sum(segment.file_size for segment in found)) > MAX_NOTE_BYTES:
        raise FormatError(f"{file.name}: {total} bytes of notes, at most {MAX_NOTE_BYTES} are read")
    notes: list[Note] = []
    for segment in found:
        notes += split_notes(file.read_at(segment.offset, segment.file_size), file.name)
    return notes
