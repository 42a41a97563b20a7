"""Judge a run from its serial text alone: what the kernels in it reported, and whether all of it is there.

For machines whose memory is out of reach. Text before, between and inside reports is passed over, and lost characters
are expected: what one damaged line does not say, the plan and the sum at the report's end do, and the other way round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from fivefold.boot.judge.serial_lines import (
    BAIL_OUT,
    SAVED,
    Identity,
    Result,
    Sum,
    identity,
    is_detail,
    is_version,
    lines_of,
    plan,
    results,
    starts_next,
    summary,
)
from fivefold.units import hex64

SCHEMA: Final = "fivefold.judge/1"
_ORPHAN: Final = 8
"""So many checks in a row, without a word of who made them, are a report whose beginning is lost."""


@dataclass(frozen=True)
class SerialReport:
    """What one kernel reported; numbers are None where the text does not say."""

    levels: int | None
    place: int | None
    """Physical address of the kernel's image."""
    planned: int | None
    passed: int
    failed: int
    skipped: int
    complete: bool
    """Whether the report's end is there."""
    results: tuple[Result, ...]
    bail_out: str = ""
    """With what words the kernel gave up."""
    saved: bool = False
    """Whether the kernel hibernated: what follows goes on in the next report."""
    started_next: bool = False
    """Whether the kernel said that it starts another, whose report must follow."""

    @property
    def mode(self) -> str | None:
        """``la57`` or ``la48``."""
        return {4: "la48", 5: "la57"}.get(self.levels or 0)

    @property
    def unreadable(self) -> int:
        """Checks whose outcome the text does not say."""
        return max(0, (self.planned or 0) - self.passed - self.failed - self.skipped)

    @property
    def ok(self) -> bool:
        """Whether the text shows that every check was passed or skipped."""
        return self.complete and bool(self.planned) and not (self.failed or self.unreadable or self.bail_out)

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the checks that failed, as far as they can be read."""
        return tuple(result.name for result in self.results if result.outcome == "failed")

    def to_json(self) -> dict[str, object]:
        """The report as the schema `fivefold.judge/1` has it."""
        skips = (result for result in self.results if result.outcome == "skipped")
        return {
            "mode": self.mode,
            "levels": self.levels,
            "image": None if self.place is None else hex64(self.place),
            "planned": self.planned,
            "passed": self.passed,
            "failed": self.failed,
            "skipped": self.skipped,
            "unreadable": self.unreadable,
            "complete": self.complete,
            "ok": self.ok,
            "failures": list(self.failures),
            "skips": [{"name": result.name, "reason": result.reason} for result in skips],
            "bail_out": self.bail_out or None,
            "started_next": self.started_next,
        }


@dataclass(frozen=True)
class Judgement:
    """All reports of a text, in its order."""

    reports: tuple[SerialReport, ...]

    @property
    def lacks_next(self) -> bool:
        """Whether the last kernel started another, of which the text has nothing."""
        return bool(self.reports) and self.reports[-1].started_next

    @property
    def ok(self) -> bool:
        """Whether there is a report, and each is whole and without a failure; one that hibernated ends in the next."""
        ends = [report for report in self.reports if not report.saved]
        saved_well = all(not (report.failed or report.bail_out) for report in self.reports if report.saved)
        ended = bool(ends) and self.reports[-1] is ends[-1] and not self.lacks_next
        return ended and saved_well and all(report.ok for report in ends)

    def to_json(self) -> dict[str, object]:
        """The whole as the schema `fivefold.judge/1` has it."""
        return {"schema": SCHEMA, "ok": self.ok, "reports": [report.to_json() for report in self.reports]}


def judge_text(data: bytes) -> Judgement:
    """What the kernels reported in *data*, a serial log of any origin."""
    found = _split(lines_of(data))
    return Judgement(tuple(draft.finish() for draft in found if draft.is_ours))


@dataclass
class _Draft:
    """A report while it is read."""

    who: Identity | None = None
    begun: bool = False
    """Whether its first line was seen."""
    results: list[Result] = field(default_factory=list)
    plan: int | None = None
    sum: Sum | bool = False
    bail_out: str = ""
    saved: bool = False
    started_next: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether it is a report of this kernel: it says so, or ends as one, or goes on as one."""
        if self.who is not None or self.sum is not False:
            return True
        numbers = [result.number for result in self.results if result.number is not None]
        row = 1
        for before, after in pairwise(numbers):
            row = row + 1 if after == before + 1 else 1
            if row >= _ORPHAN:
                return True
        return False

    def restarts_with(self, result: Result) -> bool:
        """Whether *result* is another kernel's whose beginning is lost: one after the sum, or 1, 2 after many more."""
        if self.sum is not False:
            return True
        last = self.results[-1].number if self.results else None
        return result.number == 2 and last == 1 and max(at.number or 0 for at in self.results) > 2

    def take(self, result: Result) -> list[_Draft]:
        """Note *result*; the report that it begins, if it does."""
        if not self.restarts_with(result):
            self.results.append(result)
            return []
        first = [] if self.sum is not False else [self.results.pop()]
        return [_Draft(results=[*first, result])]

    def add(self, line: str) -> None:
        if BAIL_OUT in line:
            self.bail_out = line.partition(BAIL_OUT)[2].strip() or "no reason given"
        elif SAVED in line:
            self.saved = True
        elif starts_next(line):
            self.started_next = True
        elif (told := summary(line)) is not False:
            self.sum = told if isinstance(told, Sum) else self.sum or True
        elif (count := plan(line)) is not None:
            self.plan = count
        elif is_detail(line):
            self._fail_last()

    def _fail_last(self) -> None:
        """Only a failed check is followed by details: the one before them failed, whatever is left of its line."""
        if self.results:
            self.results[-1] = self.results[-1]._replace(outcome="failed")

    def _can_be(self, planned: int) -> bool:
        """Whether there may have been *planned* checks; one number beyond may be two lines that run into one."""
        return sum((check.number or 0) > planned for check in self.results) <= 1

    def finish(self) -> SerialReport:
        highest = max((check.number or 0 for check in self.results), default=0)
        counted = self.sum if isinstance(self.sum, Sum) and self._can_be(self.sum.planned) else None
        planned = counted.planned if counted else self.plan if self.plan and self._can_be(self.plan) else None
        checks, whole = _once(self.results, planned)
        count = Counter(check.outcome for check in checks)
        passed, failed, skipped = count["ok"], count["failed"], count["skipped"]
        if counted:
            # A whole line that says "not ok" is believed; what is left of a damaged one is not, against the sum.
            failed = max(counted.failed, sum(check.outcome == "failed" for check in whole))
            skipped = counted.skipped
            passed = max(0, counted.planned - failed - skipped)
        ended = planned is not None or (self.sum is True and highest > 0)
        who = self.who or Identity(None, None)
        saved = self.saved and not ended
        return SerialReport(
            *who, planned, passed, failed, skipped, ended, tuple(checks), self.bail_out, saved, self.started_next
        )


