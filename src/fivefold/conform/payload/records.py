"""Cases as the payload's table of cases, and its results back as outcomes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from fivefold.arch import Cpu, Flag, Register, cpu_from_cpuid
from fivefold.conform.cases.actions import LDT_SELECTOR, VALUE, address_of, code_page
from fivefold.conform.cases.case import IST2, MODES, Case
from fivefold.conform.judging.expect import BREAKPOINT, Expected
from fivefold.conform.judging.memory_words import value_read, words_after, words_before
from fivefold.conform.judging.outcome import CaseOutcome
from fivefold.conform.judging.stale_answers import place_written
from fivefold.conform.payload import layout as at
from fivefold.conform.places import ARENA, CASES, CODE, IMAGE, SCRATCH, USER_CODE
from fivefold.units import MASK64

_CS: Final = {0: 0x08, 3: 0x1B}


class Trial(NamedTuple):
    """A case, and what the CPU must do with it."""

    case: Case
    expected: Expected


def is_risky(trial: Trial) -> bool:
    """Whether it writes a control register: an engine that errs, or a CPU without the feature, may end the machine."""
    return trial.case.action in ("movcr0", "movcr3", "movcr4")


def words_of(trial: Trial) -> list[int]:
    """The record of a case."""
    case, expected = trial
    state, what = case.state(), case.what
    stores = list(_stores(trial))
    head = [0] * at.HEAD
    head[at.C_SIZE] = at.HEAD + at.STORE * len(stores)
    head[at.C_STORES] = len(stores)
    head[at.C_FLAGS] = (at.F_PKE if "pke" in case.flags else 0) | (at.F_PKS if "pks" in case.flags else 0)
    head[at.C_FLAGS] |= at.F_EFER if what.register is Register.EFER else 0
    head[at.C_FLAGS] |= at.F_TSS if what.tss else 0
    head[at.C_FLAGS] |= (at.F_WRITES if what.writes else 0) | (at.F_RISKY if is_risky(trial) else 0)
    head[at.C_RIP_IN] = address_of(what, case.cpl)
    head[at.C_CS] = _CS[case.cpl]
    head[at.C_RSP] = stack_pointer(case)
    head[at.C_RFLAGS] = state.rflags
    head[at.C_RAX] = LDT_SELECTOR | case.cpl if what.implicit and not what.tss else 0
    head[at.C_RBX] = VALUE
    if what.msr is not None:
        head[at.C_RAX], head[at.C_RDX], head[at.C_RCX] = case.va & 0xFFFF_FFFF, case.va >> 32, what.msr
    head[at.C_RCX], head[at.C_RDX] = stored(case) or (head[at.C_RCX], head[at.C_RDX])
    head[at.C_RDI] = case.va
    head[at.C_CR0], head[at.C_CR3], head[at.C_CR4], head[at.C_EFER] = state.cr0, state.cr3, state.cr4, state.efer
    head[at.C_PKRU], head[at.C_PKRS] = case.pkru, case.pkrs
    # The instruction writes the upper half of the base itself.
    base = case.va - IST2 if what.tss else case.va
    head[at.C_LDT] = base & MASK64 if what.implicit else case.va & 0xFFFF_FFFF if what.register is Register.LDTR else 0
    head[at.C_WANT_VECTOR] = expected.vector | expected.error_code << 32
    value = value_read(case, expected)
    head[at.C_WANT_CR2], head[at.C_WANT_VALUE] = expected.cr2 or 0, value or 0
    # Which byte of a descriptor is written is the CPU's affair, so CR2 is not compared there.
    head[at.C_COMPARE] = (expected.cr2 is not None and case.action != "accessed") | (value is not None) << 1
    return head + [word for store in stores for word in store]


def stored(case: Case) -> tuple[int, int] | None:
    """Where the steps of a case store what, if they do: RCX and RDX."""
    if case.what.stale is not None:
        return place_written(case), case.new
    if case.what.then == "clean":
        place = place_written(case)
        return place, case.stores().get(place, 0) & ~int(Flag.A | Flag.D)
    return None


def stack_pointer(case: Case) -> int:
    """RSP at the instruction."""
    what = case.what
    if what.register or what.scratch:
        return (USER_CODE if case.cpl == 3 else CODE) + SCRATCH
    return case.va + what.stack & MASK64 if what.access and what.access.stack else 0


def _stores(trial: Trial) -> Iterator[tuple[int, int, int, int, int]]:
    case, expected = trial
    histories = {int(part.at): part for part in expected.histories}
    for pa, raw in case.stores().items():
        part = histories.get(pa)
        may = int(Flag.A) if expected.verdict is None else 0
        yield (pa, raw, raw | part.must, part.may, 0) if part else (pa, raw, raw, may, 0)
    before = words_before(case, expected)
    after = words_after(case, expected, before)
    for pa, raw in before.items():
        yield pa, raw, after[pa], 0, 0


def table(trials: Sequence[Trial], print_what: int = 0) -> bytes:
    """The table of cases for *trials*, those of four levels first."""
    words = [0] * at.W_CASES
    body: list[int] = []
    batches = []
    for mode, paging in MODES.items():
        chosen = [trial for trial in trials if trial.case.mode == mode]
        batches.append((int(paging.top), len(chosen), CASES + 8 * (at.W_CASES + len(body)), 0))
        for trial in chosen:
            body += words_of(trial)
    words[at.W_MAGIC], words[at.W_BATCHES], words[at.W_PRINT] = at.MAGIC, len(batches), print_what
    words[at.W_SIZE] = at.W_CASES + len(body)
    for number, batch in enumerate(batches):
        start = at.W_BATCH + at.BATCH * number
        words[start : start + at.BATCH] = batch
    words[at.W_CODE : at.W_CODE + at.CODE_WORDS] = struct.unpack_from(f"<{at.CODE_WORDS}Q", code_page())
    packed = struct.pack(f"<{len(body)}Q", *body)
    words[at.W_HASH] = fold(packed)
    return struct.pack(f"<{at.W_CASES}Q", *words) + packed


def fold(data: bytes) -> int:
    """A hash of the cases, to distinguish one table from another."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def read_head(head: bytes) -> tuple[int, bool, Cpu]:
    """How many cases are done, whether that is all, and the CPU that CPUID named."""
    words = struct.unpack_from(f"<{at.W_CASES}Q", head)
    leaves = {
        key: words[at.W_CPUID + 4 * number : at.W_CPUID + 4 * number + 4]
        for number, key in enumerate(zip(at.LEAVES, at.SUBLEAVES, strict=True))
    }

    def cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        a, b, c, d = leaves.get((leaf, subleaf), (0, 0, 0, 0))
        return a, b, c, d

    return words[at.W_DONE], words[at.W_STATE] == at.FINISHED, cpu_from_cpuid(cpuid, encrypts=False)


