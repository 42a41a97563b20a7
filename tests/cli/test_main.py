"""The command line as a whole: the table of commands, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from fivefold.cli.main import COMMANDS, main


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
