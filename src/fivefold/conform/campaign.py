"""Runs of any size: parts by number, in this process, in several, or on a cluster; resumable from a state file.

A part is a range of case numbers, and its cases depend on the plan and their numbers alone. Parts are folded in
order of their number, so the answer is the same for any number of workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fivefold.conform.engines.base import Engine, EngineError
from fivefold.conform.engines.registry import open_engine
from fivefold.conform.judging.report import ConformReport, Example, Key, RuleRow
from fivefold.conform.run import choose_cases, run_cases, simplify

PART: Final = 5_000
"""Cases in one part."""
STATE: Final = "fivefold.conform-state/1"


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


def run_plan(plan: Plan, jobs: int = 1, state: Path | None = None, dask: str | None = None) -> ConformReport:
    """Run all of *plan*, and show the simplest case of each difference."""
    engine = plan.open()
    done = _load(state, plan)
    parts = plan.parts()
    left = [number for number in range(len(parts)) if number not in done]
    for number, report in _reports(plan, [(number, parts[number]) for number in left], jobs, dask, engine):
        done[number] = report
        _save(state, plan, done)
    whole = ConformReport(engine.name, engine.version, plan.seed)
    for number in sorted(done):
        whole.merge(done[number])
    simplify(engine, whole)
    return whole


def _reports(
    plan: Plan, parts: list[tuple[int, range]], jobs: int, dask: str | None, engine: Engine
) -> Iterator[tuple[int, ConformReport]]:
    if dask is not None:
        yield from _on_cluster(plan, parts, dask)
    elif jobs > 1 and len(parts) > 1:
        yield from _in_processes(plan, parts, jobs)
    else:
        for number, part in parts:
            yield number, run_part(plan, part, engine)


def _in_processes(plan: Plan, parts: list[tuple[int, range]], jobs: int) -> Iterator[tuple[int, ConformReport]]:
    """Each part in one of *jobs* processes. A process that dies costs its part a second try, and a third."""
    left, tries = dict(parts), 3
    while left and tries:
        tries -= 1
        with ProcessPoolExecutor(jobs) as pool:
            futures = {pool.submit(run_part, plan, part): number for number, part in left.items()}
            try:
                for future in as_completed(futures):
                    report = future.result()
                    del left[futures[future]]
                    yield futures[future], report
            except BrokenProcessPool:
                continue
    if left:
        raise EngineError(f"the processes that ran the cases died three times; {len(left)} parts are missing")


def _on_cluster(plan: Plan, parts: list[tuple[int, range]], address: str) -> Iterator[tuple[int, ConformReport]]:
    """Each part on a worker of the scheduler at *address*. Dask runs the parts of a worker that dies elsewhere."""
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise EngineError("Dask is not installed; install it with: pip install 'fivefold[cluster]'") from error
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise EngineError(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        futures = {client.submit(run_part, plan, part, pure=False, retries=3): number for number, part in parts}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _save(path: Path | None, plan: Plan, done: dict[int, ConformReport]) -> None:
    """Write what is done, so that a stop at any moment leaves the old file or the new one."""
    if path is None:
        return
    text = json.dumps({"schema": STATE, "plan": asdict(plan), "parts": {n: pack(report) for n, report in done.items()}})
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _load(path: Path | None, plan: Plan) -> dict[int, ConformReport]:
    """What an earlier run of the same plan has done. `EngineError` if the file is another plan's, or none."""
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != STATE:
            raise ValueError("another schema")
        parts = {int(number): unpack(report) for number, report in found["parts"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{path} is no state of a run: {error}") from error
    if found["plan"] != json.loads(json.dumps(asdict(plan))):
        raise EngineError(f"{path} is the state of another run: engine, CPU, modes, cases or seed differ")
    return parts


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