def read_outcomes(data: bytes, trials: Sequence[Trial], done: int) -> Iterator[tuple[Trial, CaseOutcome]]:
    """The outcomes of the first *done* of *trials*, in the order of `table`, from the table that the payload wrote."""
    ordered = [trial for mode in MODES for trial in trials if trial.case.mode == mode]
    offset = 8 * at.W_CASES
    for trial in ordered[:done]:
        size, stores = struct.unpack_from("<QQ", data, offset)
        words = struct.unpack_from(f"<{size}Q", data, offset)
        offset += 8 * size
        yield trial, outcome_of(words, stores)


def outcome_of(words: Sequence[int], stores: int) -> CaseOutcome:
    """One record's outcome."""
    vector, code = words[at.C_VECTOR] & 0xFFFF_FFFF, words[at.C_VECTOR] >> 32
    after = {words[i]: words[i + at.S_AFTER] for i in range(at.HEAD, at.HEAD + at.STORE * stores, at.STORE)}
    rip = words[at.C_RIP]
    if vector != BREAKPOINT and IMAGE <= rip < ARENA:
        return CaseOutcome(
            vector, code, problem=f"the registers could not be set: vector {vector}({code:#x}) at {rip:#x}"
        )
    return CaseOutcome(vector, code, words[at.C_CR2], words[at.C_VALUE], rip, after)
