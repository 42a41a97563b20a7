"""Workers on this machine: processes that take one part after the other. One that dies is replaced."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from fivefold.campaign.parts import TRIES, CampaignError, PartEnd, PartLost, Work, end_of

MOST: Final = 4
"""Processes for each CPU, at the most: more would only take memory."""


class WorkerProcess:
    """A process that serves `worker.main`, and the part that it is at."""

    def __init__(self, work: Work) -> None:
        """Start it. Raises `CampaignError` where the system starts no more."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "fivefold.campaign.worker", str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    # Ctrl-C at the terminal is for us to handle.
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise CampaignError(f"a worker cannot be started: {error.strerror}") from error
        self.link: Connection[Any, Any] = Connection(ours.detach())
        self.link.send(work)
        self.part: str | None = None

    def begin(self, name: str, argument: Any) -> None:
        """Give it a part."""
        self.part = name
        self.link.send(argument)

    def end(self) -> None:
        """Kill it, and wait for it."""
        self.link.close()
        self._process.kill()
        self._process.wait()


def in_processes(work: Work, parts: Mapping[str, Any], jobs: int) -> Iterator[PartEnd]:
    """The end of each part, done by *jobs* processes. Whatever ends this generator ends them."""
    left = deque((name, 1) for name in parts)
    most = min(jobs, len(parts), MOST * (os.cpu_count() or 1))
    workers: list[WorkerProcess] = []
    tries: dict[str, int] = {}
    try:
        while left or any(worker.part for worker in workers):
            while left and (idle := _idle(workers, most, work)):
                name, tries[name] = left.popleft()
                _begin(idle, name, parts[name])
            for link in wait([worker.link for worker in workers if worker.part]):
                worker = next(worker for worker in workers if worker.link is link)
                name, worker.part = worker.part or "", None
                try:
                    yield end_of(name, worker.link.recv())
                except (EOFError, OSError):
                    workers.remove(worker)
                    worker.end()
                    if tries[name] < TRIES:
                        left.append((name, tries[name] + 1))
                    else:
                        yield PartLost(name, f"its worker died {TRIES} times")
    finally:
        for worker in workers:
            worker.end()


def _idle(workers: list[WorkerProcess], most: int, work: Work) -> WorkerProcess | None:
    """A worker without a part, made where there are fewer than *most*."""
    for worker in workers:
        if worker.part is None:
            return worker
    if len(workers) >= most:
        return None
    workers.append(WorkerProcess(work))
    return workers[-1]


def _begin(worker: WorkerProcess, name: str, argument: Any) -> None:
    """Give *worker* the part; one that is dead is noticed where its answer is waited for."""
    try:
        worker.begin(name, argument)
    except BrokenPipeError:
        return
