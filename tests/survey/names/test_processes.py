"""Processes of a kernel that is put together in memory: the list must be the one that was written."""

from __future__ import annotations

from typing import Any

import pytest

from fivefold.arch import LA48, LA57, PagingMode
from fivefold.survey.names import processes
from fivefold.survey.names.btf import Btf
from fivefold.survey.names.processes import Process, list_processes
from fivefold.symbols import Symbols, SymbolSpan

KTHREAD, OTHERS = 0x20_0000, 0x0050_0141
"""PF_KTHREAD, and flags that say nothing of it."""
HOW = "the list at init_task, by the kernel's own BTF"
NOWHERE = 0xFFFF_FFFF_9B00_0000


@pytest.fixture
def kernel(kernel_in_memory: Any) -> Any:
    return kernel_in_memory(LA48)


def listed(kernel: Any, btf: Btf | None = None) -> Any:
    memory, symbols, own = kernel.parts(kernel.finish())
    return list_processes(memory, symbols, btf or own)


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
def test_all_kinds_of_processes(kernel_in_memory: Any, mode: PagingMode) -> None:
    """Threads of the kernel, with tables of others and without; processes whose first thread has ended; damage."""
    kernel = kernel_in_memory(mode)
    first, second, third, lost = (kernel.mm(root) for root in (0x5000, 0x6000, 0x7000, 0x8000))
    kernel.word(lost + 0x50, NOWHERE)
    kernel.task(0, "swapper/0", active=first, flags=KTHREAD | OTHERS, at=kernel.init_task)
    tasks = [
        kernel.task(1, "init", mm=first, active=second, flags=OTHERS),
        kernel.task(2, "kthreadd", flags=KTHREAD),
        kernel.task(300, "kworker/0:1", active=first, flags=KTHREAD | OTHERS),
        kernel.task(701, "sixteen-bytes-xyz", mm=second, active=third),
        kernel.task(800, "first has ended", active=first),
        kernel.task(801, "zombie", active=second, flags=OTHERS),
        kernel.task(0x7FFF_FFFE, "in a user's mm", mm=third, active=first, flags=KTHREAD),
        kernel.task(900, "\x1b[31m\x01", mm=lost, active=first),
        kernel.task(901, "borrows lost", active=lost, flags=KTHREAD),
        kernel.task(902, "kernel's with", active=0, flags=KTHREAD),
    ]
    kernel.threads(tasks[4], [0, 0, second, third])
    kernel.threads(tasks[5], [0, 0])
    kernel.threads(tasks[9], [second])
    kernel.listed(*tasks)

    found = listed(kernel)
    assert (found.how, found.labels) == (HOW, {})
    assert list(found.processes) == [
        Process(1, "init", 0x5000, False, False),
        Process(2, "kthreadd", None, True, False),
        Process(300, "kworker/0:1", 0x5000, True, True),
        Process(701, "sixteen-bytes-xy", 0x6000, False, False),
        Process(800, "first has ended", 0x6000, False, False),
        Process(801, "zombie", None, False, False),
        Process(0x7FFF_FFFE, "in a user's mm", 0x7000, True, False),
        Process(900, r"\x1b[31m\x01", None, False, False),
        Process(901, "borrows lost", None, True, False),
        Process(902, "kernel's with", None, True, False),
    ]


def test_64_threads_are_asked(kernel: Any) -> None:
    """The first among them; a process with as many dead threads has no memory here."""
    space = kernel.mm(0x5000)
    tasks = [kernel.task(number, "many", active=space) for number in (63, 64)]
    for task, dead in zip(tasks, (62, 63), strict=True):
        kernel.threads(task, [0] * dead + [space])
    kernel.listed(*tasks)
    assert [one.root for one in listed(kernel).processes] == [0x5000, None]


