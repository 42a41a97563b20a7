"""An object made by another process is the one that this process would make, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fivefold.errors import CompileError
from fivefold.metal.emit import worker
from fivefold.metal.emit.objects import compile_object
from fivefold.metal.program import Program

SOURCE = """
state: u64 = 7

@export
def f(a: u64) -> u64:
    return a * state
"""


@pytest.fixture(scope="module")
def program(make_module: Callable[[str], str]) -> Program:
    """A program with a binding, so that all of it must arrive."""
    name = make_module(SOURCE)
    return Program((name,), bindings={f"{name}.state": 9})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that are started, as if there were two processors, one of them free."""
    found = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            found.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.0, 0.0))
    return found


def here(*_: object) -> bytes:
    raise AssertionError("compiled in this process")


def test_same_object(program: Program, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    want = compile_object(program, prefix="p_")
    monkeypatch.setattr(worker, "_compile", here)
    with worker.compiling(program, "p_") as other:
        assert want == other()

    assert [process.returncode for process in started] == [0]


@pytest.mark.parametrize(("processors", "load"), [({0}, 0.5), ({0, 1}, 2.0)])
def test_without_a_free_processor(
    program: Program,
    started: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    processors: set[int],
    load: float,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: processors)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    with worker.compiling(program) as other:
        assert compile_object(program) == other()

    assert started == []


@pytest.mark.parametrize("executable", ["/bin/false", "/nowhere/python"])
def test_without_the_process(
    program: Program,
    started: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    executable: str,
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with worker.compiling(program) as other:
        assert compile_object(program) == other()


def test_refusal_is_raised_here(make_module: Callable[[str], str], started: list[subprocess.Popen[bytes]]) -> None:
    name = make_module("@export\ndef f(a: u64) -> u64:\n    return a / 2\n")
    with pytest.raises(CompileError, match=r"the operator /; write //$"), worker.compiling(Program((name,))) as other:
        other()


def test_no_process_is_left(program: Program, started: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(KeyboardInterrupt), worker.compiling(program):
        raise KeyboardInterrupt

    assert [process.returncode for process in started] == [-9]


@pytest.mark.parametrize(
    "planted", ["json.py", "ctypes.py", "fivefold/__init__.py", "numpy/__init__.py", "llvmlite.py"]
)
def test_nothing_of_the_current_directory_is_run(
    program: Program,
    started: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    planted: str,
) -> None:
    """Also where it is on the path of this process, as with `python -c`, and where the environment names it."""
    (tmp_path / planted).parent.mkdir(exist_ok=True)
    (tmp_path / planted).write_text(f"open({str(tmp_path / 'RAN')!r}, 'w'); raise ImportError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", ".", str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", planted)
    want = compile_object(program)
    monkeypatch.setattr(worker, "_compile", here)
    with worker.compiling(program) as other:
        assert other() == want
    assert not (tmp_path / "RAN").exists()


def test_what_is_printed_beside_the_object_is_not_linked(
    program: Program, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_CODE", f"print('hello', flush=True)\n{worker._CODE}")
    with worker.compiling(program) as other:
        assert other() == compile_object(program)


PARENT = """
import os, time
from fivefold.metal.emit import worker
from fivefold.metal.program import Program

worker._CODE = worker._CODE.replace("serve(parent", SLOW + "serve(parent")
print(worker._start(Program(("x",)), "").pid, flush=True)
time.sleep(2)
os.kill(os.getpid(), 9)
"""
SLOW = """
import fivefold.metal.emit.worker as worker, time
worker._compile = lambda *_, **__: time.sleep(60)
"""


def test_the_process_ends_with_its_parent() -> None:
    """Also where the parent is killed and cannot end it."""
    code = PARENT.replace("SLOW", repr(SLOW))
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=40)
    stat = Path("/proc", done.stdout.strip(), "stat")
    until = time.monotonic() + 20
    with suppress(FileNotFoundError, ProcessLookupError):  # it is gone
        while stat.read_text().rpartition(") ")[2][0] != "Z":
            assert time.monotonic() < until
            time.sleep(0.05)
