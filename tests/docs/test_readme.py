"""The README's first table is what `fivefold boot` prints; CI finds its two commands."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from fivefold.boot import BootOptions, boot
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


def test_both_commands_are_single_lines() -> None:
    commands = [line for line in README.splitlines() if line.startswith("    python3 -m venv")]

    assert len(commands) == 2
    assert commands[0].endswith("fivefold boot")
    assert "pytest" in commands[1]
