"""Hostile files of every format: each command is bounded, or says in one line which bound it met.

The files and the limits are those of `bench/hostile.py`, which runs every command on larger ones.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"

RUNS = {
    "audit": ["uneven-16.elf", "scattered.elf", "escapes.elf"],
    "diff-other": ["uneven-2.elf"],
    "info": ["many-loads.elf", "escapes.elf", "\x1b]0;x\x07\u202ename.elf", "note-sizes.elf", "beyond.lime"],
    "roots": ["fragments.kdump", "damaged.kdump", "links.raw"],
    "find": ["chains.elf"],
    "dump-json": ["irregular-4.elf"],
    "explain": ["one-line.log"],
}
"""Commands with the files that once hurt them, or others of their kind."""


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    load("hostile_inputs")
    module: ModuleType = load("hostile")
    return module


@pytest.fixture(scope="module")
def files() -> dict[str, Any]:
    return {hostile.name: hostile for hostile in load("hostile_inputs").inputs(1)}


def test_a_damaged_page_is_passed_over(fivefold: Callable[..., Any], files: dict[str, Any], tmp_path: Path) -> None:
    path = files["damaged.kdump"].write(tmp_path)
    done = fivefold("roots", path)
    assert done.status == 0
    assert done.err == f"fivefold: damaged pages of {path} were left out: 1, the first at 0x0000000000009000\n"


@pytest.mark.parametrize(("command", "name"), [(command, name) for command, names in RUNS.items() for name in names])
def test_bounded(bench: Any, files: dict[str, Any], tmp_path: Path, command: str, name: str) -> None:
    path = files[name].write(tmp_path)
    other = files["sharing-8.elf"].write(tmp_path)
    words = [word.format(file=path, other=other, folder=tmp_path) for word in bench.COMMANDS[command]]
    ending = bench.run(words)
    assert list(ending.wrong()) == [], ending.err


def test_what_counts_as_wrong(bench: Any) -> None:
    good = bench.Ending(2, 1.0, 1 << 20, b"\xc3\xa9\n", b"fivefold: no\n")
    assert list(good.wrong()) == []
    bad = bench.Ending(3, 31.0, 3 << 30, b"\x1b[2J", b"Traceback\n")
    assert list(bad.wrong()) == ["status 3", "31 s", "3072 MiB", "many lines on stderr", "prints b'\\x1b'"]
    assert list(bench.Ending(2, 1.0, 1, b"", b"").wrong()) == ["no line on stderr"]


def test_memory_is_that_of_the_command(bench: Any) -> None:
    mine = bytearray(range(256)) * (1 << 20)
    assert bench.run(["--version"]).memory < len(mine)
