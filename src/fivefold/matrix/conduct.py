"""Run a plan: every cell as often as asked for, some at a time, each under a supervisor of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from fivefold.matrix.cells import Cell
from fivefold.matrix.init.build import initramfs
from fivefold.matrix.plan import MatrixPlan, PlannedCell
from fivefold.matrix.result import CellRun
from fivefold.matrix.run.run_cell import command_line
from fivefold.matrix.run.watch import SILENT_SECONDS
from fivefold.matrix.state import MatrixState
from fivefold.matrix.supervise.client import loaded, supervised
from fivefold.matrix.supervise.job import Job, driver_named
from fivefold.matrix.table import MatrixTable, make_table

TIMEOUT: Final = 300.0


@dataclass(frozen=True)
class Options:
    """How to run. *timeout* is for one boot, on a core of its own: with more jobs than cores it grows."""

    jobs: int = 1
    repeat: int = 1
    timeout: float = TIMEOUT
    silent: float = SILENT_SECONDS
    keep: str | None = None
    driver: str = "qemu"
    accelerator: str = "tcg"
    program: str | None = None

    @property
    def identity(self) -> str:
        """What boots the cells, for the state file."""
        return " ".join(filter(None, (self.driver, self.accelerator, self.program)))

    @property
    def patience(self) -> float:
        """Seconds for a boot beside the others."""
        return self.timeout * max(1.0, self.jobs / cores())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class PlannedRun:
    """One run to be made."""

    planned: PlannedCell
    number: int


Told = Callable[[PlannedRun, CellRun], None]
RunItem = Callable[[PlannedRun], CellRun]


def items_of(plan: MatrixPlan, repeat: int) -> Iterator[PlannedRun]:
    """Every run: each cell once before any is repeated, so that a first table is there early."""
    for number in range(repeat):
        for planned in plan.cells:
            yield PlannedRun(planned, number)


def run_plan(
    plan: MatrixPlan, options: Options, state: MatrixState, told: Told = lambda item, run: None
) -> MatrixTable:
    """Run everything that *state* does not have yet, and make the table. Ctrl-C ends all machines first."""
    with LocalRunner(plan, options) as runner:
        run_items(items_of(plan, options.repeat), runner, state, told, options.jobs, runner.stop)
    return table_of(plan, options, state)


def table_of(plan: MatrixPlan, options: Options, state: MatrixState) -> MatrixTable:
    """The table of what *state* has."""
    runs: dict[str, list[CellRun]] = {}
    for (cell, number), run in sorted(state.done.items(), key=lambda row: row[0][1]):
        if number < options.repeat:
            runs.setdefault(cell, []).append(run)
    return make_table(plan, runs, {planned.id: command_of(planned, plan, options) for planned in plan.cells})


def command_of(planned: PlannedCell, plan: MatrixPlan, options: Options) -> Sequence[str]:
    """The command that repeats the cell without us; a kernel in a package has to be unpacked for it first."""
    driver = driver_named(options.driver, options.accelerator, options.program)
    kernel = plan.kernels[planned.kernel]
    assert kernel is not None
    unpacked = kernel.inside is not None or (planned.cell.path == "pvh" and kernel.kind != "vmlinux")
    name = "kernel" if unpacked else kernel.path
    disk = "disk" if planned.cell.hibernate else None
    return driver.command(planned.cell, command_line(planned.cell), name, "initramfs", disk)


def run_items(
    items: Iterator[PlannedRun], run: RunItem, state: MatrixState, told: Told, jobs: int, stop: Callable[[], None]
) -> None:
    """Run *items*, *jobs* at a time; *told* is called for each as it comes, in this thread."""
    with ThreadPoolExecutor(jobs) as pool:
        under_way: dict[Future[CellRun], PlannedRun] = {}
        try:
            for item in items:
                if state.has(item.planned.id, item.number):
                    continue
                if len(under_way) >= jobs:
                    _take_finished(under_way, state, told)
                under_way[pool.submit(run, item)] = item
            while under_way:
                _take_finished(under_way, state, told)
        except BaseException:  # Ctrl-C too must leave no machine
            stop()
            raise


def _take_finished(under_way: dict[Future[CellRun], PlannedRun], state: MatrixState, told: Told) -> None:
    finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
    for future in finished:
        item = under_way.pop(future)
        run = future.result()
        state.add(item.planned.id, item.number, run)
        told(item, run)


@dataclass
class LocalRunner:
    """Runs items on this machine; kernels and initramfs are loaded once, into files without names."""

    plan: MatrixPlan
    options: Options
    _files: dict[object, int] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __call__(self, item: PlannedRun) -> CellRun:
        """Run it under a supervisor."""
        cell, options = item.planned.cell, self.options
        kernel, files = self.files(item.planned)
        keep = options.keep and str(Path(options.keep) / cell.id / str(item.number + 1))
        return supervised(
            Job(
                cell, item.planned.kind, kernel, files, "", options.patience, options.silent, keep,
                options.driver, options.accelerator, options.program,
            ),
            self._stopped.is_set,
        )  # fmt: skip

    def files(self, planned: PlannedCell) -> tuple[int, int]:
        """Open files of the kernel, as the cell's path needs it, and of the initramfs."""
        kernel = self.plan.kernels[planned.kernel]
        assert kernel is not None
        unpacked = planned.cell.path == "pvh"
        times = len(planned.cell.kexec)
        with self._lock:
            return (
                self._file(("kernel", planned.kernel, unpacked), lambda: kernel.vmlinux if unpacked else kernel.data),
                self._file(
                    ("initramfs", planned.kernel if times else None, times),
                    lambda: initramfs(kernel.data, times) if times else initramfs(),
                ),
            )

    def _file(self, key: object, make: Callable[[], bytes]) -> int:
        if key not in self._files:
            self._files[key] = self._stack.enter_context(loaded(make())).file
        return self._files[key]

    def stop(self) -> None:
        """End all machines soon."""
        self._stopped.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def refusals(options: Options) -> Callable[[Cell], str | None]:
    """What this machine cannot run; `MachineError` where it has no monitor at all."""
    driver = driver_named(options.driver, options.accelerator, options.program)
    driver.version()
    return driver.refusal
