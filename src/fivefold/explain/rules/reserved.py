"""Reserved bits that no source names: what made an entry malformed is inferred, and said to be.

MAXPHYADDR is in no log, EFER in no core. Where a reserved bit is reported, or a page or table lies out of all
proportion, the highest address bit on the path must be past the width that this CPU has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fivefold.arch import Access, Efer, Entry, Flag, Level, PageFault, Step
from fivefold.errors import MemoryReadError
from fivefold.explain.rules.ruling import Granted, Outside, describe_entry, rule_on
from fivefold.explain.rules.situation import Situation
from fivefold.units import PhysAddr

_MIN_PHYS_BITS: Final = 32
_QEMU_PHYS_BITS: Final = 40
_FAR_BIT: Final = 40
"""A terabyte: above that, and without memory there, an address is taken for a malformed one."""

Inferred = tuple[Situation, tuple[str, ...]]
"""The CPU with what was inferred, and that in sentences."""


def with_reserved(here: Situation, va: int, how: Access, code: int | None, dialect: str = "") -> Inferred:
    """Infer what makes a bit reserved, where the source says that one was and the tables alone do not.

    A fault without an error code (*code* None) on an access that the tables allow, or that leads to a
    table, where there is no memory by far, is taken for one too. QEMU's own width is known by *dialect*.
    """
    if "phys_bits" not in here.assumed:
        return here, ()
    ruling = rule_on(here, va, how)
    if not isinstance(ruling, Granted | Outside):
        return here, ()
    if code is not None:
        reported = bool(code & PageFault.RSVD)
        return _narrowed(here, ruling.steps, dialect, "RSVD is reported") if reported else (here, ())
    # Sparse cores have holes everywhere; only an address out of all proportion is evidence.
    far = ruling.at if isinstance(ruling, Outside) else ruling.verdict.pa
    if not far >> _FAR_BIT or _has_memory(here, far):
        return here, ()
    what = "the table" if isinstance(ruling, Outside) else "the page"
    return _narrowed(here, ruling.steps, dialect, f"{what} lies far from any memory, and the access faulted")


def _narrowed(here: Situation, steps: tuple[Step, ...], dialect: str, why: str) -> Inferred:
    """The CPU with a physical width, or other feature, that makes some entry of *steps* malformed."""
    if not steps:
        return here, ()
    step = max(steps, key=lambda step: _top_bit(step.entry))
    bit = _top_bit(step.entry)
    if bit >= _MIN_PHYS_BITS:
        width = min(bit, _QEMU_PHYS_BITS) if dialect == "QEMU log" else bit
        reason = (
            f"MAXPHYADDR of at most {bit} is inferred: {why}, and the highest address bit on the path "
            f"is bit {bit} of the {describe_entry(step)}"
        )
        if width == _QEMU_PHYS_BITS:
            reason += "; QEMU's own default is 40"
        return here.with_phys_bits(width, reason), (reason,)
    return _without_feature(here, steps, why)


def _without_feature(here: Situation, steps: tuple[Step, ...], why: str) -> Inferred:
    """Bits that are reserved only where something is off or missing: XD without NXE, 1 GiB pages."""
    if "efer" in here.assumed and any(step.entry.raw & Flag.NX for step in steps):
        reason = f"EFER.NXE=0 is inferred: {why}, and XD is set on the path"
        state = replace(here.state, efer=here.state.efer & ~int(Efer.NXE))
        return here.with_state(state), (reason,)
    if any(step.entry.level is Level.PDPT and step.entry.is_leaf for step in steps):
        reason = f"a CPU without 1 GiB pages is inferred: {why}, and PS is set in the PDPT entry"
        return replace(here, cpu=replace(here.cpu, gib_pages=False)), (reason,)
    return here, (f"{why}, and no entry on the path has a bit that is known to be reserved",)


def _has_memory(here: Situation, pa: int) -> bool:
    assert here.memory is not None  # the caller has walked it
    try:
        here.memory.read(PhysAddr(pa), 1)
    except MemoryReadError:
        return False
    return True


def _top_bit(entry: Entry) -> int:
    return (entry.raw & ((1 << 52) - 1) & ~0xFFF).bit_length() - 1
