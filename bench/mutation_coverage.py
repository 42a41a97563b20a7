"""Which test executes which line of the sources, and how long it takes: by that `mutants.py` chooses and orders tests.

It is learnt once for each file of tests and kept in the user's cache, under ``fivefold-mutants``, until that file, data
that it opens or a source that it executes changes. Python processes that a test starts count like the test itself.
What a test takes ready from a cache or from a fixture of others counts as its own: caches are emptied before each test,
and the lines of a wider fixture belong to every test that asks for it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import itertools
import json
import os
import shutil
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import coverage
import pytest

import mutation_trace
from mutation_trace import NOTES_VARIABLE, SOURCES_VARIABLE, TEST_VARIABLE

SOURCES: Final = "src/fivefold"
COLLECTING: Final = ""
"""Stands in a test's place for what runs while tests are collected."""
FIXTURE: Final = "fixture:"
ANY_LINE: Final = 0

Lines = dict[str, int]
"""For each source, a number with bit N set where line N is executed."""


class Learnt:
    """What the tests execute, and how long each takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, Lines] = {}
        self.blind: set[str] = set()
        """Files of tests of which nothing is known: they fail when they are traced, and pass when they are not."""

    def add(self, entry: dict[str, Any]) -> None:
        """Take what one file of tests showed."""
        for test, (seconds, lines) in entry["tests"].items():
            self.seconds[test] = self.seconds.get(test, 0.0) + seconds
            mine = self.lines.setdefault(test, {})
            for file, bits in lines.items():
                mine[file] = mine.get(file, 0) | int(bits, 16)

    def executing(self, file: str, lines: range) -> set[str]:
        """The tests that execute one of *lines* of *file*; the empty name stands for the collection of tests."""
        wanted = sum(1 << line for line in lines) | 1 << ANY_LINE
        return {test for test, known in self.lines.items() if known.get(file, 0) & wanted}

    def touching(self, files: Iterable[str]) -> set[str]:
        """The tests that execute anything of *files* after they were collected."""
        several = tuple(files)
        loaded = self.lines.get(COLLECTING, {})
        return {
            test
            for test, known in self.lines.items()
            if test != COLLECTING and any(known.get(file, 0) & ~loaded.get(file, 0) for file in several)
        }


class Watch:
    """Part of pytest while nothing is changed: notes for each test what it executes of the sources of *project*."""

    def __init__(self, project: Path, into: Path) -> None:
        self.project, self.into = project, into
        self.notes = project.parent / "notes"
        self.asked_for: dict[str, set[str]] = {}
        self.unseen: dict[str, set[str]] = defaultdict(set)
        self.seconds: Counter[str] = Counter()
        self.caches: list[Any] = []
        self.now = COLLECTING
        place = project.parent / "in_children"
        place.mkdir(exist_ok=True)
        shutil.copy(mutation_trace.__file__, place / "sitecustomize.py")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(place), os.environ["PYTHONPATH"]])
        os.environ[NOTES_VARIABLE] = str(self.notes)
        os.environ[SOURCES_VARIABLE] = str(project / SOURCES)
        self.notes.write_text("")
        self.opened: set[str] = set()
        sys.addaudithook(self._audit)
        self.coverage = coverage.Coverage(
            data_file=None, include=[f"{project / SOURCES}/*"], config_file=False, messages=False
        )
        self.coverage.start()
        self._enter(COLLECTING)

    def _enter(self, context: str) -> None:
        """What is executed from now on belongs to *context*."""
        self.now = context
        self.coverage.switch_context(context)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir"):
            self._open(arguments[0])
        elif event == "subprocess.Popen" and isinstance(arguments[1], list):
            for word in arguments[1]:
                self._open(word)
            if "-I" in arguments[1]:
                self._isolated(arguments[1])

    def _open(self, name: object) -> None:
        """Data beside the tests, and folders that they look into, belong to what they depend on."""
        path = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else ""
        if path.startswith(f"{self.project / 'tests'}{os.sep}") and "__pycache__" not in path:
            self.opened.add(path)

    def _isolated(self, command: list[Any]) -> None:
        """A source that is run as a program of its own, isolated, cannot be traced: any of its lines may count."""
        for word in map(str, command):
            if word.startswith(str(self.project / SOURCES)):
                self.unseen[self.now].add(word)

    def pytest_collection_finish(self, session: Any) -> None:
        for file in (self.project / SOURCES).rglob("*.py"):  # else the test that comes first would import it
            parts = file.relative_to(self.project / "src").with_suffix("").parts
            if parts[-1] != "__main__" and "payload" not in parts:
                with contextlib.suppress(ImportError):
                    importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        ours = f"{self.project}{os.sep}"
        for module in list(sys.modules.values()):
            if not (getattr(module, "__file__", None) or "").startswith(ours):
                continue
            self.caches += [each for each in vars(module).values() if isinstance(each, functools._lru_cache_wrapper)]

    def pytest_runtest_protocol(self, item: Any) -> None:
        for each in self.caches:
            each.cache_clear()
        self._enter(item.nodeid)
        self.asked_for[item.nodeid] = set(item.fixturenames)
        os.environ[TEST_VARIABLE] = item.nodeid

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[Any]:
        """What a fixture of several tests executes belongs to each of them."""
        if fixturedef.scope == "function":
            return (yield)
        before = self.now
        self._enter(f"{FIXTURE}{fixturedef.argname}")
        try:
            return (yield)
        finally:
            self._enter(before)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        tests: dict[str, tuple[float, Lines]] = {
            test: (self.seconds[test], {}) for test in [*self.asked_for, COLLECTING]
        }
        data = self.coverage.get_data()
        for file in data.measured_files():
            for line, contexts in data.contexts_by_lineno(file).items():
                for test in self._tests(contexts):
                    self._add(tests, test, file, line)
        for context, files in self.unseen.items():
            for test, file in itertools.product(self._tests([context]), files):
                self._add(tests, test, file, ANY_LINE)
        for note in self.notes.read_text(errors="replace").splitlines():
            test, _, rest = note.partition("\t")
            file, _, number = rest.rpartition("\t")
            if test in tests and number.isdigit():
                self._add(tests, test, file, int(number))
        loaded = self._loaded(tests)
        told = {
            test: (seconds, {file: f"{bits:x}" for file, bits in lines.items() if file in loaded})
            for test, (seconds, lines) in tests.items()
        }
        self.into.write_text(json.dumps({"tests": told, "loaded": loaded}))

    def _tests(self, contexts: Iterable[str]) -> set[str]:
        """The tests that *contexts* are or that ask for the fixtures that they are."""
        found = {context for context in contexts if not context.startswith(FIXTURE)}
        fixtures = (
            {context.removeprefix(FIXTURE) for context in contexts} if len(found) < len(list(contexts)) else set()
        )
        return found | {test for test, names in self.asked_for.items() if names & fixtures}

    def _add(self, tests: dict[str, tuple[float, Lines]], test: str, file: str, line: int) -> None:
        name = os.path.relpath(file, self.project)
        into = tests[test][1]
        into[name] = into.get(name, 0) | 1 << line

    def _loaded(self, tests: dict[str, tuple[float, Lines]]) -> list[str]:
        """What the tests execute, but for what only an import does, and all that is imported of the tests."""
        files = {file for test, (_, lines) in tests.items() if test != COLLECTING for file in lines}
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None) or ""
            if file.startswith(f"{self.project / 'tests'}{os.sep}"):
                files.add(os.path.relpath(file, self.project))
        return sorted(files | {os.path.relpath(file, self.project) for file in self.opened})


class Kept:
    """The user's cache: what files of tests showed, as long as all that they loaded is the same."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fivefold-mutants"
        self.of_file = cache(self._of_file)

    def get(self, tests: str) -> dict[str, Any] | None:
        """What is known of the file *tests*."""
        try:
            entry = json.loads(zlib.decompress(self._name(tests).read_bytes()))
        except (OSError, ValueError, zlib.error):
            return None
        known = all(self.of_file(file) == digest for file, digest in entry["files"].items())
        return entry if known else None

    def entry(self, written: Path) -> dict[str, Any]:
        """What `Watch` has written."""
        return dict(json.loads(written.read_text()))

    def put(self, tests: str, entry: dict[str, Any]) -> None:
        """Keep *entry* for the file *tests*."""
        entry["files"] = {file: self.of_file(file) for file in {*entry.pop("loaded"), tests}}
        self.place.mkdir(parents=True, exist_ok=True)
        name = self._name(tests)
        unfinished = name.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(zlib.compress(json.dumps(entry).encode()))
        unfinished.replace(name)

    def _name(self, tests: str) -> Path:
        ours = [self._of_path(Path(file)) for file in (__file__, mutation_trace.__file__)]
        engines = [os.environ.get(name, "") for name in ("FIVEFOLD_BOCHS", "FIVEFOLD_QEMU", "PATH")]
        parts = (tests, sys.version, ours, engines)
        return self.place / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.json.z"

    def _of_file(self, name: str) -> str:
        return self._of_path(self.project / name)

    def _of_path(self, file: Path) -> str:
        if file.is_dir():
            names = sorted(each.name for each in file.iterdir() if each.suffix != ".py" and each.name != "__pycache__")
            return hashlib.sha256("\n".join(names).encode()).hexdigest()
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "none"
