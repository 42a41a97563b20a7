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
_ENTRY: Final = re.compile(r"hardware (?:error|reason) (?:0x)?([0-9a-f]+)", re.I)
_VALID: Final = 1 << 31
_REASONS: Final = {
    0: "an exception or NMI",
    2: "a triple fault",
    7: "an interrupt window",
    8: "an NMI window",
    9: "a task switch",
    1: "an interrupt from outside",
    3: "an INIT signal",
    10: "CPUID",
    12: "HLT",
    28: "a control-register access",
    30: "an I/O instruction",
    31: "RDMSR",
    32: "WRMSR",
    33: "VM entry with an invalid guest state",
    44: "an access to the APIC page",
    48: "an EPT violation",
    49: "an EPT misconfiguration",
    62: "a full page-modification log",
}
"""Basic exit reasons (Intel SDM volume 3, "VMX Basic Exit Reasons")."""
_EPT_VIOLATION: Final = 48
EPT_EXITS: Final = frozenset({_EPT_VIOLATION, 49})
_MEANING: Final = {
    "1": "the instruction at RIP could not be emulated",
    "2": "another exit came while an event was being delivered",
    "3": "an exit that cannot be handled came while an event was being delivered",
    "4": "the reason of an exit is not known",
}
_ENTRY_ERRORS: Final = {
    0x7: "a control field of the VMCS is not valid, which is KVM's own doing",
    0x8: "the state of the host in the VMCS is not valid, which is KVM's own doing",
    0x80000021: "the state of the guest is one that the CPU refuses",
    0x80000022: "an MSR of the guest could not be loaded",
    0x80000029: "a machine check came during the VM entry",
    0xFFFFFFFF: "the state of the guest is one that the CPU (AMD) refuses",
}
"""VM-instruction errors, and basic exit reasons with bit 31 (Intel SDM, "VM-Entry Failures"); VMEXIT_INVALID."""
_QUALIFIED: Final = ((1, "a read"), (2, "a write"), (4, "an instruction fetch"))
_LINEAR, _TRANSLATED = 1 << 7, 1 << 8
"""Bits of an EPT violation's exit qualification: the linear address is valid; the access was to its translation."""


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
    refused = _refused(text)
    if refused is not None:
        remarks.append(refused)
    if cpu is not None:
        raised = tuple(replace(one, cpu=cpu, rip=cpu.rip, rsp=cpu.rsp, code=code) for one in raised)
    return Trace(
        source, "KVM error", raised, "emulation-failure", cpu, code, len(raised), remarks=tuple(remarks),
        vm_exit=vm_exit, unknown=tuple(unknown), says=refused or _says(suberror, extra, vm_exit, raised),
    )  # fmt: skip


def _refused(text: str) -> str | None:
    """Why a VM entry failed."""
    match = _ENTRY.search(text)
    if match is None:
        return None
    number = int(match[1], 16)
    reason = _ENTRY_ERRORS.get(number, "which no table here explains")
    return f"the VM entry failed with {number:#x}: {reason}"


def _says(
    suberror: str | None, extra: Mapping[int, int], vm_exit: VmExit | None, raised: tuple[RaisedException, ...]
) -> str | None:
    """What KVM could not do, in one clause."""
    if suberror == "1":
        return "KVM could not emulate the instruction at RIP"
    if suberror == "3" and vm_exit is not None:
        during = f"while {raised[0].name} was being delivered, " if raised else ""
        return f"{during}{_spelled(vm_exit).removeprefix('the exit is ')}, which KVM cannot handle there"
    if suberror == "2" and len(raised) > 1:
        return f"{raised[1].name} came while {raised[0].name} was being delivered"
    if suberror == "4" and 0 in extra:
        basic = extra[0] & 0xFFFF
        return f"KVM does not know how to handle {_REASONS.get(basic, f'an exit with reason {basic}')}"
    return None


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
    return f"the exit is {name}{where}{_qualified(vm_exit)}"


def _qualified(vm_exit: VmExit) -> str:
    """What the qualification of an EPT violation says of the access."""
    bits = vm_exit.qualification
    if vm_exit.reason != _EPT_VIOLATION or bits is None:
        return ""
    kinds = [name for bit, name in _QUALIFIED if bits & bit]
    walk = ", in the walk of the guest's page tables" if bits & _LINEAR and not bits & _TRANSLATED else ""
    return f" by {kinds[0]}{walk}" if len(kinds) == 1 else walk


def _vectoring(extra: Mapping[int, int], suberror: str, block: Block) -> tuple[RaisedException, ...]:
    """The event that was being delivered, and with suberror 2 the one that was raised.

    Bits as in the VM-exit interruption information: 7:0 vector, 10:8 type, 31 valid.
    """
    kind = extra[0] >> 8 & 7
    first = RaisedException(extra[0] & 0xFF, software=kind in (4, 6), external=kind == 0, line=block.number)
    if suberror == "2" and extra.get(1, 0) & _VALID:
        return (first, RaisedException(extra[1] & 0xFF, first.vector, line=block.number))
    return (first,)
