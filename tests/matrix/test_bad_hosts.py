"""Hosts and guests that misbehave: one line each, and the other cells go on."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.errors import MachineError
from fivefold.machine import available
from fivefold.matrix.cells import Cell
from fivefold.matrix.conduct import Options, PlannedRun, run_plan
from fivefold.matrix.result import CellRun
from fivefold.matrix.run.run_cell import Task, run_cell
from fivefold.matrix.run.watch import Patience
from fivefold.matrix.state import MatrixState
from fivefold.matrix.supervise.client import loaded
from fivefold.matrix.vmm import qemu
from fivefold.matrix.vmm.base import Files

pytestmark = pytest.mark.qemu

_SPEC = importlib.util.spec_from_file_location("supervise", Path(__file__).parent / "test_supervise.py")
assert _SPEC is not None and _SPEC.loader is not None
supervise: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(supervise)

FLOODS = b"\x66\xba\xf8\x03\xb0\x61\xee\xeb\xfd"
"""mov dx, 0x3f8; mov al, 'a'; out dx, al; and again."""


@pytest.fixture(scope="module", autouse=True)
def _engine() -> None:
    if (reason := available("qemu")) is not None:
        pytest.skip(reason)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB that is full but for a page or two."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "small", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip(f"a small disk can be mounted by root alone: {done.stderr.strip()}")
    try:
        (place / "ballast").write_bytes(bytes(56 << 10))
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def cells_run(made: Any, options: Options, state: Path | None = None) -> tuple[list[CellRun], list[str], str | None]:
    """The runs of a plan, the cells that were run now, and why the state was not kept."""
    told: list[str] = []

    def tell(item: PlannedRun, run: CellRun) -> None:
        told.append(item.planned.id)

    with MatrixState(str(state) if state else None, made, "e") as kept:
        table = run_plan(made, options, kept, tell)
    return [cell.runs[0] for cell in table.cells], told, kept.not_kept


def test_a_full_disk_costs_what_is_kept_and_nothing_else(small_disk: Path) -> None:
    made = supervise.plan(Cell("a", path="pvh"), Cell("b", path="pvh"))
    runs, _, _ = cells_run(made, Options(silent=0.5, timeout=60, keep=str(small_disk / "keep")))
    assert [run.outcome for run in runs] == ["hang", "hang"]
    for run in runs:
        assert run.kept is None and run.cause is not None
        assert run.cause.sentence.endswith("(nothing kept: No space left on device)")
    assert sorted(path.name for path in small_disk.rglob("*") if path.is_file()) == ["ballast"]


def test_a_state_on_a_full_disk_ends_what_is_kept_and_not_the_matrix(small_disk: Path) -> None:
    state = small_disk / "state"
    # The plan takes most of the one page that the state gets.
    made = supervise.plan(*(Cell(f"c{number}", path="pvh", cmdline="w" * 1000) for number in range(3)))
    with MatrixState(str(state), made, "e") as kept:
        (small_disk / "rest").touch()
        with (small_disk / "rest").open("wb", buffering=0) as rest:
            while True:
                try:
                    rest.write(bytes(1 << 10))
                except OSError:
                    break
        table = run_plan(made, Options(silent=0.5, timeout=60), kept)
    assert [cell.outcome for cell in table.cells] == ["hang"] * 3
    assert kept.not_kept == "No space left on device"


def test_a_scratch_folder_on_a_full_disk_is_one_line(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GRUB's CD needs room; the other cell needs none."""
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    made = supervise.plan(Cell("grub", path="bios-grub"), Cell("b", path="pvh"))
    runs, _, _ = cells_run(made, Options(silent=0.5, timeout=60))
    assert [run.outcome for run in runs] == ["worker-lost", "hang"] and runs[0].cause is not None
    assert "No space left" in runs[0].cause.sentence and "\n" not in runs[0].cause.sentence
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def machine_run(code: bytes, patience: Patience, tmp_path: Path, cell: Cell | None = None) -> CellRun:
    kernel = supervise.halting_kernel(code)
    with loaded(kernel) as one, loaded(b"initramfs") as other:
        task = Task(cell or Cell("c", path="pvh"), "vmlinux", Files(one.file, other.file, str(tmp_path)), patience)
        return run_cell(task, qemu.QemuDriver())


def test_a_console_that_floods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "MOST_CONSOLE", 1 << 16)
    run = machine_run(FLOODS, Patience(120, 60), tmp_path)
    assert run.outcome == "hang" and run.cause is not None and run.cause.rule == "flood"
    assert len(run.cause.sentence) < 400


def test_a_monitor_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP: it answers no more. That is no verdict on the kernel, and it is ended all the same."""
    monkeypatch.setattr(qemu, "ANSWER_SECONDS", 2.0)
    stopped: list[int] = []

    def stop_it() -> None:
        stopped.append(supervise.until(lambda: supervise.qemu_below(os.getpid())))
        os.kill(stopped[0], signal.SIGSTOP)

    thread = threading.Thread(target=stop_it)
    thread.start()
    with pytest.raises(MachineError) as raised:
        machine_run(b"\xfa\xf4\xeb\xfd", Patience(120, 3), tmp_path)
    thread.join()
    assert "\n" not in str(raised.value) and supervise.gone(stopped[0])


SCRIPT = """
import sys
from importlib import util
from fivefold.matrix.conduct import Options, run_plan
from fivefold.matrix.state import MatrixState
spec = util.spec_from_file_location("supervise", {file!r})
module = util.module_from_spec(spec); spec.loader.exec_module(module)
made = module.plan(*(module.Cell(f"c{{n}}", path="pvh") for n in range(3)))
with MatrixState({state!r}, made, "e") as kept:
    run_plan(made, Options(silent=0.5, timeout=60), kept)
"""


def test_killed_in_the_middle_it_goes_on_from_its_state(tmp_path: Path) -> None:
    state = tmp_path / "state"
    script = SCRIPT.format(file=supervise.__file__, state=str(state))
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        supervise.until(lambda: state.exists() and state.read_bytes().count(b"\n") >= 2)
    finally:
        parent.kill()
        parent.wait()
    done = state.read_bytes().count(b"\n") - 1
    made = supervise.plan(*(Cell(f"c{number}", path="pvh") for number in range(3)))
    runs, told, _ = cells_run(made, Options(silent=0.5, timeout=60), state)
    assert [run.outcome for run in runs] == ["hang"] * 3
    assert told == [f"c{number}" for number in range(done, 3)]


@pytest.mark.parametrize(("jobs", "cores", "patience"), [(1, 4, 300), (4, 4, 300), (8, 4, 600), (3, 2, 450)])
def test_a_boot_has_more_time_where_there_are_more_machines_than_cores(
    jobs: int, cores: int, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fivefold.matrix.conduct.cores", lambda: cores)
    assert Options(jobs).patience == patience
