"""Readers that go away, disks that are full, and spaces that are too much to look at as a whole."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fivefold.cli.printing import printing
from fivefold.survey import space as space_module

Run = Callable[..., Any]


def failing(error: OSError) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device", "page.html"), OSError(errno.ECONNRESET, "reset")]
)
def test_what_is_not_about_printing_stays_as_it_is(error: OSError) -> None:
    with pytest.raises(OSError) as caught:
        printing(failing(error))
    assert caught.value is error


COMMANDS = [["layout"], ["dump", "GUEST"], ["explain", "--cr2", "0xffff800000001000", "--json"]]


def words_of(command: list[str], capture: Callable[[str], Path]) -> list[object]:
    return [capture("plain-la48-kaslr") if word == "GUEST" else word for word in command]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_full_disk(fivefold: Run, capture: Callable[[str], Path], monkeypatch: Any, command: list[str]) -> None:
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr("sys.stdout", full)
        done = fivefold(*words_of(command, capture))
        monkeypatch.undo()
    assert (done.status, done.err) == (2, "fivefold: standard output: No space left on device\n")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_reader_that_goes_away(
    fivefold: Run, capture: Callable[[str], Path], monkeypatch: Any, command: list[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as nobody:
        monkeypatch.setattr("sys.stdout", nobody)
        done = fivefold(*words_of(command, capture))
        monkeypatch.undo()
    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize("value", ["-1", "0x0909090909090909", "0x10000000000000000"])
def test_no_pat(fivefold: Run, capture: Callable[[str], Path], value: str) -> None:
    done = fivefold("audit", capture("plain-la48-kaslr"), "--pat", value)
    assert (done.status, done.out) == (2, "")
    assert done.err.endswith(
        f"{value!r} is not a PAT MSR; expected linux, reset, or eight bytes, each of 0, 1, 4, 5, 6, 7\n"
    )


def test_a_part_of_a_space_that_is_too_much(
    fivefold: Run, capture: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window is told; that loops were not looked for is, too."""
    monkeypatch.setattr(space_module, "MAX_UNFOLDED", 4)
    guest = capture("plain-la48-kaslr")
    done = fivefold("dump", guest, "--json", "--range", "0xffffffffaea00000-0xffffffffaf000000")
    told = json.loads(done.out)
    assert (done.status, len(told["regions"])) == (0, 1)
    message = told["findings"][0]["message"]
    assert message.startswith("tables that lead back to themselves were not looked for: the tables at 0x")
    assert done.err == f"fivefold: {message}\n"

    refused = fivefold("dump", guest, "--json")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.endswith("unfold into more than 4 runs; expected --range for a part of them\n")
