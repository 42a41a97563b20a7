"""The state of a machine that ``savevm`` put into a qcow2 disk image: a migration stream behind the disk's own bytes.

Source: QEMU, "Qcow2 Image File Format", sections "Header", "Cluster mapping" and "Snapshots".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fivefold.errors import FormatError
from fivefold.memory.files import FileBytes

MAGIC: Final = b"QFI\xfb"
MOST_SNAPSHOTS: Final = 1 << 16
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_SNAPSHOT: Final = struct.Struct(">QIHHIIQII")
_OFFSET: Final = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED: Final = 1 << 62
_ZERO: Final = 1


@dataclass(frozen=True, slots=True)
class SavedState:
    """One snapshot with the state of a machine: *table* and *entries* of its first-level table, *size* in bytes."""

    name: str
    table: int
    entries: int
    size: int


def saved_states(file: FileBytes) -> list[SavedState]:
    """The snapshots of the image *file* that have a machine's state, the oldest first."""
    header = _HEADER.unpack(file.read_at(0, _HEADER.size))
    version, count, at = header[1], header[11], header[12]
    if version not in (2, 3) or count > MOST_SNAPSHOTS:
        raise FormatError(f"{file.name}: qcow2 of version {version} with {count} snapshots; expected version 2 or 3")
    found = []
    for _ in range(count):
        table, entries, id_size, name_size, _, _, _, size, extra = _SNAPSHOT.unpack(file.read_at(at, _SNAPSHOT.size))
        texts = at + _SNAPSHOT.size + extra
        if extra >= 8:
            size = int.from_bytes(file.read_at(at + _SNAPSHOT.size, 8), "big") or size
        name = file.read_at(texts + id_size, name_size).decode("utf-8", "replace")
        at = texts + id_size + name_size + 7 & ~7
        if size:
            found.append(SavedState(name, table, entries, size))
    return found


def state_bytes(file: FileBytes, state: SavedState) -> Iterator[bytes]:
    """The machine's state, a cluster at a time; zeros where the image has none. `FormatError` where it is damaged."""
    bits, disk, encrypted = _geometry(file)
    if encrypted:
        raise FormatError(f"{file.name} is an encrypted disk image, and so is the machine's state in it")
    cluster, per_table = 1 << bits, 1 << bits - 3
    first = -(-disk // (cluster * per_table))
    left = state.size
    if first + -(-left // (cluster * per_table)) > state.entries:
        raise FormatError(f"{file.name}: snapshot {state.name!r} claims {left} bytes of state; its table is too short")
    for number in range(first, state.entries):
        (entry,) = struct.unpack(">Q", file.read_at(state.table + 8 * number, 8))
        table = file.read_at(entry & _OFFSET, cluster) if entry & _OFFSET else bytes(cluster)
        for (one,) in struct.iter_unpack(">Q", table):
            if left <= 0:
                return
            yield _cluster(file, one, bits)[:left]
            left -= cluster


def _geometry(file: FileBytes) -> tuple[int, int, bool]:
    header = _HEADER.unpack(file.read_at(0, _HEADER.size))
    bits, disk, method = header[4], header[5], header[6]
    features = 0
    if header[1] == 3:
        features = int.from_bytes(file.read_at(_HEADER.size, 8), "big")
    if not 9 <= bits <= 21 or features & ~0b11:
        raise FormatError(f"{file.name}: qcow2 with clusters of 2^{bits} bytes and features {features:#x}")
    return bits, disk, bool(method)


def _cluster(file: FileBytes, entry: int, bits: int) -> bytes:
    size = 1 << bits
    if entry & _COMPRESSED:
        return _unpacked(file, entry, bits)
    if entry & _ZERO or not entry & _OFFSET:
        return bytes(size)
    at = entry & _OFFSET
    return file.read_at(at, min(size, file.size - at)).ljust(size, b"\0") if at < file.size else file.read_at(at, size)


def _unpacked(file: FileBytes, entry: int, bits: int) -> bytes:
    shift = 62 - (bits - 8)
    at = entry & (1 << shift) - 1
    sectors = (entry >> shift & (1 << bits - 8) - 1) + 1
    end = min((at & ~511) + 512 * sectors, file.size)
    try:
        return zlib.decompressobj(-12).decompress(file.read_at(at, end - at), 1 << bits).ljust(1 << bits, b"\0")
    except zlib.error as error:
        raise FormatError(f"{file.name}: broken compressed cluster at {at:#x}: {error}") from error
