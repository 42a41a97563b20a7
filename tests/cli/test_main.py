"""The command line as a whole: the table of commands, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

from fivefold.cli.commands import COMMANDS
from fivefold.cli.main import main


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_a_documented_function_of_its_name(name: str) -> None:
    command = getattr(import_module(f"fivefold.cli.{name}"), name)

    assert command.__doc__


@pytest.mark.parametrize("arguments", [["nope"], ["boot", "--cpu", "mips"], ["boot", "--memory", "lots"]])
def test_a_wrong_call_is_one_line_and_status_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fivefold", *arguments])

    with pytest.raises(SystemExit) as stopped:
        main()

    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.out == ""
    assert said.err.startswith("fivefold: ")
    assert said.err.count("\n") == 1


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fivefold", "--version"])

    with pytest.raises(SystemExit) as stopped:
        main()

    assert (stopped.value.code, capsys.readouterr().out) == (0, f"fivefold {metadata.version('fivefold')}\n")


def test_a_choice_that_is_none_is_told_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fivefold", "boot", "--layout", "mips"])

    with pytest.raises(SystemExit):
        main()

    said = "fivefold: Invalid value for '--layout': 'mips' is not one of 'linux', 'proposal'.\n"
    assert capsys.readouterr().err == said


def test_no_command_shows_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fivefold"])

    with pytest.raises(SystemExit):
        main()

    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['fivefold', '--help']\n"
        "from fivefold.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'llvmlite', 'unicorn', 'elftools', 'capstone'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.splitlines()[-1] == "[]"


INTERRUPT = """
import atexit, os, signal, sys

class Wrapped:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGINT)

class Finder:
    @staticmethod
    def find_spec(name, *_):
        if name == "{at}":
            os.kill(os.getpid(), signal.SIGINT)
        if name + " in a class" == "{at}":
            type("Owner", (), dict(member=Wrapped()))

sys.meta_path.insert(0, Finder)
if "{at}" == "exit":
    atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["fivefold", "boot", "--memory", "1K"]
from fivefold.cli.main import main
main()
"""


@pytest.mark.parametrize(
    "at", ["typer", "fivefold.cli.boot", "fivefold.boot", "fivefold.boot in a class", "fivefold.machine", "exit"]
)
def test_ctrl_c_is_status_130_without_a_traceback(at: str) -> None:
    """While the command line is built, in a command, where Python makes another error of it, and at the end."""
    done = subprocess.run([sys.executable, "-c", INTERRUPT.format(at=at)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")
    said = done.stderr.strip()
    assert said.startswith("fivefold: too little memory: ") if at == "exit" else said == ""


def test_ctrl_c_stays_ignored_where_it_was() -> None:
    """As behind `nohup`, or in the background of a script."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + INTERRUPT.format(at="fivefold.boot")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("fivefold: too little memory")


def test_a_module_of_the_current_directory_is_not_run(tmp_path: Path) -> None:
    """Python puts it first for ``-m``."""
    (tmp_path / "typing_extensions.py").write_text("open('RAN', 'w')")
    (tmp_path / "numpy.py").write_text("open('RAN', 'w')")
    words = [sys.executable, "-m", "fivefold", "layout", "--linux", "6.1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.stderr, (tmp_path / "RAN").exists()) == ("", False)
