"""States that no CPU can be in: a write that a CPU refuses was let through by an emulator."""

from __future__ import annotations

from fivefold.arch import Cr0, Cr4, Efer
from fivefold.explain.faults.finding import FaultFinding
from fivefold.explain.rules.situation import L_BIT, Situation


def impossible(here: Situation) -> FaultFinding | None:
    """The write that must have been refused, None if the control registers are in order."""
    registers, state = here.registers, here.state
    if registers.cr0 is not None and state.cr0 & Cr0.PG and not state.cr0 & Cr0.PE:
        what = f"paging is on without protected mode (CR0 {state.cr0:#x})"
        return _found(here, what, "CR0", "to set CR0.PG without CR0.PE")
    if registers.cr4 is None or state.cr4_has(Cr4.PAE):
        return None
    if state.efer & Efer.LMA:
        what = f"the CPU is in long mode with CR4.PAE=0 (CR4 {state.cr4:#x}, EFER {state.efer:#x})"
        return _found(here, what, "CR4", "to clear CR4.PAE in long mode")
    cs = registers.segments.get("cs")
    if registers.efer is None and state.cr0 & Cr0.PG and cs is not None and cs.flags & L_BIT and _is_wide(here):
        what = f"64-bit code runs with paging on and CR4.PAE=0 (CR4 {state.cr4:#x})"
        return _found(here, what, "CR4", "to clear CR4.PAE in long mode")
    return None


def _found(here: Situation, what: str, register: str, why: str) -> FaultFinding:
    sentence = f"{what}: a write to {register} that a CPU refuses with #GP(0) went through"
    remark = f"QEMU's TCG does not refuse {why}; what follows is no walk that a CPU makes"
    return FaultFinding("mode-change-refused", sentence, "likely", here, remarks=(remark,))


def _is_wide(here: Situation) -> bool:
    """Whether RIP or RSP is past what 32-bit code has."""
    return any((value or 0) >> 32 for value in (here.registers.rip, here.registers.rsp))
