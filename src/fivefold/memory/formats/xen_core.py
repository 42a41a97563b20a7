"""Xen's cores, as ``xl dump-core`` writes them: an ELF file with sections in place of segments.

``.xen_pages`` holds pages, ``.xen_pfn`` (HVM, PVH) or ``.xen_p2m`` (PV) the number of each, ``.xen_prstatus`` the
CPUs. Source: Xen, "dump-core format"; for the CPUs ``struct vcpu_guest_context`` of its public headers.

Page tables of a PV guest hold machine frames: its pages are placed by those, so that walks work.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fivefold.errors import FormatError
from fivefold.memory.file_memory import file_memory
from fivefold.memory.files import FileBytes
from fivefold.memory.registers import MAX_CPUS, CpuState
from fivefold.memory.source import Source
from fivefold.memory.spans import MAX_SPANS, Span
from fivefold.units import MIB, PAGE

_FILE: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
MOST_SECTIONS: Final = 1 << 10
MOST_PAGES: Final = 1 << 28
MOST_NAMES: Final = MIB
_NO_FRAME: Final = (1 << 64) - 1, (1 << 32) - 1

_CONTEXT: Final = 5168
"""Bytes of one CPU."""
_USER: Final = 520
_GENERAL: Final = struct.Struct("<15Q8xQ8xQQ")
_NAMES: Final = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("rip", "rflags", "rsp"),
)
_CONTROL: Final = struct.Struct("<8Q")
_CONTROL_AT: Final = 4984

FrameNumbers = npt.NDArray[np.uint64]


class _Section(NamedTuple):
    offset: int
    size: int


def is_xen_core(file: FileBytes) -> bool:
    """Whether an ELF core has a section ``.xen_pages``; `FormatError` where its headers are cut."""
    return ".xen_pages" in _sections(file)


def read_xen_core(file: FileBytes) -> Source:
    """The memory and CPUs of a core of Xen's; takes over *file*."""
    sections = _sections(file)
    frames, kind = _frames(file, sections)
    pages = sections[".xen_pages"]
    if pages.size < len(frames) * PAGE:
        raise FormatError(f"{file.name}: {len(frames)} page numbers for {pages.size} bytes of pages")
    spans = _spans(file.name, frames, pages.offset)
    note = f"Xen {kind} guest: " + (
        "addresses are machine addresses, as in its page tables" if kind == "PV" else "addresses are its own"
    )
    return Source(memory=file_memory(file, spans), format="Xen core", cpus=_cpus(file, sections, kind), notes=(note,))


def _sections(file: FileBytes) -> dict[str, _Section]:
    header = _FILE.unpack(file.read_at(0, _FILE.size))
    at, size, count, names = header[6], header[11], header[12], header[13]
    if not at or size != _SECTION.size or not names < count <= MOST_SECTIONS:
        return {}
    rows = list(_SECTION.iter_unpack(file.read_at(at, count * size)))
    if rows[names][5] > MOST_NAMES:
        raise FormatError(f"{file.name}: {rows[names][5]} bytes of names of sections, at most {MOST_NAMES} are read")
    texts = file.read_at(rows[names][4], rows[names][5])
    found: dict[str, _Section] = {}
    for row in rows:
        name = texts[row[0] : texts.find(b"\0", row[0])].decode("latin-1")
        if row[4] + row[5] > file.size and name.startswith(".xen"):
            raise FormatError(
                f"{file.name}: section {name} needs bytes up to {row[4] + row[5]:#x}, the file ends at "
                f"{file.size:#x}: truncated or forged; copy or take it again"
            )
        found.setdefault(name, _Section(row[4], row[5]))
    return found


def _frames(file: FileBytes, sections: dict[str, _Section]) -> tuple[FrameNumbers, str]:
    """The frame of each page, in the order of the file, and what kind of guest it is."""
    name, width, kind = (".xen_p2m", 16, "PV") if ".xen_p2m" in sections else (".xen_pfn", 8, "HVM")
    table = sections.get(name)
    if table is None:
        raise FormatError(f"{file.name}: a Xen core without .xen_pfn and .xen_p2m: nothing says where its pages lie")
    if table.size // width > MOST_PAGES:
        raise FormatError(f"{file.name}: {table.size // width} pages, at most {MOST_PAGES} are read")
    words = np.frombuffer(file.read_at(table.offset, table.size // width * width), "<u8")
    return (words[1::2] if kind == "PV" else words), kind


def _spans(name: str, frames: FrameNumbers, offset: int) -> list[Span]:
    """Runs of frames that are contiguous in memory and in the file; pages without a frame are left out."""
    numbers = np.flatnonzero(~np.isin(frames, np.array(_NO_FRAME, np.uint64)))
    kept = frames[numbers]
    if not len(kept):
        return []
    if int(kept.max()) >= 1 << 40:
        raise FormatError(f"{name}: page at frame {int(kept.max()):#x}; expected less than 2^52 bytes of memory")
    breaks = np.flatnonzero((np.diff(kept) != 1) | (np.diff(numbers) != 1)) + 1
    starts, ends = np.concatenate(([0], breaks)), np.concatenate((breaks, [len(kept)]))
    if len(starts) > MAX_SPANS:
        raise FormatError(f"{name}: more than {MAX_SPANS} runs of pages")
    spans = sorted(
        Span(int(kept[low]) * PAGE, (int(kept[high - 1]) + 1) * PAGE, offset + int(numbers[low]) * PAGE)
        for low, high in zip(starts.tolist(), ends.tolist(), strict=True)
    )
    if any(low.end > high.start for low, high in pairwise(spans)):
        raise FormatError(f"{name}: a frame comes twice, expected each once")
    return spans


def _cpus(file: FileBytes, sections: dict[str, _Section], kind: str) -> tuple[CpuState, ...]:
    table = sections.get(".xen_prstatus", _Section(0, 0))
    count = table.size // _CONTEXT
    if count > MAX_CPUS or table.size % _CONTEXT:
        raise FormatError(
            f"{file.name}: {table.size} bytes of CPUs, expected a multiple of {_CONTEXT}, up to {MAX_CPUS}"
        )
    return tuple(_cpu(file.read_at(table.offset + number * _CONTEXT, _CONTEXT), kind) for number in range(count))


def _cpu(raw: bytes, kind: str) -> CpuState:
    general = dict(zip(_NAMES, _GENERAL.unpack_from(raw, _USER), strict=True))
    control = _CONTROL.unpack_from(raw, _CONTROL_AT)
    # A PV guest's CR3 holds a frame rotated left by 12 bits, which matters for frames of 2^52 bytes and more alone.
    cr4 = None if kind == "PV" else control[4]
    return CpuState("Xen's core", cr0=control[0], cr2=control[2], cr3=control[3], cr4=cr4, general=general)
