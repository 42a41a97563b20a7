"""What is asked of a linear address before any table is read: masking, canonical form, LASS.

The order of the manual: the tag goes first, where masking applies; then the address must be
canonical in all its bytes; then linear-address space separation compares bit 63 with the privilege.
Sources: Intel SDM, "Canonical Addressing", "Linear-Address Masking", "Linear-Address Space
Separation"; AMD APM volume 2, "Upper Address Ignore", "Extended Feature Enable Register".
"""

from __future__ import annotations

from typing import Final

from fivefold.arch.accesses import Access, Kind, is_user
from fivefold.arch.cpu import Cpu
from fivefold.arch.modes import LA48, LA57, PagingMode, extend
from fivefold.arch.state import CR3_LAM_U48, CR3_LAM_U57, ControlState, Cr4, Efer
from fivefold.units import MASK64, VirtAddr

_BIT63: Final = 1 << 63
_LAM_SUP: Final = int(Cr4.LAM_SUP)
_LASS: Final = int(Cr4.LASS)
_UAIE: Final = int(Efer.UAIE)
_LMSLE: Final = int(Efer.LMSLE)
_CR3_LAM: Final = CR3_LAM_U48 | CR3_LAM_U57


def masked(va: VirtAddr, state: ControlState, mode: PagingMode, how: Access) -> VirtAddr:
    """The address that is translated: *va* without the tag that this access may carry.

    Only explicit data accesses of 64-bit code are masked; fetches and the CPU's own accesses are not.
    """
    if how.kind is Kind.FETCH or how.implicit or not state.in_64bit:
        return va
    if state.efer & _UAIE:
        return extend(va, LA57.va_bits)
    return untagged(va, state, mode)


def untagged(va: VirtAddr, state: ControlState, mode: PagingMode) -> VirtAddr:
    """Remove the tag that linear-address masking lets data addresses carry.

    The bits between the tag's top and bit 63 take the value of the highest bit below the tag;
    bit 63 itself stays, so that the canonical check still compares it.
    """
    if va >> 63:
        width = mode.va_bits if state.cr4 & _LAM_SUP else 0
    elif not state.cr3 & _CR3_LAM:
        return va
    elif state.cr3 & CR3_LAM_U57:
        width = LA57.va_bits
    else:
        width = LA48.va_bits
    if not width:
        return va
    return VirtAddr(extend(va, width) & ~_BIT63 | va & _BIT63)


def first_non_canonical(mode: PagingMode, va: VirtAddr, size: int) -> VirtAddr | None:
    """The first byte that is not canonical. An access is shorter than the gap: its ends suffice."""
    if not mode.is_canonical(va):
        return va
    if not mode.is_canonical((va + size - 1) & MASK64):
        return VirtAddr(mode.gap.start)
    return None


def first_separated(state: ControlState, va: VirtAddr, how: Access) -> VirtAddr | None:
    """The first byte that LASS keeps from this access, by bit 63 of its address alone; None if it keeps none.

    Supervisor data accesses to the lower half are kept only where SMAP would keep them from user
    pages: SMAP=1, and AC=0 or the CPU's own access. Fetches are kept whatever SMEP says.
    """
    if not state.cr4 & _LASS or not state.long_mode_active:
        return None
    last = VirtAddr((va + how.size - 1) & MASK64)
    if is_user(state, how):
        forbidden = 1
    elif how.kind is Kind.FETCH or (state.cr4_has(Cr4.SMAP) and (how.implicit or not state.ac)):
        forbidden = 0
    else:
        return None
    if va >> 63 == forbidden:
        return va
    return VirtAddr(0 if forbidden == 0 else _BIT63) if last >> 63 == forbidden else None


def past_segment_limit(state: ControlState, cpu: Cpu, how: Access) -> bool:
    """Whether EFER.LMSLE would compare this access with a segment limit, which is not known here."""
    return bool(cpu.lmsle and state.efer & _LMSLE and state.in_64bit and how.kind is not Kind.FETCH)
