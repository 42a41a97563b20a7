"""Change one token of a folder's sources at a time, and tell the changes that no test notices.

    python bench/mutants.py src/fivefold/survey --seed 1 --count 100

Each mutant is put into a copy of the project (the tree itself is never touched), where the tests of the folder run, and
then tests/cli and tests/report, until one fails; `--tests` names others in place of the folder's. Tests that were seen
to call the changed function come first, quick ones before slow ones. Too much time counts as noticed, and so does a
module that cannot be imported.

The same seed draws the same mutants as long as their lines stay as they are. What no test can notice because it changes
nothing stands in mutants_equivalent.toml with the reason, and is neither drawn nor counted; `--equivalent` runs exactly
those, to see whether a test notices one after all. The exit status is 1 if more than one in ten is alive, 2 if the
tests fail without any change.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

from mutation_sites import Mutant, mutants_of

PROJECT: Final = Path(__file__).parents[1]
EQUIVALENT: Final = Path(__file__).with_name("mutants_equivalent.toml")
AFTERWARDS: Final = ("tests/cli", "tests/report")
LEFT_OUT: Final = (".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__")
PYTEST: Final = [
    "-x",
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
]
LEAST_SECONDS: Final = 60.0
SLOWER: Final = 4
"""A mutant may take so many times as long as the tests do without it."""
PR_SET_PDEATHSIG: Final = 1
MEMORY: Final = 8 << 30
"""Address space of one run: a mutant that asks for all there is fails, and takes nothing down with it."""


class Learnt:
    """What the run without a mutant showed: which tests call what, and how long each takes."""

    def __init__(self) -> None:
        self.callers: dict[str, set[str]] = defaultdict(set)
        self.seconds: dict[str, float] = {}

    def likely(self, mutant: Mutant) -> set[str]:
        """The tests that call the function that *mutant* is in; those of the file where it is in none."""
        scope = mutant.scope
        while scope and f"{mutant.file}:{scope}" not in self.callers:
            scope = scope.rpartition(".")[0]
        if scope:
            return self.callers[f"{mutant.file}:{scope}"]
        return set().union(*(tests for key, tests in self.callers.items() if key.startswith(f"{mutant.file}:")))


class Watch:
    """Part of pytest while nothing is changed: notes for each test what it calls of *folder*."""

    def __init__(self, folder: Path, into: Path) -> None:
        self.folder, self.into = f"{folder}{os.sep}", into
        self.seen: dict[str, set[str]] = {}
        self.seconds: Counter[str] = Counter()
        self.names: dict[Any, str] = {}

    def pytest_runtest_protocol(self, item: Any) -> None:
        called = self.seen.setdefault(item.nodeid, set())
        names, folder = self.names, self.folder

        def note(frame: Any, event: str, _: object) -> None:
            if event == "call":
                code = frame.f_code
                if code not in names:
                    inside = code.co_filename.startswith(folder)
                    names[code] = f"{code.co_filename}:{code.co_qualname}" if inside else ""
                if names[code]:
                    called.add(names[code])

        sys.setprofile(note)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.when == "teardown":
            sys.setprofile(None)

    def pytest_sessionfinish(self) -> None:
        lines = ["\t".join([test, f"{self.seconds[test]:.4f}", *sorted(called)]) for test, called in self.seen.items()]
        self.into.write_text("\n".join(lines))


class Only:
    """Part of pytest with a mutant: the likely tests, quick ones before slow ones, or all the others."""

    def __init__(self, learnt: Learnt, likely: set[str], wanted: bool) -> None:
        self.seconds, self.likely, self.wanted = learnt.seconds, likely, wanted

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if (item.nodeid in self.likely) == self.wanted]
        if self.wanted:
            items.sort(key=lambda item: self.seconds.get(item.nodeid, 0))


class Copy:
    """A copy of the project in which tests run in children of this process."""

    def __init__(self, place: Path) -> None:
        self.place = place
        shutil.copytree(PROJECT, place, ignore=shutil.ignore_patterns(*LEFT_OUT))

    def start(self, tests: list[str], plugin: object, write_bytecode: bool) -> int:
        """Run *tests* in a child and return its process id; it ends with pytest's status."""
        pid = os.fork()
        if pid:
            return pid
        status = 70
        try:
            os.setsid()
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            self._enter(write_bytecode)
            import pytest

            status = int(pytest.main([*PYTEST, *tests], [plugin]))
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _enter(self, write_bytecode: bool) -> None:
        os.chdir(self.place)
        source = str(self.place / "src")
        sys.path.insert(0, source)
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ["FIVEFOLD_CACHE"] = str(self.place.parent / "cache")
        if not write_bytecode:
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = not write_bytecode
        log = os.open(self.place / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)

    @contextlib.contextmanager
    def changed(self, mutant: Mutant) -> Iterator[None]:
        """The copy with *mutant* in it."""
        file = self.place / mutant.file
        before = file.read_bytes()
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            compiled.unlink()  # a change of the same length in the same second would not be seen
        file.write_bytes(before[: mutant.start] + mutant.new.encode() + before[mutant.end :])
        yield
        file.write_bytes(before)


