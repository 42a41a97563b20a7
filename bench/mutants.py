"""Change one token of a folder's sources at a time, and tell the changes that no test notices.

    python bench/mutants.py src/fivefold/survey --seed 1 --count 100

Each mutant is put into a copy of the project (the tree itself is never touched), where the tests of the folder run, and
then tests/cli and tests/report, until one fails; `--tests` names others in place of the folder's. Too much time counts
as noticed, and so does a module that cannot be imported. A test that fails or takes too much time runs once more
without the mutant and has to pass: what only a loaded machine makes fail notices nothing.

Which test executes which line is learnt first, and kept in the user's cache (mutation_coverage.py). Tests that do not
execute what is changed cannot notice it and are left out, quick ones come before slow ones, and processes that have
collected all tests wait for mutants (mutation_runs.py). What a module or a class executes when it is imported is held
by all tests: first those that use the name or the file, then the others, unless the sources show all uses of the name.

The same seed draws the same mutants as long as their lines stay as they are. What no test can notice because it changes
nothing stands in mutants_equivalent.toml with the reason, and is neither drawn nor counted; `--equivalent` runs exactly
those, to see whether a test notices one after all. The exit status is 1 if more than one in ten is alive, 2 if the
tests fail without any change.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import re
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from mutation_coverage import COLLECTING, SOURCES, Kept, Learnt, Watch
from mutation_runs import CANNOT, PASSED, Copy, Deadline, Only, Ready, changes, end_group, ended
from mutation_sites import Mutant, mutants_of

PROJECT: Final = Path(__file__).parents[1]
EQUIVALENT: Final = Path(__file__).with_name("mutants_equivalent.toml")
AFTERWARDS: Final = ("tests/cli", "tests/report")
FOREVER: Final = Deadline({}, seconds=float("inf"))
QUICK: Final = 0.3
TRIAL: Final = 5
ROUNDS: Final = 0.05
"""Tests that take less seconds than this, or than twice as much, and so on, are as quick as each other."""


class Plan:
    """Which tests run against a mutant, and in which order."""

    def __init__(self, project: Path, files: list[str], learnt: Learnt) -> None:
        self.project, self.files, self.learnt = project, files, learnt
        self.texts = {
            str(file.relative_to(project)): file.read_text()
            for place in (SOURCES, "tests")
            for file in (project / place).rglob("*.py")
        }

    def is_quick(self, mutant: Mutant) -> bool:
        """Whether only bodies of functions change, and none that runs when tests are collected."""
        before = self.texts[mutant.file]
        only_functions = changes(before, mutant.of(before.encode()).decode(), mutant.file) is not None
        return only_functions and COLLECTING not in self.learnt.executing(mutant.file, mutant.lines)

    def executing(self, mutant: Mutant) -> list[str]:
        """The tests that execute what is changed."""
        return self._sorted(self.learnt.executing(mutant.file, mutant.lines))

    def likely(self, mutant: Mutant) -> tuple[list[str], list[str]]:
        """The tests that use what an import gives, and those that may in ways that cannot be seen in the sources."""
        used = [file for file, text in self.texts.items() if _mentions(mutant.names, text)]
        found = self.learnt.executing(mutant.file, mutant.lines)
        found |= {test for test in self.learnt.seconds if test.partition("::")[0] in used}
        at_import = not mutant.names or bool(mutant.scope)
        for file in used:
            if file.startswith(SOURCES):
                for lines in uses(mutant.names, self.texts[file]):
                    tests = self.learnt.executing(file, lines)
                    at_import |= COLLECTING in tests and not (file == mutant.file and mutant.line in lines)
                    found |= tests
        if not at_import:
            return self._sorted(found), []
        found |= self.learnt.touching([mutant.file, *used])
        return self._sorted(found), self._sorted(self.learnt.seconds.keys() - found)

    def quickest(self) -> list[str]:
        """Quick tests of all files, `TRIAL` of each at most."""
        chosen: dict[str, list[str]] = defaultdict(list)
        for test in self._sorted(self.learnt.seconds.keys() - {COLLECTING}):
            if self.learnt.seconds[test] < QUICK and len(chosen[file := test.partition("::")[0]]) < TRIAL:
                chosen[file].append(test)
        return [test for tests in chosen.values() for test in tests]

    def _sorted(self, tests: Iterable[str]) -> list[str]:
        """Quick ones first; those of one file together where that costs nothing, since they may share a fixture."""

        def key(test: str) -> tuple[int, str]:
            return int(self.learnt.seconds[test] / ROUNDS).bit_length(), test

        return sorted((test for test in tests if test in self.learnt.seconds), key=key)


def _mentions(names: tuple[str, ...], text: str) -> bool:
    return any(re.search(rf"\b{name}\b", text) for name in names)


def uses(names: tuple[str, ...], text: str) -> Iterator[range]:
    """The lines of the statements of *text* that mention one of *names*, but for imports."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt) and not isinstance(node, ast.Import | ast.ImportFrom):
            body = getattr(node, "body", None) or getattr(node, "cases", None)
            first = body[0].pattern if body and isinstance(body[0], ast.match_case) else body and body[0]
            end = max(node.lineno, first.lineno - 1) if first else node.end_lineno or node.lineno
            if _mentions(names, "\n".join(lines[node.lineno - 1 : end])):
                yield range(node.lineno, end + 1)


