"""A page fault: which access, refused by which entry, and does the error code say the same?

With memory the tables decide and the error code is compared; without, the error code is all there
is. Where both are missing, CR2 beside RSP and RIP still distinguish a push from a fetch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from fivefold.arch import FETCH, Access, Cr4, Flag, Kind, PageFault, Step
from fivefold.explain.faults.finding import Certainty, FaultFinding, instruction_at
from fivefold.explain.faults.illegal_state import impossible
from fivefold.explain.faults.pointers import guard_page, is_null, with_pointer, without_address
from fivefold.explain.faults.printed_entries import PrintedMemory, with_printed_entries
from fivefold.explain.logs.trace import EmulatorReason, RaisedException, Trace
from fivefold.explain.rules.depth import wrong_depth
from fivefold.explain.rules.error_codes import Candidate, beyond_tables, kind_of, rule_from_code
from fivefold.explain.rules.instruction import LONGEST, Instruction, Use
from fivefold.explain.rules.reserved import with_reserved
from fivefold.explain.rules.ruling import Granted, Outside, Refusal, RuleName, Ruling, describe_entry, rule_on
from fivefold.explain.rules.situation import Situation
from fivefold.units import MASK64, hex64

FRAME_WORDS: Final = 6


@dataclass(frozen=True, slots=True)
class _Question:
    """The access in question, as far as it is known."""

    here: Situation
    va: int
    kind: Kind | None
    use: Use | None
    instruction: Instruction | None
    implicit: bool
    code: int | None
    guard: bool
    disguised: bool

    @property
    def how(self) -> Access:
        """The access; a read where its kind is not known, which every rule for presence treats alike."""
        stack = self.use is not None and self.use.how.stack
        return Access(self.kind or Kind.READ, 1, implicit=self.implicit, stack=stack)

    def spelled(self) -> str:
        """The access in words, up to the address."""
        if self.use is not None and self.use.text.startswith("a "):
            return f"{self.use.text} at"
        kinds = {Kind.READ: "a read of", Kind.WRITE: "a write to", Kind.FETCH: "an instruction fetch from"}
        return kinds[self.kind] if self.kind else "an access to"


_OF_ENTRIES: Final = ("not-present", "reserved-bit")
"""What an emulator's reason may say of an entry; others are of a delivery."""


def explain_page_fault(here: Situation, raised: RaisedException, trace: Trace) -> FaultFinding:
    """Find the rule behind a #PF that was raised outside of any delivery."""
    va = raised.cr2
    if (finding := impossible(here)) is not None:
        return finding
    if va is None:
        return without_address(here, raised)
    instruction = instruction_at(here, raised, trace.code)
    question = _question(with_printed_entries(here, raised, va), raised, va, instruction)
    remarks: tuple[str, ...] = ()
    if not _is_path_cut(question):
        here, remarks = with_reserved(question.here, va, question.how, question.code, trace.dialect)
        question = replace(question, here=here)
    finding = _decide(question, raised, trace, remarks)
    return with_pointer(finding, raised)


def _is_path_cut(question: _Question) -> bool:
    """Whether entries were printed, but not all: one with a reserved bit may be among the others."""
    ruling = rule_on(question.here, question.va, question.how)
    return isinstance(ruling, Outside) and isinstance(question.here.memory, PrintedMemory)


def _decide(question: _Question, raised: RaisedException, trace: Trace, remarks: tuple[str, ...]) -> FaultFinding:
    code = question.code
    if code is not None and (other := beyond_tables(code)) is not None:
        sentence = f"{question.spelled()} {hex64(question.va)} was refused: {other.reason}"
        return _finding(question, other.rule, sentence, "certain", None, (), None, remarks)
    if raised.reason is not None and raised.reason.rule in _OF_ENTRIES and question.here.memory is None:
        return _by_reason(question, raised.reason, remarks)
    ruling = rule_on(question.here, question.va, question.how)
    if ruling is None or (isinstance(ruling, Outside) and isinstance(question.here.memory, PrintedMemory)):
        return _by_code(question, raised, trace, remarks)
    if isinstance(ruling, Refusal) and ruling.rule == "non-canonical":
        return _no_address(question)
    return _by_tables(question, ruling, trace, remarks)


