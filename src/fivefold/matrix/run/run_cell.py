"""Run a cell once: start, watch, judge. This runs in the supervisor's process, for one machine at a time."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from fivefold.errors import FivefoldError
from fivefold.matrix.cells import HIBERNATE, KEXEC, Cell, Mode
from fivefold.matrix.kernels.file_symbols import FileSymbols, file_symbols
from fivefold.matrix.result import CellCheck, CellRun, Outcome, RunCause
from fivefold.matrix.run.causes import cause_of_console
from fivefold.matrix.run.console import WARNING, Reports, oops_of
from fivefold.matrix.run.keep import Kept
from fivefold.matrix.run.looks import View, looks
from fivefold.matrix.run.places import MachinePlaces
from fivefold.matrix.run.told import told_checks
from fivefold.matrix.run.verdict import FailedMachine, cause_of_check
from fivefold.matrix.run.watch import Patience, Stopped, watch
from fivefold.matrix.vmm.base import Driver, Files, RunningMachine
from fivefold.memory import Source

BASE_WORDS: Final = "console=ttyS0 earlyprintk=serial,ttyS0,115200 no_timer_check"
"""What every kernel is told: to talk on the serial port from the beginning, and not to give up over a timer that comes
late, as it does on a host with more to do than it has cores."""
DISK_BYTES: Final = 1 << 30
_BY_FIRMWARE: Final = ("bios-grub", "uefi")
_LONGEST: Final = 200
_LOADERS: Final = 4.0
"""Firmware and a loader may be silent for so many times as long as a kernel."""
_TELLING: Final = ("log", "restart", "audit-wx-kernel", "audit-wx-user")
"""Checks that tell the cause, where others that fail with them may tell what follows from it."""
_EARLIER: Final = re.compile(r"kernel-\d+-mode|saved")
"""Checks of the kernels that handed over to the one that waits."""


@dataclass(frozen=True)
class Task:
    """A cell with all that its run needs."""

    cell: Cell
    kind: str
    files: Files
    patience: Patience
    keep: str | None = None

    @cached_property
    def symbols(self) -> FileSymbols | None:
        """What the kernel's file says of its functions."""
        return file_symbols(os.pread(self.files.kernel, os.fstat(self.files.kernel).st_size, 0))

    @property
    def promised(self) -> tuple[Mode, ...]:
        """The mode of each kernel."""
        return self.cell.promised(self.kind)


def command_line(cell: Cell, again: bool = False) -> str:
    """The kernel's whole command line; *again* for the kernel that resumes a saved machine."""
    extra = cell.cmdline if not again or cell.resume_cmdline is None else cell.resume_cmdline
    words = [BASE_WORDS, extra]
    if cell.kexec:
        words.append(f"{KEXEC}={'/'.join(','.join(each.split()) or '-' for each in cell.kexec)}")
    if cell.hibernate:
        words.append(HIBERNATE)
    return " ".join(word for word in words if word)


def run_cell(task: Task, driver: Driver) -> CellRun:
    """Boot the cell once, and say what came of it. `MachineError` where no machine could be started."""
    began = time.monotonic()
    if task.cell.path in _BY_FIRMWARE:
        task = replace(task, patience=replace(task.patience, first=_LOADERS * task.patience.silent))
    if task.cell.hibernate:
        disk = os.memfd_create("disk")
        try:
            os.ftruncate(disk, DISK_BYTES)
            task = replace(task, files=replace(task.files, disk=disk))
            run = _saved_and_resumed(task, driver)
        finally:
            os.close(disk)
    else:
        run = _once(task, driver, command_line(task.cell), 1 + len(task.cell.kexec))
    return replace(run, seconds=round(time.monotonic() - began, 2))


def _saved_and_resumed(task: Task, driver: Driver) -> CellRun:
    """Save the machine to its disk, then start one that resumes it: what waits then is the first kernel."""
    machine = driver.start(task.cell, command_line(task.cell), task.files)
    try:
        stopped = watch(machine, 2, task.patience, lambda: _places(task, _source(machine)).name)
        if machine.ended != "off":
            return _failed(task, driver, machine, stopped)
    finally:
        machine.close()
    first = stopped.reports
    # The kernel that resumes reports first, then the one that was saved.
    run = _once(task, driver, command_line(task.cell, again=True), 2, resumes=True)
    mode = first.reports[0].mode if first.reports else None
    saved = CellCheck("saved", mode == task.promised[0], f"in mode {mode}, promised {task.promised[0]}")
    return replace(run, checks=(saved, *run.checks))


def _once(task: Task, driver: Driver, cmdline: str, reports: int, resumes: bool = False) -> CellRun:
    machine = driver.start(task.cell, cmdline, task.files)
    try:
        stopped = watch(machine, reports, task.patience, lambda: _places(task, _source(machine)).name)
        if stopped.kind != "ready":
            return _failed(task, driver, machine, stopped)
        machine.stop()
        if resumes and not stopped.reports.resumed:
            stopped = replace(stopped, reports=_never_resumed(stopped.reports))
        return _ready(task, driver, machine, stopped, command_line(task.cell) if resumes else cmdline)
    finally:
        machine.close()


def _never_resumed(reports: Reports) -> Reports:
    """The same with a failure more: it waits, but as the machine that was to resume another."""
    return reports if reports.failures else replace(reports, failures=[("resume", 0)])


