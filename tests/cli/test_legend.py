"""`--legend`: what letters mean, without a source, at any width; every flag that `walk` can print is in it."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from fivefold.arch import Level, flag_names
from fivefold.report.sheet import Sheet
from fivefold.report.text.legend import write_legend


@pytest.mark.parametrize("command", ["dump", "walk", "audit", "explain", "roots"])
def test_it_needs_nothing_else(command: str) -> None:
    run = [sys.executable, "-c", "from fivefold.cli.main import main; main()", command, "--legend"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("rights\n") and "PML5" in done.stdout and not done.stderr


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_it_fits(width: int) -> None:
    out = io.StringIO()
    write_legend(Sheet(out, width))
    assert all(len(line) <= width for line in out.getvalue().splitlines())


def test_every_flag_is_in_it() -> None:
    out = io.StringIO()
    write_legend(Sheet(out))
    told = {line.split()[0] for line in out.getvalue().splitlines() if line.startswith("  ")}
    numbered = {*flag_names(2**64 - 1, Level.PT), *flag_names(2**64 - 1, Level.PD)}
    assert {name.rstrip("0123456789") for name in numbered} <= {name.rstrip("0123456789") for name in told}