def _no_address(question: _Question) -> FaultFinding:
    """A page fault where no address is: a CPU refuses such an access before any walk, with a #GP or a #SS."""
    mode = question.here.mode
    bits = "48 and in 57 bits" if mode is None else f"{mode.va_bits} bits"
    sentence = (
        f"a page fault at {hex64(question.va)}, which is not canonical in {bits} and would be a #GP: either the "
        "address or the CPU's mode is told wrongly, or the CPU ignores tags in addresses (LAM)"
    )
    return _finding(question, "unknown", sentence, "guess", None, (), None, ())


def _by_reason(question: _Question, reason: EmulatorReason, remarks: tuple[str, ...]) -> FaultFinding:
    """The emulator itself says which entry refused, by its level."""
    level = f"the {reason.level.name} entry " if reason.level else "an entry "
    word = "is not present" if reason.rule == "not-present" else "has a reserved bit set"
    sentence = f"{question.spelled()} {hex64(question.va)} was refused: {level}{word}"
    rule: RuleName = "not-present" if reason.rule == "not-present" else "reserved-bit"
    remarks = (*remarks, f"the emulator says: {reason.text}")
    finding = _finding(question, rule, sentence, "certain", None, (), None, remarks)
    return replace(finding, named_level=reason.level)


def _question(here: Situation, raised: RaisedException, va: int, instruction: Instruction | None) -> _Question:
    code = raised.error_code
    kind = raised.kind if code is None else kind_of(here, code, va, raised.rip)
    if kind is None and _is_fetch(here, raised, va, instruction):
        kind = Kind.FETCH
    use = _use_of(instruction, va, kind) or _push_below(here, raised, va, kind)
    if kind is None and use is not None:
        kind = use.how.kind
    by_user = bool(raised.by_user) if code is None else bool(code & PageFault.U)
    if by_user:
        here = here.with_state(replace(here.state, cpl=3))
    implicit = code is not None and not by_user and here.state.cpl == 3
    return _Question(here, va, kind, use, instruction, implicit, code, raised.guard, raised.disguised)


def _is_fetch(here: Situation, raised: RaisedException, va: int, instruction: Instruction | None) -> bool:
    """Whether *va* is in the bytes at RIP, and it was these that could not be had; for faults without error code.

    An instruction may also read or write next to itself; then its own bytes may be fetched.
    """
    rip = raised.rip
    if rip is None or not 0 <= va - rip < LONGEST:
        return False
    if va == rip and (instruction is None or _use_of(instruction, va, None) is None):
        return True
    return not isinstance(rule_on(here, va, FETCH), Granted | None)


def _use_of(instruction: Instruction | None, va: int, kind: Kind | None) -> Use | None:
    """The part of *instruction* that touches *va* in the way that is known, if any is."""
    uses = instruction.uses if instruction else ()
    return next((use for use in uses if use.va <= va < use.va + use.how.size and kind in (None, use.how.kind)), None)


def _push_below(here: Situation, raised: RaisedException, va: int, kind: Kind | None) -> Use | None:
    """A push, where CR2 is just below RSP and nothing shows the instruction."""
    rsp = raised.rsp if raised.rsp is not None else here.registers.rsp
    if rsp is None or kind not in (None, Kind.WRITE):
        return None
    below = rsp - va & MASK64
    if not 0 < below <= 8 * FRAME_WORDS:
        return None
    return Use(va, Access(Kind.WRITE, 8, stack=True), f"a push to RSP - {below}")


# -- with tables ---------------------------------------------------------------------------


