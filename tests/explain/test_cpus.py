"""A shutdown on one of several CPUs is explained by that CPU's registers, or says that they are not known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fivefold.arch import Cpu
from fivefold.explain import explain_event
from fivefold.machine.base import ExceptionRecord, Shutdown
from fivefold.memory import Ram

NAMES = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{n}" for n in range(8, 16)))


def registers(rip: int, rsp: int, cr3: int) -> Any:
    general = dict.fromkeys(NAMES, 0)
    return SimpleNamespace(
        **general, rip=rip, rsp=rsp, rflags=2, cpl=0, gdt=None, idt=None, cr0=0x80010011, cr2=0x1000, cr3=cr3, cr4=0x20,
        efer=0xD00,
    )  # fmt: skip


def machine(*every: Any) -> Any:
    ram = Ram.of_size(2 << 20)
    return SimpleNamespace(
        name="test", cpu=Cpu(), memory=ram, registers=lambda: every[0], all_registers=lambda: every, exceptions=()
    )


EVENT = Shutdown((ExceptionRecord(14, 0, 0x5000, 0x2000, 0x8000),))


def test_the_cpu_that_it_happened_on() -> None:
    """The second CPU's root at 0x4000 is empty; the first CPU's would be read past the end of memory."""
    found = explain_event(EVENT, machine(registers(0x1000, 0x9000, 1 << 30), registers(0x2000, 0x8000, 0x4000)))
    assert (found.cause.rule, found.cause.level and found.cause.level.name) == ("not-present", "PML4")
    assert not [text for text in found.unknown if "CPU" in text and "which" in text]


def test_a_cpu_that_is_not_known() -> None:
    every = registers(0x1000, 0x9000, 0x4000), registers(0x3000, 0x7000, 0x4000)
    found = explain_event(EVENT, machine(*every))
    assert found.mode is None
    assert (
        "which of the 2 CPUs it happened on is not known, and so neither its registers nor its tables" in found.unknown
    )
    assert found.cause.level is None
