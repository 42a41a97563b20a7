"""`fivefold info`: the schema, the evidence, and each way in which it cannot be done."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Capture = Callable[[str], Path]


def test_json(fivefold: Run, capture: Capture) -> None:
    done = fivefold("info", capture("plain-la57-kaslr-smp2"), "--json")
    found = json.loads(done.out)

    assert (done.status, done.err) == (0, "")
    assert found["schema"] == "fivefold.info/1"
    assert (found["mode"], found["levels"], found["mode_known_from"]) == (
        "la57",
        5,
        "CR4.LA57=1 of CPU 0 (QEMU CPU note)",
    )
    assert found["root"] == "0x0000000011a0a000"
    assert [(cpu["cr3"], cpu["cr4"], cpu["efer"]) for cpu in found["cpus"]] == [
        ("0x0000000011a0a000", "0x00000000000016b0", None),
        ("0x0000000000ad8000", "0x00000000000016a0", None),
    ]
    assert found["bases"] == {
        "page_offset_base": "0xff15577d00000000",
        "vmalloc_base": "0xff1a69f580000000",
        "vmemmap_base": "0xffe053e180000000",
        "phys_base": "0xfffffffff6e00000",
        "kernel_text": "0xffffffff9a200000",
    }
    assert set(found["bases_known_from"]) == set(found["bases"])
    assert found["extents"][0] == {"start": "0x0000000000100000", "end": "0x0000000000133000"}
    assert found["kernel"] == {"release": None, "known_from": "no VMCOREINFO in the source, and no banner"}
    assert found["nxe"]["value"] is True and "NX bits are in use" in found["nxe"]["known_from"]
    for name in ("phys_bits", "pat_msr"):
        assert found[name]["value"] is None and found[name]["known_from"]


def test_text(fivefold: Run, capture: Capture) -> None:
    lines = fivefold("info", capture("debian-la48-nokaslr-6G-pc")).out.splitlines()
    assert "mode             la48, 4 levels  (CR4.LA57=0 of CPU 0 (QEMU CPU note))" in lines
    assert any(line.startswith("page_offset_base 0xffff888000000000  (commonest va - pa") for line in lines)
    assert (
        "MAXPHYADDR       not known  (no source holds CPUID; only bits reserved at every width count as malformed)"
        in lines
    )


def test_overrides_are_told(fivefold: Run, capture: Capture) -> None:
    done = fivefold(
        "info", capture("plain-la57-kaslr"), "--cr3", "0x1ea0a000", "--levels", 5, "--phys-bits", 46, "--json"
    )
    found = json.loads(done.out)
    assert found["root_known_from"] == "given with --cr3"
    assert found["mode_known_from"] == "given with --levels"
    assert found["phys_bits"] == {"value": 46, "known_from": "given with --phys-bits"}


def test_a_raw_image_without_cr3(fivefold: Run, tmp_path: Path) -> None:
    """What is known is shown; the status and one line say that it is not enough."""
    path = tmp_path / "raw"
    path.write_bytes(bytes(0x3000))
    done = fivefold("info", path, "--json")
    line = f"{path} (raw image) holds no CR3; give --cr3, or look for roots with `fivefold roots`"

    assert (done.status, done.err) == (2, f"fivefold: {line}\n")
    found = json.loads(done.out)
    assert (found["mode"], found["mode_known_from"]) == (None, line)
    assert found["extents"] == [{"start": "0x0000000000000000", "end": "0x0000000000003000"}]
    assert set(found["bases"].values()) == {None} and "page_offset_base" in found["bases"]

    text = fivefold("info", path, "--phys-bits", 46)
    assert text.out.count("holds no CR3") == 1
    assert "MAXPHYADDR       46  (given with --phys-bits)" in text.out.splitlines()


def test_a_root_without_a_mode(fivefold: Run, tmp_path: Path) -> None:
    """Tables that speak for neither mode: the root is still told."""
    path = tmp_path / "raw"
    path.write_bytes(bytes(0x3000))
    done = fivefold("info", path, "--cr3", "0x1000", "--json")
    found = json.loads(done.out)
    assert (done.status, found["mode"], found["root"]) == (2, None, "0x0000000000001000")
    assert found["root_known_from"] == "given with --cr3"


def _refusals(tmp_path: Path, capture: Capture) -> dict[str, tuple[list[object], str]]:
    core = lzma.decompress(capture("plain-la48-kaslr").read_bytes())
    files = {
        "cut.xz": capture("plain-la48-kaslr").read_bytes()[:2000],
        "cut.elf": core[: len(core) // 2],
        "object.o": core[:16] + b"\x01\x00" + core[18:],
        "lying.elf": core[:32] + (1 << 60).to_bytes(8, "little") + core[40:],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return {
        "no such file": ([tmp_path / "absent"], "cannot open"),
        "cut in its compression": ([tmp_path / "cut.xz"], "truncated"),
        "cut": ([tmp_path / "cut.elf"], "truncated or forged"),
        "no core": ([tmp_path / "object.o"], "a relocatable file, not a core"),
        "lying header": ([tmp_path / "lying.elf"], "truncated or forged"),
        "no socket": (["qmp:/nonexistent.sock"], "/nonexistent.sock"),
        "no process": (["pid:999999999"], "999999999"),
        "no number": (
            [capture("plain-la48-kaslr"), "--cr3", "zz"],
            "'zz' is not an address; expected hexadecimal",
        ),
        "levels": (
            [capture("plain-la48-kaslr"), "--levels", "3"],
            "Invalid value for '--levels': '3' is out of range; expected a number, 4 or 5",
        ),
        "wrong levels": ([capture("plain-la48-kaslr"), "--levels", "5"], "give --levels 4"),
        "wrong levels by cr4": ([capture("plain-la57-kaslr"), "--cr4", "0x20"], "give --levels 5"),
        "no root there": ([capture("plain-la48-kaslr"), "--cr3", "0x5000"], "expected the top-level table there"),
        "no time": ([capture("plain-la48-kaslr"), "--timeout", "nan"], "more than 0 and up to 86400"),
        "no map": ([capture("plain-la48-kaslr"), "--ram-map", "x"], "expected START-END or START-END=OFFSET"),
    }


@pytest.mark.parametrize("command", ["info", "dump", "walk"])
@pytest.mark.parametrize(
    "what",
    [
        "no such file",
        "cut in its compression",
        "cut",
        "no core",
        "lying header",
        "no socket",
        "no process",
        "no number",
        "levels",
        "wrong levels",
        "wrong levels by cr4",
        "no root there",
        "no time",
        "no map",
    ],
)
def test_what_cannot_be_done(fivefold: Run, capture: Capture, tmp_path: Path, command: str, what: str) -> None:
    words, expected = _refusals(tmp_path, capture)[what]
    done = fivefold(command, *words, *(["0x1000"] if command == "walk" else []))

    assert done.status == 2
    assert done.err.count("\n") == 1 and done.err.startswith("fivefold: ")
    assert expected in done.err