def _by_tables(question: _Question, ruling: Ruling, trace: Trace, remarks: tuple[str, ...]) -> FaultFinding:
    if isinstance(ruling, Granted):
        return _granted(question, ruling, remarks)
    if isinstance(ruling, Outside):
        return _outside(question, ruling, remarks)
    agrees, quirk = _compare(question, ruling, trace)
    if agrees is False and question.code is not None:
        return _contradicted(question, ruling, remarks)
    remarks += quirk
    depth = wrong_depth(question.here, question.va, question.how)
    confidence: Certainty = "certain" if agrees else "likely"
    sentence = f"{question.spelled()} {hex64(question.va)} was refused: {_refused_by(ruling)}"
    rule = ruling.rule
    if depth is not None:
        rule, confidence = "wrong-depth", "likely"
        sentence += f"; the root in CR3 is one of {len(depth.fits.levels)} levels"
        remarks += depth.evidence
    return _finding(question, rule, sentence, confidence, ruling.culprit, ruling.steps, agrees, remarks)


def _finding(
    question: _Question,
    rule: RuleName,
    sentence: str,
    confidence: Certainty,
    culprit: Step | None,
    steps: tuple[Step, ...],
    agrees: bool | None,
    remarks: tuple[str, ...],
) -> FaultFinding:
    how = question.how if question.kind else None
    return FaultFinding(
        rule, sentence, confidence, question.here, question.va, how, culprit, steps,
        question.instruction, question.use, agrees, remarks=remarks,
    )  # fmt: skip


def _refused_by(ruling: Refusal) -> str:
    words: dict[RuleName, str] = {
        "not-present": "not present",
        "reserved-bit": "a reserved bit set",
        "write-protected": "R/W clear",
        "no-execute": "XD set",
        "user-supervisor": "U/S clear",
        "smep": "a user page, and CR4.SMEP is set",
        "smap": "a user page, CR4.SMAP set and RFLAGS.AC clear",
        "protection-key": "a protection key that forbids it",
        "non-canonical": "not canonical",
        "address-tag": "tagged, with a tag that is not ignored",
        "lass": "in the half that LASS keeps from this access",
        "unknown": "a rule beside the page tables that forbids it",
    }
    if ruling.culprit is None:
        return f"the address is {words[ruling.rule]}"
    verb = "is" if ruling.rule == "not-present" else "has"
    if ruling.rule in ("smep", "smap"):
        verb = "makes it"
    return f"the {describe_entry(ruling.culprit)} {verb} {words[ruling.rule]}"


def _compare(question: _Question, ruling: Refusal, trace: Trace) -> tuple[bool | None, tuple[str, ...]]:
    """Whether the error code is that of the tables, and the quirk that excuses a difference."""
    code = question.code
    if code is None:
        return None, ()
    if code == ruling.code:
        return True, ()
    if ruling.rule == "reserved-bit" and code == ruling.code & ~int(PageFault.P):
        quirk = (
            f"the error code is {code:#x} where a CPU gives {ruling.code:#x}: QEMU's TCG reports a reserved bit "
            "with P clear"
        )
        return True, (quirk,)
    if code ^ ruling.code == int(PageFault.RSVD) and not code & PageFault.P and ruling.rule == "not-present":
        quirk = (
            f"the error code {code:#x} has RSVD with P clear, which no CPU should report: an erratum of older Intel "
            "CPUs does; the entry is not present, so no bit of it is reserved"
        )
        return True, (quirk,)
    if ruling.code ^ code == int(PageFault.I):
        # Whether fetches are reported turns on EFER.NXE and CR4.SMEP, which may be assumed.
        return True, ("in this state the error code does not distinguish a fetch from a read",)
    return False, ()


def _contradicted(question: _Question, ruling: Refusal, remarks: tuple[str, ...]) -> FaultFinding:
    """The tables refuse, but for another reason than the one reported: they changed, or the access is another."""
    code = question.code
    assert code is not None  # there is nothing to contradict otherwise
    reported = rule_from_code(question.here, code, question.va, question.how)
    remarks = (
        *remarks,
        f"the tables as they are now give error code {ruling.code:#x} ({_refused_by(ruling)}), "
        f"{code:#x} was reported: they changed since, or a stale translation was used",
    )
    sentence = f"{question.spelled()} {hex64(question.va)} was refused: {reported.reason}"
    return _finding(question, reported.rule, sentence, "likely", None, ruling.steps, False, remarks)


