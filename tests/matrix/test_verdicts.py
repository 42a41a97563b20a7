"""What is made of machines that do not get there, and of those that do in the wrong way."""

from __future__ import annotations

import importlib.util
import lzma
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fivefold.errors import MachineError
from fivefold.matrix.cells import Cell
from fivefold.matrix.result import CellRun
from fivefold.matrix.run.console import line_hash
from fivefold.matrix.run.run_cell import Task, command_line, run_cell
from fivefold.matrix.run.watch import Patience
from fivefold.matrix.vmm.base import MOST_CONSOLE, Files

_HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("scripted", _HERE / "scripted.py")
assert _SPEC is not None and _SPEC.loader is not None
scripted: Any = importlib.util.module_from_spec(_SPEC)
import sys  # noqa: E402

sys.modules["scripted"] = scripted
_SPEC.loader.exec_module(scripted)

CAPTURES = _HERE.parent / "data" / "matrix"
PANIC = b"[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n"
TRACE = (
    b"[    1.0] Call Trace:\r\n[    1.0]  <TASK>\r\n[    1.0]  dump_stack_lvl+0x44/0x5c\r\n"
    b"[    1.0]  panic+0x118/0x2ed\r\n"
    b"[    1.0]  mount_root_generic+0x1d6/0x2e0\r\n[    1.0] ---[ end Kernel panic - not syncing: VFS ]---\r\n"
)
OOPS = (
    b"[    0.5] BUG: unable to handle page fault for address: ff11000100000000\r\n"
    b"[    0.5] #PF: supervisor read access in kernel mode\r\n[    0.5] #PF: error_code(0x0000) - not-present page\r\n"
    b"[    0.5] PGD 8067 P4D 0\r\n[    0.5] Oops: 0000 [#1] PREEMPT SMP PTI\r\n"
    b"[    0.5] CPU: 0 PID: 1 Comm: swapper Not tainted 6.1.0 #1\r\n"
    b"[    0.5] RIP: 0010:walk_wrongly+0x10/0x20\r\n"
    b"[    0.5] CR2: ff11000100000000 CR3: 0000000002610000 CR4: 0000000000751ef0\r\n"
)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    made = []
    for data in (b"the kernel", b"the initramfs"):
        made.append(os.memfd_create("test"))
        os.write(made[-1], data)
    yield Files(*made, str(tmp_path))
    for file in made:
        os.close(file)


def run(files: Files, machine: Any, cell: Cell | None = None, keep: Path | None = None) -> CellRun:
    task = Task(cell or Cell("c"), "bzImage", files, Patience(4, 0.3, 0.3), str(keep) if keep else None)
    found = run_cell(task, scripted.ScriptedDriver([machine]))
    assert machine.closed
    return found


def report(la57: bool = True, cmdline: str | None = None) -> bytes:
    texts = ["begin 1", "release 6.1.0", f"cmdline {cmdline or command_line(Cell('c'))}"]
    texts += ["flags la57" if la57 else "flags nx", "cpus 1", "end"]
    bodies = [f"f5 {number:x} {text}".encode() for number, text in enumerate(texts)]
    return b"".join(body + b" * %x\r\n" % line_hash(body) for body in bodies)


def test_a_panic_is_told_in_its_own_words_with_its_caller(files: Files) -> None:
    found = run(files, scripted.ScriptedMachine([b"[0.1] hello\r\n", PANIC, TRACE]))
    assert found.outcome == "panic" and found.cause is not None
    assert found.cause.rule == "panic" and found.cause.symbol == "mount_root_generic"
    assert found.cause.sentence == "VFS: Unable to mount root fs on unknown-block(0,0)"


def test_an_exception_before_the_kernel_can_handle_one(files: Files) -> None:
    line = b"PANIC: early exception 0x0e IP 10:ffffffff8100aaaa error 0 cr2 0xff11000000000000\r\n"
    found = run(files, scripted.ScriptedMachine([line], halted=True))
    assert found.outcome == "panic" and found.cause is not None
    assert "0xff11000000000000" in found.cause.sentence, found.cause


def test_a_panic_without_an_end_is_waited_for_and_then_told(files: Files) -> None:
    assert run(files, scripted.ScriptedMachine([PANIC])).outcome == "panic"


def test_a_reset_after_a_panic_is_the_panic(files: Files) -> None:
    assert run(files, scripted.ScriptedMachine([PANIC], "reset")).outcome == "panic"


def test_the_cause_of_a_panic_is_the_oops_before_it(files: Files) -> None:
    end = b"[    0.6] Kernel panic - not syncing: Attempted to kill init!\r\n[    0.6] ---[ end Kernel panic ]---\r\n"
    found = run(files, scripted.ScriptedMachine([OOPS, end]))
    assert found.outcome == "panic" and found.cause is not None
    assert found.cause.rule == "not-present" and found.cause.symbol == "walk_wrongly"
    assert "0xff11000100000000" in found.cause.sentence


