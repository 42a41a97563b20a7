"""A general protection or stack fault that is not part of a delivery: an address that is not canonical,
a write to a control register that the state forbids, a bad selector, a privileged instruction.

With the instruction this is decided by `fivefold.arch`. Without it (a log alone) the registers
still hold what was used, and what is said is a guess and called one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from fivefold.arch import FETCH, LA48, LA57, Access, Cr0, Cr4, Kind, PagingMode, Refused, Register, Vector, check_write
from fivefold.explain.faults.finding import Certainty, FaultFinding, instruction_at
from fivefold.explain.faults.undelivered import before_a_gate
from fivefold.explain.logs.trace import RaisedException, Trace
from fivefold.explain.rules.error_codes import gate_vectors
from fivefold.explain.rules.instruction import ControlWrite, Instruction, Use
from fivefold.explain.rules.ruling import Refusal, RuleName, rule_on
from fivefold.explain.rules.situation import Situation
from fivefold.machine.base import vector_name
from fivefold.units import MASK64, hex64

_ADDRESS_REGISTERS: Final = frozenset(
    set(Register) - {Register.CR0, Register.CR3, Register.CR4, Register.EFER, Register.PKRS}
)
_GENERAL: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{n}" for n in range(8, 16)))
_EXT: Final = 1
_INTERRUPTS: Final = 32
_NEAR: Final = 1 << 40
"""How close to a canonical address a value must be to look like a pointer that went wrong."""


def explain_general_fault(here: Situation, raised: RaisedException, trace: Trace) -> FaultFinding:
    """Find the rule behind a #GP or #SS that was raised outside of any delivery."""
    code = raised.error_code
    if code:
        return _by_selector(here, raised, code, trace)
    if (finding := _bad_rip(here, raised)) is not None:
        return finding
    instruction = instruction_at(here, raised, trace.code)
    own = None
    if instruction is not None:
        own = _by_use(here, raised, instruction, trace) or _by_write(here, instruction, trace)
    if raised.reason is not None and raised.reason.rule in ("idt-limit", "idt-entry"):
        return before_a_gate(here, raised.reason, instruction, own)
    finding = own or _by_name(here, raised) or _by_reason(here, raised)
    if finding is not None:
        return _of_null(finding, raised)
    if instruction is None:
        return _by_registers(here, raised, trace)
    if instruction.privileged and here.state.cpl:
        sentence = f"{instruction.text} needs privilege level 0, and the code runs at {here.state.cpl}"
        return FaultFinding("unknown", sentence, "certain", here, how=None, instruction=instruction)
    name = f"{vector_name(raised.vector)}(0)"
    sentence = f"{instruction.text} raised {name}, and no rule of paging refuses it"
    return FaultFinding("unknown", sentence, "guess", here, instruction=instruction)


def explain_write(here: Situation, write: ControlWrite) -> Refused | None:
    """Why a write to a control register is refused in this state, None if every rule allows it."""
    verdict = check_write(here.state, write.register, write.value, here.cpu)
    return verdict if isinstance(verdict, Refused) else None


# -- with the instruction --------------------------------------------------------------------


def _bad_rip(here: Situation, raised: RaisedException) -> FaultFinding | None:
    rip = raised.rip if raised.rip is not None else here.registers.rip
    if rip is None or _mode_or_widest(here).is_canonical(rip):
        return None
    sentence = f"an instruction fetch from {hex64(rip)} was refused: the address is not canonical"
    return _non_canonical(here, rip, FETCH, sentence, None, None, ())


def _by_use(here: Situation, raised: RaisedException, instruction: Instruction, trace: Trace) -> FaultFinding | None:
    for use in instruction.uses:
        ruling = rule_on(here, use.va, use.how)
        if isinstance(ruling, Refusal) and ruling.rule in ("lass", "address-tag"):
            return _by_form(here, ruling, use, instruction)
        if not isinstance(ruling, Refusal) or ruling.rule != "non-canonical":
            continue
        reach = "the address" if ruling.va == use.va else f"it reaches {hex64(ruling.va)}, which"
        sentence = f"{instruction.text}: {_spelled(use)} {hex64(use.va)} was refused: {reach} is not canonical"
        remarks: tuple[str, ...] = ()
        if ruling.vector != raised.vector:
            remarks = (
                f"a CPU raises {vector_name(ruling.vector)} for it, {vector_name(raised.vector)} was reported: "
                "QEMU's TCG reports a non-canonical push as #GP",
            )
        return _non_canonical(here, ruling.va, use.how, sentence, instruction, use, remarks)
    return None