def _granted(question: _Question, ruling: Granted, remarks: tuple[str, ...]) -> FaultFinding:
    if question.code is not None and not question.code & PageFault.PK:
        reported = rule_from_code(question.here, question.code, question.va, question.how)
        remarks = (
            *remarks,
            "the tables as they are now allow this access: they changed since, or a stale translation was used",
        )
        sentence = f"{question.spelled()} {hex64(question.va)} was refused: {reported.reason}"
        return _finding(question, reported.rule, sentence, "likely", None, ruling.steps, False, remarks)
    if question.code is None and (finding := _hidden(question, ruling, remarks)) is not None:
        return finding
    if question.code is not None:
        leaf = ruling.steps[-1]
        key = leaf.entry.key
        owner = "PKRU" if leaf.rights.user else "IA32_PKRS"
        remarks = (*remarks, f"{owner} is not known; that it denies key {key} follows from PK in the error code")
        sentence = f"{question.spelled()} {hex64(question.va)} was refused: key {key} of the {describe_entry(leaf)}"
        return _finding(question, "protection-key", sentence, "certain", leaf, ruling.steps, True, remarks)
    sentence = f"{question.spelled()} {hex64(question.va)} faulted, though the tables allow it as they are now"
    return _finding(question, "unknown", sentence, "guess", None, ruling.steps, None, remarks)


def _hidden(question: _Question, ruling: Granted, remarks: tuple[str, ...]) -> FaultFinding | None:
    """A rule that turns on what the source does not hold, where the tables as such allow the access."""
    here, leaf = question.here, ruling.steps[-1]
    spelled = f"{question.spelled()} {hex64(question.va)} faulted, though the tables allow it"
    if here.state.cr4_has(Cr4.PKE) and leaf.rights.user and leaf.entry.key:
        sentence = f"{spelled}: perhaps PKRU, which is not known, denies key {leaf.entry.key}"
        remarks += (f"CR4.PKE is set, and key {leaf.entry.key} is that of the {describe_entry(leaf)}",)
        return _finding(question, "protection-key", sentence, "guess", leaf, ruling.steps, None, remarks)
    marked = next((step for step in ruling.steps if step.entry.raw & Flag.NX), None)
    if "efer" in here.assumed and marked is not None and question.kind is not Kind.FETCH and not _uses_nx(here):
        sentence = f"{spelled}: perhaps EFER.NXE is clear, and bit 63 reserved"
        remarks += (f"XD is set in the {describe_entry(marked)}, and nowhere on the way to code and stack",)
        return _finding(question, "reserved-bit", sentence, "guess", marked, ruling.steps, None, remarks)
    return None


def _uses_nx(here: Situation) -> bool:
    """Whether something that must have worked has XD set on its way: then EFER.NXE is set."""
    registers = here.registers
    used = [registers.rip, registers.rsp, *(t.base for t in (registers.idt, registers.gdt) if t and t.limit)]
    rulings = (rule_on(here, va, Access(Kind.READ, 1, implicit=True)) for va in filter(None, used))
    return any(step.entry.raw & Flag.NX for ruling in rulings if isinstance(ruling, Granted) for step in ruling.steps)


