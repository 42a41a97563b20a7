"""The payload as EFI file and ISO, booted for real and judged by its text; machines that hang or reset at it."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fivefold.boot.image.iso import PLATFORMS, missing_packages
from fivefold.cli.commands import run
from fivefold.conform.campaign import Plan
from fivefold.conform.cases.case import parse_case
from fivefold.conform.engines.qemu import PROGRAM
from fivefold.conform.judging.expect import expect
from fivefold.conform.machine_text import ASSUMED, judge_text, trials_of, write_payload
from fivefold.conform.payload import layout
from fivefold.conform.payload.build import efi_file, elf_file
from fivefold.conform.payload.read_text import line_hash, read_text
from fivefold.conform.payload.records import Trial, is_risky, table
from fivefold.conform.places import CASES, IMAGE
from fivefold.errors import MachineError
from fivefold.machine.loading.firmware import firmware

LONGER = Plan("machine", None, None, ("la57",), 3200, 3)
"""With cases that may end the machine."""
PLAN = Plan("qemu", None, None, ("la48", "la57"), 120, 3)
NEEDS_QEMU = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed")
MISSING = missing_packages(PLATFORMS)
NEEDS_GRUB = pytest.mark.skipif(bool(MISSING), reason=f"an ISO needs {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    return trials_of(LONGER)


def has_firmware() -> bool:
    try:
        firmware()
    except MachineError:
        return False
    return True


NEEDS_OVMF = pytest.mark.skipif(not has_firmware(), reason="OVMF is not installed")


def boot(folder: Path, *words: str, end: bytes = b"\nend ", patience: float = 120) -> bytes:
    """What the payload writes to the serial port of a QEMU started with *words*, up to a line that has *end*."""
    serial, found = folder / "serial.txt", b""
    command = [PROGRAM, "-nodefaults", "-no-reboot", "-display", "none", "-cpu", "max", "-m", "512", *words]
    with subprocess.Popen([*command, "-serial", f"file:{serial}"]) as machine:
        try:
            deadline = time.monotonic() + patience
            while end not in found and time.monotonic() < deadline and machine.poll() is None:
                time.sleep(0.1)
                found = serial.read_bytes() if serial.exists() else b""
        finally:
            machine.kill()
    return found


def firmware_words(folder: Path) -> Iterator[str]:
    found = firmware()
    if found.variables is None:
        yield from ("-bios", str(found.code))
        return
    shutil.copy(found.variables, folder / "variables")
    yield from ("-drive", f"if=pflash,format=raw,readonly=on,file={found.code}")
    yield from ("-drive", f"if=pflash,format=raw,file={folder / 'variables'}")


def check(text: bytes) -> None:
    report = judge_text(PLAN, text)
    assert report.incomplete is None
    assert report.cases > 70
    assert {key.mode for key, row in report.rows.items() if row.cases} == {"la48", "la57"}
    assert {key.rule for key, row in report.rows.items() if row.unknown} == set()


@pytest.mark.qemu
@NEEDS_QEMU
@NEEDS_OVMF
def test_firmware_starts_the_efi_file(tmp_path: Path) -> None:
    place = tmp_path / "stick/EFI/BOOT"
    place.mkdir(parents=True)
    write_payload(PLAN, place / "cases.efi")
    (place / "cases.efi").rename(place / "BOOTX64.EFI")
    check(boot(tmp_path, *firmware_words(tmp_path), "-drive", f"format=raw,file=fat:rw:{tmp_path / 'stick'}"))


@pytest.mark.qemu
@NEEDS_QEMU
@NEEDS_GRUB
def test_a_bios_starts_the_iso(tmp_path: Path) -> None:
    write_payload(PLAN, tmp_path / "cases.iso")
    check(boot(tmp_path, "-cdrom", str(tmp_path / "cases.iso")))


def test_the_efi_file_reserves_all_that_the_payload_uses() -> None:
    cases = table(trials_of(PLAN))
    made = efi_file(cases)
    at = struct.unpack_from("<I", made, 60)[0]
    base, size = struct.unpack_from("<Q", made, at + 24 + 24)[0], struct.unpack_from("<I", made, at + 24 + 56)[0]
    assert made[:2] == b"MZ"
    assert made[at : at + 6] == b"PE\0\0\x64\x86"
    assert base < IMAGE
    assert base + size >= CASES + len(cases)
    sections = [struct.unpack_from("<8sIIII", made, at + 264 + 40 * number) for number in range(2)]
    for _, in_memory, address, raw, place in sections:
        assert address % 0x1000 == 0
        assert place + raw <= len(made)
        assert raw <= in_memory + 0xFFF
    assert made[sections[1][4] :][: len(cases)] == cases


def test_cases_that_may_end_the_machine_come_last(trials: list[Trial]) -> None:
    risky = [trial for trial in trials if is_risky(trial)]
    assert len(risky) > 3
    assert trials[-len(risky) :] == risky


@pytest.mark.qemu
@NEEDS_QEMU
@pytest.mark.parametrize("write", ["movcr4:0:wp,nxe:8020:", "movcr0:0:wp,nxe:80000030:"], ids=["hangs", "resets"])
def test_a_machine_that_ends_says_at_which_case(tmp_path: Path, write: str) -> None:
    trials = [Trial(case, expect(case, ASSUMED)) for case in map(parse_case, (f"la48:{CALM}", f"la48:{write}"))]
    (tmp_path / "cases.elf").write_bytes(elf_file(table(trials, layout.P_DIFFERING)))
    found = boot(tmp_path, "-kernel", str(tmp_path / "cases.elf"), end=announced(1))
    time.sleep(1)
    text = read_text((tmp_path / "serial.txt").read_bytes())
    assert announced(1) in found
    assert (text.ended, text.done, text.stopped_at, text.garbled) == (False, 1, 1, 0)


def announced(number: int) -> bytes:
    """The line that the payload writes before it runs a case that may end the machine."""
    words = f"run {number:x}".encode()
    return words + f" *{line_hash(words):x}\r\n".replace("*", "* ").encode()


def test_the_text_of_a_machine_that_ended_keeps_what_it_did(
    trials: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = next(number for number, trial in enumerate(trials) if is_risky(trial))
    written = table(trials)
    head = f"fivefold-conform/1 {len(written) // 8:x} {struct.unpack_from('<Q', written, 8 * layout.W_HASH)[0]:x}"
    leaves = [f"cpuid {' '.join(format(word, 'x') for word in LEAVES.get(leaf, (0, 0, 0, 0)))}" for leaf in KEYS]
    lines = [line.encode() for line in (head, *leaves)]
    text = b"".join(line + f" * {line_hash(line):x}\r\n".encode() for line in lines) + announced(number)
    (tmp_path / "text").write_bytes(text)
    monkeypatch.setattr("sys.argv", [
        "fivefold", "conform", "--judge", str(tmp_path / "text"), "--cases", "3200", "--seed", "3", "--mode", "la57"
    ])  # fmt: skip
    assert run() == 2
    out, err = capsys.readouterr()
    assert err == f"fivefold: the text ends after {number} of {len(trials)} cases\n"
    assert "did:  the machine stopped or reset at this case" in out
    cpu = read_text(text).cpu
    shown = sum(not expect(trial.case, cpu).hidden for trial in trials[: number + 1])
    assert shown > number // 2 and f"machine unknown: {shown} cases" in out


LEAVES = {
    (0, 0): (0x20, 0x756E_6547, 0x6C65_746E, 0x4965_6E69), (1, 0): (0, 0, 0x0602_0000, 0x0000_2000),
    (7, 0): (1, 0x0010_0481, 0x8001_0008 | 1 << 16, 0), (0x8000_0000, 0): (0x8000_0008, 0, 0, 0),
    (0x8000_0001, 0): (0, 0, 0, 0x2C10_0800), (0x8000_0008, 0): (0x3028, 0, 0, 0),
}  # fmt: skip
"""A CPU like the one that the payload assumes."""
KEYS = list(zip(layout.LEAVES, layout.SUBLEAVES, strict=True))
CALM = "read8:0:wp,nxe:7a8044233128:"