def learn(copies: list[Copy], kept: Kept, files: list[str]) -> Learnt:
    """Run the tests of *files* without a mutant, but for what is known. Ends the program where they fail."""
    learnt = Learnt()
    unknown = []
    for file in files:
        entry = kept.get(file)
        if entry is None:
            unknown.append((file, True))
        else:
            _take(learnt, file, entry)
    running: dict[int, tuple[Copy, str, bool]] = {}
    try:
        while unknown or running:
            while unknown and len(running) < len(copies):
                copy = next(each for each in copies if all(each is not busy for busy, _, _ in running.values()))
                file, traced = unknown.pop(0)
                pid = copy.run([file], *([Traced(copy)] if traced else []), write_bytecode=True)
                running[pid] = (copy, file, traced)
            for pid in list(running):
                status = ended(pid, FOREVER)
                if status is not None:
                    unknown += _learnt(learnt, kept, *running.pop(pid), status)
            time.sleep(0.02)
    finally:
        for pid in running:
            end_group(pid)
            os.waitpid(pid, 0)  # before its files are removed
    return learnt


def _learnt(learnt: Learnt, kept: Kept, copy: Copy, file: str, traced: bool, status: int) -> list[tuple[str, bool]]:
    """Take what a run of *file* in *copy* showed; return what is to run once more."""
    copy.tidy()
    if status not in PASSED:
        if traced:
            return [(file, False)]  # being watched may be too much for it
        print(copy.log()[-3000:], file=sys.stderr)
        print(f"mutants: {file} fails without any change", file=sys.stderr)
        sys.exit(2)
    entry = kept.entry(copy.place.parent / "learnt") if traced else {"tests": {}, "loaded": []}
    kept.put(file, entry)
    _take(learnt, file, entry)
    return []


class Traced:
    """Part of pytest that begins to watch in the child, and not before."""

    def __init__(self, copy: Copy) -> None:
        self.copy = copy

    def pytest_configure(self, config: object) -> None:
        watch = Watch(self.copy.place, self.copy.place.parent / "learnt")
        config.pluginmanager.register(watch)  # type: ignore[attr-defined]


def _take(learnt: Learnt, file: str, entry: dict[str, object]) -> None:
    learnt.add(entry)
    if not entry["tests"]:
        learnt.blind.add(file)


class Run(NamedTuple):
    """*tests*, or files of tests, one after the other until one fails."""

    quick: bool
    """In a process that has collected all, and is there already."""
    tests: list[str]
    mutated: bool = True

    def after(self, test: str) -> Run:
        """What is left when *test* is through."""
        name = test if test in self.tests else test.partition("::")[0]
        return self._replace(tests=self.tests[self.tests.index(name) + 1 :] if name in self.tests else [])


