"""Machines whose memory cannot be read: the payload as a file, and the text that it prints, judged afterwards.

The payload compares with outcomes for a CPU that is assumed; what it does not print was as expected there. The
text says which CPU it was, so each outcome is then held against what that CPU must do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from fivefold.arch import Cpu, cpu_from_cpuid
from fivefold.conform.campaign import Plan
from fivefold.conform.cases.case import MODES
from fivefold.conform.engines.base import EngineError
from fivefold.conform.judging.expect import expect
from fivefold.conform.judging.memory_words import value_read, words_after, words_before
from fivefold.conform.judging.outcome import Outcome
from fivefold.conform.judging.report import Report
from fivefold.conform.payload import layout
from fivefold.conform.payload.build import elf_file
from fivefold.conform.payload.records import Trial, table
from fivefold.conform.run import choose_cases

ASSUMED: Final = Cpu(phys_bits=40)
"""The CPU whose outcomes the payload carries."""
MOST_TEXT: Final = 256 << 20
_LINE: Final = re.compile(rb"((?:fivefold-conform/1|cpuid|case|block|end)(?: [0-9a-f]{1,16})*) \* ([0-9a-f]{1,8})")


def trials_of(plan: Plan) -> list[Trial]:
    """The cases of *plan* that can be run anywhere, four levels first, as the payload runs them."""
    found = []
    for case in choose_cases(plan.cases, plan.seed, plan.modes):
        expected = expect(case, ASSUMED)
        if not expected.hidden:
            found.append(Trial(case, expected))
    return [trial for mode in MODES for trial in found if trial.case.mode == mode]


def write_payload(plan: Plan, path: Path, block: int | None = None) -> None:
    """Write the ELF file that runs *plan* and prints what differs; *block* asks for that block in full."""
    wanted = layout.P_DIFFERING | (0 if block is None else (block + 1) << layout.P_BLOCK_SHIFT)
    path.write_bytes(elf_file(table(trials_of(plan), wanted)))


def line_hash(text: bytes) -> int:
    """The check at the end of a line of the payload's."""
    value = layout.HASH_START
    for byte in text:
        value = (value ^ byte) * layout.HASH_FACTOR & (1 << 64) - 1
    return value & 0xFFFF_FFFF


class Text(NamedTuple):
    """What the payload's text says. *cases* are outcomes by number; *done* is how many cases were run at the least."""

    table_hash: int
    cpu: Cpu
    cases: dict[int, tuple[int, ...]]
    done: int
    ended: bool
    garbled: int


def read_text(data: bytes) -> Text:
    """Read the text of one run; the last one, if the log holds several. `EngineError` if it holds none."""
    if len(data) > MOST_TEXT:
        raise EngineError(f"a text of {len(data) >> 20} MiB; expected no more than {MOST_TEXT >> 20}")
    garbled, lines = 0, []
    for raw in data.split(b"\n"):
        found = _LINE.search(raw)
        if found and line_hash(found[1]) == int(found[2], 16):
            word, *numbers = found[1].decode().split()
            lines.append((word, tuple(int(number, 16) for number in numbers)))
        elif re.match(rb"(cpuid|case|block|end) ", raw):
            garbled += 1
    starts = [i for i, (word, _) in enumerate(lines) if word == "fivefold-conform/1"]
    if not starts:
        raise EngineError("the text has no result of the payload: no good line begins with fivefold-conform/1")
    return _text(lines[starts[-1] :], garbled)


def _text(lines: list[tuple[str, tuple[int, ...]]], garbled: int) -> Text:
    leaves: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    cases: dict[int, tuple[int, ...]] = {}
    done, ended, keys = 0, False, list(zip(layout.LEAVES, layout.SUBLEAVES, strict=True))
    for word, numbers in lines[1:]:
        if word == "cpuid" and len(numbers) == 4 and len(leaves) < len(keys):
            leaves[keys[len(leaves)]] = (numbers[0], numbers[1], numbers[2], numbers[3])
        elif word == "case" and len(numbers) >= 5:
            cases[numbers[0]] = numbers[1:]
            done = max(done, numbers[0] + 1)
        elif word == "block" and numbers:
            done = max(done, numbers[0] * layout.BLOCK)
        elif word == "end" and numbers:
            done, ended = numbers[0], True
    cpu = cpu_from_cpuid(lambda leaf, sub: leaves.get((leaf, sub), (0, 0, 0, 0)), encrypts=False)
    return Text(lines[0][1][1] if len(lines[0][1]) > 1 else 0, cpu, cases, done, ended, garbled)


def judge_text(plan: Plan, data: bytes) -> Report:
    """Hold the text of a machine that ran *plan* against what its CPU must do."""
    text = read_text(data)
    trials = trials_of(plan)
    if int.from_bytes(table(trials)[8 * layout.W_HASH : 8 * layout.W_HASH + 8], "little") != text.table_hash:
        raise EngineError("the text is of other cases; give the same --cases, --seed and --mode, and the same release")
    report = Report(plan.engine, "unknown", plan.seed)
    for number, trial in enumerate(trials[: text.done]):
        expected = expect(trial.case, text.cpu)
        if expected.hidden:
            report.hide(trial.case, expected.hidden)
            continue
        report.add(trial.case, expected, _outcome(trial, text.cases.get(number)))
    report.incomplete = _incomplete(text, trials)
    return report


def _incomplete(text: Text, trials: list[Trial]) -> str | None:
    """What is missing of the text, if anything is."""
    here = [trial for trial in trials if text.cpu.la57 or trial.case.mode == "la48"]
    if not text.ended:
        return f"the text ends after {text.done} of {len(here)} cases"
    if text.garbled:
        return f"{text.garbled} lines of the text are garbled"
    return None if text.done >= len(here) else f"only {text.done} of {len(here)} cases were run"


def _outcome(trial: Trial, numbers: tuple[int, ...] | None) -> Outcome:
    """The outcome that a line tells, or the assumed CPU's where no line does."""
    places = list(_places(trial))
    if numbers is None:
        expected = trial.expected
        after = dict(places)
        return Outcome(expected.vector, expected.error_code, expected.cr2 or 0, value_read(*trial) or 0, None, after)
    vector, cr2, value, rip, *rest = numbers
    after = {pa: raw for (pa, _), raw in zip(places, rest, strict=False)}
    return Outcome(vector & 0xFFFF_FFFF, vector >> 32, cr2, value, rip, after)


def _places(trial: Trial) -> Iterator[tuple[int, int]]:
    """Each word of memory that a record has, and what it holds after the expected outcome."""
    histories = {int(part.at): part for part in trial.expected.histories}
    for pa, raw in trial.case.stores().items():
        yield pa, raw | (histories[pa].must if pa in histories else 0)
    yield from words_after(*trial, words_before(*trial)).items()
