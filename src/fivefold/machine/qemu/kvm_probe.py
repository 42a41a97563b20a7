"""Is KVM there, and does it work? Asked by running a guest of a dozen bytes.

A device that can be opened says little: under nested virtualisation KVM may be partial, or
slower than the emulator.
"""

from __future__ import annotations

import functools
import struct
from typing import Final

from fivefold.errors import MachineError
from fivefold.machine.base import Exit, Guest
from fivefold.machine.qemu.engine import QemuMachine
from fivefold.units import MIB

PROBE_SECONDS: Final = 15.0
_AT: Final = 0x20_0000
_CODE: Final = 0x2A
# mov al, 0x2a; out 0xf4, al; cli; hlt; jmp to the hlt
_PROGRAM: Final = bytes((0xB0, _CODE, 0xE6, 0xF4, 0xFA, 0xF4, 0xEB, 0xFD))


@functools.cache
def probe(program: str | None = None) -> str | None:
    """None if a guest ran to its end, else why not. Takes up to `PROBE_SECONDS`, once in a process."""
    try:
        with QemuMachine(Guest(_image(), cpu="la48", memory=16 * MIB), "kvm", PROBE_SECONDS, program) as machine:
            event = machine.run(PROBE_SECONDS)
    except MachineError as error:
        return f"the engine kvm does not work here: {error}"
    if event != Exit(_CODE):
        return f"the engine kvm does not work here: a trial guest ended with {event}"
    return None


def _image() -> bytes:
    """The program as an ELF with a PVH entry."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", _AT)
    notes_at = 64 + 2 * 56
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 2, 62, 1, _AT, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    size = len(_PROGRAM)
    load = struct.pack("<IIQQQQQQ", 1, 5, notes_at + len(note), _AT, _AT, size, size, 16)
    noted = struct.pack("<IIQQQQQQ", 4, 4, notes_at, 0, 0, len(note), len(note), 4)
    return header + load + noted + note + _PROGRAM
