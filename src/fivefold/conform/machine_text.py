"""Machines whose memory cannot be read: the payload as a file, and the text that it prints, judged afterwards.

The payload compares with outcomes for a CPU that is assumed; what it does not print was as expected there. The
text says which CPU it was, so each outcome is then held against what that CPU must do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fivefold.arch import Cpu
from fivefold.boot.image.iso import iso_file
from fivefold.conform.campaign import Plan
from fivefold.conform.cases.case import MODES
from fivefold.conform.engines.base import EngineError
from fivefold.conform.judging.expect import expect
from fivefold.conform.judging.outcome import CaseOutcome
from fivefold.conform.judging.report import ConformReport
from fivefold.conform.payload import layout
from fivefold.conform.payload.build import efi_file, elf_file
from fivefold.conform.payload.read_text import SerialText, outcome_of_line, read_text
from fivefold.conform.payload.records import Trial, is_risky, table
from fivefold.conform.run import choose_cases

STOPPED: Final = "the machine stopped or reset at this case"
ASSUMED: Final = Cpu(phys_bits=40)
"""The CPU whose outcomes the payload carries."""


def trials_of(plan: Plan) -> list[Trial]:
    """The cases of *plan* that can be run anywhere, four levels first, as the payload runs them.

    Those at which an engine that errs may end come last, and only in a plan of one mode: they would cost the others.
    """
    found = []
    for case in choose_cases(plan.cases, plan.seed, plan.modes):
        expected = expect(case, ASSUMED)
        trial = Trial(case, expected)
        if not expected.hidden and not (is_risky(trial) and len(plan.modes) > 1):
            found.append(trial)
    return [
        trial for mode in MODES for risky in (False, True) for trial in found
        if trial.case.mode == mode and is_risky(trial) == risky
    ]  # fmt: skip


def write_payload(plan: Plan, path: Path, block: int | None = None) -> None:
    """Write what runs *plan* and prints what differs, by its name: ``.efi``, ``.iso`` for BIOS and UEFI, else ELF.

    *block* asks for that block in full. `ImageError` without GRUB's tools for an ISO.
    """
    wanted = layout.P_DIFFERING | (0 if block is None else (block + 1) << layout.P_BLOCK_SHIFT)
    cases = table(trials_of(plan), wanted)
    if path.suffix == ".efi":
        path.write_bytes(efi_file(cases))
    else:
        made = elf_file(cases)
        path.write_bytes(iso_file(efi_file(cases), made) if path.suffix == ".iso" else made)


def judge_text(plan: Plan, data: bytes) -> ConformReport:
    """Hold the text of a machine that ran *plan* against what its CPU must do."""
    text = read_text(data)
    trials = trials_of(plan)
    if int.from_bytes(table(trials)[8 * layout.W_HASH : 8 * layout.W_HASH + 8], "little") != text.table_hash:
        raise EngineError("the text is of other cases; give the same --cases, --seed and --mode, and the same release")
    report = ConformReport(plan.engine, "unknown", plan.seed)
    for number, trial in enumerate(trials[: text.done]):
        expected = expect(trial.case, text.cpu)
        if expected.hidden:
            report.hide(trial.case, expected.hidden)
            continue
        report.add(trial.case, expected, outcome_of_line(trial, text.cases.get(number)))
    if text.stopped_at is not None and text.stopped_at < len(trials):
        trial = trials[text.stopped_at]
        expected = expect(trial.case, text.cpu)
        if not expected.hidden:
            report.add(trial.case, expected, CaseOutcome(0, problem=STOPPED, stopped=True))
    report.incomplete = _incomplete(text, trials)
    return report


def _incomplete(text: SerialText, trials: list[Trial]) -> str | None:
    """What is missing of the text, if anything is."""
    here = [trial for trial in trials if text.cpu.la57 or trial.case.mode == "la48"]
    if not text.ended:
        return f"the text ends after {text.done} of {len(here)} cases"
    if text.garbled:
        return f"{text.garbled} lines of the text are garbled"
    return None if text.done >= len(here) else f"only {text.done} of {len(here)} cases were run"