def _spelled(use: Use) -> str:
    if use.text.startswith("a "):
        return f"{use.text} at"
    kinds = {Kind.READ: "a read of", Kind.WRITE: "a write to", Kind.FETCH: "the branch to"}
    return f"{kinds[use.how.kind]} {use.text} at" if use.how.kind is not Kind.FETCH else "the branch to"


def _non_canonical(
    here: Situation,
    va: int,
    how: Access,
    sentence: str,
    instruction: Instruction | None,
    use: Use | None,
    remarks: tuple[str, ...],
) -> FaultFinding:
    return FaultFinding(
        "non-canonical", f"{sentence}{in_other_mode(here, va)}", "certain", here, va, how,
        instruction=instruction, use=use, remarks=remarks,
    )  # fmt: skip


def in_other_mode(here: Situation, va: int) -> str:
    """Whether the other number of levels would make *va* canonical, as the end of a sentence."""
    mode = here.mode
    if mode is None:
        return ""
    other = other_mode(mode)
    if other.is_canonical(va):
        return f" in {mode.va_bits} bits; in {other.va_bits} bits, with {len(other.levels)} levels, it would be"
    return f" in {mode.va_bits} bits, nor in {other.va_bits}"


def other_mode(mode: PagingMode) -> PagingMode:
    """The other of the two modes."""
    return LA48 if mode is LA57 else LA57


def _by_write(here: Situation, instruction: Instruction, trace: Trace) -> FaultFinding | None:
    write = instruction.write
    if write is None:
        return None
    refused = explain_write(here, write)
    rule: RuleName = "non-canonical" if write.register in _ADDRESS_REGISTERS else "mode-change-refused"
    what = f"{instruction.text} writes {hex64(write.value)} to {write.register.value}"
    if refused is not None:
        va = write.value if rule == "non-canonical" else None
        confidence: Certainty = "certain" if _is_refused_by_any_state(here, write) else "guess"
        doubt = "" if confidence == "certain" else ", if CR4 was as assumed before"
        sentence = f"{what}, which is refused: {refused.sentence}{doubt}"
        return FaultFinding(rule, sentence, confidence, here, va, instruction=instruction)
    if (clears := _of_vmx(here, write)) is not None:
        sentence = f"{what}, which clears {clears}: that is refused in VMX operation, between VMXON and VMXOFF"
        return FaultFinding(rule, sentence, "likely", here, instruction=instruction)
    changed = _changed(here, write)
    sentence = f"{what}, which was refused, though only features that this CPU may lack could forbid it{changed}"
    return FaultFinding(rule, sentence, "likely", here, instruction=instruction)


def _is_refused_by_any_state(here: Situation, write: ControlWrite) -> bool:
    """Whether the write is refused whatever CR4 was before, where that is not known: some rules forbid a change."""
    if write.register is not Register.CR4 or here.knows("cr4"):
        return True
    changes = (Cr4.LA57, Cr4.PCIDE, Cr4.LA57 | Cr4.PCIDE)
    states = (here.with_state(replace(here.state, cr4=here.state.cr4 ^ int(change))) for change in changes)
    return all(explain_write(state, write) is not None for state in states)


def _of_vmx(here: Situation, write: ControlWrite) -> str | None:
    """The bit that a write clears, and that VMX operation needs; None if it clears none, or CR4.VMXE is not set.

    Intel SDM volume 3, "Restrictions on VMX Operation". That the CPU is in VMX operation is in no register.
    """
    if not here.knows("cr4") or not here.state.cr4_has(Cr4.VMXE):
        return None
    if write.register is Register.CR4:
        return None if write.value & Cr4.VMXE else "CR4.VMXE"
    lost = [bit.name or "" for bit in (Cr0.PE, Cr0.NE, Cr0.PG) if here.state.cr0 & bit and not write.value & bit]
    return f"CR0.{lost[0]}" if write.register is Register.CR0 and here.knows("cr0") and lost else None


def _changed(here: Situation, write: ControlWrite) -> str:
    """The named bits that a write sets, as the end of a sentence."""
    old = {Register.CR0: here.state.cr0, Register.CR4: here.state.cr4}.get(write.register)
    if old is None:
        return ""
    names = Cr4 if write.register is Register.CR4 else Cr0
    set_now = [bit.name or "" for bit in names if write.value & ~old & bit]
    return f" (it sets {', '.join(set_now)})" if set_now else ""


def _by_selector(here: Situation, raised: RaisedException, code: int, trace: Trace) -> FaultFinding:
    instruction = instruction_at(here, raised, trace.code)
    text = f"{instruction.text}: " if instruction else ""
    if code & 2:
        return _by_gate(here, raised, code, text, instruction)
    table = "LDT" if code & 4 else "GDT"
    sentence = f"{text}selector {code & ~3:#x} was refused: {table} entry {code >> 3} cannot be used there"
    return FaultFinding("unknown", sentence, "certain", here, instruction=instruction)


