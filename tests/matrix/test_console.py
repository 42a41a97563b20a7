"""The init's lines: whole, lost, mixed with others, damaged; and what they are held against."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fivefold.matrix.cells import Cell
from fivefold.matrix.init.build import ArchiveEntry, cpio, init_program, initramfs
from fivefold.matrix.run.console import line_hash, oops_of, panic_of, read_reports
from fivefold.matrix.run.told import told_checks


def line(number: int, text: str) -> bytes:
    body = f"f5 {number:x} {text}".encode()
    return body + b" * %x\r\n" % line_hash(body)


def console(*texts: str) -> bytes:
    return b"".join(line(number, text) for number, text in enumerate(texts))


LA57 = (
    "begin 1", "release 6.1.0", "cmdline console=ttyS0 x", "flags la57 nx", "cpus 1", "stack 7ffd00000000",
    "memory none 7fb1440fc000 0", "memory low 123456789000 0", "memory below_47 700000000000 0",
    "memory at_47 800000000000 0", "memory across_47 7fb1440fa000 0", "memory at_55 80000000000000 0",
    "memory last_of_56 ffffffffffe000 0", "memory beyond_56 ffffb1440fc000 0", "memory fixed_at_47 800000001000 0",
    "memory fixed_at_55 80000000001000 0", "memory fixed_last_of_56 ffffffffffd000 0",
    "memory fixed_guard_of_56 fffffffffffffff4 0", "memory fixed_at_56 fffffffffffffff4 0",
    "access middle_of_56 b 1 c0000000000000", "access at_56 b 80 0", "access middle_of_hole b 80 0",
    "access low_end_of_kernel_half b 80 0", "symbol 0 ffffffff81000000", "end",
)  # fmt: skip
"""What Debian's 6.1 says under QEMU with LA57."""


def test_a_whole_report() -> None:
    found = read_reports(b"[    0.1] noise\r\n" + console(*LA57))
    assert found.complete == 1
    report = found.reports[0]
    assert (report.release, report.mode, report.number("cpus")) == ("6.1.0", "la57", 1)
    assert report.symbols == {"_text": 0xFFFF_FFFF_8100_0000}
    checks = list(told_checks(report, Cell("c"), "la57", "console=ttyS0 x"))
    assert [check.name for check in checks if not check.ok] == []
    assert len(checks) > 20


@pytest.mark.parametrize("number", range(1, len(LA57)))
def test_a_line_that_is_lost_or_damaged_is_noticed(number: int) -> None:
    lines = [line(at, text) for at, text in enumerate(LA57)]
    assert read_reports(b"".join(lines[:number] + lines[number + 1 :])).complete == 0
    damaged = lines[number].replace(b" ", b"[ 3.1] ", 1)
    assert read_reports(b"".join([*lines[:number], damaged, *lines[number + 1 :]])).complete == 0


def test_text_before_a_line_does_not_harm_it() -> None:
    lines = [line(at, text) for at, text in enumerate(LA57)]
    assert read_reports(b"[ 2.0] usb: x".join([b"", *lines])).complete == 1


BROKEN = {
    "memory at_55": "memory at_55 7fb144000000 0",
    "memory none": "memory none ffffb1440fc000 0",
    "memory low": "memory low 123456789000 b",
    "memory fixed_at_47": "memory fixed_at_47 fffffffffffffff4 0",
    "memory fixed_guard_of_56": "memory fixed_guard_of_56 fffffffffff000 0",
    "access middle_of_56": "access middle_of_56 b 80 0",
    "access at_56": "access at_56 b 1 100000000000000",
    "stack": "stack fffffffffe0000",
    "flags": "flags nx",
    "cpus": "cpus 2",
    "cmdline": "cmdline console=ttyS0",
}


@pytest.mark.parametrize("what", BROKEN)
def test_each_broken_promise_is_one_failed_check(what: str) -> None:
    texts = [BROKEN[what] if text.startswith(f"{what} ") else text for text in LA57]
    report = read_reports(console(*texts)).reports[0]
    failed = [check.name for check in told_checks(report, Cell("c"), "la57", "console=ttyS0 x") if not check.ok]
    assert len(failed) == 1, failed


def test_the_same_answers_break_the_other_promise() -> None:
    report = read_reports(console(*LA57)).reports[0]
    failed = {check.name for check in told_checks(report, Cell("c"), "la48", "console=ttyS0 x") if not check.ok}
    assert {"told-mode", "memory-at_55", "memory-fixed_at_47", "access-middle_of_56"} <= failed


def test_the_kernels_text_comes_between_lines() -> None:
    text = b"---[ User Space ]---\n0x0 1G pgd\n"
    head, tail = console("begin 1", "text"), line(2, f"text_end {len(text):x} {line_hash(text):x}") + line(3, "end")
    found = read_reports(head + text.replace(b"\n", b"\r\n") + tail)
    assert found.complete == 1 and found.reports[0].text == text
    damaged = read_reports(head + text.replace(b"pgd", b"pud").replace(b"\n", b"\r\n") + tail)
    assert damaged.complete == 0 and damaged.reports[0].text is None


def test_what_the_kernel_says_when_it_gives_up() -> None:
    text = (
        b"[ 1.0] BUG: unable to handle page fault for address: ff\r\n[ 1.1] Kernel panic - not syncing: Attempted\r\n"
    )
    assert panic_of(text) == "Attempted"
    assert oops_of(text) == "BUG: unable to handle page fault for address: ff"
    assert panic_of(b"all is well") is None and oops_of(b"all is well") is None


def test_the_init_runs_here_and_reports_without_touching_anything(tmp_path: Path) -> None:
    """As any process but the first it asks, prints and ends: on this kernel, whichever it is."""
    program = tmp_path / "init"
    program.write_bytes(init_program())
    program.chmod(0o755)
    done = subprocess.run([program], capture_output=True, timeout=60, check=True)
    found = read_reports(done.stdout)
    assert found.complete == 1
    report = found.reports[0]
    assert report.release == Path("/proc/sys/kernel/osrelease").read_text().strip()
    cell = replace(Cell("here"), smp=report.number("cpus") or 0)
    said = list(told_checks(report, cell, report.mode or "la48", ""))  # type: ignore[arg-type]
    assert [check for check in said if not check.ok] == []


def test_the_initramfs_is_a_cpio_archive(tmp_path: Path) -> None:
    data = initramfs(b"the kernel", 2)
    assert data.count(b"the kernel") == 2 and data.count(b"TRAILER!!!") == 3
    assert cpio([ArchiveEntry("a", 0o100644, b"xyz")])[:6] == b"070701"
