"""QEMU's migration stream, as ``savevm`` to a file, ``migrate "exec:cat > F"`` and libvirt's ``save`` write it.

The stream gives each page of RAM by block and offset, several times where the guest ran on; the last counts. What comes
behind RAM (devices, CPUs) is described at the end of the stream, see `qemu_devices`. Sources: QEMU, "Migration
framework", section "Stream structure"; libvirt, ``virQEMUSaveHeader``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from fivefold.errors import FormatError
from fivefold.memory.banked import MAX_COPY, PagedMemory
from fivefold.memory.base import Extent
from fivefold.memory.files import FileBytes
from fivefold.memory.formats.compressed import spilled, unpack
from fivefold.memory.formats.snapshots import qcow2, qemu_devices
from fivefold.memory.source import Progress, Source
from fivefold.memory.spans import extents_of
from fivefold.units import GIB, MIB, PAGE

MAGIC: Final = b"QEVM"
LIBVIRT: Final = b"LibvirtQemudSave"
LIBVIRT_PART: Final = b"LibvirtQemudPart"

_START, _PART, _END, _FULL, _COMMAND, _FOOTER = 1, 2, 3, 4, 8, 0x7E
_END_OF_DEVICES = 0
MOST_COMMANDS: Final = 1 << 10
MOST_SKIPPED: Final = 64 * MIB
"""Bytes of a section that is not RAM's and comes before its end."""
_ZERO, _SIZES, _PAGE, _EOS, _CONTINUE, _KNOWN = 0x02, 0x04, 0x08, 0x10, 0x20, 0x3E | 0x200
_WHY: Final = {0x40: "XBZRLE", 0x80: "a hook of RDMA", 0x100: "compressed pages", 0x400: "mapped RAM"}
MOST_BLOCKS: Final = 1 << 10
MOST_RAM: Final = 1 << 44
_HEAD: Final = 1 << 16
"""So far into a stream its first section, with the machine's name, may reach."""

_RAM_STARTS: Final = re.compile(rb"\x01....\x03ram\0\0\0\0\0\0\0\x04", re.DOTALL)
_LIBVIRT_HEADER: Final = struct.Struct("<16s19I")
_PACKED: Final = {1: "gzip", 2: "bzip2", 3: "xz", 4: "lzop", 5: "zstd"}
"""libvirt, ``virQEMUSaveFormat``."""

_MAPPED: Final = struct.Struct(">IQQQ")
_ABSENT, _ZEROS = 0, 1
"""Places of pages that the stream does not contain, and of those that are zeros; all others are offsets in the file."""

_LOW_MEMORY: Final = {
    "q35": (0xB000_0000, 2 * GIB),
    "i440fx": (0xE000_0000, 3 * GIB),
    "microvm": (3 * GIB + PAGE, 3 * GIB),
}
"""For machines: from which size on RAM is split, and how much lies below 4 GiB then. QEMU, ``hw/i386``."""

PagePlaces = npt.NDArray[np.uint64]


def read_qemu_stream(
    file: FileBytes, *, max_copy: int = MAX_COPY, max_unpacked: int | None = None, progress: Progress | None = None
) -> Source:
    """RAM and CPUs of a migration stream, or of a libvirt or qcow2 image that holds one; takes over *file*.

    What libvirt packed, and the state within a qcow2 image, is unpacked as a compressed file is.
    """
    notes: tuple[str, ...] = ()
    if file.read_at(0, 4) == qcow2.MAGIC:
        file, wrapper, notes = _from_disk(file, max_unpacked)
        begin = 0
    else:
        file, begin, wrapper = _begin(file, max_unpacked, progress)
    try:
        return _read(file, begin, wrapper, notes, max_copy)
    except BaseException:  # whatever is raised, an unpacked copy must not stay open
        file.close()
        raise


