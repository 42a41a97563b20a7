"""The answer: rules × kinds of access × modes, folded from outcomes as they come. Reports of parts can be merged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fivefold.arch import Cpu, Refused, Vendor
from fivefold.conform.cases.case import Case, parse_case
from fivefold.conform.cases.listing import listing
from fivefold.conform.judging.expect import Expected, expect
from fivefold.conform.judging.known import Known, known_difference
from fivefold.conform.judging.outcome import CaseOutcome, OutcomeCheck, checks, gave_old
from fivefold.conform.judging.rules import rule_of
from fivefold.conform.judging.stale_answers import CACHING, UNDECIDABLE, witness_title

SCHEMA: Final = "fivefold.conform/1"
EVERYTHING: Final = Cpu(phys_bits=40, lass=True, cet=True, vendor=Vendor.INTEL)
"""A CPU that can run every case: it names the rules that an engine cannot show."""


class Key(NamedTuple):
    """A row of the table."""

    rule: str
    access: str
    mode: str


class Example(NamedTuple):
    """A case that differs."""

    case: str
    expected: str
    got: str

    @property
    def weight(self) -> tuple[int, int, str]:
        """Smaller is simpler: fewer things that are out of the ordinary, then a shorter id."""
        return self.case.count(",") + self.case.count("="), len(self.case), self.case


@dataclass
class RuleRow:
    """How often a rule was held against the engine. *unknown* of *differs* are not in the list of known ones."""

    section: str
    cases: int = 0
    agrees: int = 0
    differs: int = 0
    unknown: int = 0
    smallest: Example | None = None
    known: tuple[str, ...] = ()
    not_shown: str | None = None

    def add(self, check: OutcomeCheck, case: Case, known: Known | None) -> None:
        """Count one check."""
        self.cases += 1
        self.not_shown = None
        if check.agrees:
            self.agrees += 1
            return
        self.differs += 1
        self._show(Example(case.id, check.expected, check.got), known is not None)
        if known is None:
            self.unknown += 1
        elif known.name not in self.known:
            self.known = tuple(sorted({*self.known, known.name}))

    def offer(self, case: Case, check: OutcomeCheck, known: bool) -> bool:
        """Take *case* as the one to show if it is simpler; an unknown difference is not replaced by a known one."""
        example = Example(case.id, check.expected, check.got)
        if self.smallest is None or example.weight >= self.smallest.weight or (known and self.unknown):
            return False
        self.smallest = example
        return True

    def _show(self, example: Example, known: bool) -> None:
        """Keep the simplest case that differs; one that is not known before all that are."""
        first_unknown = not known and self.unknown == 0
        if (
            self.smallest is None
            or first_unknown
            or ((not known or self.unknown == 0) and example.weight < self.smallest.weight)
        ):
            self.smallest = example

    def merge(self, other: RuleRow) -> None:
        """Take in what another run says of the same rule."""
        self.cases += other.cases
        self.agrees += other.agrees
        self.differs += other.differs
        if other.smallest and (
            self.smallest is None
            or (other.unknown > 0, self.smallest.weight) > (self.unknown > 0, other.smallest.weight)
        ):
            self.smallest = other.smallest
        self.unknown += other.unknown
        self.known = tuple(sorted({*self.known, *other.known}))
        reasons = [reason for reason in (self.not_shown, other.not_shown) if reason]
        self.not_shown = min(reasons) if reasons and not self.cases else None


@dataclass
class ConformReport:
    """What one engine does. *problems* are cases that came to no end, with the reason."""

    engine: str
    version: str
    seed: int
    cases: int = 0
    rows: dict[Key, RuleRow] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    incomplete: str | None = None
    """What is missing of the run, if anything is."""

    def add(self, case: Case, expected: Expected, outcome: CaseOutcome) -> None:
        """Hold one outcome against every rule that it shows."""
        if outcome.problem and not _is_answer(expected, outcome):
            self.problems.append((case.id, outcome.problem))
            return
        self.cases += 1
        label = access_label(case)
        self._note_witness(case, expected, outcome)
        for check in checks(case, expected, outcome):
            row = self.rows.setdefault(Key(check.rule, label, case.mode), RuleRow(check.section))
            known = None if check.agrees else known_difference(self.engine, self.version, check, label)
            row.add(check, case, known)

    def _note_witness(self, case: Case, expected: Expected, outcome: CaseOutcome) -> None:
        """Count an old translation that was given: on this engine, a kernel that forgets to invalidate is caught."""
        if (old := gave_old(expected, outcome)) is None:
            return
        key = Key(witness_title(case), access_label(case), case.mode)
        row = self.rows.setdefault(key, RuleRow(CACHING, not_shown=UNDECIDABLE))
        if old:
            row.add(OutcomeCheck(key.rule, CACHING, True), case, None)

    def hide(self, case: Case, reason: str) -> None:
        """Note a case that this engine cannot show, if nothing else shows its rule."""
        expected = expect(case, EVERYTHING)
        title, section = rule_of(case, expected)
        row = self.rows.setdefault(Key(title, access_label(case), case.mode), RuleRow(section))
        if not row.cases:
            row.not_shown = reason

    def merge(self, other: ConformReport) -> None:
        """Take in another part of the same run; the order of the parts changes nothing but that of the problems."""
        self.cases += other.cases
        self.problems += other.problems
        for key, row in other.rows.items():
            mine = self.rows.setdefault(key, RuleRow(row.section, not_shown=row.not_shown))
            mine.merge(row)

    def sorted_rows(self) -> Iterator[tuple[Key, RuleRow]]:
        """The rows by rule, access and mode."""
        yield from sorted(self.rows.items())

    @property
    def unknown(self) -> int:
        """How many rows differ in a way that is not listed as known."""
        return sum(row.unknown > 0 for row in self.rows.values())

    @property
    def differing(self) -> int:
        """How many rows differ at all."""
        return sum(row.differs > 0 for row in self.rows.values())


def _is_answer(expected: Expected, outcome: CaseOutcome) -> bool:
    """Whether the machine's end is what the engine does with the case: it says so, or took a write it must refuse."""
    gave_up = "gave up" in (outcome.problem or "")
    return outcome.stopped and (gave_up or isinstance(expected.written, Refused))


def access_label(case: Case) -> str:
    """The kind of access as the table names it."""
    return f"page-crossing {case.what.label}" if case.crosses else case.what.label


def to_json(report: ConformReport) -> dict[str, Any]:
    """The schema fivefold.conform/1."""
    return {
        "schema": SCHEMA,
        "engine": report.engine,
        "version": report.version,
        "cases": report.cases,
        "seed": report.seed,
        "rules": [_rule(key, row) for key, row in report.sorted_rows()],
    }


def _rule(key: Key, row: RuleRow) -> dict[str, Any]:
    smallest = row.smallest and {
        "case": row.smallest.case,
        "listing": listing(parse_case(row.smallest.case)),
        "expected": row.smallest.expected,
        "got": row.smallest.got,
    }
    return {
        "rule": key.rule, "access": key.access, "mode": key.mode, "section": row.section, "cases": row.cases,
        "agrees": row.agrees, "differs": row.differs, "known": bool(row.differs) and not row.unknown,
        "smallest": smallest, "not_shown": row.not_shown,
    }  # fmt: skip
