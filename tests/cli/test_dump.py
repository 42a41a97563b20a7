"""`fivefold dump`: every format, what narrows it, and its statuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Capture = Callable[[str], Path]


def test_text(fivefold: Run, capture: Capture) -> None:
    done = fivefold("dump", capture("plain-la57-kaslr"), "--kernel")
    lines = done.out.splitlines()
    assert (done.status, done.err) == (0, "")
    assert lines[:2] == [
        "# root 0x0000000000a3e000 (CR3 of CPU 0 (QEMU CPU note))",
        "# la57, 5 levels (CR4.LA57=1 of CPU 0 (QEMU CPU note))",
    ]
    assert lines[2].startswith("# areas: Linux 6.1 assumed: the map since 4.20, which the direct map fits (no VMCORE")
    assert (
        lines[4] == "0xff453d0a80000000-0xff453d0a80099000       612K 4K rw-- 0x0000000000000000 G         direct_map"
    )
    assert (
        "0xffffff4800200000-0xffffff4840000000      1022M  PT table at 0x0000000000138000 again, 511 times  espfix"
        in lines
    )
    assert lines[-1] == "0xffffffffff5fc000-0xffffffffff5fe000         8K 4K rw-- scattered          PWT PCD G fixmap"


def test_json(fivefold: Run, capture: Capture) -> None:
    done = fivefold("dump", capture("debian-la57-kaslr-pti"), "--json")
    found = json.loads(done.out)
    assert (done.status, found["schema"], found["root"], found["levels"]) == (
        0,
        "fivefold.dump/1",
        "0x0000000002556000",
        5,
    )
    assert found["findings"] == []
    assert found["regions"][0] == {
        "start": "0x0000000000400000",
        "end": "0x0000000000401000",
        "size": 4096,
        "page": "4K",
        "leaf": "r--u",
        "effective": {"write": False, "user": True, "execute": False},
        "flags": ["P", "US", "A", "NX"],
        "phys": "0x000000001fce0000",
        "area": "user",
        "symbol": None,
    }
    assert sum(region["size"] for region in found["regions"] if region["area"] == "direct_map") == 536_735_744


def test_json_of_nothing(fivefold: Run, capture: Capture) -> None:
    done = fivefold("dump", capture("plain-la48-kaslr"), "--format", "json", "--range", "0x1000+4K")
    assert json.loads(done.out)["regions"] == []


def test_csv(fivefold: Run, capture: Capture) -> None:
    done = fivefold(
        "dump", capture("plain-la48-kaslr"), "--format", "csv", "--range", "0xffffffffaea00000-0xffffffffaf000000"
    )
    (row,) = csv.DictReader(done.out.splitlines())
    assert row == {
        "start": "0xffffffffaea00000",
        "end": "0xffffffffaf000000",
        "size": "6291456",
        "kind": "mapped",
        "page": "2M",
        "leaf": "r-x-",
        "write": "0",
        "user": "0",
        "execute": "1",
        "flags": "P A D PS G",
        "phys": "0x000000001a800000",
        "area": "kernel_image",
        "repeats": "",
        "strides": "",
        "symbol": "",
    }


def test_ptdump(fivefold: Run, capture: Capture) -> None:
    guest = capture("plain-la48-kaslr")
    done = fivefold("dump", guest, "--format", "ptdump", "--cr3", "0x1b20a000")
    assert done.out == guest.with_name("plain-la48-kaslr.ptdump-kernel.txt").read_text()
    assert (done.status, done.err) == (
        0,
        "fivefold: headings depend on the kernel's build; guessed: release 6.1, ldt=yes, efi=yes, "
        "fixmap_start=0xffffffffff57c000, image_limit=1G; see --build\n",
    )
    told = fivefold("dump", guest, "--format", "ptdump", "--build", "fixmap_start=0xffffffffff500000,colour=red")
    assert (told.status, told.out) == (2, "")
    assert "is not a build of a kernel; expected kasan=yes|no" in told.err


def test_info_tlb(fivefold: Run, capture: Capture) -> None:
    done = fivefold("dump", capture("plain-la48-kaslr"), "--format", "info-tlb", "--range", "0xffffffffff000000-")
    assert done.out.splitlines() == [
        "ffffffffff5fc000: 00000000fec00000 XG-DACT-W",
        "ffffffffff5fd000: 00000000fee00000 XG-DACT-W",
    ]
    refused = fivefold("dump", capture("kasan-la48-kaslr"), "--format", "info-tlb")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err == (
        "fivefold: 1073756837 leaves are more than 10000000 lines; expected --range for fewer, or --all\n"
    )


def test_rights_of_leaf_and_path(fivefold: Run, capture: Capture) -> None:
    """Under page-table isolation the kernel's view of user code is not executable, though its leaves are."""
    guest = capture("debian-la57-kaslr-pti")
    effective = fivefold("dump", guest, "--user", "--rights", "x", "--format", "csv").out.splitlines()
    leaf = fivefold("dump", guest, "--user", "--rights", "x", "--leaf", "--format", "csv").out.splitlines()
    assert len(effective) == 1 < len(leaf)
    assert {row["execute"] for row in csv.DictReader(leaf)} == {"0"}
    assert "# rights: of the leaf entry; r w x u" in fivefold("dump", guest, "--user", "--leaf").out


