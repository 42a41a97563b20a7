"""Which writes to control registers and MSRs are legal in which state, and what state follows.

Each rule is a row: a name, the test that finds the bits which break it, and a sentence. All
refusals are #GP(0). Sources: Intel SDM, "MOV—Move to/from Control Registers", "Control
Registers", "Initializing IA-32e Mode", "WRMSR", "LGDT/LIDT", "Operations that Invalidate TLBs
and Paging-Structure Caches"; AMD APM volume 2, "System-Control Registers".

Not here: the loading of PDPTEs in PAE paging, and what VMX or SVM operation adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, NamedTuple

from fivefold.arch.cpu import Cpu
from fivefold.arch.exceptions import Vector
from fivefold.arch.registers import msrs
from fivefold.arch.registers.names import Register
from fivefold.arch.state import CR3_KEEP, CR3_LAM_U48, CR3_LAM_U57, ControlState, Cr0, Cr4, Efer
from fivefold.units import MASK64, hex64


class Flush(Enum):
    """What a write drops from the TLBs and paging-structure caches, at the least."""

    NONE = "nothing"
    NON_GLOBAL = "all of the new PCID but global translations"
    PCID = "all of the current PCID, global translations too"
    ALL = "everything, of every PCID, global translations too"


@dataclass(frozen=True, slots=True)
class Legal:
    """The write goes ahead and leaves *state*; *flush* says what it drops."""

    state: ControlState
    flush: Flush


@dataclass(frozen=True, slots=True)
class Refused:
    """The write raises #GP(0) and changes nothing. *bits* are those that break the rule."""

    register: Register
    rule: str
    sentence: str
    bits: int
    vector: Vector = Vector.GP
    error_code: int = 0

    def __str__(self) -> str:
        """One line: the exception, the register and why."""
        return f"#{self.vector.name}({self.error_code}) {self.register.value}: {self.sentence}"


class _Write(NamedTuple):
    """A write under judgement, and the shorthand that the rules are written in."""

    state: ControlState
    register: Register
    value: int
    cpu: Cpu

    def sets(self, old: int, bit: int) -> bool:
        """Whether *bit* goes from 0 to 1."""
        return bool(self.value & ~old & bit)

    def clears(self, old: int, bit: int) -> bool:
        """Whether *bit* goes from 1 to 0."""
        return bool(~self.value & old & bit)


class _Rule(NamedTuple):
    name: str
    broken_by: Callable[[_Write], int]
    sentence: str


def check_write(state: ControlState, register: Register, value: int, cpu: Cpu, selector: int = 0) -> Legal | Refused:
    """Decide a write of *value* (64 bits) to *register*, or to an MSR of `MSRS`.

    `Legal.state` has what hardware makes of it: LMA follows LME and PG, reserved bits of CR0's
    lower half stay as they are, bit 63 of CR3 is not stored. *selector*: what LLDT or LTR was given,
    which becomes the error code. `ValueError` if *value* has more than 64 bits or a sign.
    """
    if not 0 <= value <= MASK64:
        raise ValueError(f"{value:#x} written to {register.value}; expected 64 bits without a sign")
    write = _Write(state, register, value, cpu)
    for rule in _RULES_OF.get(register, _ADDRESS_RULES):
        if bits := rule.broken_by(write):
            code = selector & ~3 if register in (Register.LDTR, Register.TR) and rule is not _PRIVILEGE else 0
            return Refused(register, rule.name, rule.sentence.format(bits=hex64(bits)), bits, error_code=code)
    return Legal(_apply(write), flush_of(state, register, value))


def flush_of(state: ControlState, register: Register, value: int) -> Flush:
    """What a legal write of *value* to *register* drops from the caches of translations.

    More may be dropped; less may not. Writes to EFER drop nothing.
    """
    if register is Register.CR0:
        return Flush.ALL if state.cr0 & ~value & Cr0.PG else Flush.NONE
    if register is Register.CR3:
        kept = state.cr4_has(Cr4.PCIDE) and value & CR3_KEEP
        return Flush.NONE if kept else Flush.NON_GLOBAL
    if register is not Register.CR4:
        return Flush.NONE
    if (state.cr4 ^ value) & Cr4.PGE or state.cr4 & ~value & Cr4.PCIDE:
        return Flush.ALL
    if (state.cr4 ^ value) & Cr4.PAE or value & ~state.cr4 & Cr4.SMEP:
        return Flush.PCID
    return Flush.NONE


def cr4_bits(cpu: Cpu) -> int:
    """The bits of CR4 that are not reserved on *cpu*. Those of features not modelled are."""
    return _CR4_ALWAYS | sum(int(bit) for name, bit in _CR4_OF_FEATURE if getattr(cpu, name))