def _ended(pid: int, until: float) -> int | None:
    """The status of child *pid*, None while it runs; what takes longer than *until* is ended, and has failed."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        with contextlib.suppress(ProcessLookupError):  # what it started leads no further than its group
            os.killpg(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(status)
    if time.monotonic() > until:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return -signal.SIGKILL
    return None


def learn(copies: list[Copy], folder: Path, tests: list[str]) -> Learnt:
    """Run *tests* without a mutant. Ends the program where they fail."""
    learnt = Learnt()
    waiting, running = list(tests), {}
    free = list(copies)
    while waiting or running:
        while waiting and free:
            copy, each = free.pop(), waiting.pop(0)
            into = copy.place / "learnt"
            pid = copy.start([each], Watch(copy.place / folder, into), write_bytecode=True)
            running[pid] = (copy, each, into)
        for pid, (copy, each, into) in list(running.items()):
            status = _ended(pid, float("inf"))
            if status is None:
                continue
            if status not in (0, 5):
                print((copy.place / "pytest.log").read_text()[-3000:], file=sys.stderr)
                print(f"mutants: {each} fails without any change", file=sys.stderr)
                sys.exit(2)
            _take(learnt, into.read_text(), copy.place)
            free.append(copy)
            del running[pid]
        time.sleep(0.02)
    return learnt


def _take(learnt: Learnt, text: str, place: Path) -> None:
    for line in filter(None, text.split("\n")):
        test, seconds, *called = line.split("\t")
        learnt.seconds[test] = float(seconds)
        for name in called:
            file, _, scope = name.rpartition(":")
            key = f"{Path(file).relative_to(place)}:{scope.replace('<locals>.', '')}"
            learnt.callers[key].add(test)


class Job:
    """Runs one mutant after the other in one copy."""

    def __init__(self, copy: Copy, tests: list[str], learnt: Learnt) -> None:
        self.copy, self.tests, self.learnt = copy, tests, learnt
        self.limit = max(LEAST_SECONDS, SLOWER * sum(learnt.seconds.values()))
        self.mutant: Mutant | None = None

    def begin(self, mutant: Mutant) -> None:
        """Put *mutant* in and start its likely tests, or all where none is known."""
        self.mutant, self.changed = mutant, self.copy.changed(mutant)
        self.changed.__enter__()
        self.likely = self.learnt.likely(mutant)
        self.others_to_come = bool(self.likely)
        self._start(sorted({test.partition("::")[0] for test in self.likely}) if self.likely else self.tests)

    def _start(self, tests: list[str]) -> None:
        only = Only(self.learnt, self.likely, wanted=self.others_to_come)
        self.pid = self.copy.start(tests, only, write_bytecode=False)
        self.until = time.monotonic() + self.limit

    def is_alive(self) -> bool | None:
        """Whether no test noticed; None while some have not run."""
        status = _ended(self.pid, self.until)
        if status is None:
            return None
        passed = status in (0, 5)
        if passed and self.others_to_come:
            self.others_to_come = False
            self._start(self.tests)
            return None
        self.changed.__exit__(None, None, None)
        self.mutant = None
        return passed


def run_all(jobs: list[Job], drawn: list[Mutant]) -> Iterator[tuple[Mutant, bool]]:
    """Each of *drawn* with whether it is alive, as they end."""
    waiting = list(reversed(drawn))
    while waiting or any(job.mutant for job in jobs):
        for job in jobs:
            if job.mutant is None and waiting:
                job.begin(waiting.pop())
            elif job.mutant is not None:
                mutant, alive = job.mutant, job.is_alive()
                if alive is not None:
                    yield mutant, alive
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


def drawn_from(folder: Path, seed: int) -> list[Mutant]:
    """All mutants of *folder*, in the order of *seed*."""
    found: list[tuple[bytes, Mutant]] = []
    for file in sorted((PROJECT / folder).rglob("*.py")):
        times: Counter[tuple[str, str, str]] = Counter()
        for mutant in mutants_of(str(file.relative_to(PROJECT)), file.read_text()):
            key = (mutant.scope, mutant.text, mutant.change)
            found.append((mutant.rank(seed, times[key]), mutant))
            times[key] += 1
    return [mutant for _, mutant in sorted(found, key=lambda pair: pair[0])]


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
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at a time")
    parser.add_argument("--equivalent", action="store_true", help="run what is said to be equivalent, and nothing else")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for; return the exit status."""
    asked = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    equivalents = Equivalents()
    every = [mutant for mutant in drawn_from(asked.folder, asked.seed) if (mutant in equivalents) == asked.equivalent]
    drawn = every if asked.equivalent else every[: asked.count]
    tests = split_up([*(asked.tests or tests_of(asked.folder)), *AFTERWARDS])
    with tempfile.TemporaryDirectory(prefix="fivefold-mutants-") as place:
        copies = [Copy(Path(place) / f"copy{number}" / "project") for number in range(max(asked.jobs, 1))]
        for module in ("pytest", "hypothesis", "numpy", "typer", "rich.console", "llvmlite.binding"):
            __import__(module)  # once, and not in every child
        learnt = learn(copies, asked.folder, tests)
        alive = 0
        jobs = [Job(copy, tests, learnt) for copy in copies]
        try:
            for mutant, lives in run_all(jobs, drawn):
                alive += lives
                if lives:
                    print(f"{mutant.file}:{mutant.line} {mutant.change}", flush=True)
        finally:
            for job in jobs:
                if job.mutant is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(job.pid, signal.SIGKILL)
    print(f"{len(drawn)} mutants, {alive} alive")
    return 1 if alive * 10 > len(drawn) and not asked.equivalent else 0


if __name__ == "__main__":
    sys.exit(main())