@pytest.mark.parametrize("machine", [{"halted": True}, {"rips": (0xFFFF_FFFF_8100_0010, 0xFFFF_FFFF_8100_0018)}])
def test_a_machine_that_stands_still_hangs(files: Files, machine: dict[str, Any]) -> None:
    found = run(files, scripted.ScriptedMachine([b"booting\r\n"], **machine))
    assert found.outcome == "hang" and found.cause is not None and found.cause.rule == "hang"
    assert "0xffffffff81000" in found.cause.sentence


def test_a_silent_machine_that_moves_is_given_its_time(files: Files) -> None:
    moving = [0xFFFF_FFFF_8100_0000 + 0x10000 * number for number in range(40)]
    found = run(files, scripted.ScriptedMachine([b"quiet\r\n"], rips=moving))
    assert found.outcome == "hang" and found.cause is not None and found.cause.rule == "timeout"


def test_a_machine_that_its_host_starves_is_given_more_time(files: Files) -> None:
    """It stands in one place because it gets next to nothing of a core: the report comes after the silence is over."""
    late = [b"booting\r\n", *[b""] * 80, report()]
    starved = run(files, scripted.ScriptedMachine(list(late), works=0.001))
    assert starved.outcome == "ready"
    fed = run(files, scripted.ScriptedMachine(list(late), works=0.2))
    assert fed.outcome == "hang"
    halted = run(files, scripted.ScriptedMachine(list(late), works=0.001, halted=True))
    assert halted.outcome == "hang"


def test_a_starved_machine_is_given_up_in_the_end(files: Files) -> None:
    began = time.monotonic()
    found = run(files, scripted.ScriptedMachine([b"booting\r\n"], works=0.0))
    assert found.outcome == "hang" and time.monotonic() - began >= 1.2


