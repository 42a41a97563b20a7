"""`--force` goes on against the evidence and says so everywhere; `--cpu` asks another CPU's registers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Capture = Callable[[str], Path]
AGAINST = "have 5 levels ("


@pytest.mark.parametrize(
    ("command", "words"),
    [("dump", ["--user"]), ("walk", ["0x2000"]), ("stats", []), ("audit", []), ("info", [])],
)
def test_forced_levels(fivefold: Run, capture: Capture, command: str, words: list[str]) -> None:
    guest = capture("plain-la57-kaslr")
    refused = fivefold(command, guest, *words, "--levels", 4)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert not refused.out or command == "info"
    assert AGAINST in refused.err and "or --force to read them so all the same" in refused.err

    text = fivefold(command, guest, *words, "--levels", 4, "--force")
    told = json.loads(fivefold(command, guest, *words, "--levels", 4, "--force", "--json").out)
    assert "fivefold: read with 4 levels by --force, but the tables at 0x0000000000a3e000 of" in text.err
    assert "given with --levels" in text.out and AGAINST in text.out
    assert told["levels"] == 4 and AGAINST in told["mode_contradicted_by"]


def test_force_without_contradiction(fivefold: Run, capture: Capture) -> None:
    done = fivefold("info", capture("plain-la57-kaslr"), "--levels", 5, "--force", "--json")
    assert (done.status, done.err, json.loads(done.out)["mode_contradicted_by"]) == (0, "", None)


@pytest.mark.parametrize(
    ("command", "words"),
    [("dump", ["--user"]), ("walk", ["0x2000"]), ("stats", []), ("audit", []), ("info", [])],
)
def test_another_cpu(fivefold: Run, capture: Capture, command: str, words: list[str]) -> None:
    """Each CPU of this capture runs on a root of its own."""
    told = json.loads(fivefold(command, capture("plain-la57-kaslr-smp2"), *words, "--cpu", 1, "--json").out)
    assert (told["root"], told["root_known_from"]) == ("0x0000000000ad8000", "CR3 of CPU 1 (QEMU CPU note)")


def test_find_asks_the_root_of_that_cpu(fivefold: Run, capture: Capture) -> None:
    done = fivefold("find", capture("plain-la57-kaslr-smp2"), "--cpu", 1, "--phys", "0x9a000", "--json")
    assert [root["root"] for root in json.loads(done.out)["roots"]] == ["0x0000000000ad8000"]


def test_two_cpus_compared(fivefold: Run, capture: Capture) -> None:
    guest = capture("plain-la57-kaslr-smp2")
    done = fivefold("diff", guest, guest, "--other-cpu", 1, "--json")
    told = json.loads(done.out)
    assert (told["before"]["root"], told["after"]["root"]) == ("0x0000000011a0a000", "0x0000000000ad8000")
    assert done.status == 1 and all(change["area"] == "user" for change in told["changes"])


def test_a_cpu_that_the_other_does_not_have(fivefold: Run, capture: Capture) -> None:
    guest = capture("plain-la57-kaslr-smp2")
    done = fivefold("diff", guest, guest, "--other-cpu", 2)
    assert (done.status, done.out) == (2, "")
    assert done.err.endswith("counted from 0; give another --other-cpu, or --other-cr3\n")


def test_a_cpu_that_is_not_there(fivefold: Run, capture: Capture) -> None:
    done = fivefold("dump", capture("plain-la57-kaslr-smp2"), "--cpu", 2)
    assert (done.status, done.out) == (2, "")
    assert done.err.endswith("holds the registers of 2, counted from 0; give another --cpu, or --cr3\n")
    assert fivefold("dump", capture("plain-la57-kaslr-smp2"), "--cpu", -1).status == 2
