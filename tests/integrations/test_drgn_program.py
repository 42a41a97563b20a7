"""What `to_drgn` and `fivefold drgn` refuse, and the VMCOREINFO that they make: without a guest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fivefold as ff
from fivefold.integrations.drgn_program import vmcoreinfo_text
from fivefold.symbols import Symbols, SymbolSpan

GUESTS = Path(__file__).parents[1] / "data" / "guests"
CAPTURE = GUESTS / "plain-la57-kaslr.elf.xz"


def test_without_drgn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "drgn", None)
    with ff.open(CAPTURE) as space, pytest.raises(ff.MissingFileError, match=r"fivefold\[drgn\]"):
        ff.to_drgn(space)


def test_an_old_drgn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version is named, and the one that is needed."""
    old = SimpleNamespace(Program=object, __version__="0.0.30")
    monkeypatch.setitem(sys.modules, "drgn", old)
    with ff.open(CAPTURE) as space, pytest.raises(ff.MissingFileError, match=r"drgn is 0\.0\.30; expected 0\.3"):
        ff.to_drgn(space)


def space_with(facts: dict[str, str], symbols: dict[str, int], phys_base: int | None, release: str | None) -> Any:
    spans = [SymbolSpan.of((at, "D", name) for name, at in symbols.items())] if symbols else []
    return SimpleNamespace(
        notes=SimpleNamespace(facts=facts, where="nowhere"),
        names=SimpleNamespace(kernel=Symbols(spans, "here")),
        bases=SimpleNamespace(phys_base=SimpleNamespace(value=phys_base)),
        release=SimpleNamespace(value=release),
        levels=5,
        source=SimpleNamespace(name="dump"),
    )


def test_the_guests_own_lines_are_given_as_they_are() -> None:
    """Whatever else is known."""
    facts = {"OSRELEASE": "6.1", "SYMBOL(swapper_pg_dir)": "ffffffff82000000", "CONFIG_X": "y"}
    text = vmcoreinfo_text(space_with(facts, {}, None, None))
    assert text == "OSRELEASE=6.1\nSYMBOL(swapper_pg_dir)=ffffffff82000000\nCONFIG_X=y\n"


def test_lines_for_a_kernel_without_any() -> None:
    """From kallsyms and the tables; phys_base is signed there."""
    text = vmcoreinfo_text(space_with({}, {"init_top_pgt": 0xFFFFFFFF82000000}, (1 << 64) - 0x1000, "6.12.1"))
    assert set(text.splitlines()) == {
        "OSRELEASE=6.12.1",
        "PAGESIZE=4096",
        "NUMBER(phys_base)=-4096",
        "SYMBOL(swapper_pg_dir)=ffffffff82000000",
        "NUMBER(pgtable_l5_enabled)=1",
    }


@pytest.mark.parametrize(
    ("symbols", "phys_base", "release", "lacking"),
    [
        ({}, 0, "6.1", "init_top_pgt"),
        ({"init_top_pgt": 1 << 63}, None, "6.1", "phys_base"),
        ({"init_top_pgt": 1 << 63}, 0, None, "a release"),
    ],
)
def test_nothing_is_made_up(symbols: dict[str, int], phys_base: int | None, release: str | None, lacking: str) -> None:
    """What is not known is said, and no program comes of it."""
    with pytest.raises(ff.FormatError, match=lacking):
        vmcoreinfo_text(space_with({}, symbols, phys_base, release))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-e", "1", "--script", "x"], "give one of --exec and --script"),
        (["--script", "absent-script"], "absent-script: No such file"),
        (["-e", "1"], "drgn needs VMCOREINFO, and the memory has none|package drgn is not installed"),
    ],
)
def test_the_command_refuses_in_a_line(words: list[str], why: str) -> None:
    """Status 2, nothing on the output."""
    import re

    command = [sys.executable, "-c", "from fivefold.cli.main import main; main()", "drgn", str(CAPTURE), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert re.search(why, " ".join(done.stderr.split()))
