"""kill -9 anywhere: nothing is left, neither a QEMU nor a file; and a worker of a cluster that dies."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from fivefold.matrix.table import MatrixTable

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


def qemu_below(pid: int, word: bytes = b"-M") -> int | None:
    """A QEMU below *pid* that has this *word* in its command."""
    for child in children(pid):
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"qemu-system" in words[0] and word in words:
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


Start = Callable[..., list["subprocess.Popen[bytes]"]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, Start]]:
    """A scheduler's address, and what starts workers: one for each environment, with more words for each."""
    if not os.environ.get("FIVEFOLD_REQUIRE_CLUSTER"):
        pytest.importorskip("distributed", reason="install it with: pip install 'fivefold[cluster]'")
    from distributed import Client

    file = tmp_path / "scheduler.json"
    running: list[subprocess.Popen[bytes]] = []

    def dask(name: str, *words: str, more: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *words, "--no-dashboard"]
        quiet = subprocess.DEVNULL
        running.append(subprocess.Popen(command, stdout=quiet, stderr=quiet, env=os.environ | (more or {})))
        return running[-1]

    def start(*environments: Mapping[str, str], words: Sequence[str] = ("--no-nanny",)) -> list[Any]:
        folders = [str(tmp_path / str(number)) for number in range(len(environments))]
        own = ("--scheduler-file", str(file), "--nthreads", "1", *words)
        pairs = zip(environments, folders, strict=True)
        made = [dask("worker", *own, "--local-directory", folder, more=more) for more, folder in pairs]
        with Client(scheduler_file=str(file), timeout=60, set_as_default=False) as client:
            client.wait_for_workers(len(environments), timeout=60)
        return made

    dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
    try:
        until(file.exists)
        with Client(scheduler_file=str(file), timeout=60, set_as_default=False) as client:
            address = client.scheduler.address
        yield address, start
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()


def on_cluster(address: str, made: MatrixPlan, options: Options) -> MatrixTable:
    from fivefold.matrix.cluster import run_on_cluster

    with MatrixState(None, made, "e") as state:
        return run_on_cluster(made, options, state, lambda item, run: None, address)


def test_a_worker_killed_in_the_middle_costs_its_cell_alone(cluster: Any) -> None:
    """Four cells on two workers; the one whose machine is up first is killed: its machine ends, its cell runs again."""
    address, start = cluster
    workers = start({}, {})
    made = plan(*(Cell(f"c{number}", path="pvh") for number in range(4)), Cell("last", path="pvh", machine="microvm"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(on_cluster, address, made, Options(silent=3, timeout=60))
        worker, qemu = until(lambda: next(((one, at) for one in workers if (at := qemu_below(one.pid))), None), 120)
        worker.kill()
        until(lambda: gone(qemu), 30)
        found = running.result(240)
    assert [cell.id for cell in found.cells] == ["c0", "c1", "c2", "c3", "last"]
    assert {cell.outcome for cell in found.cells} == {"hang"}


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_cell_that_kills_its_worker_three_times_is_reported(cluster: Any) -> None:
    """Workers are started again by their nannies, at other addresses; the cells beside it have their verdicts."""
    address, start = cluster
    nannies = start({}, {}, words=())
    made = plan(Cell("a", path="pvh"), Cell("killer", path="pvh", smp=3), Cell("b", path="pvh"))
    killed: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(on_cluster, address, made, Options(silent=3, timeout=60))
        while not running.done():
            # A fourth run may begin before the third death is counted: it is taken back, and nobody kills it.
            for qemu in filter(None, (qemu_below(one.pid, b"-smp") for one in nannies)):
                if len(killed) < 3:
                    killed.append(qemu)
                    os.kill(parent_of(parent_of(qemu)), signal.SIGKILL)
                    until(lambda at=qemu: gone(at), 30)
            time.sleep(0.1)
        found = running.result(0)
    assert [(cell.id, cell.outcome) for cell in found.cells] == [
        ("a", "hang"),
        ("killer", "worker-lost"),
        ("b", "hang"),
    ]
    assert len(killed) == 3 and found.cells[1].runs[0].cause is not None
    assert found.cells[1].runs[0].cause.sentence == "its worker died 3 times"


def test_workers_get_only_what_they_can_run(cluster: Any, tmp_path: Path) -> None:
    """One has all, one no QEMU, one another QEMU and no OVMF."""
    other = tmp_path / "other-qemu"
    other.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version 99.9" && exit\n'
                     'exec qemu-system-x86_64 "$@"\n')  # fmt: skip
    other.chmod(0o755)
    bare = tmp_path / "bare.py"
    bare.write_text(
        "from fivefold.machine.loading import firmware\n"
        "firmware.FIRMWARE = (type(firmware.FIRMWARE[0])(firmware.Path('/nowhere/OVMF.fd')),)\n"
    )
    address, start = cluster
    start({}, {"FIVEFOLD_QEMU": str(tmp_path / "none")})
    start({"FIVEFOLD_QEMU": str(other)}, words=("--no-nanny", "--preload", str(bare)))
    until(lambda: workers_at(address) == 3)
    made = plan(*(Cell(f"c{n}", path="pvh") for n in range(4)), *(Cell(f"uefi{n}", path="uefi") for n in range(2)))
    found = on_cluster(address, made, Options(silent=1, timeout=60))
    assert {cell.outcome for cell in found.cells} == {"hang"} and len(found.cells) == 6
    engines = {cell.id: cell.runs[0].engine for cell in found.cells}
    assert "qemu 99.9" in engines.values()
    assert "qemu 99.9" not in (engines["uefi0"], engines["uefi1"]), engines
    none = on_cluster(address, made, Options(program=str(tmp_path / "nothing")))
    assert not none.cells and len(none.skipped) == 6
    assert none.skipped[0].reason.startswith("no worker can: ") and "nothing" in none.skipped[0].reason


def workers_at(address: str) -> int:
    from distributed import Client

    with Client(address, timeout=60, set_as_default=False) as client:
        return len(client.scheduler_info(n_workers=-1)["workers"])
