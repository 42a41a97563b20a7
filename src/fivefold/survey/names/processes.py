"""Processes of a Linux: pid, name and page-table root of each, from the kernel's own list and its own BTF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from fivefold.errors import FormatError, MemoryReadError
from fivefold.survey.names.btf import Btf
from fivefold.survey.names.kernel_memory import KernelMemory
from fivefold.survey.names.thread_names import ThreadNames
from fivefold.symbols import Symbols
from fivefold.units import PhysAddr

MOST_PROCESSES: Final = 1 << 18
_COMM: Final = 16
_KERNEL_THREAD: Final = 0x0020_0000
"""PF_KTHREAD of ``include/linux/sched.h``."""
MOST_THREADS: Final = 64
"""Threads of one process that are asked for its memory where the first has none any more."""

KERNEL_SPACES: Final = ("init_mm", "efi_mm")
"""Address spaces of the kernel's own: an ``mm_struct`` each."""

POINTED_SPACES: Final = ("poking_mm", "text_poke_mm")
"""The same, behind a pointer."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process, listed once whatever its threads. *root* is None where it has no tables of its own, nor borrows any.

    *name* is that of ps: of a kernel thread all of it, which is longer than a task's 16 bytes.

    *is_kernel*: a kernel thread, which borrows the tables of the process that ran before it: then *borrowed* is set.
    """

    pid: int
    name: str
    root: PhysAddr | None
    is_kernel: bool
    borrowed: bool


@dataclass(frozen=True, slots=True)
class ProcessList:
    """All *processes* in the order of the kernel's list, *labels* of roots that no process owns, and what stopped us.

    *how* says from what they are known, or why there are none.
    """

    processes: tuple[Process, ...]
    labels: dict[PhysAddr, str]
    how: str


@dataclass(frozen=True, slots=True)
class _Task:
    """Offsets in ``task_struct`` and what hangs below it."""

    tasks: int
    comm: int
    pid: int
    flags: int
    mm: int
    active_mm: int
    signal: int
    thread_head: int
    thread_node: int
    pgd: int


def list_processes(memory: KernelMemory, symbols: Symbols, btf: Btf) -> ProcessList:
    """Read the list that begins at ``init_task``; what cannot be read ends it, and *how* says so."""
    head, offsets = symbols.address("init_task"), _offsets(btf)
    if offsets is None:
        return ProcessList((), {}, "no processes: BTF lacks members of task_struct or mm_struct")
    labels = dict(_kernel_spaces(memory, symbols, offsets.pgd))
    if head is None:
        return ProcessList((), labels, "no processes: there is no symbol init_task")
    found: list[Process] = []
    threads = ThreadNames.of(btf)
    how = "the list at init_task, by the kernel's own BTF"
    try:
        for node in memory.ring(head + offsets.tasks, MOST_PROCESSES):
            found.append(_process(memory, node - offsets.tasks, offsets, threads))
    except (FormatError, MemoryReadError) as error:
        how = f"{how}; it breaks off after {len(found)}: {error}"
    return ProcessList(tuple(found), labels, how)


def _offsets(btf: Btf) -> _Task | None:
    names = ("tasks", "comm", "pid", "flags", "mm", "active_mm", "signal")
    known = [btf.offset("task_struct", name) for name in names]
    known += [btf.offset("signal_struct", "thread_head"), btf.offset("task_struct", "thread_node")]
    known.append(btf.offset("mm_struct", "pgd"))
    return None if None in known else _Task(*(one or 0 for one in known))


def _process(memory: KernelMemory, task: int, offsets: _Task, threads: ThreadNames) -> Process:
    flags = memory.half(task + offsets.flags)
    is_kernel = bool(flags & _KERNEL_THREAD)
    space = memory.word(task + offsets.mm)
    if not space and not is_kernel:
        space = _space_of_threads(memory, task, offsets)
    borrowed = memory.word(task + offsets.active_mm) if is_kernel and not space else 0
    root = _root(memory, space or borrowed, offsets.pgd)
    pid = memory.half(task + offsets.pid)
    name = memory.text(task + offsets.comm, _COMM)
    if is_kernel:
        name = threads.name(memory, task, flags, name)
    return Process(pid, name, root, is_kernel, bool(borrowed and root is not None))


def _space_of_threads(memory: KernelMemory, task: int, offsets: _Task) -> int:
    """The memory of a process whose first thread has ended, 0 where no thread has any."""
    ring = memory.ring(memory.word(task + offsets.signal) + offsets.thread_head, MOST_THREADS)
    spaces = (memory.word(node - offsets.thread_node + offsets.mm) for node in islice(ring, MOST_THREADS))
    return next(filter(None, spaces), 0)


def _root(memory: KernelMemory, space: int, pgd: int) -> PhysAddr | None:
    """Where the top table of an ``mm_struct`` lies, None where that cannot be told."""
    if not space:
        return None
    try:
        return memory.phys(memory.word(space + pgd))
    except MemoryReadError:
        return None


def _kernel_spaces(memory: KernelMemory, symbols: Symbols, pgd: int) -> Iterator[tuple[PhysAddr, str]]:
    for name in (*KERNEL_SPACES, *POINTED_SPACES):
        at = symbols.address(name)
        try:
            space = memory.word(at) if at is not None and name in POINTED_SPACES else at
        except MemoryReadError:
            continue
        root = _root(memory, space or 0, pgd)
        if root is not None:
            yield root, name
