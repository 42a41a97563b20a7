"""Probes that show where Unicorn keeps what no register shows; see `hidden_state`.

Works on an engine object through four of its methods, and so needs no import of unicorn.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from fivefold.machine.unicorn.hidden_state import (
    GPR_SENTINELS,
    Places,
    check_mode,
    find_fault_words,
    find_registers,
    find_segments,
)
from fivefold.machine.vcpu import FLAT_CODE32, FLAT_DATA
from fivefold.units import PAGE

PROBE_MEMORY: Final = 0x10000
"""Bytes of memory, from physical 0, that the probing engine must have."""

_GDT, _TABLES, _CODE, _DATA = 0x1000, 0x2000, 0x7000, 0x8000
_SELECTORS: Final = (0x28, 0x08, 0x10, 0x18, 0x20, 0x30)
_READ, _WRITE, _JUMP = b"\xa0", b"\xa2", b"\xff\xe0"
# (code, bits of the entry that maps the page, the page fault's error code): every code once.
_FAULTS: Final = (
    (_READ, 0, 0x0),
    (_WRITE, 0, 0x2),
    (_WRITE, 0x1, 0x3),
    (_JUMP, 0x3 | 1 << 63, 0x11),
    (_JUMP, 0, 0x10),
    (_READ, 0x3 | 1 << 51, 0x9),
)


class Probe(Protocol):
    """A fresh engine in 64-bit mode with `PROBE_MEMORY` bytes, as the calibration drives it."""

    def write_memory(self, address: int, data: bytes) -> None:
        """Store *data* at physical *address*."""
        ...

    def set_gprs(self, values: tuple[int, ...]) -> None:
        """Set RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15."""
        ...

    def set_gdt(self, base: int, limit: int) -> None:
        """Load GDTR."""
        ...

    def set_selectors(self, selectors: tuple[int, ...]) -> None:
        """Load ES, CS, SS, DS, FS, GS."""
        ...

    def enable_paging(self, root: int) -> None:
        """Four levels from *root*, with CR0.WP and EFER.NXE."""
        ...

    def run_to_trap(self, rip: int) -> bytes:
        """Run from *rip* up to an exception; the context's bytes then."""
        ...

    def context(self) -> bytes:
        """The context's bytes now."""
        ...

    def forget_exception(self, at: int) -> None:
        """Write -1 to the 32-bit word at *at* of the context."""
        ...


def measure(probe: Probe) -> Places:
    """Find the places; raises `MachineError` if registers or modes are not where they can be."""
    probe.write_memory(_GDT, struct.pack("<8Q", 0, FLAT_CODE32, *[FLAT_DATA] * 6))
    probe.set_gdt(_GDT, 0x3F)
    probe.set_gprs(GPR_SENTINELS)
    probe.set_selectors(_SELECTORS)
    raw = probe.context()
    rax = find_registers(raw)
    hflags, segments = find_segments(raw, rax, _SELECTORS)
    check_mode(raw, rax, hflags, cs64=True)
    words = _fault_words(probe, rax)
    if words is None:
        return Places(rax, hflags, segments, None, None, None)
    in_flight, error = words
    software = _software_word(probe, rax, error)
    return Places(rax, hflags, segments, in_flight, error, software)


def _fault_words(probe: Probe, rax: int) -> tuple[int, int] | None:
    """Raise each fault of `_FAULTS` once, and look where its traces are."""
    before = probe.context()
    idle = [at for at in range(rax, len(before) - 3, 4) if before[at : at + 4] == b"\xff" * 4]
    _write_tables(probe)
    probe.enable_paging(_TABLES)
    after = []
    for number, (code, _, _) in enumerate(_FAULTS):
        # Each fault has code and a page of its own: nothing translated before can be in the way.
        page, at = _DATA + number * PAGE, _CODE + 0x40 * number
        probe.write_memory(at, code if code == _JUMP else code + struct.pack("<Q", page))
        probe.set_gprs((page, *GPR_SENTINELS[1:]))
        after.append(probe.run_to_trap(at))
        for place in idle:
            if after[-1][place : place + 4] == struct.pack("<i", 14):
                probe.forget_exception(place)
    words = find_fault_words(after, rax, [error for _, _, error in _FAULTS])
    return words if words is not None and words[0] + rax in idle else None


def _software_word(probe: Probe, rax: int, error: int) -> int | None:
    """The word behind the error code distinguishes ``int n`` from an exception; make sure that it does."""
    at = rax + error + 4
    seen = []
    for number, code in enumerate((b"\xcd\x80", b"\x31\xc9\xf7\xf1"), start=len(_FAULTS)):
        probe.write_memory(_CODE + 0x40 * number, code)
        seen.append(probe.run_to_trap(_CODE + 0x40 * number)[at : at + 4])
    return error + 4 if seen == [b"\1\0\0\0", b"\0\0\0\0"] else None


def _write_tables(probe: Probe) -> None:
    """Four levels that map the probe's memory page by page at its own address."""
    for level in range(3):
        probe.write_memory(_TABLES + level * 0x1000, struct.pack("<Q", _TABLES + (level + 1) * 0x1000 | 3))
    entries = {at: at | 3 for at in range(0, PROBE_MEMORY, PAGE)}
    for number, (_, bits, _) in enumerate(_FAULTS):
        page = _DATA + number * PAGE
        entries[page] = page | bits if bits else 0
    probe.write_memory(_TABLES + 0x3000, struct.pack(f"<{len(entries)}Q", *entries.values()))
