"""Start a supervisor for a run, wait for what it says, and leave nothing of it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fivefold.matrix.result import CellRun, lost
from fivefold.matrix.run.watch import STARVED
from fivefold.matrix.supervise.job import Job

SLACK: Final = 240.0
"""Seconds beyond the cell's own for what is not the boot: making a CD, looking at the guest, keeping what is left."""
_MAIN: Final = "from fivefold.matrix.supervise.child import main; main()"
_MOST_ANSWER: Final = 1 << 24
_WORDS_KEPT: Final = 2000


@dataclass(frozen=True)
class Loaded:
    """A kernel, or an initramfs, in an open file without a name."""

    file: int


@contextmanager
def loaded(data: bytes) -> Iterator[Loaded]:
    """*data* in memory, to be handed to supervisors."""
    file = os.memfd_create("fivefold-matrix")
    try:
        with open(file, "wb", closefd=False) as target:
            target.write(data)
        yield Loaded(file)
    finally:
        os.close(file)


def supervised(job: Job, stopped: Callable[[], bool] = lambda: False) -> CellRun:
    """What came of *job*; a supervisor that is killed, or does not answer in time, is a run that is lost.

    When *stopped* says so, the supervisor is ended early. The scratch folder is named here and made by the supervisor,
    so that one of the two is always there to remove it.
    """
    scratch = str(Path(tempfile.gettempdir()) / f"fivefold-matrix-{secrets.token_hex(8)}")
    job = replace(job, scratch=scratch)
    process: subprocess.Popen[bytes] | None = None
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _MAIN, scratch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(job.kernel, job.initramfs),
            start_new_session=True,
        )
        return _answer(process, job, stopped)
    except OSError as error:
        return lost(f"the supervisor could not be started: {error.strerror}")
    finally:
        if process is not None:
            _end(process)
        shutil.rmtree(scratch, ignore_errors=True)


def _answer(process: subprocess.Popen[bytes], job: Job, stopped: Callable[[], bool]) -> CellRun:
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job.to_json().encode() + b"\n")
        process.stdin.flush()
    deadline = time.monotonic() + STARVED * job.patience * (1 + bool(job.cell.hibernate)) + SLACK
    said, words = b"", b""
    readers = [process.stdout.fileno(), process.stderr.fileno()]
    while readers and not said.endswith(b"\n"):
        if time.monotonic() > deadline:
            return lost("the supervisor did not answer in time")
        if stopped():
            return lost("stopped")
        for file in select.select(readers, (), (), 0.5)[0]:
            part = os.read(file, 1 << 16)
            if not part:
                readers.remove(file)
            elif file == process.stdout.fileno():
                said += part
            else:
                words = (words + part)[-_WORDS_KEPT:]
        if len(said) > _MOST_ANSWER:
            return lost("the supervisor says too much")
    return _read(said, words)


def _read(said: bytes, words: bytes) -> CellRun:
    try:
        return CellRun.from_json(json.loads(said))
    except (ValueError, KeyError, TypeError):
        last = words.decode(errors="replace").strip().splitlines()
        return lost(f"the supervisor ended: {last[-1]}" if last else "the supervisor was killed")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of its group, wait for it, close the pipes. Until it is waited for its number is its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
