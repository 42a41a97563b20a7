"""Names of kernel threads as ps prints them: whole, and for a worker with what it works at or did last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fivefold.errors import MemoryReadError
from fivefold.survey.names.btf import Btf
from fivefold.survey.names.kernel_memory import KernelMemory

_WORKER: Final = 0x20
"""PF_WQ_WORKER of ``include/linux/sched.h``."""
_RESCUER: Final = "kworker/R-"
_LONGEST: Final = 63
"""Linux prints no more of it (``proc_task_name`` in ``fs/proc/array.c``)."""
_DESCRIPTION: Final = 32


@dataclass(frozen=True, slots=True)
class ThreadNames:
    """Offsets in ``kthread``, ``worker`` and ``workqueue_struct``; None for what a kernel does not have.

    A task has 16 bytes for its name. Since 5.17 a thread whose name is longer keeps all of it aside, and since 6.11 a
    rescuer is called by its workqueue.
    """

    kthread: int | None
    full_name: int | None
    data: int | None
    description: int | None
    pool: int | None
    current_work: int | None
    rescued: int | None
    queue_name: int | None

    @classmethod
    def of(cls, btf: Btf) -> ThreadNames:
        """From what the kernel says of itself; before 5.17 the thread's own lay where a user's has another pointer."""
        return cls(
            btf.offset("task_struct", "worker_private", "set_child_tid"),
            btf.offset("kthread", "full_name"),
            btf.offset("kthread", "data"),
            btf.offset("worker", "desc"),
            btf.offset("worker", "pool"),
            btf.offset("worker", "current_work"),
            btf.offset("worker", "rescue_wq"),
            btf.offset("workqueue_struct", "name"),
        )

    def name(self, memory: KernelMemory, task: int, flags: int, comm: str) -> str:
        """What the kernel thread *task* is called; *comm*, its short name, where nothing better can be read."""
        try:
            thread = 0 if self.kthread is None else memory.word(task + self.kthread)
            if not thread:
                return comm
            found = self._worker(memory, thread, comm) if flags & _WORKER else self._full(memory, thread, comm)
        except MemoryReadError:
            return comm
        return found[:_LONGEST]

    def _full(self, memory: KernelMemory, thread: int, comm: str) -> str:
        at = 0 if self.full_name is None else memory.word(thread + self.full_name)
        return memory.text(at, _LONGEST) if at else comm

    def _worker(self, memory: KernelMemory, thread: int, comm: str) -> str:
        if self.data is None or self.description is None or self.pool is None or self.current_work is None:
            return comm
        worker = memory.word(thread + self.data)
        queue = 0 if self.rescued is None else memory.word(worker + self.rescued)
        if queue and self.queue_name is not None and comm.startswith(_RESCUER):
            comm = _RESCUER + memory.text(queue + self.queue_name, _DESCRIPTION)
        description = memory.text(worker + self.description, _DESCRIPTION)
        if not description or not memory.word(worker + self.pool):
            return comm
        return comm + ("+" if memory.word(worker + self.current_work) else "-") + description
