"""What the README shows is what the commands print."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fivefold.boot import BootOptions, boot
from fivefold.cli.main import main
from fivefold.report.text.boot import print_boot

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block_after(line: str) -> list[str]:
    """The fenced block that follows *line* of the README."""
    rest = README[README.index(line) + len(line) :]
    return rest.split("```\n")[1].splitlines()


def without_time(lines: list[str]) -> list[str]:
    """Drop the rows that another run, or another compiler, changes."""
    return [line.rstrip() for line in lines if not line.startswith(("time ", "instructions "))]


def test_boot_is_what_the_readme_shows() -> None:
    out = io.StringIO()
    print_boot(boot(options=BootOptions()), Console(file=out, width=160, highlight=False))

    assert without_time(block_after(".venv/bin/fivefold boot\n")) == without_time(out.getvalue().splitlines())


@pytest.mark.parametrize("line", [line for line in README.splitlines() if line.startswith("$ fivefold ")])
def test_other_commands_print_what_the_readme_shows(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line for line and in this order, whatever is left out where it says so."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", line.removeprefix("$ ").split())
    with pytest.raises(SystemExit) as ended:
        main()
    printed = [told.rstrip() for told in capsys.readouterr().out.splitlines()]
    rest = README[README.index(line + "\n") + len(line) + 1 :]
    shown = rest[: re.search(r"^(\$ |```)", rest, re.MULTILINE).start()].splitlines()
    left = iter(printed)
    assert ended.value.code == 0
    assert [told for told in shown if told != "…" and told not in left] == []
    assert "…" in shown or [told for told in printed if told] == [told for told in shown if told]


def test_both_commands_are_single_lines() -> None:
    commands = [line for line in README.splitlines() if line.startswith("    python3 -m venv")]

    assert len(commands) == 2
    assert commands[0].endswith("fivefold boot")
    assert "pytest" in commands[1]