def test_spaces_of_the_kernels_own(kernel: Any) -> None:
    """`init_mm` and `efi_mm` are structures, the others pointers; what leads nowhere has no label."""
    kernel.mm(0x9000, at=kernel.image.put(0x18_2000, bytes(0x100), "init_mm"))
    efi = kernel.mm(0xA000, at=kernel.image.put(0x18_2100, bytes(0x100), "efi_mm"))
    kernel.image.put(0x18_2200, kernel.mm(0xB000).to_bytes(8, "little"), "poking_mm", "b")
    kernel.listed()
    assert listed(kernel).labels == {0x9000: "init_mm", 0xA000: "efi_mm", 0xB000: "poking_mm"}
    assert listed(kernel).processes == () and listed(kernel).how == HOW

    at = kernel.image.put(0x18_2208, bytes(8), "text_poke_mm", "b")
    kernel.word(at - 8, 0)
    kernel.word(efi + 0x50, NOWHERE)
    kernel.word(at, kernel.mm(0xC000))
    assert listed(kernel).labels == {0x9000: "init_mm", 0xC000: "text_poke_mm"}
    kernel.word(at, NOWHERE)
    assert listed(kernel).labels == {0x9000: "init_mm"}


def test_a_pointer_that_cannot_be_read_hides_no_other(kernel: Any) -> None:
    kernel.image.symbols.append((NOWHERE, "b", "poking_mm"))
    kernel.image.put(0x18_2208, kernel.mm(0xC000).to_bytes(8, "little"), "text_poke_mm", "b")
    kernel.listed()
    assert listed(kernel).labels == {0xC000: "text_poke_mm"}


def test_without_init_task(kernel: Any) -> None:
    kernel.mm(0x9000, at=kernel.image.put(0x18_2000, bytes(0x100), "init_mm"))
    memory, symbols, btf = kernel.parts(kernel.finish())
    symbols = Symbols([SymbolSpan.of(one[:3] for one in symbols.spans[0] if one.name != "init_task")], "test")
    found = list_processes(memory, symbols, btf)
    assert (found.processes, found.labels) == ((), {0x9000: "init_mm"})
    assert found.how == "no processes: there is no symbol init_task"


@pytest.mark.parametrize(
    ("structure", "member"),
    [("task_struct", name) for name in ("tasks", "comm", "pid", "flags", "mm", "active_mm", "signal", "thread_node")]
    + [("signal_struct", "thread_head"), ("mm_struct", "pgd")],
)
def test_types_that_lack_a_member(kernel: Any, structure: str, member: str) -> None:
    kernel.listed(kernel.task(1, "init"))
    found = listed(kernel, Btf(kernel.types((structure, member))))
    assert found.how == "no processes: BTF lacks members of task_struct or mm_struct"
    assert not found.processes and not found.labels


def test_lists_that_break_off(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before stays, and why there is no more is told: nothing there, a circle, or too many."""
    first, second, third = (kernel.task(number, "task") for number in (1, 2, 3))
    kernel.listed(first, second, third)
    assert [one.pid for one in listed(kernel).processes] == [1, 2, 3]
    monkeypatch.setattr(processes, "MOST_PROCESSES", 3)
    assert [one.pid for one in listed(kernel).processes] == [1, 2, 3] and listed(kernel).how == HOW

    monkeypatch.setattr(processes, "MOST_PROCESSES", 2)
    found, head = listed(kernel), kernel.init_task + 0x320
    assert [one.pid for one in found.processes] == [1, 2]
    told = f"{HOW}; it breaks off after 2: the list at {head:#018x} leads to {{:#018x}} after {{}} members"
    assert found.how == told.format(third + 0x320, 2) + "; expected its head"

    monkeypatch.setattr(processes, "MOST_PROCESSES", 9)
    kernel.word(second + 0x320, first + 0x320)
    found = listed(kernel)
    assert [one.pid for one in found.processes] == [1, 2]
    assert found.how == told.format(first + 0x320, 2) + "; expected its head"

    kernel.word(second + 0x320, NOWHERE)
    found = listed(kernel)
    assert [one.pid for one in found.processes] == [1, 2]
    assert found.how.startswith(f"{HOW}; it breaks off after 2: ") and "0xffffffff9afff000" in found.how