def _outside(question: _Question, ruling: Outside, remarks: tuple[str, ...]) -> FaultFinding:
    pointer = ruling.pointer
    who = f"the {describe_entry(pointer)}" if pointer else f"CR3 ({hex64(question.here.state.cr3)})"
    code = question.code
    if code is not None and code & PageFault.P and not code & PageFault.RSVD:
        reported = rule_from_code(question.here, code, question.va, question.how)
        remarks = (*remarks, f"{who} leads to a table that the memory source does not hold")
        sentence = f"{question.spelled()} {hex64(question.va)} was refused: {reported.reason}"
        confidence: Certainty = "certain" if reported.certain else "likely"
        return _finding(question, reported.rule, sentence, confidence, None, ruling.steps, None, remarks)
    remarks = (
        *remarks,
        f"that {hex64(ruling.at)} is outside of the machine's memory is inferred from the memory source, which "
        "has nothing there",
    )
    sentence = (
        f"{question.spelled()} {hex64(question.va)} was refused: {who} leads to a table at "
        f"{hex64(ruling.at & ~0xFFF)}, where there is no memory"
    )
    depth = wrong_depth(question.here, question.va, question.how)
    if depth is not None:
        remarks += depth.evidence
        return _finding(question, "wrong-depth", sentence, "likely", pointer, ruling.steps, None, remarks)
    return _finding(question, "table-outside-memory", sentence, "likely", pointer, ruling.steps, None, remarks)


# -- without -------------------------------------------------------------------------------


def _by_code(question: _Question, raised: RaisedException, trace: Trace, remarks: tuple[str, ...]) -> FaultFinding:
    spelled = f"{question.spelled()} {hex64(question.va)}"
    if question.guard:
        return guard_page(_finding(question, "not-present", "", "likely", None, (), None, remarks), raised, spelled)
    if question.code is None:
        return _without_code(question, raised, spelled, remarks)
    reported = rule_from_code(question.here, question.code, question.va, question.how)
    if question.disguised and question.code & PageFault.P:
        sentence = f"{spelled} was refused: the address is not the user's"
        remarks = (*remarks, "Linux sets P in what it reports of such an address, so it may not be mapped at all")
        return _finding(question, "user-supervisor", sentence, "guess", None, (), None, remarks)
    if raised.says_no_execute and reported.rule in ("no-execute", "smep"):
        reported = Candidate("no-execute", "the kernel found the page to forbid execution (XD)", True)
    elif raised.says_smep and reported.rule in ("no-execute", "smep"):
        reported = Candidate("smep", "the kernel found the page to be one of a process (SMEP)", True)
    confidence: Certainty = "certain" if reported.certain else "guess" if reported.guess else "likely"
    if reported.rule == "reserved-bit" and not question.code & PageFault.P:
        remarks = (*remarks, _reserved_without_present(question.code, trace))
        confidence = "likely" if trace.dialect == "QEMU log" else "guess"
    sentence = f"{spelled} was refused: {reported.reason}"
    if reported.rule in ("not-present", "reserved-bit") and confidence == "certain":
        # So says the CPU, of the entry that it read; whether that was in a table is another question.
        confidence = "likely"
        remarks = (*remarks, "without memory a root of the wrong depth and a missing table look just like that")
    return _finding(question, reported.rule, sentence, confidence, None, (), None, remarks)


def _without_code(question: _Question, raised: RaisedException, spelled: str, remarks: tuple[str, ...]) -> FaultFinding:
    if raised.absent:
        sentence = f"{spelled} was refused: the kernel says that the page is not present"
        return _finding(question, "not-present", sentence, "likely", None, (), None, remarks)
    if question.use is not None and question.use.moves_stack and question.use.how.kind is Kind.WRITE:
        sentence = f"{spelled} failed; without memory or error code it is not known which rule refused it"
        return _finding(question, "stack", sentence, "likely", None, (), None, remarks)
    if is_null(question.va) and (question.va or raised.kind is not None):
        sentence = f"{spelled} failed: no system maps its first page"
        return _finding(question, "not-present", sentence, "likely", None, (), None, remarks)
    sentence = f"{spelled} failed; without memory or error code the reason is not known"
    return _finding(question, "unknown", sentence, "guess", None, (), None, remarks)


def _reserved_without_present(code: int, trace: Trace) -> str:
    text = (
        f"the error code is {code:#x} where a CPU gives {code | 1:#x}: QEMU's TCG reports a reserved bit with P clear"
    )
    if trace.dialect == "QEMU log":
        return text
    return f"{text}; an erratum of older Intel CPUs sets RSVD where an entry is merely not present"