def efer_bits(cpu: Cpu) -> int:
    """The bits of EFER that are not reserved on *cpu*; LMA is read-only but may be written."""
    long = int(Efer.SCE | Efer.LME | Efer.LMA) if cpu.long_mode else 0
    return long | sum(int(bit) for name, bit in _EFER_OF_FEATURE if getattr(cpu, name))


def cr3_bits(state: ControlState, cpu: Cpu) -> int:
    """The bits that a value moved to CR3 may have in *state*."""
    mask = (1 << cpu.width) - 1 | cpu.encryption_bits
    if state.cr4_has(Cr4.PCIDE):
        mask |= CR3_KEEP
    if cpu.lam:
        mask |= CR3_LAM_U57 | CR3_LAM_U48
    return mask


_CR0_BITS: Final = sum(int(bit) for bit in Cr0)
_CR4_ALWAYS: Final = int(
    Cr4.VME | Cr4.PVI | Cr4.TSD | Cr4.DE | Cr4.PSE | Cr4.PAE | Cr4.MCE | Cr4.PCE | Cr4.OSFXSR | Cr4.OSXMMEXCPT
)
_CR4_OF_FEATURE: Final = (
    ("pge", Cr4.PGE),
    ("umip", Cr4.UMIP),
    ("la57", Cr4.LA57),
    ("vmx", Cr4.VMXE),
    ("smx", Cr4.SMXE),
    ("fsgsbase", Cr4.FSGSBASE),
    ("pcid", Cr4.PCIDE),
    ("xsave", Cr4.OSXSAVE),
    ("smep", Cr4.SMEP),
    ("smap", Cr4.SMAP),
    ("pku", Cr4.PKE),
    ("cet", Cr4.CET),
    ("pks", Cr4.PKS),
    ("lam", Cr4.LAM_SUP),
    ("key_locker", Cr4.KL),
    ("uintr", Cr4.UINTR),
    ("lass", Cr4.LASS),
    ("fred", Cr4.FRED),
)
_EFER_OF_FEATURE: Final = (
    ("nx", Efer.NXE),
    ("svm", Efer.SVME),
    ("lmsle", Efer.LMSLE),
    ("ffxsr", Efer.FFXSR),
    ("tce", Efer.TCE),
    ("mcommit", Efer.MCOMMIT),
    ("intwb", Efer.INTWB),
    ("uai", Efer.UAIE),
    ("aibrs", Efer.AIBRSE),
)


def _apply(write: _Write) -> ControlState:
    """The state after a legal write."""
    state, value = write.state, write.value
    match write.register:
        case Register.CR0:
            lma = Efer.LMA if value & Cr0.PG and state.efer & Efer.LME else 0
            efer = state.efer & ~Efer.LMA | lma
            return replace(state, cr0=value & _CR0_BITS | int(Cr0.ET), efer=int(efer))
        case Register.CR3:
            keep = CR3_KEEP if state.cr4_has(Cr4.PCIDE) else 0
            return replace(state, cr3=value & ~keep)
        case Register.CR4:
            return replace(state, cr4=value)
        case Register.EFER:
            return replace(state, efer=value & ~int(Efer.LMA) | state.efer & int(Efer.LMA))
        case Register.PKRS:
            return replace(state, pkrs=value)
        case _:
            return state


def _privilege(w: _Write) -> int:
    return MASK64 if w.state.cpl else 0


def _cr0_high(w: _Write) -> int:
    return w.value >> 32 << 32


def _pg_without_pe(w: _Write) -> int:
    return Cr0.PG if w.value & Cr0.PG and not w.value & Cr0.PE else 0


def _nw_without_cd(w: _Write) -> int:
    return Cr0.NW if w.value & Cr0.NW and not w.value & Cr0.CD else 0


def _enters_long(w: _Write) -> bool:
    return w.sets(w.state.cr0, Cr0.PG) and bool(w.state.efer & Efer.LME)


def _long_without_pae(w: _Write) -> int:
    return Cr0.PG if _enters_long(w) and not w.state.cr4_has(Cr4.PAE) else 0


def _long_from_cs_long(w: _Write) -> int:
    return Cr0.PG if _enters_long(w) and w.state.cs_long else 0


def _long_with_tss16(w: _Write) -> int:
    return Cr0.PG if _enters_long(w) and w.state.tss16 else 0


def _pg_off_with_pcide(w: _Write) -> int:
    return Cr0.PG if w.clears(w.state.cr0, Cr0.PG) and w.state.cr4_has(Cr4.PCIDE) else 0


def _pg_off_in_64bit(w: _Write) -> int:
    return Cr0.PG if w.clears(w.state.cr0, Cr0.PG) and w.state.in_64bit else 0


def _wp_off_with_cet(w: _Write) -> int:
    return Cr0.WP if not w.value & Cr0.WP and w.state.cr4_has(Cr4.CET) else 0


def _cr3_reserved(w: _Write) -> int:
    return w.value & ~cr3_bits(w.state, w.cpu)


