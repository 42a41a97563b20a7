"""`fivefold find` from its command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fivefold.cli.main import main

GUEST = str(Path(__file__).parents[1] / "data" / "guests" / "plain-la57-kaslr.elf.xz")


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of a command."""
    monkeypatch.setattr(sys, "argv", ["fivefold", "find", GUEST, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_frame(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--phys", "0x9a010") == 0
    assert capsys.readouterr().out == (
        f"# 2 roots of {GUEST}\n"
        "phys 0x9a010: 1 place\n"
        "  phys 0x000000000009a010, not in the source\n"
        "    root 0x0000000000a3e000 0xff453d0a8009a010 +1 4K r-x- direct_map\n"
        "    root 0x000000001ea0a000 0xff453d0a8009a010 +1 4K r-x- direct_map\n"
    )


def test_bytes_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The root's only entry of the direct map, little-endian, stands in both roots."""
    assert run(monkeypatch, "--bytes", "6700c01e00000000", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    (question,) = told["questions"]
    assert (told["schema"], question["asked"], question["more"]) == ("fivefold.find/1", "bytes 6700c01e00000000", False)
    starts = [answer["phys"]["start"] for answer in question["answers"]]
    assert starts == ["0x0000000000a3ea28", "0x000000001ea0aa28"]
    assert all(answer["in_memory"] and answer["places"] for answer in question["answers"])


def test_where_symbols_are_known_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A capture of tables alone carries none; a file does."""
    assert run(monkeypatch, "--phys", "0x9a010", "--json") == 0
    assert json.loads(capsys.readouterr().out)["symbols_known_from"] is None
    facts = json.loads(Path(GUEST.replace(".elf.xz", ".facts.json")).read_text())
    rows = [f"{int(at, 16):016x} T {name}\n" for name, at in facts["symbols"].items() if int(at, 16) >> 63]
    (tmp_path / "kallsyms").write_text("".join(rows))
    assert run(monkeypatch, "--phys", "0x9a010", "--symbols", str(tmp_path / "kallsyms"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["symbols_known_from"].startswith(str(tmp_path / "kallsyms"))


def test_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--text", "no such text", "--format", "csv") == 1
    assert capsys.readouterr().out == "asked,phys,root,levels,va,size,page,rights,area,repeats,every,strides,symbol\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to find; expected --phys, --bytes or --text"),
        (("--text", ""), "Invalid value for '--text': nothing to search for; expected one character or more"),
        (("--bytes", "0x"), "nothing to search for; expected one byte or more"),
        (("--bytes", "abc"), "'abc' is not bytes; expected pairs of hexadecimal digits: 7f454c46"),
        (
            ("--phys", "0x10000000000000"),
            "is not physical memory; expected less than 0x10000000000000",
        ),
        (("--phys", "what"), "'what' is not an address"),
    ],
)
def test_refusals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
