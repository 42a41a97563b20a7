"""A run of any size as a campaign: parts by number, in this process, in several, or on a cluster.

A part is a range of case numbers, and its cases depend on the plan and their numbers alone. Reports add up to the
same in any order, so the answer is the same for any number of workers.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fivefold.campaign.parts import PartLost, Workers, run_campaign
from fivefold.conform.engines.base import Engine, EngineError
from fivefold.conform.engines.registry import open_engine
from fivefold.conform.judging.report import ConformReport, Example, Key, RuleRow
from fivefold.conform.run import choose_cases, run_cases, simplify

PART: Final = 5_000
"""Cases in one part."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run: the engine, and which cases."""

    engine: str
    program: str | None
    model: str | None
    modes: tuple[str, ...]
    cases: int
    seed: int

    def open(self) -> Engine:
        """Start the engine."""
        return open_engine(self.engine, self.program, self.model)

    def parts(self) -> list[range]:
        """The case numbers of each part."""
        return [range(start, min(start + PART, self.cases)) for start in range(0, self.cases, PART)]


def run_part(plan: Plan, part: range, engine: Engine | None = None) -> ConformReport:
    """Run the cases of *part*."""
    engine = engine or plan.open()
    return run_cases(engine, choose_cases(plan.cases, plan.seed, plan.modes, part), plan.seed)


def packed_part(argument: tuple[Plan, range]) -> dict[str, Any]:
    """The work of a campaign: the report of a part, packed. A worker opens its engine once."""
    plan, part = argument
    return pack(run_part(plan, part, _engine_of(plan)))


@functools.lru_cache(1)
def _engine_of(plan: Plan) -> Engine:
    return plan.open()


def run_plan(plan: Plan, jobs: int = 1, state: Path | None = None, dask: str | None = None) -> ConformReport:
    """Run all of *plan*, and show the simplest case of each difference.

    A part that is lost makes the report incomplete. `EngineError` where a worker's engine is another version.
    """
    engine = _engine_of(plan)
    parts = {f"{part.start}-{part.stop}": (plan, part) for part in plan.parts()}
    whole = ConformReport(engine.name, engine.version, plan.seed)
    lost: list[PartLost] = []
    identity = asdict(plan) | {"version": engine.version, "part": PART}
    for end in run_campaign(packed_part, parts, identity, Workers(jobs, dask), state):
        if isinstance(end, PartLost):
            lost.append(end)
            continue
        report = unpack(end.result)
        if report.version != engine.version:
            raise EngineError(f"a worker has {engine.name} {report.version}, and this machine {engine.version}")
        whole.merge(report)
    whole.problems.sort()
    if lost:
        whole.incomplete = f"{len(lost)} of {len(parts)} parts of the cases are missing: {lost[0].reason}"
    simplify(engine, whole)
    return whole


def pack(report: ConformReport) -> dict[str, Any]:
    """*report* as JSON can hold it."""
    rows = [[*key, asdict(row)] for key, row in report.sorted_rows()]
    return {"engine": report.engine, "version": report.version, "seed": report.seed, "cases": report.cases,
            "problems": report.problems, "rows": rows}  # fmt: skip


def unpack(data: dict[str, Any]) -> ConformReport:
    """The report that `pack` made *data* of."""
    report = ConformReport(data["engine"], data["version"], data["seed"], data["cases"])
    report.problems = [(case, reason) for case, reason in data["problems"]]
    for rule, access, mode, fields in data["rows"]:
        fields["known"] = tuple(fields["known"])
        fields["smallest"] = Example(*fields["smallest"]) if fields["smallest"] else None
        report.rows[Key(rule, access, mode)] = RuleRow(**fields)
    return report