def _split(lines: Iterable[str]) -> list[_Draft]:
    """One draft for each kernel."""
    drafts = [_Draft()]
    for line in lines:
        last = drafts[-1]
        if is_version(line):
            drafts.append(_Draft(begun=True))
        elif (who := identity(line)) is not None:
            if not last.begun or last.who is not None or last.results:
                drafts.append(_Draft(begun=True))
            drafts[-1].who = who
        elif found := [] if is_detail(line) else list(results(line)):
            for result in found:
                drafts += drafts[-1].take(result)
        else:
            last.add(line)
    return drafts


def _once(found: list[Result], planned: int | None) -> tuple[list[Result], list[Result]]:
    """Each check once, in its order, and those of them whose lines are whole.

    Damaged lines are put where numbers are missing; one that no gap has room for is other text. A check that is
    reported twice failed if it failed once.
    """
    whole: dict[int, Result] = {}
    checks: dict[int, Result] = {}
    damaged: list[Result] = []
    last = 0
    for result in found:
        beyond = planned is not None and result.number is not None and result.number > planned
        if result.number is None or beyond or (result.number <= last and not _is_again(result, whole)):
            damaged.append(result)  # a number that goes back has lost a digit, one beyond the plan has too many
            continue
        if result.number > last:
            _fill(checks, damaged, last, result.number)
            last = result.number
        damaged.clear()
        if result.number not in whole or result.outcome == "failed":
            whole[result.number] = result
    _fill(checks, damaged, last, (planned or last) + 1)
    checks |= whole
    return [checks[number] for number in sorted(checks)], list(whole.values())


def _is_again(result: Result, whole: dict[int, Result]) -> bool:
    """Whether the same check was reported before."""
    return result.number in whole and whole[result.number].name == result.name


def _fill(checks: dict[int, Result], damaged: list[Result], last: int, following: int) -> None:
    """Put *damaged* results into the gap between the numbers *last* and *following*."""
    room = following - last - 1
    failed = [result for result in damaged if result.outcome == "failed"]
    chosen = damaged if len(damaged) <= room else failed[: max(room, 0)]
    for number, result in enumerate(chosen, last + 1):
        checks[number] = result._replace(number=number)
