"""Send an NMI at every instruction where one is hard to take, and see that it is survived and counted. QEMU only.

    python bench/nmi.py syscall                 # from SYSCALL to SYSRET, where RSP is the program's for some of it
    python bench/nmi.py secondary               # from a CPU's startup IPI to its own tables, through four modes

The machine stops at an instruction by its debug stub, the NMI is sent, and the CPU goes on until it is back there.
QEMU's monitor sends NMIs to the first CPU only, so for the others the first CPU sends them, by its APIC: an image whose
waiting loop does so is built from a copy of the sources. An NMI that did not arrive is a failure: exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Final

from fivefold.boot import BootOptions, Image
from fivefold.boot.image.build import boot_object, kernel_object, link_image
from fivefold.boot.judge.guest_report import read_report
from fivefold.boot.run import make_guest
from fivefold.kernel.modes import KERNEL, MODES
from fivefold.machine import Exit, start
from fivefold.machine.qemu.engine import QemuMachine
from fivefold.memory.live.gdb_stub import GdbClient
from fivefold.units import MIB, PhysAddr

Changes = dict[str, tuple[tuple[str, str], ...]]
MANY_CALLS: Final[Changes] = {"process_checks.py": (("CALLS: Final = 5", "CALLS: Final = 60"),)}
SENDS_NMIS: Final[Changes] = {
    "smp.py": (
        ("    while online() + refused() < others and", "    while send_nmi() and online() + refused() < others and"),
    ),
    "apic.py": (("PATIENCE: Final = 1 << 34", "PATIENCE: Final = 1 << 46"),),
}
"""The waiting loop sends an NMI each time round, and waits for hours: the debug stub is slow."""
SEND_NMI: Final = '''

def send_nmi() -> bool:
    """Send an NMI to every other CPU; then write an MSR as it is, where the debug stub waits."""
    apic.tell_others(0x400)
    cpu.write_msr(cpu.MSR_LSTAR, rdmsr(cpu.MSR_LSTAR))
    return True
'''
LOOKS: Final = 20
"""How often a CPU that has an NMI waiting is let go at the same instruction."""
BEHIND_LIDT: Final = 1
"""Instructions of a secondary CPU before its table is loaded: there an NMI is firmware's business."""


