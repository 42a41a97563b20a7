"""KVM's last words as QEMU prints them: the suberror, its data, and the registers.

Source: QEMU, ``accel/kvm/kvm-all.c`` and ``target/i386/kvm/kvm.c``; Linux, ``arch/x86/kvm/vmx/vmx.c``
(handle_exit, __vmx_handle_exit) and ``include/uapi/linux/kvm.h`` (KVM_INTERNAL_ERROR_…).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from fivefold.explain.logs.register_text import parse_code, parse_registers
from fivefold.explain.logs.text.blocks import Block
from fivefold.explain.logs.trace import RaisedException, Trace, VmExit

_EXTRA: Final = re.compile(r"extra data\[(\d)\]: *(?:0x)?([0-9a-f]{1,16})(?![0-9a-z])", re.I)
_SUBERROR: Final = re.compile(r"Suberror: (\d+)", re.I)
_ENTRY: Final = re.compile(r"hardware error 0x([0-9a-f]+)", re.I)
_VALID: Final = 1 << 31
_REASONS: Final = {
    0: "an exception or NMI",
    2: "a triple fault",
    7: "an interrupt window",
    8: "an NMI window",
    9: "a task switch",
    28: "a control-register access",
    30: "an I/O instruction",
    33: "VM entry with an invalid guest state",
    44: "an access to the APIC page",
    48: "an EPT violation",
    49: "an EPT misconfiguration",
    62: "a full page-modification log",
}
"""Basic exit reasons (Intel SDM volume 3, "VMX Basic Exit Reasons")."""
EPT_EXITS: Final = frozenset({48, 49})
_MEANING: Final = {
    "1": "the instruction at RIP could not be emulated",
    "2": "another exit came while an event was being delivered",
    "3": "an exit that cannot be handled came while an event was being delivered",
    "4": "the reason of an exit is not known",
}


def kvm_trace(block: Block, source: str) -> Trace:
    """The error that *block* is of."""
    text = block.text
    cpu = parse_registers(text, "KVM's registers")
    code = parse_code(text)
    extra = {int(index): int(value, 16) for index, value in _EXTRA.findall(text)}
    match = _SUBERROR.search(text)
    suberror = match[1] if match else None
    raised: tuple[RaisedException, ...] = ()
    remarks = [" ".join(block.lines[:2])]
    unknown: list[str] = []
    if suberror in _MEANING:
        remarks.append(f"KVM stopped because {_MEANING[suberror]}")
    if suberror == "1":
        unknown.append(
            "why the instruction was emulated is not in the log: KVM emulates what touches no memory of its own"
        )
    vm_exit = _exit(extra) if suberror == "3" else None
    if suberror in ("2", "3") and extra.get(0, 0) & _VALID:
        raised = _vectoring(extra, suberror, block)
        remarks.append("the exceptions are KVM's exit data; it could not go on delivering them")
    if vm_exit is not None:
        remarks.append(_spelled(vm_exit))
    if match := _ENTRY.search(text):
        remarks.append(
            f"VM entry failed with {int(match[1], 16):#x}: the state of the guest is one that the CPU refuses"
        )
    if cpu is not None:
        raised = tuple(replace(one, cpu=cpu, rip=cpu.rip, rsp=cpu.rsp, code=code) for one in raised)
    return Trace(
        source, "KVM error", raised, "emulation-failure", cpu, code, len(raised), remarks=tuple(remarks),
        vm_exit=vm_exit, unknown=tuple(unknown),
    )  # fmt: skip


def _exit(extra: Mapping[int, int]) -> VmExit | None:
    """The exit of suberror 3: its reason, qualification, and the guest physical address of an EPT exit."""
    reason = extra.get(1)
    if reason is None:
        return None
    basic = reason & 0xFFFF
    return VmExit(basic, extra.get(2), extra.get(3) if basic in EPT_EXITS else None)


def _spelled(vm_exit: VmExit) -> str:
    name = _REASONS.get(vm_exit.reason, f"exit reason {vm_exit.reason}")
    where = "" if vm_exit.address is None else f" at guest physical address {vm_exit.address:#x}"
    return f"the exit is {name}{where}"


def _vectoring(extra: Mapping[int, int], suberror: str, block: Block) -> tuple[RaisedException, ...]:
    """The event that was being delivered, and with suberror 2 the one that was raised.

    Bits as in the VM-exit interruption information: 7:0 vector, 10:8 type, 31 valid.
    """
    kind = extra[0] >> 8 & 7
    first = RaisedException(extra[0] & 0xFF, software=kind in (4, 6), external=kind == 0, line=block.number)
    if suberror == "2" and extra.get(1, 0) & _VALID:
        return (first, RaisedException(extra[1] & 0xFF, first.vector, line=block.number))
    return (first,)
