"""The supervisor: runs one job from stdin, writes the run to stdout, and ends with everything it started.

Its stdin is a lifeline: it stays open as long as the parent lives, and its end is the parent's. The machine is a child
of the main thread and dies with it; what tools left in the scratch folder is removed first.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

from fivefold.errors import FivefoldError
from fivefold.matrix.result import CellRun, lost
from fivefold.matrix.run.run_cell import Task, run_cell
from fivefold.matrix.run.watch import Patience
from fivefold.matrix.supervise.job import Job, driver_named
from fivefold.matrix.vmm.base import Files


def main() -> None:
    """Run the job; the only output is one line with what came of it."""
    scratch = sys.argv[1]
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return  # the parent is gone already
    job = Job.from_json(line.decode())
    threading.Thread(target=_watch_parent, args=(scratch,), daemon=True).start()
    Path(scratch).mkdir(0o700)
    out = os.dup(1)
    os.dup2(2, 1)  # nothing else may speak there
    run = _run(job)
    os.write(out, json.dumps(run.to_json()).encode() + b"\n")
    os.close(out)
    shutil.rmtree(scratch, ignore_errors=True)


def _run(job: Job) -> CellRun:
    task = Task(
        job.cell, job.kind, Files(job.kernel, job.initramfs, job.scratch), Patience(job.patience, job.silent), job.keep
    )
    try:
        driver = driver_named(job.driver, job.accelerator, job.program)
        return replace(run_cell(task, driver), engine=f"{driver.name} {driver.version()}")
    except (FivefoldError, OSError) as error:
        words = str(error).strip().splitlines()
        return lost(words[0] if words else type(error).__name__, "machine")


def _watch_parent(scratch: str) -> None:
    """Wait for the parent's end, then end with all that was started from here."""
    while os.read(0, 1 << 12):
        pass
    shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
