"""Which rules of `arch` an engine can show, and why the others have no witness.

A test holds both against the cases: a rule that they reach on an engine's CPU must not be listed, every other must.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fivefold.arch import Cpu, Fault, Refused, Rule
from fivefold.arch.registers.control import write_rules
from fivefold.conform.cases.actions import ACTIONS
from fivefold.conform.cases.case import Case
from fivefold.conform.judging.expect import expect, refused_invpcid

_IN_32_BIT: Final = "the payload writes control registers in 64-bit mode, where another rule comes first"
NO_WITNESS: Final = {
    "access: SGX": "no engine has enclaves; hand-made vectors",
    "access: RMP": "no engine has SEV-SNP; hand-made vectors",
    "access: SHADOW_SIDE": "WRUSS counts as a user's; hand-made vectors for the supervisor's own shadow stack",
    "write: privilege": "register writes are made at privilege level 0 only",
    "write: long mode without PAE": _IN_32_BIT,
    "write: long mode from CS.L": _IN_32_BIT,
    "write: long mode with a 16-bit TSS": _IN_32_BIT,
    "write: PG off with PCIDE": "in 64-bit mode PG cannot be cleared at all, whatever PCIDE is",
    "write: PCIDE outside IA-32e mode": _IN_32_BIT,
    "masking: LAM": "no engine has LAM; hand-made vectors",
    "masking: UAI": "no engine has AMD's upper address ignore; hand-made vectors",
    "walk: HLAT restart": "no engine has HLAT; hand-made vectors",
    "walk: C-bit, shared bit, key bits": "no engine encrypts memory; hand-made vectors, and memory dumps of SEV guests",
    "EPT": "no engine has VMX; hand-made vectors",
    "NPT": "no payload runs a nested guest; hand-made vectors, and captures of Linux hosts with one",
    "VT-d second level": "no payload programs an IOMMU; hand-made vectors",
    "stale: INVLPGB": "no engine has it; hand-made lists of steps",
    "stale: other PCIDs": "the steps of cases stay in PCID 0; hand-made lists of steps",
    "stale: other CPUs": "a list of steps is one CPU's; bench/broken.py boots kernels that forget a shootdown",
}
"""Rules of `arch` that no engine shows, and why, with what they rest on."""

_BESIDE: Final = {name for name in NO_WITNESS if name.split(":")[0] not in ("access", "write")}


def arch_rules() -> set[str]:
    """The rules of `arch` by name: of accesses, of register writes, of INVPCID and of stale translations."""
    accesses = {f"access: {rule.name}" for rule in Rule}
    stale = {f"stale: {action.stale}" for action in ACTIONS.values() if action.stale is not None}
    return accesses | {f"write: {name}" for name in write_rules()} | stale | {"INVPCID"} | _BESIDE


def witnessed(cases: Iterable[Case], cpus: Iterable[Cpu]) -> set[str]:
    """The rules that decide in *cases* on *cpus*, of what can be shown there."""
    found: set[str] = set()
    every = list(cases)
    for cpu in cpus:
        for case in every:
            expected = expect(case, cpu)
            if expected.hidden:
                continue
            if isinstance(expected.verdict, Fault):
                found.add(f"access: {expected.verdict.rule.name}")
            elif isinstance(expected.written, Refused):
                found.add(f"write: {expected.written.rule}")
            elif case.what.stale is not None:
                found.add(f"stale: {case.what.stale}")
            elif case.what.invpcid is not None and refused_invpcid(case, cpu):
                found.add("INVPCID")
    return found
