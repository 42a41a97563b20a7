"""What registers look like where no exception is known: states in which the next exception is fatal."""

from __future__ import annotations

from fivefold.arch import Cr0, Level
from fivefold.explain.faults.finding import FaultFinding
from fivefold.explain.logs.trace import Trace, VmExit
from fivefold.explain.rules.situation import Situation
from fivefold.units import hex64


def suspicious_state(here: Situation, trace: Trace) -> FaultFinding | None:
    """A root that cannot be one, or an IDT without gates, with paging on; None if there is neither."""
    if trace.vm_exit is not None and (finding := root_outside(here, trace.vm_exit)) is not None:
        return finding
    registers = here.registers
    if registers.cr0 is not None and not (registers.cr0 & Cr0.PG and registers.cr0 & Cr0.PE):
        return None
    if registers.cr3 == 0:
        sentence = "CR3 is 0: the page-table root is the first page of memory, which firmware uses"
        return FaultFinding("table-outside-memory", sentence, "guess", here)
    idt = registers.idt
    if idt is not None and here.has_gate(0, idt.limit) is False:
        sentence = f"the IDT's limit is {idt.limit:#x}: it has no gate, so the first exception ends in a triple fault"
        return FaultFinding("idt-limit", sentence, "guess", here, remarks=("which exception that was is not known",))
    return None


def root_outside(here: Situation, vm_exit: VmExit) -> FaultFinding | None:
    """An exit at an address in the root's page: there is no memory of the guest where CR3 points."""
    cr3, mode, at = here.registers.cr3, here.mode, vm_exit.address
    if cr3 is None or mode is None or at is None or at >> 12 != cr3 >> 12 & (1 << 40) - 1:
        return None
    top = Level(mode.top)
    index = (at & 0xFFF) >> 3
    sentence = (
        f"the {top.name} table at {hex64(at & ~0xFFF)}, to which CR3 points, is not in the guest's memory: reading its "
        f"entry {index} is the exit"
    )
    remarks = tuple(
        f"{name} ({hex64(value)}) is translated by that entry"
        for name, value in (("RIP", here.registers.rip), ("RSP", here.registers.rsp), ("CR2", here.registers.cr2))
        if value is not None and top.index(value) == index
    )
    return FaultFinding("table-outside-memory", sentence, "likely", here, named_level=top, remarks=remarks)
