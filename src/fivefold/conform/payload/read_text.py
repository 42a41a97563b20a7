"""The text that the payload prints, read back: `text.py` writes it, `docs/conform.md` describes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from fivefold.arch import Cpu, cpu_from_cpuid
from fivefold.conform.engines.base import EngineError
from fivefold.conform.judging.memory_words import value_read, words_after, words_before
from fivefold.conform.judging.outcome import CaseOutcome
from fivefold.conform.payload import layout
from fivefold.conform.payload.records import Trial

MOST_TEXT: Final = 256 << 20
_LINE: Final = re.compile(rb"((?:fivefold-conform/1|cpuid|run|case|block|end)(?: [0-9a-f]{1,16})*) \* ([0-9a-f]{1,8})")


def line_hash(text: bytes) -> int:
    """The check at the end of a line of the payload's."""
    value = layout.HASH_START
    for byte in text:
        value = (value ^ byte) * layout.HASH_FACTOR & (1 << 64) - 1
    return value & 0xFFFF_FFFF


class SerialText(NamedTuple):
    """What the payload's text says. *cases* are outcomes by number; *done* is how many cases were run at the least."""

    table_hash: int
    cpu: Cpu
    cases: dict[int, tuple[int, ...]]
    done: int
    ended: bool
    garbled: int
    stopped_at: int | None = None
    """The case that was announced last, where nothing follows it."""


def read_text(data: bytes) -> SerialText:
    """Read the text of one run; the last one, if the log holds several. `EngineError` if it holds none."""
    if len(data) > MOST_TEXT:
        raise EngineError(f"a text of {len(data) >> 20} MiB; expected no more than {MOST_TEXT >> 20}")
    garbled, lines = 0, []
    for raw in data.split(b"\n"):
        found = _LINE.search(raw)
        if found and line_hash(found[1]) == int(found[2], 16):
            word, *numbers = found[1].decode().split()
            lines.append((word, tuple(int(number, 16) for number in numbers)))
        elif re.match(rb"(cpuid|run|case|block|end) ", raw):
            garbled += 1
    starts = [i for i, (word, _) in enumerate(lines) if word == "fivefold-conform/1"]
    if not starts:
        raise EngineError("the text has no result of the payload: no good line begins with fivefold-conform/1")
    return _text(lines[starts[-1] :], garbled)


def _text(lines: list[tuple[str, tuple[int, ...]]], garbled: int) -> SerialText:
    leaves: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    cases: dict[int, tuple[int, ...]] = {}
    done, ended, keys = 0, False, list(zip(layout.LEAVES, layout.SUBLEAVES, strict=True))
    for word, numbers in lines[1:]:
        if word == "cpuid" and len(numbers) == 4 and len(leaves) < len(keys):
            leaves[keys[len(leaves)]] = (numbers[0], numbers[1], numbers[2], numbers[3])
        elif word == "case" and len(numbers) >= 5:
            cases[numbers[0]] = numbers[1:]
            done = max(done, numbers[0] + 1)
        elif word == "run" and numbers:
            done = max(done, numbers[0])
        elif word == "block" and numbers:
            done = max(done, numbers[0] * layout.BLOCK)
        elif word == "end" and numbers:
            done, ended = numbers[0], True
    cpu = cpu_from_cpuid(lambda leaf, sub: leaves.get((leaf, sub), (0, 0, 0, 0)), encrypts=False)
    stopped = lines[-1][1][0] if lines[-1][0] == "run" and lines[-1][1] else None
    return SerialText(lines[0][1][1] if len(lines[0][1]) > 1 else 0, cpu, cases, done, ended, garbled, stopped)


def outcome_of_line(trial: Trial, numbers: tuple[int, ...] | None) -> CaseOutcome:
    """The outcome that a line reports, or the assumed CPU's where no line does."""
    places = list(_places(trial))
    if numbers is None:
        expected = trial.expected
        after = dict(places)
        return CaseOutcome(
            expected.vector, expected.error_code, expected.cr2 or 0, value_read(*trial) or 0, None, after
        )
    vector, cr2, value, rip, *rest = numbers
    after = {pa: raw for (pa, _), raw in zip(places, rest, strict=False)}
    return CaseOutcome(vector & 0xFFFF_FFFF, vector >> 32, cr2, value, rip, after)


def _places(trial: Trial) -> Iterator[tuple[int, int]]:
    """Each word of memory that a record has, and what it holds after the expected outcome."""
    histories = {int(part.at): part for part in trial.expected.histories}
    for pa, raw in trial.case.stores().items():
        yield pa, raw | (histories[pa].must if pa in histories else 0)
    yield from words_after(*trial, words_before(*trial)).items()