class Job:
    """Runs one mutant after the other in one copy."""

    def __init__(self, copy: Copy, plan: Plan) -> None:
        self.copy, self.plan = copy, plan
        self.ready = Ready(copy, plan.files, plan.learnt.seconds)
        self.mutant: Mutant | None = None
        self.now: Run | None = None
        self.pid = 0
        self.noticed_by = ""

    def check(self) -> None:
        """Run quick tests without a mutant; end the program where they fail, since then all would seem noticed."""
        self.ready.wait()
        self.ready.run(self.plan.quickest(), None)
        while (ended := self.ready.status()) is None:
            time.sleep(0.02)
        if ended[0] not in PASSED:
            print(f"{self.copy.log()[-3000:]}\nmutants: tests fail without any change", file=sys.stderr)
            sys.exit(2)

    def begin(self, mutant: Mutant) -> None:
        """Make *mutant* the one whose tests `is_alive` runs."""
        self.mutant, self.noticed_by = mutant, ""
        if self.plan.is_quick(mutant):
            self.runs = [Run(True, self.plan.executing(mutant))]
        else:
            self.runs = [Run(False, tests) for tests in self.plan.likely(mutant)]
        self.runs.append(Run(False, sorted(self.plan.learnt.blind)))

    def _start(self, run: Run) -> None:
        assert self.mutant
        self.now = run
        self.changed = self.copy.changed(self.mutant) if run.mutated else contextlib.nullcontext()
        self.changed.__enter__()
        if run.quick:
            self.ready.run(run.tests, self.mutant if run.mutated else None)
        else:
            self.deadline = Deadline(self.plan.learnt.seconds)
            files = sorted({test.partition("::")[0] for test in run.tests})
            only = [Only(run.tests)] if files != run.tests else []
            self.pid = self.copy.run(files, self.deadline, *only)

    def _ended(self, run: Run) -> tuple[int, str] | None:
        if run.quick:
            return self.ready.status()
        status = ended(self.pid, self.deadline)
        return None if status is None else (status, self.deadline.test())

    def is_alive(self) -> bool | None:
        """Whether no test noticed; None while some have not run.

        A test notices if it fails, and passes without the mutant right after: else the machine is to blame, and the
        tests that come after it run as well.
        """
        if self.now:
            run, result = self.now, self._ended(self.now)
            if result is None:
                return None
            self.now, self.pid = None, 0
            self.changed.__exit__(None, None, None)
            if self._has_noticed(run, *result):
                return self._through(alive=False)
        while self.runs:
            run = self.runs.pop(0)
            if run.tests:
                self._start(run)
                return None
        return self._through(alive=True)

    def _has_noticed(self, run: Run, status: int, test: str) -> bool:
        """Whether a run that has ended shows that the mutant is noticed; if not, what is to come stands in `runs`."""
        if status == CANNOT and run.quick:
            self.runs.insert(0, run._replace(quick=False))
        elif not run.mutated:
            if status in PASSED:
                return True
            print(f"mutants: {self.noticed_by} fails without any change as well", file=sys.stderr)
        elif status not in PASSED:
            self.noticed_by = test or "what imports it"
            if not test:
                return True
            self.runs[:0] = [Run(True, [test], mutated=False), run.after(test)]
        return False

    def _through(self, *, alive: bool) -> bool:
        self.mutant = None
        self.copy.tidy()
        return alive

    def end(self) -> None:
        """End all processes."""
        if self.pid:
            end_group(self.pid)
            os.waitpid(self.pid, 0)
        self.ready.end()


def run_all(jobs: list[Job], drawn: list[Mutant]) -> Iterator[tuple[Mutant, str]]:
    """Each of *drawn* with the test that notices it, none if it is alive, as they end."""
    waiting = list(reversed(drawn))
    while waiting or any(job.mutant for job in jobs):
        for job in jobs:
            if job.mutant is None and waiting:
                job.begin(waiting.pop())
            elif job.mutant is not None:
                mutant, alive = job.mutant, job.is_alive()
                if alive is not None:
                    yield mutant, "" if alive else job.noticed_by
        time.sleep(0.02)


class Equivalents:
    """What no test can notice. Entries name a file without its folders, since files move."""

    def __init__(self) -> None:
        entries = tomllib.loads(EQUIVALENT.read_text())["equivalent"]
        for entry in entries:
            if set(entry) != {"file", "line", "change", "why"} or not entry["why"].strip():
                raise SystemExit(f"mutants: {EQUIVALENT.name}: expected file, line, change and why: {entry}")
        self.keys = {(entry["file"], entry["line"], entry["change"]) for entry in entries}

    def __contains__(self, mutant: Mutant) -> bool:
        return (Path(mutant.file).name, mutant.text, mutant.change) in self.keys