def _places(task: Task, source: Source | None) -> MachinePlaces:
    return MachinePlaces(source, lambda: task.symbols)


def _source(machine: RunningMachine) -> Source | None:
    with suppress(FivefoldError, OSError):
        return machine.source()
    return None


def _ready(task: Task, driver: Driver, machine: RunningMachine, stopped: Stopped, cmdline: str) -> CellRun:
    """All checks of a machine that waits, and the verdict on its mode."""
    reports, promised = stopped.reports, task.promised
    last = reports.reports[-1]
    checks = list(_log_checks(bytes(machine.console), reports))
    checks += _earlier(reports, promised)
    words = cmdline if not task.cell.kexec else task.cell.kexec[-1].strip("-")
    checks += told_checks(last, task.cell, promised[-1], words)
    source = machine.source()
    if source is not None:
        with source:
            view = View(task.cell, last, promised[-1], machine, source)
            checks += looks(view)
            mode = _mode_of(view.source)
            run = CellRun("ready", mode, tuple(checks), release=last.release)
            if mode != promised[-1] or not run.ok:
                return _not_as_promised(task, driver, machine, run, promised[-1], source)
            return run
    run = CellRun("ready", last.mode, tuple(checks), release=last.release)
    return (
        run
        if run.ok and last.mode == promised[-1]
        else _not_as_promised(task, driver, machine, run, promised[-1], None)
    )


def _mode_of(source: Source) -> str | None:
    cr4 = source.cpus[0].cr4 if source.cpus else None
    return None if cr4 is None else "la57" if cr4 >> 12 & 1 else "la48"


def _not_as_promised(
    task: Task, driver: Driver, machine: RunningMachine, run: CellRun, promised: str, source: Source | None
) -> CellRun:
    places = _places(task, source)
    cause = cause_of_console(bytes(machine.console), places)
    outcome: Outcome = "ready"
    before = [check for check in run.checks if _EARLIER.fullmatch(check.name) and not check.ok]
    if run.mode != promised:
        outcome = "wrong-mode"
        cause = cause or RunCause(
            "wrong-mode", f"{_who(task.cell)} runs in mode {run.mode or 'unknown'}, and {promised} was promised"
        )
    elif before:
        outcome = "wrong-mode"
        cause = cause or RunCause("wrong-mode", f"{before[0].name}: {before[0].detail}")
    elif cause is None:
        failed = sorted((check for check in run.checks if not check.ok), key=lambda one: one.name not in _TELLING)
        cause = cause_of_check(failed[0], places, machine)
    found = replace(run, outcome=outcome, cause=cause)
    return _keep(task, driver, machine, found, source)


def _who(cell: Cell) -> str:
    return f"kernel {len(cell.kexec) + 1}, which the one before it started by kexec," if cell.kexec else "it"


def _log_checks(console: bytes, reports: Reports) -> Iterator[CellCheck]:
    oops = oops_of(console)
    warnings = WARNING.findall(console)
    told = f"; {len(warnings)} warnings, the first: {_text(warnings[0])}" if warnings else ""
    yield CellCheck("log", oops is None, (oops or "no oops, no BUG, no fault of the kernel") + told)
    failed = [f"{what} (error {(1 << 64) - error if error >> 63 else error})" for what, error in reports.failures]
    if failed:
        yield CellCheck("restart", False, f"the init could not {', '.join(failed)}")


def _text(line: bytes) -> str:
    return line[:_LONGEST].decode(errors="replace").strip()


def _earlier(reports: Reports, promised: tuple[Mode, ...]) -> list[CellCheck]:
    """The modes of the kernels before the last, which handed over to it."""
    rows = zip(reports.reports[:-1], promised[:-1], strict=False)
    return [
        CellCheck(f"kernel-{number}-mode", report.mode == mode, f"{report.mode or 'unknown'}, promised {mode}")
        for number, (report, mode) in enumerate(rows, 1)
    ]


def _failed(task: Task, driver: Driver, machine: RunningMachine, stopped: Stopped) -> CellRun:
    """What came of a machine that never got to wait."""
    source = _source(machine) if machine.ended != "gone" else None
    try:
        outcome, cause = FailedMachine(machine, stopped, _places(task, source), task.patience.silent).verdict()
        release = next((report.release for report in stopped.reports.reports if report.release), None)
        return _keep(task, driver, machine, CellRun(outcome, _known_mode(source), cause=cause, release=release), source)
    finally:
        if source is not None:
            source.close()


def _known_mode(source: Source | None) -> str | None:
    """The mode of a machine that failed: by CR4, once paging in long mode is on."""
    cpu = source.cpus[0] if source is not None and source.cpus else None
    if cpu is None or cpu.cr4 is None or not (cpu.cr0 or 0) >> 31 & 1 or not (cpu.efer or 0) >> 10 & 1:
        return None
    return "la57" if cpu.cr4 >> 12 & 1 else "la48"


def _keep(task: Task, driver: Driver, machine: RunningMachine, run: CellRun, source: Source | None) -> CellRun:
    if task.keep is None:
        return run
    kept = Kept(task.keep, task.cell, command_line(task.cell), task.files, driver)
    return kept.of(machine, run, source)