def _cr4_reserved(w: _Write) -> int:
    return w.value & ~cr4_bits(w.cpu)


def _la57_in_long(w: _Write) -> int:
    return (w.value ^ w.state.cr4) & Cr4.LA57 if w.state.efer & Efer.LMA else 0


def _pae_off_in_long(w: _Write) -> int:
    return Cr4.PAE if w.clears(w.state.cr4, Cr4.PAE) and w.state.efer & Efer.LMA else 0


def _pcide_outside_long(w: _Write) -> int:
    return Cr4.PCIDE if w.sets(w.state.cr4, Cr4.PCIDE) and not w.state.efer & Efer.LMA else 0


def _pcide_over_pcid(w: _Write) -> int:
    return w.state.cr3 & 0xFFF if w.sets(w.state.cr4, Cr4.PCIDE) else 0


def _cet_without_wp(w: _Write) -> int:
    return Cr4.CET if w.value & Cr4.CET and not w.state.wp else 0


def _efer_reserved(w: _Write) -> int:
    return w.value & ~efer_bits(w.cpu)


def _lme_with_paging(w: _Write) -> int:
    return (w.value ^ w.state.efer) & Efer.LME if w.state.cr0 & Cr0.PG else 0


def _missing(w: _Write) -> int:
    feature = msrs.FEATURE.get(w.register)
    return 0 if feature is None or getattr(w.cpu, feature) else MASK64


def _msr_reserved(w: _Write) -> int:
    return msrs.reserved(w.register, w.value, w.cpu)


def _address(w: _Write) -> int:
    if not msrs.has_address_rule(w.register, w.cpu):
        return 0
    # By the width that the CPU supports, even while it runs with four levels.
    address = msrs.address_in(w.register, w.value)
    return 0 if w.cpu.widest.is_canonical(address) else address


_PRIVILEGE: Final = _Rule("privilege", _privilege, "only privilege level 0 may write it")

_ADDRESS_RULES: Final = (
    _PRIVILEGE,
    _Rule("no such MSR", _missing, "this CPU lacks the feature that the register belongs to"),
    _Rule("reserved bits", _msr_reserved, "bits {bits} are reserved"),
    _Rule("canonical base", _address, "{bits} is not canonical in the widest mode that this CPU supports"),
)

_RULES_OF: Final = {
    Register.CR0: (
        _PRIVILEGE,
        _Rule("reserved bits", _cr0_high, "bits {bits} are above bit 31"),
        _Rule("PG without PE", _pg_without_pe, "PG needs PE"),
        _Rule("NW without CD", _nw_without_cd, "NW needs CD"),
        _Rule("long mode without PAE", _long_without_pae, "PG with EFER.LME set needs CR4.PAE"),
        _Rule("long mode from CS.L", _long_from_cs_long, "PG with EFER.LME set needs a code segment with L=0"),
        _Rule("long mode with a 16-bit TSS", _long_with_tss16, "PG with EFER.LME set needs a TSS of 32 bits"),
        _Rule("PG off with PCIDE", _pg_off_with_pcide, "PG stays while CR4.PCIDE is set"),
        _Rule(
            "PG off in 64-bit mode", _pg_off_in_64bit, "PG stays in 64-bit mode; leave it through compatibility mode"
        ),
        _Rule("WP off with CET", _wp_off_with_cet, "WP stays while CR4.CET is set"),
    ),
    Register.CR3: (
        _PRIVILEGE,
        _Rule("reserved bits", _cr3_reserved, "bits {bits} are reserved on this CPU in this state"),
    ),
    Register.CR4: (
        _PRIVILEGE,
        _Rule("reserved bits", _cr4_reserved, "bits {bits} are reserved on this CPU"),
        _Rule("LA57 in IA-32e mode", _la57_in_long, "LA57 does not change while EFER.LMA is set"),
        _Rule("PAE off in IA-32e mode", _pae_off_in_long, "PAE stays while EFER.LMA is set"),
        _Rule("PCIDE outside IA-32e mode", _pcide_outside_long, "PCIDE needs EFER.LMA"),
        _Rule("PCIDE over a PCID", _pcide_over_pcid, "PCIDE needs bits 0 to 11 of CR3 clear; they are {bits}"),
        _Rule("CET without WP", _cet_without_wp, "CET needs CR0.WP"),
    ),
    Register.EFER: (
        _PRIVILEGE,
        _Rule("reserved bits", _efer_reserved, "bits {bits} are reserved on this CPU"),
        _Rule("LME with paging", _lme_with_paging, "LME does not change while CR0.PG is set"),
    ),
}


def write_rules() -> set[str]:
    """The names of all rules that refuse a register write, as `Refused.rule` has them."""
    return {rule.name for rules in (_ADDRESS_RULES, *_RULES_OF.values()) for rule in rules}