def drawn_from(project: Path, folder: Path, seed: int) -> list[Mutant]:
    """All mutants of *folder* of *project*, in the order of *seed*."""
    found: list[tuple[bytes, Mutant]] = []
    for file in sorted((project / folder).rglob("*.py")):
        times: Counter[tuple[str, str, str]] = Counter()
        for mutant in mutants_of(str(file.relative_to(project)), file.read_text()):
            key = (mutant.scope, mutant.text, mutant.change)
            found.append((mutant.rank(seed, times[key]), mutant))
            times[key] += 1
    return [mutant for _, mutant in sorted(found, key=lambda pair: pair[0])]


def draw(project: Path, asked: argparse.Namespace) -> list[Mutant]:
    """The mutants that are asked for."""
    equivalents = Equivalents()
    every = drawn_from(project, asked.folder, asked.seed)
    if asked.equivalent:
        return [mutant for mutant in every if mutant in equivalents]
    if asked.line:
        return [mutant for mutant in every if f"{mutant.file}:{mutant.line}".endswith(asked.line)]
    return [mutant for mutant in every if mutant not in equivalents][: asked.count]


def tests_of(folder: Path) -> list[str]:
    """The folder of tests that mirrors *folder*, or the nearest above it that there is."""
    parts = folder.parts[2:]
    for size in range(len(parts), 0, -1):
        place = Path("tests", *parts[:size])
        if (PROJECT / place).is_dir():
            return [str(place)]
    raise SystemExit(f"mutants: no tests for {folder}; give --tests")


def split_up(tests: list[str]) -> list[str]:
    """The files of tests in *tests*, each once."""
    files: dict[str, None] = {}
    for name in tests:
        place = PROJECT / name
        if not place.exists():
            raise SystemExit(f"mutants: there is no {name}")
        found = sorted(place.rglob("test_*.py")) if place.is_dir() else [place]
        files.update(dict.fromkeys(str(file.relative_to(PROJECT)) for file in found))
    return list(files)


def folder_of(text: str) -> Path:
    """*text* as a folder of sources, relative to the project: ``src/fivefold/survey`` or ``survey``."""
    for place in (Path(text), PROJECT / text, PROJECT / "src" / "fivefold" / text):
        if place.is_dir() and place.resolve().is_relative_to(PROJECT / "src" / "fivefold"):
            return place.resolve().relative_to(PROJECT)
    raise SystemExit(f"mutants: {text} is no folder of src/fivefold")


def options() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=folder_of, help="sources, such as src/fivefold/survey; what lies below counts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, metavar="N", help="how many (default %(default)s)")
    parser.add_argument("--tests", nargs="+", metavar="DIR", help="in place of the folder's tests")
    parser.add_argument("--alone", action="store_true", help="leave tests/cli and tests/report out: more stay alive")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at a time")
    parser.add_argument("--line", metavar="FILE:LINE", help="every mutant of that line, and nothing else")
    parser.add_argument("--verbose", action="store_true", help="tell of each mutant on standard error as it ends")
    parser.add_argument("--equivalent", action="store_true", help="run what is said to be equivalent, and nothing else")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for; return the exit status."""
    asked = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tests = split_up([*(asked.tests or tests_of(asked.folder)), *(() if asked.alone else AFTERWARDS)])
    with tempfile.TemporaryDirectory(prefix="ff-") as place:
        project = Copy(PROJECT, Path(place) / "before").place  # which nobody edits meanwhile
        drawn = draw(project, asked)
        copies = [Copy(project, Path(place) / str(number) / "project") for number in range(max(asked.jobs, 1))]
        for module in ("pytest", "hypothesis", "numpy", "typer", "rich.console", "llvmlite.binding"):
            __import__(module)  # once, and not in every child
        learnt = learn(copies, Kept(project), tests)
        alive = 0
        jobs = [Job(copy, Plan(project, tests, learnt)) for copy in copies]
        try:
            for job in jobs:
                job.check()
            for mutant, by in run_all(jobs, drawn):
                alive += not by
                if asked.verbose:
                    told = f"noticed by {by}" if by else "alive"
                    print(f"{mutant.file}:{mutant.line} {mutant.change}: {told}", file=sys.stderr)
                if not by:
                    print(f"{mutant.file}:{mutant.line} {mutant.change}", flush=True)
        finally:
            for job in jobs:
                job.end()
    print(f"{len(drawn)} mutants, {alive} alive")
    return 1 if alive * 10 > len(drawn) and not asked.equivalent else 0


if __name__ == "__main__":
    sys.exit(main())