def test_rights_unfold_shared_tables(fivefold: Run, capture: Capture) -> None:
    espfix = "0xffffff0000000000-0xffffff8000000000"
    done = fivefold("dump", capture("plain-la48-kaslr"), "--range", espfix, "--rights", "w")
    assert [line for line in done.out.splitlines() if not line.startswith("#")] == []


def test_phys_breaks_regions(fivefold: Run, capture: Capture) -> None:
    rows = list(
        csv.DictReader(
            fivefold("dump", capture("plain-la48-kaslr"), "--user", "--phys", "--format", "csv").out.splitlines()
        )
    )
    assert all(row["phys"] for row in rows)


def test_bits(fivefold: Run, capture: Capture) -> None:
    few = fivefold("dump", capture("plain-la48-kaslr"), "--user").out
    all_ = fivefold("dump", capture("plain-la48-kaslr"), "--user", "--bits", "all").out
    assert " A " not in few and " A D " in all_


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--user", "--kernel"], "--user and --kernel leave nothing; expected one of them"),
        (["--kernel", "--range", "0x1000-0x2000"], "--range has nothing in common with the half that is asked for"),
        (["--range", "0x2000-0x1000"], "is not a range of 64-bit addresses; expected the start before the end"),
        (["--range", "0x2000"], "is not a range; expected START-END, START+SIZE or START-, the end exclusive"),
        (["--rights", "q"], "Invalid value for '--rights': 'q' are no rights; expected letters of w, x and u"),
        (
            ["--format", "ptdump", "--user"],
            "prints what another program would; expected it without --range, --user",
        ),
        (
            ["--format", "info-tlb", "--leaf"],
            "prints what another program would; expected it without --rights,",
        ),
        (["--build", "kasan=yes"], "--build is of --format ptdump; expected both or none of them"),
        (["--format", "xml"], "'xml'"),
        (["--json", "--format", "csv"], "--json and --format csv are two formats; expected one of them"),
        (["--format", "text", "--json"], "--json and --format text are two formats; expected one of them"),
    ],
)
def test_what_makes_no_sense(fivefold: Run, capture: Capture, words: list[str], message: str) -> None:
    done = fivefold("dump", capture("plain-la48-kaslr"), *words)
    assert (done.status, done.out) == (2, "")
    assert message in done.err and done.err.count("\n") == 1


def test_findings_set_status_1(fivefold: Run, capture: Capture) -> None:
    """Pages above 4 GiB are malformed if addresses have 32 bits: a guest of 6 GiB has them."""
    guest = capture("debian-la48-nokaslr-6G-pc")
    done = fivefold("dump", guest, "--json", "--phys-bits", "32", "--cr3", "0x2a10000")
    found = json.loads(done.out)
    assert done.status == 1
    assert found["findings"][0]["what"] == "malformed entry"
    assert done.err.startswith(f"fivefold: {len(found['findings'])} findings; the first at ")
    text = fivefold("dump", guest, "--phys-bits", "32", "--cr3", "0x2a10000")
    assert text.status == 1 and "  !! " in text.out


def test_a_reader_that_goes_away(capture: Capture) -> None:
    command = (
        f"{sys.executable} -c 'from fivefold.cli.main import main; main()' dump {capture('plain-la57-kaslr')} --all"
    )
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] == "0"
