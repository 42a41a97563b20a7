"""`fivefold volatility` on what is no guest for it: one line, and nothing written."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def plug_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A plug-in that is installed, as far as the command looks."""
    place = tmp_path / "site" / "fivefold_volatility3" / "__init__.py"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(place)))
    monkeypatch.setenv("FIVEFOLD_CACHE", str(tmp_path / "cache"))
    return place.parent / "plugins"


def test_without_a_source_only_the_plug_in(fivefold: Callable[..., Any], plug_in: Path) -> None:
    """For symbols that the user has already."""
    assert fivefold("volatility") == (0, f"-p {plug_in}\n", "")


def test_without_the_plug_in(fivefold: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = fivefold("volatility", "no-file")
    assert done.status == 2 and done.out == "" and done.err.count("\n") == 1
    assert "pip install fivefold-volatility3" in done.err


@pytest.mark.parametrize("name", ["plain-la57-kaslr", "debian-la48-nokaslr-6G-pc"])
def test_a_memory_without_the_kernels_data(
    fivefold: Callable[..., Any], capture: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """Captures of page tables have no kallsyms."""
    done = fivefold("volatility", capture(name), "--output", tmp_path / "out")
    assert (done.status, done.out) == (2, "") and "no symbols of a Linux" in done.err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_what_is_no_memory(fivefold: Callable[..., Any], tmp_path: Path) -> None:
    """An absent file, a text, a stump of a dump."""
    (tmp_path / "text").write_text("not a dump" * 2000)
    (tmp_path / "stump").write_bytes(b"\x7fELF\2\1\1")
    for name in ("absent", "text", "stump"):
        done = fivefold("volatility", tmp_path / name)
        assert (done.status, done.out) == (2, ""), name
    assert not (tmp_path / "cache" / "volatility3").exists()
