"""Notes the lines of sources that a process executes: the `sitecustomize` of Python processes that tests start.

Each line is written when it is first executed, since such processes are killed, too; mutation_coverage.py reads them.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any, Final

TEST_VARIABLE: Final = "MUTANTS_TEST"
SOURCES_VARIABLE: Final = "MUTANTS_SOURCES"
NOTES_VARIABLE: Final = "MUTANTS_NOTES"
ENOUGH: Final = 60
"""After so many lines of one function all its lines count as executed, and it is traced no more."""

Note = Callable[[str, int], None]


class Tracer:
    """Calls *note* with file and line for what is executed below the folder *sources*."""

    def __init__(self, sources: str, note: Note) -> None:
        self.sources, self.note = sources + os.sep, note
        self.inside: dict[str, bool] = {}
        self.codes: dict[int, CodeType] = {}
        self.done: set[int] = set()
        self.times: dict[int, int] = {}

    def begin(self) -> None:
        """Trace this thread and those that it starts."""
        threading.settrace(self.call)
        sys.settrace(self.call)

    def call(self, frame: Any, _: str, __: object) -> Any:
        """Decide whether the lines of a call are of interest."""
        code = frame.f_code
        inside = self.inside.get(code.co_filename)
        if inside is None:
            inside = self.inside[code.co_filename] = code.co_filename.startswith(self.sources)
        if not inside or id(code) in self.done:
            return None
        return self.line(frame, _, __)

    def line(self, frame: Any, _: str, __: object) -> Any:
        """Note one line."""
        code = frame.f_code
        which = id(code)
        times = self.times.get(which, 0)
        self.times[which] = times + 1
        if not times:
            self.codes[which] = code  # which keeps its id its own
        self.note(code.co_filename, frame.f_lineno)
        if times < ENOUGH:
            return self.line
        for line in _lines(code):
            self.note(code.co_filename, line)
        self.done.add(which)
        frame.f_trace_lines = False
        return None


def _lines(code: CodeType) -> Iterable[int]:
    return {line for _, _, line in code.co_lines() if line is not None}


def _begin() -> None:
    """In a process that a test has started: append what is executed to the file that the environment names."""
    test, notes = os.environ.get(TEST_VARIABLE), os.environ.get(NOTES_VARIABLE)
    if not test or not notes:
        return
    into = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    seen: set[tuple[str, int]] = set()

    def note(file: str, line: int) -> None:
        if (file, line) not in seen:
            seen.add((file, line))
            try:
                os.write(into, f"{test}\t{file}\t{line}\n".encode())
            except OSError:
                sys.settrace(None)  # the process has closed what it did not know

    Tracer(os.environ[SOURCES_VARIABLE], note).begin()


if __name__ == "sitecustomize":
    _begin()
