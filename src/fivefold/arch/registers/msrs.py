"""The MSRs with bits that must be zero, beside or instead of a canonical address.

*Reserved* are bits that raise #GP(0) when written as 1. Sources: Intel SDM volume 4, "Architectural
MSRs", and volume 1, "Control-flow Enforcement Technology" and "FRED"; AMD APM volume 2, "Shadow Stacks".
"""

from __future__ import annotations

from typing import Final

from fivefold.arch.cpu import Cpu, Vendor
from fivefold.arch.registers.names import Register

_SHADOW_STACK_BITS: Final = 0x3
_CET_RESERVED: Final = 0x3C0
_CET_SUPPRESS, _CET_TRACKER = 1 << 10, 1 << 11

RESERVED: Final = {
    Register.PKRS: 0xFFFF_FFFF << 32,
    Register.U_CET: _CET_RESERVED,
    Register.S_CET: _CET_RESERVED,
    Register.PL0_SSP: 0x3,
    Register.PL1_SSP: 0x3,
    Register.PL2_SSP: 0x3,
    Register.PL3_SSP: 0x3,
    Register.BNDCFGS: 0xFFC,
    Register.UINTR_MISC: 0xFF_FFFF << 40,
    Register.UINTR_STACKADJUST: 0x6,
    Register.UINTR_PD: 0x3F,
    Register.UINTR_TT: 0xE,
    Register.FRED_RSP0: 0x3F,
    Register.FRED_RSP1: 0x3F,
    Register.FRED_RSP2: 0x3F,
    Register.FRED_RSP3: 0x3F,
    Register.FRED_SSP1: 0x7,
    Register.FRED_SSP2: 0x7,
    Register.FRED_SSP3: 0x7,
    Register.FRED_CONFIG: 1 << 2 | 3 << 4 | 1 << 11,
}
"""Bits that must be zero, by register."""

FEATURE: Final = {
    Register.PKRS: "pks",
    **{register: "cet" for register in Register if register.name.endswith("_CET") or "SSP" in register.name},
    **{register: "uintr" for register in Register if register.name.startswith("UINTR")},
    **{register: "fred" for register in Register if register.name.startswith("FRED")},
}
"""The feature of `Cpu` without which there is no such register."""

NO_ADDRESS: Final = frozenset({Register.PKRS, Register.PAT, Register.UINTR_MISC, Register.FRED_STKLVLS})
"""Registers of this module that hold no address, so no canonical rule."""

_PAT_TYPES: Final = frozenset((0, 1, 4, 5, 6, 7))


def reserved(register: Register, value: int, cpu: Cpu) -> int:
    """The bits of *value* that must be zero in *register*; 0 if none is set."""
    bits = value & RESERVED.get(register, 0)
    if register in (Register.U_CET, Register.S_CET):
        bits |= value & ~_SHADOW_STACK_BITS if cpu.vendor is Vendor.AMD else 0  # AMD has no branch tracking
        both = _CET_SUPPRESS | _CET_TRACKER
        bits |= both if value & both == both else 0
    if register is Register.PAT:
        bits |= sum(0xFF << at for at in range(0, 64, 8) if value >> at & 0xFF not in _PAT_TYPES)
    return bits


def address_in(register: Register, value: int) -> int:
    """The linear address in *value*, without the flags that some registers keep below bit 12."""
    if register in (Register.U_CET, Register.S_CET, Register.BNDCFGS, Register.FRED_CONFIG):
        return value & ~0xFFF
    return value


def has_address_rule(register: Register, cpu: Cpu) -> bool:
    """Whether writing a non-canonical address raises #GP. AMD's SYSENTER registers take any."""
    if register in NO_ADDRESS:
        return False
    return cpu.vendor is not Vendor.AMD or register not in (Register.SYSENTER_ESP, Register.SYSENTER_EIP)
