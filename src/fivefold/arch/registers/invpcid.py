"""Whether INVPCID takes its descriptor.

Source: Intel SDM volume 2, "INVPCID"; AMD APM volume 3, "INVPCID".
"""

from __future__ import annotations

from typing import Final

from fivefold.arch.cpu import Cpu
from fivefold.arch.state import ControlState, Cr4
from fivefold.units import VirtAddr

_TYPES: Final = 4
_PCID: Final = 0xFFF


def invpcid_refusal(state: ControlState, kind: int, first: int, va: int, cpu: Cpu) -> str | None:
    """Why INVPCID of type *kind* raises #GP(0), or None; *first* and *va* are the two words of its descriptor.

    *va* counts for type 0 only, and must be canonical in the widest mode that *cpu* supports.
    """
    if kind >= _TYPES:
        return "a type above 3"
    if first & ~_PCID:
        return "reserved bits of the descriptor"
    if kind < 2 and first and not state.cr4_has(Cr4.PCIDE):
        return "a PCID with CR4.PCIDE=0"
    if kind == 0 and not cpu.widest.is_canonical(VirtAddr(va)):
        return "an address that is not canonical"
    return None