def _by_form(here: Situation, ruling: Refusal, use: Use, instruction: Instruction) -> FaultFinding:
    """An address that is canonical, or nearly, and still is not for this access: LASS, or a tag."""
    why = {
        "lass": ("it is in the half that LASS keeps from this privilege level", "CR4.LASS is set"),
        "address-tag": ("it carries a tag that does not fit", "masking of addresses is on (LAM or UAI)"),
    }[ruling.rule]
    sentence = f"{instruction.text}: {_spelled(use)} {hex64(use.va)} was refused: {why[0]}"
    return FaultFinding(
        ruling.rule, sentence, "certain" if here.knows("cr4") else "likely", here, use.va, use.how,
        instruction=instruction, use=use, remarks=(why[1],),
    )  # fmt: skip


def _by_name(here: Situation, raised: RaisedException) -> FaultFinding | None:
    """The address that the kernel names: it has decoded the instruction itself."""
    va = raised.named
    if va is None or raised.named_as == "maybe":
        return None
    if raised.named_as == "lass":
        sentence = f"an access to {hex64(va)} was refused: linear-address-space separation (LASS), as the kernel says"
        return FaultFinding("lass", sentence, "likely", here, va)
    sentence = f"an access to {hex64(va)} was refused: the address is not canonical{in_other_mode(here, va)}"
    return FaultFinding(
        "non-canonical", sentence, "likely", here, va, remarks=("the kernel's report names the address",)
    )


def _by_reason(here: Situation, raised: RaisedException) -> FaultFinding | None:
    """What an emulator gives as its reason, where that is not of a gate."""
    reason = raised.reason
    if reason is None:
        return None
    sentence = f"the emulator refused it: {reason.text}"
    if reason.rule == "other":
        return FaultFinding("unknown", f"the emulator says: {reason.text}", "guess", here)
    rule: RuleName = "non-canonical" if reason.rule == "non-canonical" else "mode-change-refused"
    return FaultFinding(rule, sentence, "certain", here)


def _of_null(finding: FaultFinding, raised: RaisedException) -> FaultFinding:
    """With what KASAN says: the address is that of its shadow, and the pointer itself was another."""
    if raised.shadowed is None:
        return finding
    is_null = raised.shadowed < 0x1000
    what = "a null pointer" if is_null else f"the pointer {hex64(raised.shadowed)}"
    return replace(
        finding, subject="null pointer" if is_null else "wild pointer",
        remarks=(f"KASAN was about to read the shadow of {hex64(raised.shadowed)}: {what} was used", *finding.remarks),
        advice=("a pointer that is set, or a check for NULL before it is used",) if is_null else (),
    )  # fmt: skip


def _by_gate(
    here: Situation, raised: RaisedException, code: int, text: str, instruction: Instruction | None
) -> FaultFinding:
    """The error code names a gate, or two where an emulator's encoding is not known."""
    vectors = gate_vectors(code, raised.by_tcg)
    names = " or ".join(vector_name(vector) for vector in vectors)
    sentence = f"{text}the gate of {names} in the IDT cannot be used (error code {code:#x})"
    remarks: tuple[str, ...] = ()
    if len(vectors) > 1:
        remarks = (f"QEMU's TCG gives vector * 16 + 2 for a gate until 8.0, a CPU vector * 8 + 2: so {names}",)
    idt = here.registers.idt
    if raised.reason is not None and raised.reason.rule == "idt-limit":
        remarks = (*remarks, f"the emulator says: {raised.reason.text}")
        return FaultFinding("idt-limit", sentence, "certain", here, instruction=instruction, remarks=remarks)
    if code & _EXT and not raised.by_tcg and any(vector < _INTERRUPTS for vector in vectors):
        lost = f"what raised {names} is not in the source, and may be what went wrong first"
        return FaultFinding("idt-entry", sentence, "guess", here, instruction=instruction, remarks=(*remarks, lost))
    if idt is None:
        unknown = "IDTR is not known, so the gate may lie beyond the limit as well as be empty"
        return FaultFinding("idt-entry", sentence, "guess", here, instruction=instruction, remarks=(*remarks, unknown))
    inside = {here.has_gate(vector, idt.limit) for vector in vectors}
    rule: RuleName = "idt-limit" if inside == {False} else "idt-entry"
    confidence: Certainty = "certain" if inside in ({True}, {False}) else "likely"
    return FaultFinding(rule, sentence, confidence, here, instruction=instruction, remarks=remarks)


# -- without ---------------------------------------------------------------------------------