def test_a_loader_may_be_silent_for_longer_than_a_kernel(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    from fivefold.matrix.run import run_cell as module

    given: list[Patience] = []

    def noted(machine: Any, reports: int, patience: Patience, symbols: Any) -> Any:
        given.append(patience)
        raise MachineError("noted")

    monkeypatch.setattr(module, "watch", noted)
    for path in ("direct", "uefi", "bios-grub"):
        with pytest.raises(MachineError, match=r"^noted$"):
            run(files, scripted.ScriptedMachine([]), Cell("c", path=path))
    assert [(one.silence(heard=False), one.silence(heard=True)) for one in given] == [
        (0.3, 0.3),
        (1.2, 0.3),
        (1.2, 0.3),
    ]


def test_a_flood_is_ended(files: Files) -> None:
    class Flood(scripted.ScriptedMachine):  # type: ignore[misc,name-defined]
        def wait(self, seconds: float) -> None:
            self._written = MOST_CONSOLE + 1
            self.console += b"a" * 100

    found = run(files, Flood([]))
    assert found.outcome == "hang" and found.cause is not None and found.cause.rule == "flood"


def test_a_triple_fault_is_explained_from_the_log(files: Files) -> None:
    """What QEMU wrote when Debian's 6.12, saved with five levels, was resumed with four."""
    log = lzma.decompress((CAPTURES / "resume-in-four.log.xz").read_bytes()).decode()
    found = run(files, scripted.ScriptedMachine([b"PM: Image loading done\r\n"], "triple-fault", log=log))
    assert found.outcome == "triple-fault" and found.cause is not None
    assert found.cause.rule == "not-present"
    assert found.cause.sentence.startswith("Triple fault: jump to 0xffffffffafe64018, which is not mapped")


@pytest.mark.parametrize(("end", "words"), [("reset", "reset itself"), ("off", "turned itself off")])
def test_a_machine_that_ends_early(files: Files, end: Any, words: str) -> None:
    found = run(files, scripted.ScriptedMachine([b"first\r\n\x1b[2J[    1.2] second\r\n"], end))
    assert found.outcome == "reset" and found.cause is not None
    told = f"the machine {words} before its init was ready; the last line is '[    1.2] second'"
    assert found.cause.sentence == told


def test_what_unpacks_the_kernel_says_why_it_stops(files: Files) -> None:
    words = b"Decompressing Linux...\r\n\r\nout of memory\r\n\r\n -- System halted"
    found = run(files, scripted.ScriptedMachine([words], halted=True))
    assert found.outcome == "hang" and found.cause is not None and found.cause.rule == "decompressor"
    assert found.cause.sentence == "the code that unpacks the kernel gave up: out of memory"


@pytest.mark.parametrize("line", [b"invalid opcode: 0000 [#1] PREEMPT SMP NOPTI", b"stack segment: 0010 [#2] SMP"])
def test_every_exception_of_the_kernel_is_an_oops(files: Files, line: bytes) -> None:
    found = run(files, scripted.ScriptedMachine([b"[    1.0] " + line + b"\r\n", report()]))
    assert not found.ok and next(check.name for check in found.checks if not check.ok) == "log"
    assert found.cause is not None and found.cause.rule != "log"


def test_a_monitor_that_goes_away_is_no_verdict_on_the_kernel(files: Files) -> None:
    with pytest.raises(MachineError, match=r"^the machine's process ended: qemu: out of memory$"):
        run(files, scripted.ScriptedMachine([b"x"], "gone", last_words="a\nqemu: out of memory"))


def test_the_wrong_mode(files: Files) -> None:
    found = run(files, scripted.ScriptedMachine([report(la57=False)]))
    assert (found.outcome, found.mode) == ("wrong-mode", "la48") and found.cause is not None
    assert found.cause.sentence == "it runs in mode la48, and la57 was promised"


def test_a_kexec_that_loses_a_level_on_the_way_is_seen(files: Files) -> None:
    cell = Cell("c", kexec=("no5lvl", "-"))
    words = command_line(Cell("c"))
    same = run(files, scripted.ScriptedMachine([report(), report(False), report(True)]), cell)
    assert [check.ok for check in same.checks if check.name.startswith("kernel-")] == [True, True]
    lost = run(files, scripted.ScriptedMachine([report(False, words), report(False), report(True)]), cell)
    assert [check.ok for check in lost.checks if check.name.startswith("kernel-")] == [False, True]
    assert lost.outcome == "wrong-mode" and lost.cause is not None
    assert lost.cause.sentence == "kernel-1-mode: la48, promised la57"
    last = run(files, scripted.ScriptedMachine([report(), report(False), report(False)]), cell)
    assert last.outcome == "wrong-mode" and last.cause is not None
    said = "kernel 3, which the one before it started by kexec, runs in mode la48, and la57 was promised"
    assert last.cause.sentence == said


def test_an_oops_that_the_kernel_survives_fails_the_cell(files: Files) -> None:
    found = run(files, scripted.ScriptedMachine([OOPS, report()]))
    assert found.outcome == "ready" and not found.ok and found.cause is not None
    assert found.cause.rule == "not-present"


def test_a_warning_is_told_and_does_not_fail_the_cell(files: Files) -> None:
    line = b"[    1.0] WARNING: CPU: 0 PID: 1 at mm/some.c:12\r\n"
    found = run(files, scripted.ScriptedMachine([line * 2, report()]))
    log = next(check for check in found.checks if check.name == "log")
    assert log.ok and log.detail.endswith("; 2 warnings, the first: WARNING: CPU: 0 PID: 1 at mm/some.c:12")


def test_what_is_kept_of_a_failure(files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    found = run(files, scripted.ScriptedMachine([PANIC, TRACE], log="the log"), keep=folder)
    assert found.kept == str(folder)
    assert (folder / "console.log").read_bytes() == PANIC + TRACE
    assert (folder / "exceptions.log").read_text() == "the log"
    assert "RIP=" in (folder / "registers.txt").read_text()
    assert (folder / "kernel").read_bytes() == b"the kernel"
    assert shlex.split((folder / "command.sh").read_text()) == ["boot", "c", command_line(Cell("c"))]


def test_a_full_disk_costs_what_is_kept_and_not_the_verdict(files: Files) -> None:
    found = run(files, scripted.ScriptedMachine([PANIC, TRACE]), keep=Path("/proc/nothing"))
    assert found.outcome == "panic" and found.kept is None and found.cause is not None
    assert found.cause.sentence.endswith("(nothing kept: No such file or directory)")


def test_a_machine_that_was_saved_goes_on(files: Files) -> None:
    cell = Cell("c", hibernate=True)
    saved = scripted.ScriptedMachine([report(cmdline=command_line(cell))], "off")
    resumed = b"f5 6 resumed"
    text = report(cmdline=command_line(cell)) + resumed + b" * %x\r\n" % line_hash(resumed)
    again = scripted.ScriptedMachine([text + report(cmdline=command_line(cell))])
    task = Task(cell, "bzImage", files, Patience(4, 0.3, 0.3))
    found = run_cell(task, scripted.ScriptedDriver([saved, again]))
    assert found.outcome == "ready" and found.checks[0].name == "saved"
    assert not [check for check in found.checks if check.name == "restart"]


def test_a_machine_that_boots_in_place_of_resuming_fails(files: Files) -> None:
    cell = Cell("c", hibernate=True)
    saved = scripted.ScriptedMachine([report(cmdline=command_line(cell))], "off")
    again = scripted.ScriptedMachine([report(cmdline=command_line(cell)) * 2])
    found = run_cell(Task(cell, "bzImage", files, Patience(4, 0.3, 0.3)), scripted.ScriptedDriver([saved, again]))
    assert [check.name for check in found.checks if not check.ok and check.name == "restart"] == ["restart"]
