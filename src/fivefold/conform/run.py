"""Run cases on an engine and fold the outcomes into a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from fivefold.conform.cases.actions import REGISTER
from fivefold.conform.cases.case import Case, parse_case
from fivefold.conform.cases.product import systematic
from fivefold.conform.cases.random_cases import random_cases
from fivefold.conform.cases.shrink import smaller
from fivefold.conform.engines.base import Engine
from fivefold.conform.judging.expect import expect
from fivefold.conform.judging.known import known_difference
from fivefold.conform.judging.outcome import OutcomeCheck, answer_text, checks, expected_text, gave_old
from fivefold.conform.judging.report import ConformReport, Key, access_label
from fivefold.conform.judging.stale_answers import UNDECIDABLE, witness_title
from fivefold.conform.payload.records import Trial

CHUNK = 20_000
STEPS = 40
"""Simpler cases that are tried of one, at the most, in a round."""


def choose_cases(count: int, seed: int, modes: tuple[str, ...], part: range | None = None) -> Iterator[Case]:
    """*count* cases: half from the systematic product while it lasts, the rest random by *seed*.

    *part* takes only these of them, by number; any split of a run gives the same cases.
    """
    product = [case for case in systematic() if case.mode in modes]
    fixed = min(len(product), (count + 1) // 2)
    part = range(count) if part is None else part
    yield from islice(product, min(part.start, fixed), min(part.stop, fixed))
    yield from random_cases(str(seed), range(max(part.start - fixed, 0), max(part.stop - fixed, 0)), modes)


def simplify(engine: Engine, report: ConformReport, rounds: int = 8) -> None:
    """Let each differing row show a simpler case that differs in the same rule, if there is one."""
    for _ in range(rounds):
        wanted: dict[str, list[Key]] = {}
        trials: dict[str, Trial] = {}
        for key, row in report.rows.items():
            if row.smallest is None or key.access == REGISTER:
                continue
            for case in islice(smaller(parse_case(row.smallest.case)), STEPS):
                wanted.setdefault(case.id, []).append(key)
                if case.id not in trials:
                    trials[case.id] = Trial(case, expect(case, engine.cpu))
        shown = [trial for trial in trials.values() if not trial.expected.hidden]
        changed = False
        for trial, outcome in engine.run(shown):
            if outcome.problem:
                continue
            for check in checks(trial.case, trial.expected, outcome):
                key = Key(check.rule, access_label(trial.case), trial.case.mode)
                if not check.agrees and key in wanted[trial.case.id]:
                    changed = report.rows[key].offer(trial.case, check, known_of(report, check, key)) or changed
        if not changed:
            return


def known_of(report: ConformReport, check: OutcomeCheck, key: Key) -> bool:
    """Whether *check* is a known difference of the report's engine."""
    return known_difference(report.engine, report.version, check, key.access) is not None


def run_cases(engine: Engine, cases: Iterable[Case], seed: int = 0) -> ConformReport:
    """Run *cases*; those that the engine cannot show are noted as such."""
    report = ConformReport(engine.name, engine.version, seed)
    source = iter(cases)
    while chunk := list(islice(source, CHUNK)):
        trials = []
        for case in chunk:
            expected = expect(case, engine.cpu)
            if reason := engine.cannot.get(case.action) or expected.hidden:
                report.hide(case, reason)
            else:
                trials.append(Trial(case, expected))
        for trial, outcome in engine.run(trials):
            report.add(trial.case, trial.expected, outcome)
    return report


def run_one(engine: Engine, case: Case) -> tuple[ConformReport, list[str]]:
    """Run *case* alone: its report, and what must happen, what did and which rules it shows, in words."""
    report = ConformReport(engine.name, engine.version, 0)
    expected = expect(case, engine.cpu)
    if reason := engine.cannot.get(case.action) or expected.hidden:
        report.hide(case, reason)
        return report, [f"not shown {reason}"]
    lines = [f"must      {expected_text(expected)}"]
    for _, outcome in engine.run([Trial(case, expected)]):
        report.add(case, expected, outcome)
        lines.append(f"did       {outcome if outcome.problem or expected.allowed is None else answer_text(outcome)}")
        if outcome.problem:
            continue
        if (old := gave_old(expected, outcome)) is not None:
            lines.append(f"shows     {witness_title(case) if old else UNDECIDABLE}")
        for check in checks(case, expected, outcome):
            lines.append(f"{'agrees' if check.agrees else 'DIFFERS'}   {check.rule} ({check.section})")
            if not check.agrees:
                lines.append(f"          must: {check.expected}; did: {check.got}")
    return report, lines
