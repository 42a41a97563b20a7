"""How commands end that nobody planned for: errors of our own, signals, control characters in what others say."""

from __future__ import annotations

import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fivefold.cli.printing import CleanText
from fivefold.errors import printable
from fivefold.report.sheet import MARK

Run = Callable[..., Any]

UNFORESEEN = [
    (MemoryError(), "fivefold: out of memory ("),
    (OSError(12, "Cannot allocate memory"), "fivefold: out of memory ("),
    (RecursionError("too\ndeep"), "fivefold: internal error: RecursionError: too deep ("),
    (AttributeError("a\x1b[2Jb"), "fivefold: internal error: AttributeError: a\\x1b[2Jb ("),
    (KeyError(), "fivefold: internal error: KeyError: no message ("),
]


def break_audit(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("fivefold.cli.source_options.SourceChoice.open_space", fail)


@pytest.mark.parametrize(("error", "said"), UNFORESEEN, ids=lambda value: type(value).__name__)
def test_an_unforeseen_error_is_one_line_and_status_3(
    fivefold: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    break_audit(monkeypatch, error)
    done = fivefold("audit", "whatever")
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith(said)
    assert done.err.endswith("; --report FILE writes the trace\n")
    assert done.err.count("\n") == 1


def test_the_trace_is_written_where_it_is_asked_for(
    fivefold: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    break_audit(monkeypatch, LookupError("here"))
    done = fivefold("audit", "whatever", "--report", tmp_path / "trace")
    assert done.status == 3
    assert done.err.endswith(f"; the trace is in {tmp_path / 'trace'}\n")
    trace = (tmp_path / "trace").read_text()
    assert trace.startswith("fivefold ")
    assert "Traceback" in trace
    assert trace.endswith("LookupError: here\n")


def test_a_report_that_cannot_be_written(fivefold: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    break_audit(monkeypatch, LookupError("here"))
    done = fivefold("audit", "whatever", "--report", tmp_path)
    assert done.status == 3
    assert done.err.endswith(f"; and the trace cannot be written to {tmp_path}: Is a directory\n")


def test_a_policy_that_nests_without_end(fivefold: Run, capture: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("a=" + "[" * 1000)
    done = fivefold("audit", capture("plain-la48-kaslr"), "--policy", tmp_path / "p.toml")
    assert (done.status, done.out) == (2, "")
    assert done.err == f"fivefold: {tmp_path}/p.toml nests values too deeply; expected a policy in TOML\n"


STOPPED = """
import os, signal, sys, time
import fivefold.memory.open_source as opened
def stop(*_, **__):
    try:
        os.kill(os.getpid(), {number})
        time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGHUP)  # a second one while the first unwinds
        print("put back")
import fivefold.memory
fivefold.memory.open_source = stop
sys.argv = ["fivefold", "info", "whatever"]
from fivefold.cli.main import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_unwind(number: signal.Signals) -> None:
    code = STOPPED.format(number=int(number))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "put back\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_that_are_ignored_stay_so(number: signal.Signals) -> None:
    code = STOPPED.format(number=int(number))
    code = code.replace("time.sleep(60)", "raise LookupError").replace("os.kill(os.getpid(), signal.SIGHUP)", "pass")
    code = f"import signal; signal.signal({int(number)}, signal.SIG_IGN)\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "LookupError" in done.stderr


def test_names_of_files_do_not_steer_the_terminal(fivefold: Run) -> None:
    done = fivefold("info", "a\x1b]0;x\x07\u202eb\x9b")
    assert done.status == 2
    assert done.err == "fivefold: cannot open a\\x1b]0;x\\x07\\u202eb\\x9b: No such file or directory\n"


def test_what_is_printed_is_clean(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+", encoding="ascii") as file:
        clean = CleanText(file)
        print("a\tb\x1b[31m\x00\x7f\x85 ü \udcff", file=clean, flush=True)
        file.seek(0)
        assert file.read() == "a\tb\\x1b[31m\\x00\\x7f\\x85 \\xfc \\udcff\n"
        clean.detach()


def test_a_terminal_gets_the_colours_of_reports_alone() -> None:
    """Text of a guest may hold codes of colours, too; only what bears the mark of our reports passes."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        clean = CleanText(terminal)
        print(f"{MARK}[1;31mred{MARK}[0m \x1b[31m \x1b[2J \x1b]0;x\x07", file=clean, flush=True)
        told = os.read(ours, 1000)
        clean.detach()
    os.close(ours)
    assert told == b"\x1b[1;31mred\x1b[0m \\x1b[31m \\x1b[2J \\x1b]0;x\\x07\r\n"


def test_plain_text_stays_as_it_is() -> None:
    assert printable("6.1.0-13-amd64 é → ∞") == "6.1.0-13-amd64 é → ∞"


BOMB = """
import sys
import fivefold.cli.info as info
def take(*_, **__):
    kept = []
    while True:
        kept.append(bytearray(1 << 24))
info.info.__globals__["SourceChoice"].open_source = take
sys.argv = ["fivefold", "info", "whatever", *sys.argv[1:]]
from fivefold.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("words", "before", "status", "told"),
    [
        ((), "", 2, "this needs more than 1792M of memory; allow more with --max-memory SIZE\n"),
        (("--max-memory", "512M"), "", 2, "this needs more than 512M of memory; allow more with --max-memory SIZE\n"),
        ((), "resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2)", 3, "out of memory ("),
    ],
    ids=["unless told", "told", "less from outside"],
)
def test_memory_is_bounded(words: tuple[str, ...], before: str, status: int, told: str) -> None:
    code = f"import resource\n{before}\n{BOMB}"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"fivefold: {told}")
    assert done.stderr.count("\n") == 1


def test_the_bound_is_lifted_afterwards(fivefold: Run) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    fivefold("info", "nowhere")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
