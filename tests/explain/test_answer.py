"""What goes into an answer beside the rules: what is refused as input, an engine's history, CPUs, names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fivefold.arch import Cpu
from fivefold.explain import Explanation, RaisedException, Trace, explain, explain_event
from fivefold.explain.answer import is_source
from fivefold.explain.logs.trace import Placement
from fivefold.machine.base import ExceptionRecord, Shutdown
from fivefold.memory import CpuState, Ram, Segment

NAMES = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{n}" for n in range(8, 16)))
UD = ExceptionRecord(6, None, None, 0x2000, 0x8008)
AT_HANDLER = ExceptionRecord(14, 0x10, 0x9000, 0x9000, 0x8000 - 40)
IN_DELIVERY = ExceptionRecord(13, 0x72, None, 0x9000, 0x8000 - 40)


def told_of(records: tuple[ExceptionRecord, ...], history: tuple[ExceptionRecord, ...], cpus: int = 1) -> Explanation:
    """A shutdown of an engine whose registers are not those of the last exception."""
    registers = SimpleNamespace(
        **dict.fromkeys(NAMES, 0), rip=0x1000, rsp=0x7000, rflags=2, cpl=0, gdt=None, idt=None, cr0=0x8001_0011,
        cr2=0x1000, cr3=0x4000, cr4=0x20, efer=0xD00,
    )  # fmt: skip
    machine: Any = SimpleNamespace(
        name="test", cpu=Cpu(), memory=Ram.of_size(2 << 20), registers=lambda: registers,
        all_registers=lambda: [registers] * cpus, exceptions=history,
    )  # fmt: skip
    return explain_event(Shutdown(records), machine)


def names(told: Explanation) -> list[tuple[str, bool]]:
    return [(one.name, one.raised.linked) for one in told.exceptions]


@pytest.mark.parametrize(
    ("history", "records", "wanted"),
    [
        ((UD, AT_HANDLER), (AT_HANDLER,), [("#UD", False), ("#PF", True)]),
        ((UD, AT_HANDLER, IN_DELIVERY), (AT_HANDLER, IN_DELIVERY), [("#UD", False), ("#PF", True), ("#GP", False)]),
        ((UD, UD, AT_HANDLER), (AT_HANDLER,), [("#UD", False), ("#UD", False), ("#PF", True)]),
        ((UD, IN_DELIVERY), (AT_HANDLER,), [("#PF", False)]),
        ((AT_HANDLER,), (AT_HANDLER,), [("#PF", False)]),
        ((UD._replace(rsp=0x8018), AT_HANDLER), (AT_HANDLER,), [("#PF", False)]),
    ],
    ids=["before", "before two", "two before", "of another end", "none before", "another stack"],
)
def test_what_an_engine_remembers(history: Any, records: Any, wanted: list[tuple[str, bool]]) -> None:
    assert names(told_of(records, history)) == wanted


def test_the_only_cpu_needs_no_choice() -> None:
    told = told_of((AT_HANDLER,), ())
    assert (told.mode, told.outcome) == ("la48", "triple-fault")
    assert not [text for text in told.unknown if "CPUs" in text]
    assert [text for text in told_of((AT_HANDLER,), (), cpus=2).unknown if text.startswith("which of the 2 CPUs")]


def test_an_engine_that_knows_no_exceptions() -> None:
    """The registers lead to what they lead to: the root is empty, and RIP is not mapped."""
    told = told_of((), ())
    assert (told.dialect, names(told)[0]) == ("engine's registers", ("#PF", False))


def test_an_engine_of_one_cpu_may_not_know_of_others() -> None:
    registers = SimpleNamespace(
        **dict.fromkeys(NAMES, 0), rip=0x1000, rsp=0x7000, rflags=2, cpl=0, gdt=None, idt=None, cr0=0x8001_0011,
        cr2=0x1000, cr3=0x4000, cr4=0x1020, efer=0xD00,
    )  # fmt: skip
    machine: Any = SimpleNamespace(name="test", cpu=Cpu(), memory=Ram.of_size(2 << 20), registers=lambda: registers)
    assert explain_event(Shutdown((AT_HANDLER,)), machine).mode == "la57"


def test_a_pipe_is_a_log_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR)
    try:
        os.write(end, b"\x7fELF\2\1\1".ljust(64, b"\0"))
        assert not is_source(str(pipe))
        assert len(os.read(end, 100)) == 64
    finally:
        os.close(end)


@pytest.mark.parametrize("log", [3, 1.5, ["a"]])
def test_what_is_no_log(log: Any) -> None:
    with pytest.raises(TypeError, match=r"^log is .*; expected the name of a file, an open file, a Trace or None$"):
        explain(log)
    with pytest.raises(TypeError, match=r"^memory is .*; expected the name of a source, a Source, a Space"):
        explain(memory=log, cr2=1)


def test_spaces_need_not_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fivefold.survey.space", raising=False)
    assert explain(cr2=0x1000, error_code=0, cr4=0x20).cause.rule == "not-present"
    assert "fivefold.survey.space" not in sys.modules


def test_what_was_given_is_all_that_is_told_without_memory() -> None:
    """The IDT has no gate, and nothing was said of what came of it."""
    cpu = CpuState("test", 0x8001_0011, 0, 0x30_0000, 0x20, 0xD00, {"rip": 0x1000}, {"idt": Segment(0, 0, 0, 0)})
    told = explain(Trace("test", "test", cpu=cpu), cr2=0x5000, error_code=0)
    assert ([one.name for one in told.exceptions], told.outcome) == (["#PF"], "unknown")
    told = explain(Trace("test", "test", cpu=cpu), Ram.of_size(1 << 20), cr2=0x5000, error_code=0)
    assert [one.name for one in told.exceptions] == ["#PF", "#GP", "#GP"]
    assert not told.exceptions[0].raised.during and told.exceptions[1].raised.during == 14


def test_one_cpu_is_not_counted(data: Path) -> None:
    assert not [text for text in explain(None, data / "nx_exec.elf.xz").remarks if "this is CPU" in text]


@pytest.fixture
def system_map(tmp_path: Path) -> Path:
    path = tmp_path / "System.map"
    path.write_text("ffffffff81000000 T startup_64\nffffffff81001000 D table\nffffffff81002000 T end\n")
    return path


@pytest.mark.parametrize(
    ("cr2", "named"),
    [(0xFFFF_FFFF_8100_1008, ["0xffffffff81001008 is table+0x8"]), (0x1000, []), (0xFFFF_8880_0000_0000, [])],
)
def test_the_refused_address_has_its_name(cr2: int, named: list[str], system_map: Path) -> None:
    raised = RaisedException(14, error_code=0, cr2=cr2, rip=0xFFFF_FFFF_8100_0004, cpl=0)
    told = explain(Trace("test", "test", (raised,), placement=Placement(slide=0)), symbols=system_map, cr4=0x20)
    assert [text for text in told.remarks if " is " in text and text.startswith("0x")] == named
    assert told.exceptions[0].raised.symbol == "startup_64+0x4"


def test_no_address_has_no_name(system_map: Path) -> None:
    raised = RaisedException(13, error_code=0, rip=0xFFFF_FFFF_8100_0004, cpl=0)
    told = explain(Trace("test", "test", (raised,), placement=Placement(slide=0)), symbols=system_map, cr4=0x20)
    assert not [text for text in told.remarks if text.startswith("0x")]
    trap = RaisedException(3, rip=0xFFFF_FFFF_8100_0004, cpl=0, software=True)
    told = explain(Trace("test", "test", (trap,), placement=Placement(slide=0)), symbols=system_map, cr4=0x20)
    assert told.guilty is None and not [text for text in told.remarks if text.startswith("0x")]
