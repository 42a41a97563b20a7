from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fivefold.cli.main import main

Run = Callable[..., Any]
Capture = Callable[[str], Path]


def test_text(fivefold: Run, capture: Capture) -> None:
    done = fivefold("walk", capture("plain-la57-kaslr"), "0xffffffffbe400123", "0", "0x8000000000000000")
    assert done.status == 0
    assert [line.replace("0x00000000", "") for line in done.out.splitlines()] == [
        "root 0xa3e000 (CR3 of CPU 0 (QEMU CPU note)), la57 (CR4.LA57=1 of CPU 0 (QEMU CPU note))",
        "0xffffffffbe400123  kernel_image",
        "  PML5 entry 511 at 00a3eff8 is 1ea0c067  table 1ea0c000  P RW US A D  so far rwxu",
        "  PML4 entry 511 at 1ea0cff8 is 1ea0d067  table 1ea0d000  P RW US A D  so far rwxu",
        "  PDPT entry 510 at 1ea0dff0 is 1ea0e063  table 1ea0e000  P RW A D  so far rwx-",
        "  PD   entry 498 at 1ea0ef90 is 1e0001e1  2M page 1e000000  P A D PS G  so far r-x-",
        "  -> 1e000123  2M page, effective r-x-",
        "  user mode ---, supervisor r-x (WP=1)",
        "00000000  user",
        "  PML5 entry   0 at 00a3e000 is 00a6b067  table 00a6b000  P RW US A D  so far rwxu",
        "  PML4 entry   0 at 00a6b000 is 00a69067  table 00a69000  P RW US A D  so far rwxu",
        "  PDPT entry   0 at 00a69000 is 00a68067  table 00a68000  P RW US A D  so far rwxu",
        "  PD   entry   0 at 00a68000 is 00000000  empty",
        "  -> entry not present; the same holds for all of 00000000-00200000",
        "  00000000 is in the first page, which is never mapped",
        "0x8000000000000000  non_canonical",
        "  -> non-canonical address; the same holds for all of 0x0100000000000000-0xff00000000000000",
        "  0x8000000000000000 is no address at all: not canonical in 57 bits",
    ]


def test_json(fivefold: Run, capture: Capture) -> None:
    done = fivefold("walk", capture("plain-la57-kaslr"), "ffffffffbe400123", "0x8000000000000000", "--json")
    found = json.loads(done.out)
    assert (found["schema"], found["root"], found["levels"]) == ("fivefold.walk/1", "0x0000000000a3e000", 5)
    mapped, refused = found["walks"]
    assert mapped | {"steps": None} == {
        "address": "0xffffffffbe400123",
        "mapped": True,
        "phys": "0x000000001e000123",
        "page": "2M",
        "effective": {"write": False, "user": False, "execute": True},
        "privileges": {
            "user": {"read": False, "write": False, "execute": False},
            "supervisor": {"read": True, "write": False, "execute": True},
        },
        "leaf": "r-x-",
        "area": "kernel_image",
        "symbol": None,
        "cause": None,
        "hole": None,
        "missing_table": None,
        "steps": None,
    }
    assert mapped["steps"][-1] == {
        "level": 2,
        "name": "PD",
        "index": 498,
        "at": "0x000000001ea0ef90",
        "entry": "0x000000001e0001e1",
        "present": True,
        "page": True,
        "to": "0x000000001e000000",
        "flags": ["P", "A", "D", "PS", "G"],
        "reserved_bits": "0x0000000000000000",
        "so_far": {"write": False, "user": False, "execute": True},
    }
    assert (refused["cause"], refused["steps"]) == ("non-canonical address", [])
    assert refused["hole"] == {"start": "0x0100000000000000", "end": "0xff00000000000000"}


def test_what_is_wrong_with_the_tables_is_a_finding(fivefold: Run, tmp_path: Path) -> None:
    """A raw image of three pages: the root, a table with a malformed entry; a table that is not there."""
    root, table = bytearray(0x1000), bytearray(0x1000)
    root[0:8] = (0x2000 | 7).to_bytes(8, "little")
    root[8:16] = (0x9000 | 7).to_bytes(8, "little")
    table[0:8] = (1 << 45 | 7).to_bytes(8, "little")
    path = tmp_path / "image"
    path.write_bytes(bytes(root + table))
    words = [path, "--cr3", "0x1000", "--levels", 4, "--ram-map", "0x1000-0x3000=0", "--phys-bits", 40]

    missing = fivefold("walk", *words, "0x8000000000")
    assert missing.status == 1
    assert missing.out.splitlines()[2:] == [
        "  PML4 entry   1 at 0x0000000000001008 is 0x0000000000009007  table 0x0000000000009000  P RW US  so far rwxu",
        "  -> no answer: the table at 0x0000000000009000 is not in memory",
    ]
    malformed = fivefold("walk", *words, "0x1000", "--json")
    (walk,) = json.loads(malformed.out)["walks"]
    assert (malformed.status, walk["cause"]) == (1, "reserved bit set")
    assert walk["steps"][-1]["reserved_bits"] == "0x0000200000000000"
    assert walk["hole"] == {"start": "0x0000000000000000", "end": "0x0000000040000000"}


def test_addresses_that_are_none(fivefold: Run, capture: Capture) -> None:
    done = fivefold("walk", capture("plain-la48-kaslr"), "0x10000000000000000")
    assert (done.status, done.err) == (
        2,
        "fivefold: Invalid value for 'ADDRESS': '0x10000000000000000' does not fit in 64 bits\n",
    )
    assert fivefold("walk", capture("plain-la48-kaslr")).status == 2


def test_32_bit_code_in_long_mode_is_not_called_outside_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = Path(__file__).parents[1] / "data" / "others" / "memtest-ia32-wp0.elf.xz"
    monkeypatch.setattr(sys, "argv", ["fivefold", "walk", str(guest), "0xff8000000000", "0x700000000000"])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().out
    assert "la48" in told and "outside of long mode" not in told
