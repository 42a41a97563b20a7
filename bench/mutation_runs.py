"""Runs tests against a mutant in a copy of the project, never in the project itself.

A mutant whose change lies in the bodies of functions is put into processes that have collected all tests beforehand:
the functions get the changed code, and the tests begin at once. The changed file lies in the copy as well, for the
processes that tests start. Other mutants, and those that the collection itself executes, get a process that imports the
changed file and collects the tests that are wanted.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import mmap
import os
import resource
import select
import shutil
import signal
import struct
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Final, NoReturn

import pytest

from mutation_sites import Mutant

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
PR_SET_PDEATHSIG: Final = 1
MEMORY: Final = 40 << 30
"""Writable address space of one run: a mutant that asks for all there is fails. Tests start guests of 16 GiB, and each
Unicorn takes one of address space. What a mutant fills is bounded by the system, which ends such a run before others.
"""
FIRST_TO_GO: Final = "1000"
"""For the kernel's choice of a process to end when memory runs out."""
CANNOT: Final = 71
"""Status of a run in which the changed code could not be put in."""
PASSED: Final = (0, 5)
STARTING: Final = 300.0
"""Seconds that the collection of tests may take."""
LEAST_SECONDS: Final = 20.0
SLOWER: Final = 6
"""With a mutant a test may take so many times as long as it does without, and the least."""
NAME: Final = 4000
"""Bytes of the name of a test, at most."""
IN_FUNCTION: Final = 0x2
"""`inspect.CO_NEWLOCALS`: the code of a function, not of a class or a module."""


