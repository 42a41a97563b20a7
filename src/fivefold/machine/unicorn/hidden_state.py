"""The parts of Unicorn's processor that no register shows, read and changed in a saved context.

Unicorn delivers no exceptions, so the engine must know the error code of a page fault, end
the exception "in flight" (else the next page fault becomes a double fault), and change the
privilege level and the code size when a handler starts. All of that lies in the bytes of a
saved context. Nothing documents their places, so they are *measured* at the first start, by
values that can be there only once: see `fivefold.machine.unicorn.calibration`. Offsets count from RAX.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fivefold.errors import MachineError
from fivefold.machine.vcpu import BIG, LONG, VcpuSegment

GPR_SENTINELS: Final = tuple(0x5EA1_0000_C0DE_0000 | number for number in range(16))
_SEGMENT: Final = struct.Struct("<IxxxxQII")
_CS, _SS, _DS, _ES = 1, 2, 3, 0

# The bits of "hflags", as QEMU 5.0 laid them out and `check_mode` verifies.
_CPL: Final = 3
_CS32: Final = 1 << 4
_SS32: Final = 1 << 5
_ADDSEG: Final = 1 << 6
_PE: Final = 1 << 7
_LMA: Final = 1 << 14
_CS64: Final = 1 << 15


@dataclass(frozen=True, slots=True)
class Places:
    """Offsets in a saved context: of RAX in it, of the rest from RAX."""

    rax: int
    hflags: int
    segments: int
    in_flight: int | None
    error_code: int | None
    is_software: int | None


class Context:
    """A saved context's bytes and where things are in them; changes are made to *raw*."""

    def __init__(self, raw: bytearray, places: Places) -> None:
        self.raw = raw
        self._places = places

    @property
    def cpl(self) -> int:
        """The privilege level the processor really runs at."""
        return self._hflags & _CPL

    @property
    def error_code(self) -> int | None:
        """Of the last exception that has one; None where it could not be found."""
        return self._int(self._places.error_code)

    @property
    def is_software(self) -> bool:
        """Whether the last exception was an ``int n``; False where it could not be found."""
        return bool(self._int(self._places.is_software))

    def segment(self, number: int) -> VcpuSegment:
        """Segment *number* in the order ES, CS, SS, DS, FS, GS, LDTR, TR."""
        selector, base, limit, flags = _SEGMENT.unpack_from(self.raw, self._segment_at(number))
        return VcpuSegment(selector, base, limit, flags)

    def set_segment(self, number: int, segment: VcpuSegment) -> None:
        """Load *segment* without any check; `set_mode` afterwards for CS and SS."""
        _SEGMENT.pack_into(self.raw, self._segment_at(number), *segment)

    def end_exception(self) -> None:
        """Forget the exception in flight: it has been delivered."""
        if self._places.in_flight is not None:
            struct.pack_into("<i", self.raw, self._places.rax + self._places.in_flight, -1)

    def set_mode(self, cpl: int, long_mode: bool) -> None:
        """Set the privilege level, and derive code and stack size from CS and SS as loading them does."""
        code, stack = self.segment(_CS).flags, self.segment(_SS).flags
        kept = self._hflags & ~(_CPL | _CS32 | _SS32 | _ADDSEG | _CS64)
        if long_mode and code & LONG:
            size = _CS64 | _CS32 | _SS32
        else:
            size = (_CS32 if code & BIG else 0) | (_SS32 if stack & BIG else 0)
            bases = self.segment(_DS).base | self.segment(_ES).base | self.segment(_SS).base
            size |= _ADDSEG if bases or not code & BIG else 0
        struct.pack_into("<I", self.raw, self._places.rax + self._places.hflags, kept | size | cpl)

    @property
    def _hflags(self) -> int:
        value: int = struct.unpack_from("<I", self.raw, self._places.rax + self._places.hflags)[0]
        return value

    def _int(self, offset: int | None) -> int | None:
        if offset is None:
            return None
        value: int = struct.unpack_from("<i", self.raw, self._places.rax + offset)[0]
        return value

    def _segment_at(self, number: int) -> int:
        return self._places.rax + self._places.segments + number * _SEGMENT.size


def find_registers(raw: bytes) -> int:
    """Where the general registers are; they must hold `GPR_SENTINELS`, in the manual's order."""
    at = raw.find(struct.pack("<16Q", *GPR_SENTINELS))
    if at < 0:
        raise MachineError("this version of unicorn keeps its registers in an unknown order")
    return at


def find_segments(raw: bytes, rax: int, selectors: Sequence[int]) -> tuple[int, int]:
    """Where hflags and the segments are, given the *selectors* in ES, CS, SS, DS, FS and GS.

    hflags are eight bytes before ES: a second word of flags lies between. Counted from *rax*.
    """
    images = [struct.pack("<I", selector) for selector in selectors]
    for at in range(rax + 128, len(raw) - 6 * _SEGMENT.size, 8):
        if all(raw[at + _SEGMENT.size * n :].startswith(image) for n, image in enumerate(images)):
            return at - rax - 8, at - rax
    raise MachineError("this version of unicorn keeps its segments in an unknown place")


def check_mode(raw: bytes, rax: int, hflags: int, cs64: bool) -> None:
    """Refuse a layout in which the mode bits are not what the processor's mode says."""
    value = struct.unpack_from("<I", raw, rax + hflags)[0]
    wanted = _PE | (_LMA | _CS64 if cs64 else 0)
    if value & (_PE | _LMA | _CS64 | _CPL) != wanted:
        raise MachineError("this version of unicorn keeps its mode bits in an unknown place")


def find_fault_words(after: Sequence[bytes], rax: int, codes: Sequence[int]) -> tuple[int, int] | None:
    """Where the exception in flight and the error code are, None if that is not certain.

    *after[n]* is the context after a page fault with error code *codes[n]*: the exception in
    flight reads 14 in all of them. Both are counted from *rax*.
    """
    places = range(rax, len(after[0]) - 3, 4)
    in_flight = [at for at in places if all(_signed(raw, at) == 14 for raw in after)]
    error = [at for at in places if all(_signed(raw, at) == code for raw, code in zip(after, codes, strict=True))]
    if len(in_flight) != 1 or len(error) != 1:
        return None
    return in_flight[0] - rax, error[0] - rax


def _signed(raw: bytes, at: int) -> int:
    value: int = struct.unpack_from("<i", raw, at)[0]
    return value