def changed_image(place: Path, changes: Changes, mode: str, more: str = "") -> Image:
    """Our image with *changes* in the kernel for *mode*, and *more* at the end of the first file."""
    target = place / "nmi_kernel"
    shutil.copytree(str(resources.files(KERNEL)), target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in target.rglob("*.py"):
        path.write_text(path.read_text().replace(KERNEL, "nmi_kernel"))
    for i, (name, pairs) in enumerate(changes.items()):
        (path,) = target.rglob(name)
        text = path.read_text()
        for old, new in pairs:
            assert text.count(old) == 1, f"{name} has {text.count(old)} times {old!r}"
            text = text.replace(old, new)
        path.write_text(text + more * (i == 0))
    sys.path.insert(0, str(place))
    objects = {"boot": boot_object(), **{name: kernel_object(name) for name in MODES if name != mode}}
    objects[mode] = kernel_object(mode, "nmi_kernel")
    return link_image(objects)


class Stub:
    """A machine that is stopped, and its debug stub."""

    def __init__(self, machine: QemuMachine, gdb: GdbClient, image: Image, done: threading.Event) -> None:
        self.machine, self.gdb, self.image, self.done = machine, gdb, image, done

    def at(self, cpu: int = 0) -> int:
        """RIP of a CPU; in real mode it lacks the segment."""
        return self.machine.all_registers()[cpu].rip

    def go_to(self, address: int, cpu: int | None = None, *others: int) -> None:
        """Run one CPU, by default all, until it comes to *address*, or to one of *others*."""
        for at in (address, *others):
            assert self.gdb.ask(f"Z1,{at:x},1") == "OK"
        self.gdb.ask("c" if cpu is None else f"vCont;c:{cpu + 1}")
        for at in (address, *others):
            assert self.gdb.ask(f"z1,{at:x},1") == "OK"

    def step(self, cpu: int = 0) -> None:
        """Execute one instruction, with interrupts held off."""
        self.gdb.ask(f"vCont;s:{cpu + 1}")

    def word(self, name: str) -> int:
        """A word of the report."""
        return read_report(self.machine.memory, self.image, self.image.load_address).words[name]

    def finish(self) -> bool:
        """Let go; whether the guest ends as it should."""
        self.gdb.ask("D")
        self.done.set()
        event = self.machine.run(120.0)
        print(f"  then: {event}")
        return event == Exit(16)


@contextlib.contextmanager
def stopped(image: Image, folder: Path, cpu: str, **options: object) -> Iterator[Stub]:
    """A machine before its first instruction."""
    chosen = BootOptions(engine="qemu", memory=64 * MIB, **options)  # type: ignore[arg-type]
    with start("qemu", make_guest(cpu, chosen, image)) as machine:
        assert isinstance(machine, QemuMachine)
        machine.debug(f"unix:{folder}/gdb,server=on,wait=off")
        gdb = GdbClient(f"{folder}/gdb", timeout=20.0)
        done = threading.Event()
        reader = threading.Thread(target=read_log, args=(machine, done))
        reader.start()
        try:
            yield Stub(machine, gdb, image, done)
        finally:
            done.set()
            reader.join()
            gdb.close()


def read_log(machine: QemuMachine, done: threading.Event) -> None:
    """Empty the pipe of QEMU's log while the stub drives: with a full one QEMU stands still."""
    while not done.wait(0.02):
        machine._drain()


def syscall_path(stub: Stub) -> list[int]:
    """Addresses of the instructions of the assembly, from `syscall_entry` to SYSRET, in the order of execution."""
    first, last = stub.image.symbols["syscall_entry"], stub.image.symbols["iret_site"]
    stub.go_to(first)
    path: list[int] = []
    while first <= (at := stub.at()) < last:
        path.append(at)
        stub.step()
        if not first <= stub.at() < last and len(path) < 40:  # the handler: on to where it returns
            stub.go_to(int.from_bytes(stub.gdb.read(stub.machine.registers().rsp, 8), "little"))
    return path


def try_syscall(folder: Path, cpu: str, layout: str, mistake: Changes | None = None) -> bool:
    """Each system call meets one NMI, at the next instruction of its path."""
    image = changed_image(folder, {**MANY_CALLS, **(mistake or {})}, cpu)
    with stopped(image, folder, cpu, layout=layout) as stub:
        path = syscall_path(stub)
        for at in path:
            stub.go_to(at)
            stub.machine.inject_nmi()
            stub.go_to(at)  # the NMI is taken before the instruction, so this is its IRET's target
        ok = stub.finish()
        seen = stub.word("nmis")
        print(f"  {len(path)} instructions, {seen} NMIs met")
        return ok and seen == len(path) >= 50


def try_secondary(folder: Path, cpu: str, mistake: Changes | None = None) -> bool:
    """One CPU meets an NMI at every instruction from the load of its table to that of the kernel's."""
    image = changed_image(folder, {**SENDS_NMIS, **(mistake or {})}, cpu, SEND_NMI)
    sent = image.symbols["write_msr"]
    with stopped(image, folder, cpu, smp=2) as stub:
        place = find_place(stub)
    with stopped(image, folder, cpu, smp=2) as stub:
        page = range(place, place + 4096)
        stub.gdb.ask(f"Z1,{place:x},1")
        stub.gdb.ask("c")
        stub.gdb.ask(f"z1,{place:x},1")
        counter = place + image.symbols["ap_nmis"] - image.symbols["ap_trampoline"]
        far = place + image.symbols["ap_32"] - image.symbols["ap_trampoline"]
        for _ in range(BEHIND_LIDT):
            stub.step(1)
        met = missed = 0
        while (at := linear(stub, place)) in page:
            if (seen := nmis_met(stub, at, counter, sent, far)) != 1:
                missed += 1
                print(f"  at {at - place:#x} of the page: {seen} NMIs met, expected 1")
            met += 1
            if linear(stub, place) == at:
                stub.step(1)
        print(f"  {met} instructions of the trampoline, {missed} missed")
        inside = kernel_part(stub, counter, sent)
        print(f"  {inside} of the kernel, to the load of its IDT")
        return stub.finish() and missed == 0 and met >= 40 and inside >= 20


def kernel_part(stub: Stub, counter: int, sent: int) -> int:
    """The same in the kernel, until the CPU has the kernel's IDT: from there on it is like every other."""
    met = 0
    while (table := stub.machine.all_registers()[1].idt) is not None and table.base < 1 << 63:
        at = stub.at(1)
        seen = nmis_met(stub, at, counter, sent)
        assert seen == 1, f"at {at:#x}: {seen} NMIs met"
        met += 1
        stub.step(1)
    return met


def nmis_met(stub: Stub, at: int, counter: int, sent: int, *others: int) -> int:
    """Send an NMI to the second CPU before its instruction *at*; how many it has met when it is back there.

    QEMU may look at the breakpoint, where the CPU stands already, before it looks at the NMI: then nothing has been
    executed, the NMI waits, and the CPU is let go again.
    """
    before = count(stub, counter)
    send_one(stub, sent)
    for _ in range(LOOKS):
        stub.go_to(at, 1, *others)
        if count(stub, counter) != before:
            break
    return count(stub, counter) - before


def find_place(stub: Stub) -> int:
    """Where the trampoline lies: the page before the root that a CPU comes with."""
    stub.gdb.ask(f"Z1,{stub.image.symbols['ap_start']:x},1")
    stub.gdb.ask("c")
    return stub.machine.all_registers()[1].cr3 - 4096


def linear(stub: Stub, place: int) -> int:
    """Where the second CPU is: in real mode its RIP counts from the page."""
    registers = stub.machine.all_registers()[1]
    in_real_segment = registers.rip < 0x1_0000 and registers.cs not in (0x08, 0x18)
    return registers.rip + place if in_real_segment else registers.rip


def count(stub: Stub, counter: int) -> int:
    return int.from_bytes(stub.machine.memory.read(PhysAddr(counter), 8), "little")


def send_one(stub: Stub, sent: int) -> None:
    """Let the first CPU send its next NMI; before the first it sends the startup IPI that is still to come."""
    stub.step(0)
    stub.go_to(sent, 0)


def main() -> int:
    """Try what is asked in both modes; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("where", choices=("syscall", "secondary"))
    parser.add_argument("--cpu", choices=tuple(MODES), action="append")
    arguments = parser.parse_args()
    ok = True
    for cpu in arguments.cpu or MODES:
        for layout in ("linux", "proposal") if arguments.where == "syscall" else ("",):
            print(f"{arguments.where}, {cpu} {layout}".rstrip())
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                ok = (try_syscall(folder, cpu, layout) if layout else try_secondary(folder, cpu)) and ok
            for module in [module for module in sys.modules if module.startswith("nmi_kernel")]:
                del sys.modules[module]
            sys.path.remove(name)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
