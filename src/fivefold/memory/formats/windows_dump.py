"""Windows crash dumps of 64-bit systems: complete ones, and those with a bitmap of the pages that are in them.

Sources: the layout of ``DUMP_HEADER64`` and of the bitmap's header as the public readers kdmp-parser and volatility3
have it; Microsoft, "CONTEXT structure (winnt.h)".
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from fivefold.errors import FormatError
from fivefold.memory.file_memory import file_memory
from fivefold.memory.files import FileBytes
from fivefold.memory.registers import CpuState
from fivefold.memory.source import Source
from fivefold.memory.spans import MAX_SPANS, Span, without_overlap
from fivefold.units import PAGE

HEADER: Final = 0x2000
_AMD64: Final = 0x8664
_MACHINE, _ROOT, _RUNS, _CONTEXT, _KIND = 0x30, 0x10, 0x88, 0x348, 0xF98
_RUNS_END: Final = _CONTEXT
_FULL: Final = 1
_BITMAPS: Final = {2: "kernel", 5: "full", 6: "kernel", 7: "automatic"}
_SUMMARY: Final = struct.Struct("<4s4s24xQQQ")
MOST_PAGES: Final = 1 << 32
"""Of physical memory that a bitmap is of: 16 TiB, half a GiB of bits."""
_UNUSED: Final = b"PAGE"
"""What fills those parts of the header that were not written."""

_REGISTERS: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip")
_GENERAL: Final = 0x78


def read_windows_dump(file: FileBytes) -> Source:
    """The memory of a crash dump and the CPU that wrote it; takes over *file*. `FormatError` for other kinds."""
    head = file.read_at(0, HEADER)
    machine, kind = _word(head, _MACHINE), _word(head, _KIND)
    if machine != _AMD64:
        raise FormatError(f"{file.name} is a crash dump of machine {machine:#x}; expected {_AMD64:#x}, x86-64")
    if kind == _FULL:
        spans, what = _runs(file, head), "full"
    elif kind in _BITMAPS:
        spans, what = _of_bitmap(file), f"bitmap, {_BITMAPS[kind]}"
    else:
        raise FormatError(f"{file.name} is a crash dump of kind {kind}; expected 1 (full), 2, 5, 6 or 7 (bitmap)")
    pieces = without_overlap(spans)
    if sum(piece.end - piece.start for piece in pieces) != sum(span.end - span.start for span in spans):
        raise FormatError(f"{file.name}: runs of pages overlap in physical memory, expected each page once")
    missing = "" if kind == _FULL else "; pages that the dump left out are holes"
    return Source(
        memory=file_memory(file, pieces),
        format=f"Windows crash dump ({what})",
        cpus=(_cpu(head),),
        notes=(f"the header has one CPU's registers and no CR4: levels are judged by the tables{missing}",),
    )


def _word(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 4], "little")


def _long(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 8], "little")


def _runs(file: FileBytes, head: bytes) -> list[Span]:
    count, most = _word(head, _RUNS), (_RUNS_END - _RUNS - 16) // 16
    if not 0 < count <= most:
        raise FormatError(f"{file.name}: {count} runs of physical memory; expected 1 to {most}")
    spans, offset = [], HEADER
    for number in range(count):
        base, pages = _long(head, _RUNS + 16 + 16 * number), _long(head, _RUNS + 24 + 16 * number)
        if base + pages > 1 << 40 or offset + pages * PAGE > file.size:
            raise FormatError(
                f"{file.name}: run {number} has {pages} pages from page {base:#x} on, at file offset {offset:#x}; "
                f"the file ends at {file.size:#x}: truncated or forged; copy or take it again"
            )
        spans.append(Span(base * PAGE, (base + pages) * PAGE, offset))
        offset += pages * PAGE
    return spans


def _of_bitmap(file: FileBytes) -> list[Span]:
    mark, valid, first, _, pages = _SUMMARY.unpack(file.read_at(HEADER, _SUMMARY.size))
    if mark not in (b"SDMP", b"FDMP") or valid != b"DUMP":
        raise FormatError(
            f"{file.name}: the bitmap's header begins with {mark!r}, {valid!r}; expected SDMP or FDMP, DUMP"
        )
    if not 0 < pages <= MOST_PAGES:
        raise FormatError(f"{file.name}: a bitmap of {pages} pages; expected 1 to {MOST_PAGES}")
    bits = np.frombuffer(file.view(HEADER + _SUMMARY.size, -(-pages // 8)), np.uint8)
    spans, offset = [], first
    for start, end in _bit_runs(bits, pages, file.name):
        spans.append(Span(start * PAGE, end * PAGE, offset))
        offset += (end - start) * PAGE
    if offset > file.size:
        raise FormatError(
            f"{file.name}: the bitmap's pages end at {offset:#x}, the file at {file.size:#x}: truncated or forged; "
            "copy or take it again"
        )
    return spans


def _bit_runs(bits: np.ndarray[tuple[int], np.dtype[np.uint8]], pages: int, name: str) -> list[tuple[int, int]]:
    """Runs of bits that are set, a part of the bitmap at a time: ends exclusive, ascending."""
    found: list[tuple[int, int]] = []
    step = 1 << 20
    for at in range(0, len(bits), step):
        part = np.unpackbits(bits[at : at + step], bitorder="little")[: pages - 8 * at]
        edges = np.flatnonzero(np.diff(np.concatenate(([0], part, [0])).astype(np.int8)))
        for low, high in (edges.reshape(-1, 2) + 8 * at).tolist():
            if found and found[-1][1] == low:
                found[-1] = (found[-1][0], high)
            else:
                found.append((low, high))
        if len(found) > MAX_SPANS:
            raise FormatError(f"{name}: more than {MAX_SPANS} runs of pages")
    return found


def _cpu(head: bytes) -> CpuState:
    general = {name: _long(head, _CONTEXT + _GENERAL + 8 * n) for n, name in enumerate(_REGISTERS)}
    if head[_CONTEXT : _CONTEXT + 4] == _UNUSED:
        general = {}
    return CpuState(source="the crash dump's header", cr3=_long(head, _ROOT), general=general)