class Copy:
    """A copy of the project in which tests run in children of this process."""

    def __init__(self, project: Path, place: Path) -> None:
        self.project, self.place = project, place
        shutil.copytree(project, place, ignore=shutil.ignore_patterns(*LEFT_OUT))

    def before(self, file: str) -> str:
        """The text of *file* as it is without a mutant."""
        return (self.project / file).read_text()

    def run(self, tests: Sequence[str], *plugins: object, write_bytecode: bool = False) -> int:
        """Run *tests* in a child and return its process id; it ends with pytest's status."""
        pid = os.fork()
        if pid:
            return pid
        with _ends_process():
            self.enter(write_bytecode)
            _status(pytest.main([*PYTEST, *tests], plugins))
        raise AssertionError

    def enter(self, write_bytecode: bool, dies_by: int = signal.SIGKILL) -> None:
        """Make this process, a child, one of the copy's."""
        _dies_with_parent(dies_by)
        os.chdir(self.place)
        source = str(self.place / "src")
        sys.path.insert(0, source)
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ["FIVEFOLD_CACHE"] = str(self.place.parent / "cache")
        os.environ["PYTEST_DEBUG_TEMPROOT"] = self.own_folder()
        if not write_bytecode:
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = not write_bytecode
        log = os.open(self.place.parent / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)

    def own_folder(self) -> str:
        """A new folder for the temporary files of this process."""
        folder = self.place.parent / f"t{os.getpid()}"  # short: a socket's path has 107 bytes at most
        folder.mkdir()
        return str(folder)

    def log(self) -> str:
        """What the last run printed."""
        return (self.place.parent / "pytest.log").read_text(errors="replace")

    def tidy(self) -> None:
        """Remove the files of tests that have ended."""
        for place in self.place.parent.glob("t[0-9]*"):
            shutil.rmtree(place, ignore_errors=True)

    @contextlib.contextmanager
    def changed(self, mutant: Mutant) -> Iterator[None]:
        """The copy with *mutant* in it. Compiled files are taken by their source's time, which stays what it was."""
        file = self.place / mutant.file
        before, times = file.read_bytes(), file.stat()
        file.write_bytes(mutant.of(before))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 10**10))
        yield
        file.write_bytes(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


class Ready:
    """A process that has collected *tests* in a copy, and from which runs of some of them begin."""

    def __init__(self, copy: Copy, tests: Sequence[str], seconds: dict[str, float]) -> None:
        self.copy = copy
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._requests)
            os.close(self._answers)
            with _ends_process():
                self.copy.enter(write_bytecode=False, dies_by=signal.SIGTERM)
                waiting = _Waiting(self.copy, seconds, requests, answers)
                _status(pytest.main([*PYTEST, "--capture=sys", *tests], [waiting, waiting.deadline]))
        os.close(requests)
        os.close(answers)

    def wait(self) -> None:
        """Return when the tests are collected: no mutant may be put into the copy before."""
        select.select([self._answers], [], [])
        self.status()

    def run(self, tests: Sequence[str], mutant: Mutant | None) -> None:
        """Run *tests*, in that order, with *mutant* in their functions."""
        wanted: dict[str, Any] = {"tests": tests}
        if mutant:
            wanted |= {"file": mutant.file, "new": mutant.of(self.copy.before(mutant.file).encode()).decode()}
        _send(self._requests, json.dumps(wanted))

    def status(self) -> tuple[int, str] | None:
        """The status of the run and the test that began last, None while it goes on."""
        if not select.select([self._answers], [], [], 0)[0]:
            return None
        answer = os.read(self._answers, NAME + 64).decode()
        if not answer:
            os.waitpid(self.pid, 0)
            self.pid = 0
            raise SystemExit(f"mutants: the tests cannot be collected\n{self.copy.log()[-3000:]}")
        status, _, test = answer.rstrip("\n").partition(" ")
        return int(status), test

    def end(self) -> None:
        """End the process, and with it what runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            os.waitpid(self.pid, 0)
            self.pid = 0


class _Waiting:
    """Part of pytest that runs what it is asked for, each time in a child, in place of all that was collected."""

    def __init__(self, copy: Copy, seconds: dict[str, float], requests: int, answers: int) -> None:
        self.copy, self.requests, self.answers = copy, requests, answers
        self.deadline = Deadline(seconds)
        self.child = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        if session.testsfailed:
            return  # and pytest tells what is wrong
        signal.signal(signal.SIGTERM, self._end)
        items = {item.nodeid: item for item in session.items}
        functions = self._functions()
        os.write(self.answers, b"0 \n")
        self.lines = os.fdopen(os.dup(self.requests))  # kept: a file that is dropped unclosed is a failure of a test
        for line in self.lines:
            wanted = json.loads(line)
            self.deadline.put_off(STARTING)
            self.child = os.fork()
            if not self.child:
                self._become_child()
                if "file" in wanted:
                    self._put_in(wanted["file"], wanted["new"], functions)
                session.items = [items[name] for name in wanted["tests"] if name in items]
                return  # and pytest goes on to run these
            while (status := ended(self.child, self.deadline)) is None:
                time.sleep(0.005)
            os.write(self.answers, f"{status} {self.deadline.test()}\n".encode())
        os._exit(0)

    def _become_child(self) -> None:
        _dies_with_parent()
        os.environ["PYTEST_DEBUG_TEMPROOT"] = self.copy.own_folder()
        os.close(self.requests)
        os.close(self.answers)

    def _end(self, *_: object) -> NoReturn:
        if self.child:
            end_group(self.child)
        os._exit(0)

    def _functions(self) -> dict[str, list[FunctionType]]:
        found = defaultdict(list)
        ours = f"{self.copy.place}{os.sep}"
        for each in gc.get_objects():
            if isinstance(each, FunctionType) and each.__code__.co_filename.startswith(ours):
                found[each.__code__.co_filename].append(each)
        return found

    def _put_in(self, file: str, new: str, functions: dict[str, list[FunctionType]]) -> None:
        name = str(self.copy.place / file)
        for old, code in changes(self.copy.before(file), new, name) or []:
            for function in functions[name]:
                if function.__code__ == old and function.__code__.co_qualname == old.co_qualname:
                    try:
                        function.__code__ = code
                    except ValueError:  # other variables of the outer function are used than before
                        os._exit(CANNOT)


def changes(before: str, new: str, name: str) -> list[tuple[CodeType, CodeType]] | None:
    """The code of each function of *before* that is another in *new*; None if the module or a class is, too."""
    found: list[tuple[CodeType, CodeType]] = []
    whole = [compile(source, name, "exec", dont_inherit=True) for source in (before, new)]
    return None if _differs(*whole, found) is None else found


def _differs(old: CodeType, new: CodeType, found: list[tuple[CodeType, CodeType]]) -> bool | None:
    """Whether *new* is another than *old*, itself or inside; None if that of a class or module itself is."""
    inner = [[each for each in code.co_consts if isinstance(each, CodeType)] for code in (old, new)]
    differs = _own(old) != _own(new) or len(inner[0]) != len(inner[1])
    is_function = bool(old.co_flags & IN_FUNCTION)
    if differs and not is_function:
        return None
    for pair in zip(*inner, strict=False):
        inside = _differs(*pair, found)
        if inside is None:
            return None
        differs |= inside
    if differs and is_function:
        found.append((old, new))
    return differs


def _own(code: CodeType) -> tuple[object, ...]:
    """What *code* is, without the functions in it and without the lines that it stands on."""
    consts = tuple((type(each), each) for each in code.co_consts if not isinstance(each, CodeType))
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, consts, names, code.co_flags, code.co_argcount, code.co_exceptiontable


class Deadline:
    """Which of a child's tests runs, and until when it may: set by the child, looked at by its parent."""

    def __init__(self, normal: dict[str, float], seconds: float = STARTING) -> None:
        """*normal* is what each test takes without a mutant; the first begins after *seconds*, or before."""
        self.normal = normal
        self.shared = mmap.mmap(-1, 8 + NAME)
        self.put_off(seconds)

    def put_off(self, seconds: float) -> None:
        """Begin anew: no test runs, and from now on it is *seconds*."""
        self._set(seconds, "")

    def _set(self, seconds: float, test: str) -> None:
        self.shared[:] = struct.pack(f"d{NAME}s", time.monotonic() + seconds, test.encode())

    def test(self) -> str:
        """The test that began last; none while tests are collected."""
        return bytes(self.shared[8:]).rstrip(b"\0").decode(errors="replace")

    def is_over(self) -> bool:
        """Whether what runs now has taken too long."""
        return time.monotonic() > float(struct.unpack_from("d", self.shared)[0])

    def pytest_runtest_protocol(self, item: Any) -> None:
        self._set(LEAST_SECONDS + SLOWER * self.normal.get(item.nodeid, LEAST_SECONDS), item.nodeid)


