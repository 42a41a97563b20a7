from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Capture = Callable[[str], Path]


def test_json(fivefold: Run, capture: Capture) -> None:
    done = fivefold("roots", capture("debian-la57-kaslr-pti"), "--json")
    found = json.loads(done.out)
    assert (done.status, found["schema"]) == (0, "fivefold.roots/1")
    assert found["groups"] == [
        {
            "group": 0,
            "roots": ["0x0000000002556000", "0x0000000002557000", "0x0000000017010000", "0x0000000017011000"],
        }
    ]
    assert found["roots"][1] == {
        "root": "0x0000000002557000",
        "levels": 5,
        "confidence": "high",
        "reasons": [
            "user half of an isolated pair with 0x0000000002556000",
            "maps code in the kernel's window",
            "3 entries lead to well-formed tables of 5 levels",
        ],
        "group": 0,
        "pair": "0x0000000002556000",
        "half": "user",
        "cpus": [],
        "label": "user half of 0x0000000002556000",
        "label_known_from": "the page after it, with the same lower half and little of the kernel",
        "names": [],
        "processes": [],
    }
    assert found["symbols_known_from"] is None and found["processes"] == []
    assert found["processes_missing"] == "no processes: no kallsyms in what is mapped of a kernel's image"


def test_text(fivefold: Run, capture: Capture) -> None:
    lines = fivefold("roots", capture("plain-la48-kaslr")).out.splitlines()
    assert lines[0] == "group 0"
    assert lines[1].startswith(
        "  0x0000000000a4a000  4 levels  high    has a user half; CR3 of CPU 0; shares the kernel's tables with 1"
    )


def test_none(fivefold: Run, tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(0x8000))
    done = fivefold("roots", path)
    assert (done.status, done.out, done.err) == (1, "", f"fivefold: no page-table roots in {path}\n")


def test_only_five_levels(fivefold: Run, capture: Capture) -> None:
    path = capture("plain-la48-kaslr")
    done = fivefold("roots", path, "--levels", "5")
    assert (done.status, done.out, done.err) == (1, "", f"fivefold: no page-table roots of 5 levels in {path}\n")


@pytest.mark.parametrize("words", [("--cr3", "0xa4a000"), ("--cr4", "0x20"), ("--cpu", "0"), ("--force",)])
def test_options_that_name_one_root(fivefold: Run, capture: Capture, words: tuple[str, ...]) -> None:
    done = fivefold("roots", capture("plain-la48-kaslr"), *words)
    assert (done.status, done.out) == (2, "")
    # click words it in two ways, by its version.
    assert done.err.replace(" '", ": ").startswith(f"fivefold: No such option: {words[0]}")
    assert f"│ {words[0]}" not in fivefold("roots", "--help").out


def test_none_without_the_encryption_bit(fivefold: Run, tmp_path: Path) -> None:
    """Four levels with bit 51 in every entry: 16 MiB at 0, at the kernel's direct map and in its window."""
    bit = 1 << 51
    leaves = [(table, index, index << 21 | 0x83) for table in (0x3000, 0x5000) for index in range(8)]
    entries = [(0x1000, 0, 0x2007), (0x1000, 273, 0x2003), (0x1000, 511, 0x4003), (0x2000, 0, 0x3007),
               (0x4000, 510, 0x5003), *leaves]  # fmt: skip
    memory = bytearray(2 << 20)
    for table, index, entry in entries:
        memory[table + 8 * index : table + 8 * index + 8] = (entry | bit).to_bytes(8, "little")
    path = tmp_path / "raw"
    path.write_bytes(memory)
    done = fivefold("roots", path)
    hint = "; 1 with --c-bit 51, as where memory is encrypted"
    assert (done.status, done.out, done.err) == (1, "", f"fivefold: no page-table roots in {path}{hint}\n")
    assert fivefold("roots", path, "--c-bit", "51").status == 0
    dumped = fivefold("dump", path, "--cr3", "0x1000", "--levels", "4")
    assert "# entries of the root lead to memory without bit 51 only: for encryption give --c-bit 51\n" in dumped.out
