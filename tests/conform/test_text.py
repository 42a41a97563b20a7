"""The payload's text: a machine whose memory is not read, judged by its serial port; cut and garbled texts."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from fivefold.cli.commands import run
from fivefold.conform.campaign import Plan
from fivefold.conform.engines.qemu import PROGRAM
from fivefold.conform.machine_text import judge_text, write_payload
from fivefold.conform.payload.read_text import line_hash

PLAN = Plan("qemu", None, None, ("la48", "la57"), 400, 9)

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("conform")
    write_payload(PLAN, folder / "cases.elf")
    command = [PROGRAM, "-nodefaults", "-no-reboot", "-display", "none", "-cpu", "max", "-m", "256"]
    command += ["-kernel", str(folder / "cases.elf"), "-serial", f"file:{folder / 'serial.txt'}"]
    serial, found = folder / "serial.txt", b""
    with subprocess.Popen(command) as machine:
        try:
            deadline = time.monotonic() + 60
            while b"\nend " not in found and time.monotonic() < deadline:
                time.sleep(0.2)
                found = serial.read_bytes() if serial.exists() else b""
        finally:
            machine.kill()
    assert b"\nend " in found
    return found


def test_a_text_is_judged_by_the_cpu_that_it_names(text: bytes) -> None:
    report = judge_text(PLAN, text)
    assert report.incomplete is None
    assert report.cases > 250
    assert {key.mode for key, row in report.rows.items() if row.cases} == {"la48", "la57"}
    differing = {key.rule for key, row in report.rows.items() if row.differs}
    assert "error code bit 0 (P) is 1 for a reserved bit" in differing
    assert {key.rule for key, row in report.rows.items() if row.unknown} == set()


def test_a_cut_text_is_judged_as_far_as_it_goes(text: bytes) -> None:
    report = judge_text(PLAN, text[: 3 * len(text) // 4])
    assert report.incomplete and "ends after" in report.incomplete
    assert report.cases > 0


def test_a_garbled_line_is_seen(text: bytes) -> None:
    at = text.index(b"case ") + 6
    report = judge_text(PLAN, text[:at] + b"?" + text[at + 1 :])
    assert report.incomplete == "1 lines of the text are garbled"


@pytest.mark.parametrize("data", [b"", b"hello\n", b"fivefold-conform/1 1 2 * 3\r\n"])
def test_no_text_is_one_line(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                             capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    path = tmp_path / "serial.txt"
    path.write_bytes(data)
    monkeypatch.setattr("sys.argv", ["fivefold", "conform", "--judge", str(path), "--cases", "10"])
    assert run() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_plan_is_refused(text: bytes) -> None:
    from fivefold.conform.engines.base import EngineError

    with pytest.raises(EngineError, match="other cases"):
        judge_text(Plan("qemu", None, None, ("la48", "la57"), 300, 9), text)
    assert line_hash(b"") == 0x84222325