def _by_registers(here: Situation, raised: RaisedException, trace: Trace) -> FaultFinding:
    """Guess from the registers what the instruction, which is not in the source, was about to use."""
    rsp = here.registers.rsp
    if raised.vector == Vector.SS or (rsp is not None and _bad_stack_address(here, rsp) is not None):
        return _by_stack(here, raised)
    if (finding := _by_control(here)) is not None:
        return finding
    return _by_pointer(here)


def _by_stack(here: Situation, raised: RaisedException) -> FaultFinding:
    rsp = here.registers.rsp
    va = None if rsp is None else _bad_stack_address(here, rsp)
    if rsp is not None and va is not None:
        sentence = f"RSP is {hex64(rsp)}: an access to the stack there is not canonical{in_other_mode(here, va)}"
        # A push is below RSP and a pop is at it: which it was is known only at the edge of what is canonical.
        if raised.line and va != rsp and not _mode_or_widest(here).is_canonical(rsp):
            subject = f"stack access with a non-canonical RSP, {hex64(rsp)},"
            return FaultFinding("non-canonical", sentence, "likely", here, subject=subject)
        return FaultFinding("non-canonical", sentence, "likely", here, va)
    return FaultFinding("stack", "an access to the stack failed; nothing shows which", "guess", here)


def _bad_stack_address(here: Situation, rsp: int) -> int | None:
    """What a push or else a pop at *rsp* touches, if that is not canonical."""
    mode = here.mode
    return None if mode is None else next((va for va in (rsp - 8 & MASK64, rsp) if not mode.is_canonical(va)), None)


def _by_control(here: Situation) -> FaultFinding | None:
    """A register that holds CR4 or CR0 with one bit changed, where that change is refused."""
    for name, value in _values(here):
        for register, old in ((Register.CR4, here.state.cr4), (Register.CR0, here.state.cr0)):
            change = value ^ old
            if not value or change.bit_count() != 1 or not here.knows(register.value.lower()):
                continue
            write = ControlWrite(register, value)
            refused = explain_write(here, write)
            clears = _of_vmx(here, write)
            if refused is None and clears is None:
                continue
            why = refused.sentence if refused else f"{clears} is to stay set in VMX operation"
            sentence = (
                f"{name.upper()} holds {value:#x}, which is {register.value} ({old:#x}) with bit {change:#x} changed; "
                f"writing that is refused: {why}"
            )
            remarks = ("no memory shows the instruction at RIP",)
            return FaultFinding("mode-change-refused", sentence, "guess", here, remarks=remarks)
    return None


def _mode_or_widest(here: Situation) -> PagingMode:
    """The mode; where it is not known, five levels: what is not canonical there is not canonical at all."""
    return here.mode or LA57


def _by_pointer(here: Situation) -> FaultFinding:
    """A register that holds an address which is not canonical; one next to the edge looks most like a pointer."""
    if not here.is_long:
        sentence = "a general protection fault outside of long mode; the source does not say what was refused"
        if here.may_be_long:
            sentence = "a general protection fault; the source does not say what was refused"
        return FaultFinding("unknown", sentence, "guess", here)
    mode = _mode_or_widest(here)
    found = [
        (name, value) for name, value in _values(here) if not mode.is_canonical(value) and not _is_shadow_index(value)
    ]
    if not found:
        known = any(True for _ in _values(here))
        sentence = "a general protection fault, and no register holds an address that is not canonical"
        if not known:
            sentence = "a general protection fault; neither the instruction nor the registers are known"
        return FaultFinding("unknown", sentence, "guess", here)
    found.sort(key=lambda item: _distance(mode, item[1]))
    name, value = found[0]
    sentence = f"{name.upper()} holds {hex64(value)}, which as an address is not canonical{in_other_mode(here, value)}"
    others = [f"{other.upper()} {hex64(number)}" for other, number in found[1:]]
    remarks = ["no memory shows the instruction at RIP, so which register it used is a guess"]
    if others:
        remarks.append(f"not canonical either: {', '.join(others)}")
    clear = len(found) == 1 or other_mode(mode).is_canonical(value) or _distance(mode, value) < _NEAR
    return FaultFinding("non-canonical", sentence, "guess", here, value if clear else None, remarks=tuple(remarks))


def _is_shadow_index(value: int) -> bool:
    """Whether KASAN made *value* of an address of the kernel, which it shifts right by 3: never an address itself."""
    return value >> 57 == 0xF and LA57.is_canonical(value << 3 & MASK64)


def _distance(mode: PagingMode, value: int) -> int:
    """How far *value* is from the nearest canonical address; an address of the other mode is near."""
    if other_mode(mode).is_canonical(value):
        return 0
    return min(value - mode.gap.start, mode.gap.stop - 1 - value)


def _values(here: Situation) -> Iterator[tuple[str, int]]:
    for name in _GENERAL:
        value = here.registers.general.get(name)
        if value is not None:
            yield name, value
