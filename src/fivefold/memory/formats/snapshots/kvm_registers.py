"""Registers as KVM gives them to a virtual machine monitor: by name, or as the bytes of its two structures.

Source: Linux, "The Definitive KVM API Documentation", ``struct kvm_regs`` and ``struct kvm_sregs`` of x86.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

from fivefold.memory.registers import CpuState, Segment

GENERAL: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{number}" for number in range(8, 16))),
    *("rip", "rflags"),
)
_SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_SEGMENT: Final = struct.Struct("<QIH10x")
_TABLE: Final = struct.Struct("<QH6x")
_CONTROL: Final = struct.Struct("<7Q32x")
REGS: Final = struct.Struct("<18Q")
SREGS_SIZE: Final = 8 * _SEGMENT.size + 2 * _TABLE.size + _CONTROL.size
_APIC_AT: Final = 8 * _SEGMENT.size + 2 * _TABLE.size + 48
_APIC_BASE: Final = 0xFEE0_0000
_LMA_AND_LME: Final = 0x500
_CR0_PAGING: Final = 0x8000_0001


def cpu_of_names(special: dict[str, Any], general: Any, source: str) -> CpuState | None:
    """From objects with the structures' own names; None where a control register is missing."""
    names = ("cr0", "cr2", "cr3", "cr4", "efer")
    values = {name: special.get(name) for name in names}
    if not all(_is_word(value) for value in values.values()):
        return None
    segments = dict(_named_segments(special))
    if isinstance(general, list):
        known = _general(bytes_of(general))
    else:
        known = (
            {name: general[name] for name in GENERAL if _is_word(general.get(name))}
            if isinstance(general, dict)
            else {}
        )
    return CpuState(source, general=known, segments=segments, **values)


def _named_segments(special: dict[str, Any]) -> Iterator[tuple[str, Segment]]:
    for name in (*_SEGMENTS, "gdt", "idt"):
        one = special.get(name)
        if isinstance(one, dict) and _is_word(one.get("base")) and _is_word(one.get("limit")):
            selector = one.get("selector", 0)
            yield name, Segment(selector if _is_word(selector) else 0, one["base"], one["limit"], 0)


def _is_word(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def bytes_of(numbers: list[Any]) -> bytes:
    """A list of bytes as bytes, empty where it is none."""
    return bytes(numbers) if all(isinstance(one, int) and 0 <= one < 256 for one in numbers) else b""


def cpu_of_bytes(special: list[Any] | bytes, general: Any, source: str) -> CpuState | None:
    """From the bytes of both structures; None where they are of another size."""
    raw = special if isinstance(special, bytes) else bytes_of(special)
    if len(raw) != SREGS_SIZE:
        return None
    known = general if isinstance(general, bytes) else bytes_of(general) if isinstance(general, list) else b""
    segments, at = {}, 0
    for name in _SEGMENTS:
        base, limit, selector = _SEGMENT.unpack_from(raw, at)
        segments[name] = Segment(selector, base, limit, 0)
        at += _SEGMENT.size
    for name in ("gdt", "idt"):
        base, limit = _TABLE.unpack_from(raw, at)
        segments[name] = Segment(0, base, limit, 0)
        at += _TABLE.size
    cr0, cr2, cr3, cr4, _, efer, _ = _CONTROL.unpack_from(raw, at)
    return CpuState(source, cr0=cr0, cr2=cr2, cr3=cr3, cr4=cr4, efer=efer, general=_general(known), segments=segments)


def _general(raw: bytes) -> dict[str, int]:
    return dict(zip(GENERAL, REGS.unpack(raw), strict=True)) if len(raw) == REGS.size else {}


def places_of_sregs(raw: bytes) -> Iterator[int]:
    """Where a ``kvm_sregs`` of a CPU in long mode begins in *raw*: its APIC lies where it always does, paging is on."""
    mark = struct.pack("<Q", _APIC_BASE)[2:]
    at = raw.find(mark)
    while at >= 0:
        begin = at - 2 - _APIC_AT
        if begin >= 0 and begin + SREGS_SIZE <= len(raw) and _is_long_mode(raw[begin : begin + SREGS_SIZE]):
            yield begin
        at = raw.find(mark, at + 1)


def _is_long_mode(raw: bytes) -> bool:
    cr0, _, cr3, cr4, cr8, efer, apic = _CONTROL.unpack_from(raw, 8 * _SEGMENT.size + 2 * _TABLE.size)
    return bool(
        cr0 & _CR0_PAGING == _CR0_PAGING
        and cr0 < 1 << 32
        and cr4 & 0x20
        and cr4 < 1 << 32
        and efer & _LMA_AND_LME == _LMA_AND_LME
        and efer < 1 << 32
        and cr8 < 16
        and cr3 < 1 << 63
        and apic & ~0xFFF == _APIC_BASE
        and not any(raw[offset] for offset in (23, 47, 71))  # padding of the first segments
    )