def _read(file: FileBytes, begin: int, wrapper: str, notes: tuple[str, ...], max_copy: int) -> Source:
    stream = _Stream(file, begin)
    ram = stream.read()
    spans, note = _placed(ram, stream.machine)
    pages = _Pages(file, spans)
    cpus = qemu_devices.cpus_of(file, stream.at)
    untold = () if cpus else ("the stream does not describe its CPUs: the root is looked for in memory",)
    return Source(
        memory=PagedMemory(
            pages.extents(), pages.fetch, file.name, on_close=file.close, max_copy=max_copy, written=pages.written
        ),
        format=f"QEMU migration stream{wrapper}",
        cpus=cpus,
        notes=(*notes, *untold, note),
    )


def _from_disk(file: FileBytes, max_unpacked: int | None) -> tuple[FileBytes, str, tuple[str, ...]]:
    """The state of the last snapshot in a qcow2 image that has one."""
    states = qcow2.saved_states(file)
    if not states:
        raise FormatError(
            f"{file.name} is a qcow2 disk image without the state of a machine; expected one with `savevm` in it, "
            "a raw image, an ELF core or another format of docs/memory.md"
        )
    last = states[-1]
    note = f"the state of snapshot {last.name!r}, the last of {len(states)}" if len(states) > 1 else ""
    unpacked = spilled(qcow2.state_bytes(file, last), file, max_unpacked)
    if unpacked.read_at(0, min(4, unpacked.size)) != MAGIC:
        unpacked.close()
        raise FormatError(f"{file.name}: no QEMU stream in snapshot {last.name!r}")
    return unpacked, f", snapshot {last.name!r} in a qcow2 image", (note,) if note else ()


def _begin(file: FileBytes, max_unpacked: int | None, progress: Progress | None) -> tuple[FileBytes, int, str]:
    """The file with the stream, where it begins, and what is said of what lies around it."""
    head = file.read_at(0, min(file.size, _LIBVIRT_HEADER.size))
    if head.startswith(LIBVIRT_PART):
        raise FormatError(f"{file.name}: libvirt was stopped while it saved; expected a complete image")
    if not head.startswith(LIBVIRT):
        return file, 0, ""
    if len(head) < _LIBVIRT_HEADER.size:
        raise FormatError(f"{file.name} ends in libvirt's header")
    _, version, size, _, packed, *_ = _LIBVIRT_HEADER.unpack(head)
    begin, how = _LIBVIRT_HEADER.size + size, ""
    if version in (1, 2) and packed and begin < file.size:
        if packed not in _PACKED:
            raise FormatError(f"{file.name} is saved by libvirt in way {packed}; expected raw, gzip, bzip2, xz or lzop")
        how = f", packed with {_PACKED[packed]}"
        file = unpack(file, max_bytes=max_unpacked, progress=progress, at=begin, kind=_PACKED[packed])
        begin = 0
    if version not in (1, 2) or begin + 8 > file.size or file.read_at(begin, 4) != MAGIC:
        file.close()
        raise FormatError(f"{file.name}: no QEMU stream behind libvirt's {size} bytes of configuration")
    return file, begin, f" in a libvirt image{how}"


