"""`fivefold diff` from its command line."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from fivefold.cli.main import main

GUESTS = Path(__file__).parents[1] / "data" / "guests"
ONE, TWO = (str(GUESTS / f"{name}.elf.xz") for name in ("plain-la57-kaslr", "plain-la57-kaslr-smp2"))


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of a command."""
    monkeypatch.setattr(sys, "argv", ["fivefold", "diff", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, ONE, ONE) == 0
    assert capsys.readouterr().out == (
        f"# - {ONE}, root 0x0000000000a3e000 (CR3 of CPU 0 (QEMU CPU note)), 5 levels\n"
        f"# + {ONE}, root 0x0000000000a3e000 (CR3 of CPU 0 (QEMU CPU note)), 5 levels\n"
        "no differences\n"
    )


def test_two_roots_of_one_source(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The root that runs a process against the kernel's own: all that is gone is the process."""
    assert run(monkeypatch, ONE, ONE, "--other-cr3", "0x1ea0a000") == 1
    lines = capsys.readouterr().out.splitlines()
    assert {line[0] for line in lines[2:-1]} == {"-"}
    assert {line.split()[-1] for line in lines[2:-1]} == {"user"}
    assert lines[-1] == "13 removed (1800K)"


def test_two_boots_as_json_and_csv(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--relative", "--no-phys", "--range", "0xff453d0a80000000+1G")
    assert run(monkeypatch, ONE, TWO, *options, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["same"]) == ("fivefold.diff/1", False)
    assert told["compared"] == {"all_bits": False, "phys": False, "relative": True}
    assert {change["area"] for change in told["changes"]} == {"direct_map"}
    assert run(monkeypatch, ONE, TWO, *options, "--format", "csv") == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["start"] for row in rows] == [change["start"] for change in told["changes"]]


def test_another_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, ONE, "no.elf") == 2
    error = capsys.readouterr().err
    assert error.startswith("fivefold: ") and "no.elf" in error and error.count("\n") == 1
