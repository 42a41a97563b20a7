"""kill -9 anywhere: nothing is left, neither a QEMU nor a file; and a worker of a cluster that dies."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.machine import available
from fivefold.matrix.cells import Cell
from fivefold.matrix.conduct import Options, run_plan
from fivefold.matrix.kernels.kernel_file import KernelFile
from fivefold.matrix.plan import MatrixPlan, PlannedCell
from fivefold.matrix.result import KernelRow
from fivefold.matrix.state import MatrixState

pytestmark = pytest.mark.qemu
AT = 0x100_0000


@pytest.fixture(scope="module", autouse=True)
def _engine() -> None:
    if (reason := available("qemu")) is not None:
        pytest.skip(reason)


def halting_kernel(code: bytes = b"\xfa\xf4\xeb\xfd") -> bytes:
    """An ELF file with a PVH entry whose code is cli, hlt and a jump back to the hlt; a banner makes it a vmlinux."""
    code += b"Linux version 0.0.1-halts"
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", AT)
    at = 64 + 2 * 56
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 2, 62, 1, AT, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, at + len(note), AT, AT, len(code), len(code), 16)
    return head + load + struct.pack("<IIQQQQQQ", 4, 4, at, 0, 0, len(note), len(note), 4) + note + code


def plan(*cells: Cell) -> MatrixPlan:
    kernel = KernelFile("vmlinux", "vmlinux", halting_kernel())
    planned = tuple(PlannedCell(cell, 0, "vmlinux", cell.promised("vmlinux")) for cell in cells)
    return MatrixPlan((KernelRow("vmlinux", kernel.release, kernel.sha256),), (kernel,), planned, (), ())


def children(pid: int) -> list[int]:
    """All processes below *pid*."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if parent == pid:
                found += [int(folder.name), *children(int(folder.name))]
    return found


def qemu_below(pid: int) -> int | None:
    for child in children(pid):
        try:
            if b"qemu-system" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
                return child
        except OSError:
            continue
    return None


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.1)
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def scratch() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("fivefold-matrix-*"))


SCRIPT = """
from importlib import util
from fivefold.matrix.conduct import LocalRunner, Options, PlannedRun
spec = util.spec_from_file_location("supervise_test", {file!r})
module = util.module_from_spec(spec); spec.loader.exec_module(module)
plan = module.plan(module.Cell("c", path="pvh"))
with LocalRunner(plan, Options(silent=600)) as runner:
    runner(PlannedRun(plan.cells[0], 0))
"""


@pytest.mark.parametrize("victim", ["parent", "supervisor"])
def test_kill_9_leaves_nothing(victim: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = SCRIPT.format(file=__file__)
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        qemu = until(lambda: qemu_below(parent.pid))
        supervisor = next(pid for pid in children(parent.pid) if qemu in children(pid))
        os.kill(parent.pid if victim == "parent" else supervisor, signal.SIGKILL)
        until(lambda: gone(qemu) and gone(supervisor), 30)
        until(lambda: not list(tmp_path.iterdir()), 30)
        if victim == "supervisor":
            assert parent.wait(60) == 0
    finally:
        parent.kill()
        parent.wait()


def test_a_kernel_that_halts_at_once_hangs_and_the_place_is_told() -> None:
    made = plan(Cell("c", path="pvh"))
    with MatrixState(None, made, "e") as state:
        found = run_plan(made, Options(silent=0.5, timeout=60), state)
    run = found.cells[0].runs[0]
    assert run.outcome == "hang" and run.cause is not None
    assert run.cause.sentence.startswith("nothing on the console for 0 s; the CPU is halted at 0x00000000010000")


def test_a_monitor_that_does_not_start_is_one_line_and_others_go_on() -> None:
    made = plan(Cell("bad", path="pvh", cpu="no-such-cpu"), Cell("good", path="pvh"))
    with MatrixState(None, made, "e") as state:
        found = run_plan(made, Options(silent=0.5, timeout=60), state)
    assert [cell.outcome for cell in found.cells] == ["worker-lost", "hang"]
    cause = found.cells[0].runs[0].cause
    assert cause is not None and "no-such-cpu" in cause.sentence and "\n" not in cause.sentence


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    if not os.environ.get("FIVEFOLD_REQUIRE_CLUSTER"):
        pytest.importorskip("distributed", reason="install it with: pip install 'fivefold[cluster]'")
    from distributed import Client

    file = tmp_path / "scheduler.json"

    def dask(name: str, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *words, "--no-dashboard"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    running = [dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))]
    try:
        for number in range(2):
            place = str(tmp_path / str(number))
            words = ("--nthreads", "1", "--no-nanny", "--local-directory", place)
            running.append(dask("worker", "--scheduler-file", str(file), *words))
        with Client(scheduler_file=str(file), timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            yield client.scheduler.address, running[1:]
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_a_worker_killed_in_the_middle_costs_its_cell_alone(cluster: Any) -> None:
    """Four cells on two workers; the one whose machine is up first is killed: its machine ends, its cell runs again."""
    from concurrent.futures import ThreadPoolExecutor

    from fivefold.matrix.cluster import run_on_cluster

    address, workers = cluster
    made = plan(*(Cell(f"c{number}", path="pvh") for number in range(4)), Cell("unable", path="pvh", machine="microvm"))
    options = Options(silent=3, timeout=60)
    with MatrixState(None, made, "e") as state, ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_on_cluster, made, options, state, lambda item, run: None, address)
        worker, qemu = until(lambda: next(((one, at) for one in workers if (at := qemu_below(one.pid))), None), 120)
        worker.kill()
        until(lambda: gone(qemu), 30)
        found = running.result(240)
    assert [cell.id for cell in found.cells] == ["c0", "c1", "c2", "c3", "unable"]
    assert {cell.outcome for cell in found.cells} == {"hang"}
