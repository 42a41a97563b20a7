"""Snapshots of Cloud Hypervisor: a folder with ``config.json``, ``state.json`` and ``memory-ranges``.

The state is JSON within JSON, as a text or as a list of bytes, and has moved between versions: it is searched for the
table of memory (``memory_ranges``) and for registers (``sregs``), wherever they stand. Source: Cloud Hypervisor,
"Snapshot and Restore", and its ``memory_manager.rs``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fivefold.errors import CannotOpenError, FormatError
from fivefold.memory.file_memory import file_memory
from fivefold.memory.files import FileBytes
from fivefold.memory.formats.snapshots.kvm_registers import cpu_of_bytes, cpu_of_names
from fivefold.memory.registers import MAX_CPUS, CpuState
from fivefold.memory.source import Source
from fivefold.memory.spans import MAX_SPANS, Span, without_overlap
from fivefold.units import MIB

STATE, MEMORY = "state.json", "memory-ranges"
MOST_STATE: Final = 64 * MIB
MOST_NODES: Final = 1 << 22
_DEEPEST: Final = 32
_SAID: Final = "Cloud Hypervisor's state"


def is_snapshot(path: Path) -> bool:
    """Whether *path* is a snapshot's folder, its state or its memory; the other file has to lie beside it."""
    folder = path if path.is_dir() else path.parent
    if path != folder and path.name not in (STATE, MEMORY):
        return False
    return (folder / STATE).is_file() and (folder / MEMORY).is_file()


def read_snapshot(path: Path) -> Source:
    """The memory and CPUs of the snapshot that *path* belongs to."""
    folder = path if path.is_dir() else path.parent
    state = _state(folder / STATE)
    memory = FileBytes.open(str(folder / MEMORY))
    try:
        spans = _spans(state, memory)
        cpus = tuple(_cpus(state))
        return Source(memory=file_memory(memory, spans), format="Cloud Hypervisor snapshot", cpus=cpus)
    except BaseException:  # whatever is raised, the file must not stay open
        memory.close()
        raise


def _state(path: Path) -> Any:
    try:
        file = FileBytes.open(str(path))
    except CannotOpenError as error:
        raise FormatError(f"{path}: the snapshot's state cannot be opened: {error}") from error
    try:
        if file.size > MOST_STATE:
            raise FormatError(f"{path} has {file.size} bytes; expected at most {MOST_STATE} of JSON")
        return json.loads(file.read_at(0, file.size))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not the JSON of a snapshot: {error}") from error
    finally:
        file.close()


def _objects(state: Any) -> Iterator[dict[str, Any]]:
    """All objects in it, what is JSON within texts and lists of bytes, too."""
    stack, seen = [(state, 0)], 0
    while stack and seen < MOST_NODES:
        one, depth = stack.pop()
        seen += 1
        if isinstance(one, dict):
            yield one
            stack += [(value, depth) for value in reversed(one.values())]
        elif isinstance(one, (str, list)) and depth < _DEEPEST:
            inner = _unwrapped(one)
            if inner is not None:
                stack.append((inner, depth + 1))
            elif isinstance(one, list):
                stack += [(value, depth) for value in reversed(one) if isinstance(value, (dict, list, str))]


def _unwrapped(one: str | list[Any]) -> Any:
    """What a text or a list of bytes holds as JSON, None where it is none."""
    if isinstance(one, list):
        if not one or one[0] not in (0x7B, 0x5B) or not all(isinstance(byte, int) and 0 <= byte < 256 for byte in one):
            return None
        one = bytes(one).decode("utf-8", "replace")
    if not one.startswith(("{", "[")):
        return None
    try:
        return json.loads(one)
    except (ValueError, RecursionError):
        return None


def _spans(state: Any, memory: FileBytes) -> list[Span]:
    spans: list[Span] = []
    at = 0
    for gpa, length in _ranges(state, memory.name):
        if len(spans) == MAX_SPANS:
            raise FormatError(f"{memory.name}: more than {MAX_SPANS} ranges of memory")
        if at + length > memory.size or gpa + length > 1 << 52:
            raise FormatError(
                f"{memory.name}: range at {gpa:#x} needs bytes up to {at + length:#x}, the file ends at "
                f"{memory.size:#x}: truncated or forged; copy or take it again"
            )
        spans.append(Span(gpa, gpa + length, at))
        at += length
    pieces = without_overlap(spans)
    if sum(one.end - one.start for one in pieces) != at:
        raise FormatError(f"{memory.name}: ranges overlap in physical memory, expected each byte once")
    return pieces


def _ranges(state: Any, name: str) -> list[tuple[int, int]]:
    """Address and length of each range of memory, in the order of the file."""
    for one in _objects(state):
        table = one.get("memory_ranges")
        rows = table.get("data", table.get("regions")) if isinstance(table, dict) else table
        if isinstance(rows, list) and rows:
            found = [_range(row) for row in rows]
            if all(row is not None for row in found):
                return [row for row in found if row is not None]
    raise FormatError(f"{name}: the snapshot's state has no table of memory (memory_ranges)")


def _range(row: Any) -> tuple[int, int] | None:
    gpa, length = (row.get("gpa"), row.get("length")) if isinstance(row, dict) else (None, None)
    if not isinstance(gpa, int) or not isinstance(length, int) or gpa < 0 or length <= 0:
        return None
    return gpa, length


def _cpus(state: Any) -> Iterator[CpuState]:
    count = 0
    for one in _objects(state):
        special = one.get("sregs")
        found = None
        if isinstance(special, dict):
            found = cpu_of_names(special, one.get("regs"), _SAID)
        elif isinstance(special, list):
            found = cpu_of_bytes(special, one.get("regs"), _SAID)
        if found is not None and count < MAX_CPUS:
            count += 1
            yield found
