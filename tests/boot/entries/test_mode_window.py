"""The change of mode while the machine runs: an NMI at every instruction survived, an interrupt held off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fivefold.boot import BootOptions, Image
from fivefold.boot.guests import make_guest
from fivefold.boot.judge.guest_report import read_report
from fivefold.machine import Exit, LimitReached, Machine, Shutdown, start
from fivefold.machine.qemu.engine import QemuMachine
from fivefold.machine.unicorn.engine import UnicornMachine
from fivefold.memory.live.gdb_stub import GdbClient
from fivefold.units import MIB, PhysAddr

Begun = Callable[[str, str], UnicornMachine]
NMI = 2
HANDLER = 2
"""Instructions of the handler: it counts and returns."""
STRIDE = 211
"""Instructions between two NMIs outside the trampoline."""
RFLAGS_IF = 1 << 9

seen_at: dict[str, int] = {}
"""Instructions from the start to somewhere in the trampoline, by entry."""

UP = ("long48", "")
DOWN = ("long57", "no5lvl")
DIRECTIONS = pytest.mark.parametrize(("entry", "cmdline"), [UP, DOWN], ids=["up", "down"])


@pytest.fixture
def begun(image: Image) -> Iterator[Begun]:
    """A machine on Unicorn that has come to the start of the window."""
    with contextlib.ExitStack() as stack:

        def begin(entry: str, cmdline: str) -> UnicornMachine:
            options = BootOptions(entry=entry, cmdline=cmdline, memory=32 * MIB)  # type: ignore[arg-type]
            machine = stack.enter_context(start("unicorn", make_guest("la57", options, image)))
            assert isinstance(machine, UnicornMachine)
            at = image.physical("window_start", image.load_address)
            while machine.registers().rip != at:
                run_on(machine, 1)
            return machine

        yield begin


def run_on(machine: UnicornMachine, count: int) -> None:
    assert isinstance(event := machine.run(limit=count), LimitReached), event


def is_in_trampoline(machine: Machine) -> bool:
    return machine.registers().rip < MIB


def is_in_kernel(machine: Machine) -> bool:
    """The kernel's own IDT is loaded."""
    table = machine.registers().idt
    return table is not None and table.base >> 63 == 1


def in_trampoline(begun: Begun, entry: str, cmdline: str) -> UnicornMachine:
    """A machine at the first instruction of the trampoline, found by a first run that is not disturbed."""
    if entry not in seen_at:
        first = begun(entry, cmdline)
        while not is_in_trampoline(first):
            run_on(first, 40)
        seen_at[entry] = first.instructions
    machine = begun(entry, cmdline)
    run_on(machine, seen_at[entry] - machine.instructions - 40)
    while not is_in_trampoline(machine):
        run_on(machine, 1)
    return machine


def nmis(machine: Machine, image: Image) -> int:
    return read_report(machine.memory, image, image.load_address).words["nmis"]


@DIRECTIONS
def test_an_nmi_at_every_instruction_of_the_trampoline_is_survived(
    begun: Begun, image: Image, entry: str, cmdline: str
) -> None:
    machine = in_trampoline(begun, entry, cmdline)
    met = []
    while is_in_trampoline(machine):
        met.append(machine.registers().rip)
        machine.inject(NMI)
        # The handler's instructions, and the one that it delayed.
        run_on(machine, HANDLER + 1)
    assert len(met) == len(set(met)) >= 40
    assert machine.run() == Exit(16)
    assert nmis(machine, image) == len(met)


@DIRECTIONS
def test_nmis_from_the_entry_to_the_kernel_are_survived(begun: Begun, image: Image, entry: str, cmdline: str) -> None:
    """Every instruction at first, then a sample: the whole way is some ten thousand."""
    machine = begun(entry, cmdline)
    injected = 0
    while not is_in_kernel(machine):
        machine.inject(NMI)
        injected += 1
        run_on(machine, HANDLER + (1 if injected < 40 else STRIDE))
    assert machine.run() == Exit(16)
    assert nmis(machine, image) == injected >= 200


@DIRECTIONS
def test_an_interrupt_is_held_off_through_the_whole_window(begun: Begun, entry: str, cmdline: str) -> None:
    machine = in_trampoline(begun, entry, cmdline)
    machine.interrupt(0x20)
    while not is_in_kernel(machine):
        assert machine.registers().rflags & RFLAGS_IF == 0
        run_on(machine, 1 if is_in_trampoline(machine) else STRIDE)
    assert machine.pending == (0x20,)
    assert 0x20 not in {record.vector for record in machine.exceptions}


@DIRECTIONS
@pytest.mark.parametrize(("paging", "gate"), [(1, 32), (0, 16)], ids=["64-bit half", "32-bit half"])
def test_without_its_gate_an_nmi_in_the_trampoline_is_fatal(
    begun: Begun, entry: str, cmdline: str, paging: int, gate: int
) -> None:
    """So the tests above would see it: the 16-byte gate serves until paging is off, the 8-byte gate from there on."""
    machine = in_trampoline(begun, entry, cmdline)
    # Its first instructions load the tables.
    run_on(machine, 25)
    while machine.registers().cr0 >> 31 != paging:
        run_on(machine, 1)
    table = machine.registers().idt
    assert table is not None
    machine.memory.write(PhysAddr(table.base + gate), bytes(8))
    machine.inject(NMI)
    assert isinstance(machine.run(), Shutdown)


@pytest.fixture
def stepped(image: Image, tmp_path: Path) -> Iterator[Callable[[str, str], tuple[QemuMachine, GdbClient]]]:
    """A machine on QEMU at the first instruction of the trampoline, and the stub that steps it with interrupts on."""
    with contextlib.ExitStack() as stack:

        def begin(entry: str, cmdline: str) -> tuple[QemuMachine, GdbClient]:
            options = BootOptions(engine="qemu", entry=entry, cmdline=cmdline, memory=64 * MIB)  # type: ignore[arg-type]
            machine = stack.enter_context(start("qemu", make_guest("la57", options, image)))
            assert isinstance(machine, QemuMachine)
            machine.debug(f"unix:{tmp_path}/gdb,server=on,wait=off")
            gdb = GdbClient(f"{tmp_path}/gdb")
            stack.callback(gdb.close)
            assert gdb.ask(f"Z1,{image.physical('trampoline_call', image.load_address):x},1") == "OK"
            gdb.ask("c")
            assert gdb.ask("Qqemu.sstep=0x1") == "OK"
            while not is_in_trampoline(machine):
                gdb.ask("s")
            return machine, gdb

        yield begin


@pytest.mark.qemu
@DIRECTIONS
def test_qemu_is_a_witness_at_every_instruction(
    stepped: Callable[[str, str], tuple[QemuMachine, GdbClient]], image: Image, entry: str, cmdline: str
) -> None:
    machine, gdb = stepped(entry, cmdline)
    injected = 0
    while is_in_trampoline(machine):
        at = machine.registers().rip
        machine.inject_nmi()
        injected += 1
        gdb.ask("s")
        for _ in range(2 * HANDLER):
            if machine.registers().rip != at:
                gdb.ask("s")
        assert machine.registers().rip == at, f"the handler did not come back to {at:#x}"
        gdb.ask("s")
    gdb.ask("Qqemu.sstep=0x7")
    gdb.ask("D")
    assert machine.run(30.0) == Exit(16)
    assert nmis(machine, image) == injected >= 40
