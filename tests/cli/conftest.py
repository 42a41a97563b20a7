"""Run a command in this process, as the shell would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fivefold.cli.main import main

GUESTS = Path(__file__).parents[1] / "data" / "guests"


class Done(NamedTuple):
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str


@pytest.fixture
def fivefold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*words: object) -> Done:
        monkeypatch.setattr("sys.argv", ["fivefold", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Done(int(str(ended.value.code or 0)), out, err)

    return run


@pytest.fixture
def capture() -> Callable[[str], Path]:
    return lambda name: GUESTS / f"{name}.elf.xz"
