"""`fivefold stats` and `fivefold layout` from their command lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fivefold.cli.main import main

GUEST = str(Path(__file__).parents[1] / "data" / "guests" / "plain-la57-kaslr.elf.xz")


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of a command."""
    monkeypatch.setattr(sys, "argv", ["fivefold", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_stats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "stats", GUEST) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [
        "90 tables take 360K",
        "level  tables     size  shared  entries used   pages",
        "PML5        1       4K       0      55 10.7%       0",
    ]
    assert run(monkeypatch, "stats", GUEST, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["tables"], told["mapped_is_complete"]) == ("fivefold.stats/1", 90, True)
    assert run(monkeypatch, "stats", GUEST, "--format", "csv") == 0
    assert capsys.readouterr().out.startswith("level,tables,bytes,")


def test_the_map(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "layout", "--mode", "la48", "--linux", "6.1") == 0
    text = capsys.readouterr().out
    assert text.startswith("# la48, 4 levels: Linux 6.1, without randomisation\n")
    assert "0xffff888000000000-0xffffc88000000000            64T mapped        direct_map\n" in text


def test_an_address(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "layout", "0xff11000000001000") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "0xff11000000001000",
        "  direct_map +0x1000, mapped (Linux 4.19.5, 4.20 and later: Documentation mm.rst, 5-level table)",
        "  PML5[273], PML4[0], PDPT[0], PD[0], PT[1], offset 0x0",
        "  KASAN shadow byte at 0xffe21c0000000200",
    ]


def test_the_map_of_a_guest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "layout", "--source", GUEST, "0xff453d0a8009a000", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    (address,) = told["addresses"]
    assert (told["schema"], told["levels"]) == ("fivefold.layout/1", 5)
    assert (address["area"], address["area_offset"]) == ("direct_map", 0x9A000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--linux", "3.0"), "fivefold: Linux 3.0 is older than the maps known here; expected 4.12 or newer\n"),
        (("--source", GUEST, "--mode", "la48"), "--source says which mode and release it is; "),
        (("0x10000000000000000",), "'0x10000000000000000' does not fit in 64 bits\n"),
        (("--format", "csv", "zero"), "'zero' is not an address; "),
    ],
)
def test_refusals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run(monkeypatch, "layout", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
