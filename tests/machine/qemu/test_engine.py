"""What is particular to QEMU: nothing stays behind, limits, and what it cannot do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fivefold.errors import MachineError
from fivefold.machine import CpuidOverride, Exit, Guest, MapRow, Module, Reset, Timeout, start
from fivefold.machine.child import Child
from fivefold.machine.qemu import engine

pytestmark = pytest.mark.qemu


def state(pid: int) -> str:
    """The process's state letter, or "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def ended(pid: int) -> bool:
    """Whether *pid* is gone, or dead and waiting for whoever inherited it."""
    for _ in range(200):
        if state(pid) in ("", "Z", "X"):
            return True
        time.sleep(0.02)
    return False


def open_files() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return found


def test_la57_on_a_cpu_without_it_ends_by_the_time_limit(qemu, workshop):
    # TCG repeats the write for ever instead of raising #GP.
    machine = qemu(workshop.assemble("movl $0x1020, %eax\nmovl %eax, %cr4\nexit 1").image, cpu="la48")

    assert isinstance(machine.run(0.3), Timeout)


def test_closing_leaves_no_process_and_no_file(workshop, qemu):
    before = open_files()
    with start("qemu", Guest(workshop.assemble("putc 'k'\nexit 1").image)) as machine:
        pid = machine.pid
        assert state(pid)
        assert machine.run(10) == Exit(1)
    machine.close()

    assert machine.output == b"k"
    assert state(pid) == ""
    assert open_files() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_exceptions_leave_no_process(workshop, qemu, error):
    with pytest.raises(error), start("qemu", Guest(workshop.assemble("exit 1").image)) as machine:
        pid = machine.pid
        raise error

    assert state(pid) == ""


def test_failed_start_leaves_nothing(workshop, qemu):
    before = open_files()
    with pytest.raises(MachineError, match=r"^QEMU ended: unable to find CPU model 'z80'$"):
        start("qemu", Guest(workshop.assemble("exit 1").image, cpu="z80"))

    assert open_files() == before


@pytest.mark.parametrize("running", [True, False])
def test_killing_us_kills_qemu(workshop, qemu, tmp_path, running):
    image = tmp_path / "image"
    image.write_bytes(workshop.assemble("1: jmp 1b").image)
    program = f"""
        from pathlib import Path
        from fivefold.machine import Guest, start
        machine = start("qemu", Guest(Path({str(image)!r}).read_bytes()))
        print(machine.pid, flush=True)
        {"machine.run(60)" if running else "input()"}
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert state(pid)
        parent.send_signal(signal.SIGKILL)

    assert ended(pid)


def test_qemu_that_is_killed_is_an_error_with_one_line(workshop, qemu):
    machine = qemu(workshop.assemble("1: jmp 1b").image)
    os.kill(machine.pid, signal.SIGKILL)

    with pytest.raises(MachineError, match=r"^QEMU (ended|is gone)[^\n]*$"):
        machine.run(10)


def test_a_flood_of_exceptions_does_not_keep_qemu_from_answering(workshop, qemu):
    """Each is logged by QEMU with its lock held, to a pipe that is full after fifty of them."""
    body = "putc 'f'\n1: ud2\njmp 1b\nhandler: addq $2, (%rsp)\niretq"
    machine = qemu(workshop.long_code(body, before="gate 6, handler").image)
    machine._qmp._connection.timeout = 5.0

    workshop.run_until_output(machine)
    assert isinstance(machine.run(0.1), Timeout)


SILENT = r"^QEMU gave no answer in 0.1 s$"


def test_qemu_that_falls_silent_is_given_up_and_killed(workshop, qemu):
    machine = qemu(workshop.assemble("1: jmp 1b").image)
    machine._qmp._connection.timeout = 0.1
    os.kill(machine.pid, signal.SIGSTOP)

    with pytest.raises(MachineError, match=SILENT):
        machine.run(10)
    assert state(machine.pid) == ""


def test_qemu_that_never_speaks_is_given_up_and_killed(workshop, qemu, monkeypatch):
    before, pids = open_files(), []

    class Stopped(Child):
        def __init__(self, *what):
            super().__init__(*what)
            pids.append(self.pid)
            os.kill(self.pid, signal.SIGSTOP)

    monkeypatch.setattr(engine, "Child", Stopped)
    monkeypatch.setattr(engine, "LEAST_SECONDS", 0.05)
    with pytest.raises(MachineError, match=SILENT):
        start("qemu", Guest(workshop.assemble("exit 1").image), 0.1)

    assert [state(pid) for pid in pids] == [""]
    assert open_files() == before


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        ({"cpuid": (CpuidOverride(7, 0, 0, 0, 0, 0),)}, "CPUID overrides"),
        ({"memory": (MapRow(0x100000, 0x1000000),)}, "a memory map of its own"),
        ({"modules": (Module(b"a"), Module(b"b"))}, "more than one module"),
        ({"modules": (Module(b"a", "text"),)}, "command lines of modules"),
        ({"start_info": 0x1000}, "a place for the start information"),
    ],
)
def test_what_qemu_cannot_do_is_refused(workshop, qemu, guest, words):
    with pytest.raises(MachineError, match=rf"^the engine qemu cannot give a guest {words}$"):
        qemu(workshop.assemble("exit 1").image, **guest)


def test_instructions_are_not_counted(workshop, qemu):
    machine = qemu(workshop.assemble("exit 1").image)

    assert machine.instructions is None
    with pytest.raises(MachineError, match=r"^QEMU does not count instructions; give a time limit only$"):
        machine.run(1, limit=10)


def test_much_output_arrives_whole(workshop, qemu):
    body = "movl $20000, %ecx\nmovw $0x3f8, %dx\nmovb $'x', %al\n1: outb %al, %dx\ndecl %ecx\njnz 1b\nexit 1"
    machine = qemu(workshop.assemble(body).image)

    assert machine.run(20) == Exit(1)
    assert machine.output == b"x" * 20000


@pytest.mark.parametrize(("port", "value"), [(0x64, 0xFE), (0xCF9, 6)])
def test_a_reset_by_a_device_is_no_triple_fault(workshop, port, value):
    source = f"movw ${port}, %dx\nmovb ${value}, %al\noutb %al, %dx\n1: jmp 1b"
    with start("qemu", Guest(workshop.assemble(source).image)) as machine:
        assert machine.run(20) == Reset()
