"""Names of kernel threads, as Linux prints them of what it keeps aside."""

from __future__ import annotations

import struct

import pytest

from fivefold.arch import LA48, AddressSpace
from fivefold.memory import Ram
from fivefold.survey.names.kernel_memory import KernelMemory
from fivefold.survey.names.thread_names import ThreadNames
from fivefold.units import PhysAddr

TABLE, TASK, THREAD, WORKER, QUEUE, TEXT = (0x1_0000 + 0x1000 * n for n in range(6))
NAMES = ThreadNames(
    kthread=8, full_name=16, data=24, description=32, pool=64, current_work=72, rescued=80, queue_name=8
)
COMM = "rcu_tasks_kthre"
THREAD_FLAG, WORKER_FLAG = 0x20_0000, 0x20_0020


def words(ram: Ram, at: int, **members: int) -> None:
    for offset, value in members.items():
        ram.write(PhysAddr(at + int(offset[1:])), struct.pack("<Q", value))


@pytest.fixture
def ram() -> Ram:
    """Tables that map the first 2 MiB where they lie, a task with a long name, a worker that has no work."""
    found = Ram.of_size(0x20_0000)
    for table, below in ((TABLE, 0x8_0000), (0x8_0000, 0x8_1000), (0x8_1000, 0)):
        found.write(PhysAddr(table), struct.pack("<Q", below | (0x83 if not below else 3)))
    words(found, TASK, _8=THREAD)
    words(found, THREAD, _16=TEXT, _24=WORKER)
    found.write(PhysAddr(TEXT), b"rcu_tasks_kthread\0")
    found.write(PhysAddr(WORKER + 32), b"events\0")
    words(found, WORKER, _64=QUEUE)
    return found


def name(ram: Ram, flags: int, comm: str = COMM, names: ThreadNames = NAMES) -> str:
    return names.name(KernelMemory(AddressSpace(ram, PhysAddr(TABLE), LA48), "ram"), TASK, flags, comm)


def test_a_name_longer_than_a_task_holds(ram: Ram) -> None:
    """All of it where it is kept aside, else the short one."""
    assert name(ram, THREAD_FLAG) == "rcu_tasks_kthread"
    ram.write(PhysAddr(TEXT), b"x" * 80)
    assert name(ram, THREAD_FLAG) == "x" * 63
    words(ram, THREAD, _16=0)
    assert name(ram, THREAD_FLAG) == COMM


def test_what_a_worker_does(ram: Ram) -> None:
    """Its work with a plus while it works at it, with a minus afterwards; none without a pool."""
    assert name(ram, WORKER_FLAG, "kworker/0:1") == "kworker/0:1-events"
    words(ram, WORKER, _72=QUEUE)
    assert name(ram, WORKER_FLAG, "kworker/0:1") == "kworker/0:1+events"
    words(ram, WORKER, _64=0)
    assert name(ram, WORKER_FLAG, "kworker/0:1") == "kworker/0:1"


def test_a_rescuer_is_called_by_its_queue(ram: Ram) -> None:
    """Only where Linux calls it so."""
    words(ram, WORKER, _80=QUEUE, _64=0)
    ram.write(PhysAddr(QUEUE + 8), b"kvfree_rcu_reclaim\0")
    assert name(ram, WORKER_FLAG, "kworker/R-kvfre") == "kworker/R-kvfree_rcu_reclaim"
    assert name(ram, WORKER_FLAG, "writeback") == "writeback"


@pytest.mark.parametrize("flags", [THREAD_FLAG, WORKER_FLAG])
def test_what_cannot_be_read(ram: Ram, flags: int) -> None:
    """The short name: no such member in this kernel, nothing there, an address that is not mapped."""
    assert name(ram, flags, names=ThreadNames(*[None] * 8)) == COMM
    words(ram, THREAD, _16=1 << 40, _24=1 << 40)
    assert name(ram, flags) == COMM
    words(ram, TASK, _8=0)
    assert name(ram, flags) == COMM