def ended(pid: int, deadline: Deadline) -> int | None:
    """The status of child *pid*, None while it runs; what takes too long is ended, and has failed."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        end_group(pid)  # what it started leads no further than its group
        return os.waitstatus_to_exitcode(status)
    if deadline.is_over():
        end_group(pid)
        os.waitpid(pid, 0)
        return -signal.SIGKILL
    return None


def end_group(pid: int) -> None:
    """End what belongs to child *pid*, if there is anything."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


class Only:
    """Part of pytest: the tests that are wanted, in that order."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self.place = {name: place for place, name in enumerate(wanted)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        wanted = [item for item in items if item.nodeid in self.place]
        items[:] = sorted(wanted, key=lambda item: self.place[item.nodeid])


def _dies_with_parent(by: int = signal.SIGKILL) -> None:
    os.setsid()
    _libc().prctl(PR_SET_PDEATHSIG, by)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _send(pipe: int, text: str) -> None:
    data = f"{text}\n".encode()
    while data:
        data = data[os.write(pipe, data) :]


class _Status(BaseException):
    pass


def _status(code: int) -> None:
    raise _Status(int(code))


@contextlib.contextmanager
def _ends_process() -> Iterator[None]:
    """Whatever happens, this process, a child, goes no further; its status is that of `_status`."""
    code = 70
    try:
        yield
    except _Status as status:
        code = status.args[0]
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
