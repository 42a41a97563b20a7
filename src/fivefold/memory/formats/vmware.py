"""VMware's snapshots: registers and a map in ``.vmss`` or ``.vmsn``, memory in a ``.vmem`` beside it.

A snapshot is groups of tags, each a name, up to three indices and bytes. Source: the format as volatility3 and
MemProcFS read it, which VMware does not publish.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Final

from fivefold.errors import CannotOpenError, FormatError
from fivefold.memory.file_memory import file_memory
from fivefold.memory.files import FileBytes
from fivefold.memory.formats.raw_image import read_raw
from fivefold.memory.registers import MAX_CPUS, CpuState
from fivefold.memory.source import Source
from fivefold.memory.spans import MAX_SPANS, Span, without_overlap
from fivefold.units import PAGE

MAGICS: Final = (b"\xd0\xbe\xd2\xbe", b"\xd1\xba\xd1\xba", b"\xd2\xbe\xd2\xbe", b"\xd3\xbe\xd3\xbe")
SUFFIXES: Final = (".vmss", ".vmsn")
_HEADER: Final = struct.Struct("<4sII")
_GROUP: Final = struct.Struct("<64sQQ")
MOST_GROUPS: Final = 1 << 10
MOST_TAGS: Final = 1 << 20
_LONG: Final = (62, 63)
"""Sizes that stand for data whose size comes in front of it."""

Tags = dict[tuple[str, tuple[int, ...]], bytes]


def read_vmware(file: FileBytes) -> Source:
    """The memory that the snapshot *file* maps, and its CPUs; takes over *file*. Its ``.vmem`` has to lie beside it."""
    name = str(Path(file.name).with_suffix(".vmem"))
    try:
        memory = FileBytes.open(name)
    except CannotOpenError as error:
        raise FormatError(f"{file.name} holds registers, and its memory is in {name}: {error}") from error
    try:
        source = _joined(file, memory)
    except BaseException:  # whatever is raised, the file must not stay open
        memory.close()
        raise
    file.close()
    return source


def beside(file: FileBytes) -> FileBytes | None:
    """The snapshot that lies beside a ``.vmem`` of its name; None without one."""
    path = Path(file.name)
    if path.suffix != ".vmem":
        return None
    for ending in SUFFIXES:
        try:
            found = FileBytes.open(str(path.with_suffix(ending)))
        except CannotOpenError:
            continue
        if found.read_at(0, min(4, found.size)) in MAGICS:
            return found
        found.close()
    return None


def read_vmem(file: FileBytes, snapshot: FileBytes) -> Source:
    """*file* as *snapshot* maps it; takes over both."""
    try:
        return _joined(snapshot, file)
    finally:
        snapshot.close()


def _joined(snapshot: FileBytes, memory: FileBytes) -> Source:
    groups = _groups(snapshot)
    tags = _tags(snapshot, groups["memory"]) if "memory" in groups else {}
    cpus = _cpus(_tags(snapshot, groups["cpu"])) if "cpu" in groups else ()
    spans = _spans(tags, snapshot.name, memory)
    what = f"VMware snapshot, {Path(snapshot.name).suffix.lstrip('.')} and vmem"
    if not spans:
        return replace(read_raw(memory), format=what, cpus=cpus, notes=("the snapshot has no map: memory begins at 0",))
    pieces = without_overlap(spans)
    return Source(memory=file_memory(memory, pieces), format=what, cpus=cpus)


def _groups(file: FileBytes) -> dict[str, int]:
    """Where each group's tags begin."""
    magic, _, count = _HEADER.unpack(file.read_at(0, _HEADER.size))
    if magic not in MAGICS or count > MOST_GROUPS:
        raise FormatError(f"{file.name}: {count} groups in a VMware snapshot; expected at most {MOST_GROUPS}")
    found = {}
    for number in range(count):
        name, at, _ = _GROUP.unpack(file.read_at(_HEADER.size + number * _GROUP.size, _GROUP.size))
        found[name.partition(b"\0")[0].decode("ascii", "replace")] = at
    return found


def _tags(file: FileBytes, at: int) -> Tags:
    found: Tags = {}
    while (flags := file.read_at(at, 1)[0]) != 0:
        if len(found) == MOST_TAGS:
            raise FormatError(f"{file.name}: more than {MOST_TAGS} tags in a group")
        size = file.read_at(at + 1, 1)[0]
        name = file.read_at(at + 2, size).decode("ascii", "replace")
        at += 2 + size
        count = flags >> 6
        indices = struct.unpack(f"<{count}I", file.read_at(at, 4 * count))
        at += 4 * count
        size = flags & 0x3F
        if size in _LONG:
            at, size = _long(file, at)
        # Memory within a snapshot may be gibibytes: only what is short is a number.
        found[name, indices] = file.read_at(at, size) if size <= PAGE else b""
        at += size
    return found


def _long(file: FileBytes, at: int) -> tuple[int, int]:
    """Where long data begin, and their size: it stands twice in front of them, with a length of padding."""
    width = 4 if file.read_at(0, 1)[0] & 0xF == 0 else 8
    size = int.from_bytes(file.read_at(at, width), "little")
    begin = at + 2 * width + 2
    if begin + size > file.size:
        raise FormatError(f"{file.name}: {size} bytes at {begin:#x}, the file ends at {file.size:#x}")
    return begin, size


def _number(tags: Tags, name: str, *indices: int) -> int | None:
    raw = tags.get((name, indices))
    return None if not raw or len(raw) > 8 else int.from_bytes(raw, "little")


def _spans(tags: Tags, name: str, memory: FileBytes) -> list[Span]:
    count = _number(tags, "regionsCount") or 0
    if count > MAX_SPANS:
        raise FormatError(f"{name}: {count} regions of memory, expected at most {MAX_SPANS}")
    spans = []
    for number in range(count):
        told = [_number(tags, what, number) for what in ("regionPPN", "regionPageNum", "regionSize")]
        page, place, size = ((one or 0) * PAGE for one in told)
        if None in told or place + size > memory.size or page + size > 1 << 52:
            raise FormatError(
                f"{memory.name}: region {number} of {name} is {size} bytes at file offset {place:#x}; "
                f"the file ends at {memory.size:#x}: truncated or forged; copy or take it again"
            )
        spans.append(Span(page, page + size, place))
    return spans


def _cpus(tags: Tags) -> tuple[CpuState, ...]:
    count = 0
    while count < MAX_CPUS and _number(tags, "CR64", count, 3) is not None:
        count += 1
    return tuple(
        CpuState(
            source="the VMware snapshot",
            cr0=_number(tags, "CR64", cpu, 0),
            cr2=_number(tags, "CR64", cpu, 2),
            cr3=_number(tags, "CR64", cpu, 3),
            cr4=_number(tags, "CR64", cpu, 4),
            efer=_number(tags, "EFER", cpu),
            general={} if (rip := _number(tags, "rip", cpu)) is None else {"rip": rip},
        )
        for cpu in range(count)
    )
