"""CPUs of a QEMU migration stream: devices have no lengths, but the stream ends with a description of their fields.

Source: QEMU, "Migration framework", section "Stream structure", and what its ``analyze-migration.py`` expects: a JSON
text with the name and the size of each field, in their order.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from fivefold.errors import FormatError
from fivefold.memory.files import FileBytes
from fivefold.memory.registers import MAX_CPUS, CpuState, Segment
from fivefold.units import MIB

_FULL, _FOOTER = 4, 0x7E
MOST_DESCRIBED: Final = 64 * MIB
"""Of the description, and of the devices in front of it, memory of devices excepted."""

MOST_ELEMENTS: Final = 1 << 24
MOST_TRIED: Final = 16
"""Texts that look like a description and are none, after which it is not looked for any more."""

_GENERAL: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
"""QEMU's order of ``env.regs`` is that of the instructions' encoding."""

_SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs")
_SEGMENT: Final = struct.Struct(">IQII")


class _Field(NamedTuple):
    name: str
    size: int


def cpus_of(file: FileBytes, at: int) -> tuple[CpuState, ...]:
    """The CPUs that lie behind *at*, where RAM ends; none where the stream has no description of its devices.

    `FormatError` where it has one that does not fit.
    """
    end, devices = _description(file, at)
    if end - at > MOST_DESCRIBED:
        return ()
    raw = file.read_at(at, end - at)
    cpus = []
    for number, device in enumerate(one for one in devices if _is_cpu(one)):
        if number == MAX_CPUS:
            raise FormatError(f"{file.name}: more than {MAX_CPUS} CPUs in the stream's description")
        body = _body(raw, device)
        if body is None:
            raise FormatError(f"{file.name}: CPU {number} is not where the stream's description of it says")
        cpus.append(_cpu(raw, body, device))
    return tuple(cpus)


def _is_cpu(device: Any) -> bool:
    return isinstance(device, dict) and device.get("vmsd_name") == "cpu" and isinstance(device.get("fields"), list)


def _description(file: FileBytes, at: int) -> tuple[int, list[Any]]:
    """Where the description begins, and the devices that it lists; no devices where there is no description."""
    first = max(at, file.size - MOST_DESCRIBED)
    tail = file.read_at(first, file.size - first)
    found, tried = len(tail), 0
    while (found := tail.rfind(b"\x00\x06", 0, found)) >= 0 and tried < MOST_TRIED:
        size = int.from_bytes(tail[found + 2 : found + 6], "big")
        if tail[found + 6 : found + 7] == b"{" and found + 6 + size <= len(tail):
            tried += 1
            try:
                told = json.loads(tail[found + 6 : found + 6 + size])
            except (ValueError, RecursionError):
                continue
            devices = told.get("devices")
            return first + found, devices if isinstance(devices, list) else []
    return file.size, []


def _body(raw: bytes, device: dict[str, Any]) -> int | None:
    """Where a device's fields begin: behind its head, and so that they end at the foot of the same section."""
    name, instance, version = device.get("name"), device.get("instance_id"), device.get("version")
    if not (isinstance(name, str) and isinstance(instance, int) and isinstance(version, int)):
        return None
    try:
        head = bytes([len(name)]) + name.encode() + struct.pack(">II", instance, version)
        size = _size(device)
    except (ValueError, struct.error, RecursionError):  # the last for parts of parts without end
        return None
    at = raw.find(head)
    while size is not None and at >= 0:
        body = at + len(head)
        section = raw[at - 4 : at]
        if at >= 5 and raw[at - 5] == _FULL and raw[body + size : body + size + 5] == bytes([_FOOTER]) + section:
            return body
        at = raw.find(head, at + 1)
    return None


def _size(state: dict[str, Any]) -> int | None:
    """Bytes of a device's or a subsection's fields and of its subsections; None for a description of another form."""
    fields = list(_fields(state))
    if any(one.size < 0 for one in fields):
        return None
    total = sum(one.size for one in fields)
    inners = state.get("subsections", [])
    for inner in inners if isinstance(inners, list) else (None,):
        if not isinstance(inner, dict) or not isinstance(name := inner.get("vmsd_name"), str):
            return None
        if (size := _size(inner)) is None:
            return None
        total += 1 + 1 + len(name) + 4 + size
    return total


def _fields(state: dict[str, Any]) -> Iterator[_Field]:
    """The fields with their sizes, all elements of an array together; a size of -1 for what is no field."""
    told = state.get("fields")
    for one in told if isinstance(told, list) else ():
        size, count = (one.get("size"), one.get("array_len", 1)) if isinstance(one, dict) else (None, None)
        if isinstance(size, int) and isinstance(count, int) and size >= 0 and 0 <= count <= MOST_ELEMENTS:
            yield _Field(str(one.get("name")), size * count)
        else:
            yield _Field("", -1)


def _cpu(raw: bytes, at: int, device: dict[str, Any]) -> CpuState:
    found: dict[str, bytes] = {}
    for one in _fields(device):
        found.setdefault(one.name, raw[at : at + one.size])
        at += one.size
    general = dict(zip(_GENERAL, _words(found.get("env.regs", b"")), strict=False))
    for name, register in (("rip", "env.eip"), ("rflags", "env.eflags")):
        if register in found:
            general[name] = int.from_bytes(found[register], "big")
    control = {name: found.get(f"env.cr[{name[2]}]") for name in ("cr0", "cr2", "cr3", "cr4")}
    control["efer"] = found.get("env.efer")
    numbers = {name: int.from_bytes(value, "big") if value else None for name, value in control.items()}
    return CpuState("the QEMU stream", general=general, segments=_segments(found), **numbers)


def _words(raw: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{len(raw) // 8}Q", raw[: len(raw) // 8 * 8])


def _segments(found: dict[str, bytes]) -> dict[str, Segment]:
    rows = list(zip(_SEGMENTS, _split(found.get("env.segs", b"")), strict=False))
    for name in ("ldt", "tr", "gdt", "idt"):
        rows += [(name, row) for row in _split(found.get(f"env.{name}", b""))[:1]]
    return {name: Segment(selector, base, limit, flags) for name, (selector, base, limit, flags) in rows}


def _split(raw: bytes) -> list[tuple[int, int, int, int]]:
    return list(_SEGMENT.iter_unpack(raw[: len(raw) // _SEGMENT.size * _SEGMENT.size]))