@dataclass
class _Stream:
    """Reads the sections up to the end of RAM."""

    file: FileBytes
    at: int
    machine: str = ""
    blocks: dict[bytes, PagePlaces] = field(default_factory=dict)
    block: PagePlaces | None = None
    first_device: int | None = None
    """Where the first of a device stands that came before RAM was said to have ended."""
    is_mapped: bool = False
    """Each page has a place of its own, and a bitmap says which are there: the capability mapped-ram of QEMU 9."""

    def read(self) -> dict[bytes, PagePlaces]:
        version = int.from_bytes(self._take(8)[4:], "big")
        if version != 3:
            raise FormatError(f"{self.file.name}: QEMU stream of version {version}, expected 3")
        head = self.file.read_at(self.at, min(_HEAD, self.file.size - self.at))
        start = _RAM_STARTS.search(head)
        if start is None:
            raise FormatError(f"{self.file.name}: no section of RAM, of version 4, in the first {_HEAD} bytes")
        name = re.search(rb"pc-[a-z0-9]+-[0-9.]+|microvm|pc-q35|q35", head[: start.start()])
        self.machine = name[0].decode() if name else ""
        self.is_mapped = b"mapped-ram" in head[: start.start()]
        section, self.at = start[0][1:5], self.at + start.end()
        self._entries()
        while (kind := self._section(section)) in (_PART, _END):
            self._entries()
            if kind == _END:
                return self.blocks
        if kind == _END_OF_DEVICES and self.first_device is not None:
            self.at = self.first_device  # a background snapshot, where nothing but this says that RAM has ended
            return self.blocks
        raise FormatError(f"{self.file.name}: section of kind {kind:#x} at {self.at:#x} before RAM has ended")

    def _section(self, section: bytes) -> int:
        """The kind of RAM's next section; footers, commands and sections of others in front of it are skipped.

        Since QEMU 10.0 a command tells the other side that the guest stands still, before the last of RAM. The
        capability dirty-bitmaps has sections between those of RAM.
        """
        kind = self._take(1)[0]
        for _ in range(MOST_COMMANDS):
            if kind == _FOOTER:
                self._take(4)
            elif kind == _COMMAND:
                self._take(int.from_bytes(self._take(4)[2:], "big"))
            elif kind in (_START, _PART, _END, _FULL) and self.file.read_at(self.at, 4) != section:
                if kind == _FULL and self.first_device is None:
                    self.first_device = self.at - 1
                self._skip(self.at - 1, self._take(4))
            else:
                break
            kind = self._take(1)[0]
        if kind in (_PART, _END) and self._take(4) != section:
            raise FormatError(
                f"{self.file.name}: more than {MOST_COMMANDS} parts between two of RAM at {self.at - 5:#x}"
            )
        return kind

    def _skip(self, begin: int, number: bytes) -> None:
        """To the end of a section that is not RAM's, which the footer with its *number* marks: only QEMU knows more."""
        step, at = 1 << 16, self.at
        while at < min(self.file.size, begin + MOST_SKIPPED):
            found = bytes(self.file.view(at, min(step + 5, self.file.size - at))).find(bytes([_FOOTER]) + number)
            if found >= 0:
                self.at = at + found + 5
                return
            at += step
        raise FormatError(f"{self.file.name}: the section at {begin:#x}, before RAM has ended, has no end")

    def _take(self, size: int) -> bytes:
        self.at += size
        return self.file.read_at(self.at - size, size)

    def _entries(self) -> None:
        """One section's pages, to the mark of its end."""
        block = self.block  # "the same block" may be the last one of an earlier section
        view, size, at = self.file.view(0, self.file.size), self.file.size, self.at
        while at + 8 <= size:
            word = int.from_bytes(view[at : at + 8], "big")
            flags, offset, at = word & (PAGE - 1), word & ~(PAGE - 1), at + 8
            if flags & ~_KNOWN:
                why = next((name for bit, name in _WHY.items() if flags & bit), f"flags {flags:#x}")
                raise FormatError(f"{self.file.name}: {why} at {at - 8:#x}; expected a stream without")
            if flags & _EOS:
                self.at, self.block = at, block
                return
            if flags & _SIZES:
                at = self._sizes(at, offset)
            elif flags & (_PAGE | _ZERO):
                if not flags & _CONTINUE:
                    name = bytes(view[at + 1 : at + 1 + view[at]]) if at < size else b""
                    at, block = at + 1 + len(name), self.blocks.get(name)
                if block is None or offset // PAGE >= len(block):
                    raise FormatError(f"{self.file.name}: a page at {offset:#x} of no block of RAM, named at {at:#x}")
                if flags & _ZERO:
                    block[offset // PAGE] = _ZEROS if at < size and not view[at] else at | 1 << 63
                    at += 1
                else:
                    block[offset // PAGE] = at
                    at += PAGE
        raise FormatError(f"{self.file.name} ends at {size:#x}, before RAM does: truncated; copy or take it again")

    def _sizes(self, at: int, total: int) -> int:
        """The blocks of RAM, with their sizes."""
        if total > MOST_RAM:
            raise FormatError(f"{self.file.name}: {total} bytes of RAM, expected at most {MOST_RAM}")
        while total > 0:
            size = self.file.read_at(at, 1)[0]
            name, length = self.file.read_at(at + 1, size), int.from_bytes(self.file.read_at(at + 1 + size, 8), "big")
            at += 9 + size
            if length > total or length % PAGE or not length or len(self.blocks) == MOST_BLOCKS:
                raise FormatError(f"{self.file.name}: block {name[:40]!r} of {length} bytes does not fit its RAM")
            if self.is_mapped:
                self.blocks[name], at = self._mapped(at, length)
            else:
                self.blocks[name] = np.zeros(length // PAGE, np.uint64)
            total -= length
        return at

    def _mapped(self, at: int, length: int) -> tuple[PagePlaces, int]:
        """The places of a block of *length* bytes whose header is at *at*, and where the stream goes on."""
        version, page, bitmap, pages = _MAPPED.unpack(self.file.read_at(at, _MAPPED.size))
        if version != 1 or page != PAGE or pages + length > self.file.size:
            raise FormatError(
                f"{self.file.name}: mapped RAM of version {version}, pages of {page} bytes, {length:#x} at {pages:#x}; "
                f"expected version 1, {PAGE}, and less than {self.file.size:#x}"
            )
        count = length // PAGE
        bits = np.frombuffer(self.file.read_at(bitmap, -(-count // 8)), np.uint8)
        there = np.unpackbits(bits, count=count, bitorder="little").astype(bool)
        places = np.arange(pages, pages + length, PAGE, dtype=np.uint64)
        return np.where(there, places, np.uint64(_ZEROS)), pages + length


def _placed(blocks: dict[bytes, PagePlaces], machine: str) -> tuple[list[tuple[int, PagePlaces]], str]:
    """The guest's RAM by physical address: a machine of QEMU's splits it below 4 GiB."""
    name = b"pc.ram" if b"pc.ram" in blocks else max(blocks, key=lambda one: len(blocks[one]), default=b"")
    if name not in blocks:
        raise FormatError("the stream has no block of RAM")
    places = blocks[name]
    size = len(places) * PAGE
    kind = next((kind for kind in _LOW_MEMORY if kind in machine), "i440fx")
    above, low = _LOW_MEMORY[kind]
    told = f"RAM is placed as on machine {machine or 'pc, which the stream does not name'}"
    if size < above:
        return [(0, places)], told
    return [(0, places[: low // PAGE]), (4 * GIB, places[low // PAGE :])], told


@dataclass
class _Pages:
    """Pages by physical address."""

    file: FileBytes
    spans: list[tuple[int, PagePlaces]]

    def extents(self) -> list[Extent]:
        """What the stream contains; what it does not is a hole."""
        return extents_of(self._runs(lambda places: places != _ABSENT))

    def written(self) -> list[Extent]:
        """What is not zeros."""
        return extents_of(self._runs(lambda places: places > _ZEROS))

    def _runs(self, chosen: Callable[[PagePlaces], npt.NDArray[np.bool_]]) -> list[tuple[int, int]]:
        found = []
        for start, places in self.spans:
            bits = np.pad(chosen(places).astype(np.int8), 1)
            edges = np.flatnonzero(np.diff(bits)).reshape(-1, 2)
            found += [(start + low * PAGE, start + high * PAGE) for low, high in edges.tolist()]
        return found

    def fetch(self, pa: int, size: int) -> bytes:
        """*size* bytes inside one extent."""
        parts, at = [], pa
        while at < pa + size:
            page = at & ~(PAGE - 1)
            parts.append(self._page(page)[at - page : min(PAGE, pa + size - page)])
            at = page + PAGE
        return b"".join(parts)

    def _page(self, page: int) -> bytes:
        start, places = next(one for one in reversed(self.spans) if one[0] <= page)
        place = int(places[(page - start) // PAGE])
        if place == _ZEROS:
            return bytes(PAGE)
        if place >> 63:
            return self.file.read_at(place & (1 << 63) - 1, 1) * PAGE
        return self.file.read_at(place, PAGE)
