"""Firecracker's snapshots: a file with the state of the microVM, and one with its memory, of any name, beside it.

The memory is its regions one behind the other. The state is serialised without names, in a form of each version: it
is searched for the list of regions (from 0 up, and as long together as a file beside it), and for the registers as KVM
gives them. Source: Firecracker, "Snapshotting", its ``memory.rs`` and ``snapshot``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fivefold.errors import FormatError
from fivefold.memory.file_memory import file_memory
from fivefold.memory.files import FileBytes
from fivefold.memory.formats.snapshots.kvm_registers import REGS, SREGS_SIZE, cpu_of_bytes, places_of_sregs
from fivefold.memory.registers import MAX_CPUS, CpuState
from fivefold.memory.source import Source
from fivefold.memory.spans import Span
from fivefold.units import MIB, PAGE

MAGIC: Final = struct.pack("<Q", 0x0710_1984_8664_0000)[2:]
"""Of x86-64, behind the version of data that earlier releases have in the two bytes below."""
MOST_STATE: Final = 64 * MIB
MOST_REGIONS: Final = 64
MOST_BESIDE: Final = 4096
"""Files of a folder whose sizes are looked at."""
MOST_PLACES: Final = 1 << 16


def is_state(head: bytes) -> bool:
    """Whether a file that begins with *head* is the state of a microVM on x86-64."""
    return len(head) >= 8 and head[2:8] == MAGIC


def read_firecracker(file: FileBytes) -> Source:
    """The memory that lies beside the state *file*, and the CPUs in it; takes over *file*."""
    if file.size > MOST_STATE:
        raise FormatError(f"{file.name} has {file.size} bytes; expected at most {MOST_STATE} of a microVM's state")
    raw = file.read_at(0, file.size)
    lists = list(_lists(raw))
    if not lists:
        raise FormatError(f"{file.name}: Firecracker's state names no regions of memory: cut, or of an unknown version")
    path, regions = _memory_of(Path(file.name), lists)
    memory = FileBytes.open(str(path))
    file.close()
    spans, at = [], 0
    for start, size in regions:
        spans.append(Span(start, start + size, at))
        at += size
    return Source(
        memory=file_memory(memory, spans),
        format="Firecracker snapshot",
        cpus=_cpus(raw),
        notes=(f"memory is in {path.name}, by its size; registers are told by their form",),
    )


def _lists(raw: bytes) -> Iterator[list[tuple[int, int]]]:
    """Every list of regions that could stand in *raw*: a count, and for each its address, its size, maybe more."""
    tried = 0
    for count in range(1, MOST_REGIONS + 1):
        head = struct.pack("<QQ", count, 0)
        at = raw.find(head)
        while at >= 0 and tried < MOST_PLACES:
            tried += 1
            for stride in (24, 16, None):
                if (found := _regions(raw, at + 8, count, stride)) is not None:
                    yield found
            at = raw.find(head, at + 1)


def _regions(raw: bytes, at: int, count: int, stride: int | None) -> list[tuple[int, int]] | None:
    """*count* regions of *stride* bytes each, None where they do not ascend by whole pages.

    Since hot-pluggable memory a region ends with its kind (4 bytes) and a list of flags, a byte each: *stride* None.
    """
    found: list[tuple[int, int]] = []
    for _ in range(count):
        if at + 16 > len(raw):
            return None
        start, size = struct.unpack_from("<QQ", raw, at)
        end = sum(found[-1]) if found else 0
        if (start < end if found else start) or not size or (start | size) % PAGE or start + size > 1 << 52:
            return None
        found.append((start, size))
        if stride is None:
            flags = struct.unpack_from("<Q", raw, at + 20)[0] if at + 28 <= len(raw) else 1 << 40
            if flags > 1 << 20:
                return None
            at += 28 + flags
        else:
            at += stride
    return found


def _memory_of(state: Path, lists: list[list[tuple[int, int]]]) -> tuple[Path, list[tuple[int, int]]]:
    """The file beside *state* that is as long as the regions of one of *lists*, and these."""
    sizes: dict[int, list[Path]] = {}
    for number, path in enumerate(sorted(state.parent.iterdir())):
        if number == MOST_BESIDE:
            break
        if path.is_file() and path.name != state.name:
            sizes.setdefault(path.stat().st_size, []).append(path)
    # The longest list first: one of fewer regions may stand at its beginning.
    for regions in sorted(lists, key=len, reverse=True):
        found = sizes.get(sum(size for _, size in regions), [])
        if len(found) == 1:
            return found[0], regions
        if found:
            names = ", ".join(path.name for path in found[:3])
            raise FormatError(f"{state}: {names} are all as long as the memory; expected it alone beside the state")
    wanted = ", ".join(map(str, sorted({sum(size for _, size in regions) for regions in lists})[:3]))
    raise FormatError(f"{state} holds registers; expected the memory beside it, in a file of {wanted} bytes")


def _cpus(raw: bytes) -> tuple[CpuState, ...]:
    found: list[CpuState] = []
    for at in places_of_sregs(raw):
        if len(found) == MAX_CPUS:
            break
        # General registers lie in front, in later versions with the length of what follows in between.
        general = next((raw[end - REGS.size : end] for end in (at, at - 8) if _is_general(raw, end)), None)
        cpu = cpu_of_bytes(raw[at : at + SREGS_SIZE], general, "Firecracker's state")
        if cpu is not None:
            found.append(cpu)
    return tuple(found)


def _is_general(raw: bytes, end: int) -> bool:
    """Whether general registers end at *end*: RFLAGS has bit 1 set, and no bit that is reserved."""
    if end < REGS.size:
        return False
    (flags,) = struct.unpack_from("<Q", raw, end - 8)
    return bool(flags & 2 and not flags & ~0x3F_7FD7)
