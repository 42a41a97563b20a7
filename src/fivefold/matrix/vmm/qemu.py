"""QEMU as a driver: everything between us is an open file without a name, so that nothing is left when either dies.

The console and the log of exceptions are pipes that we read: what a guest writes is bounded here and not on a disk. A
reset or a triple fault stops the machine, so that registers and memory can still be read.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fivefold.errors import FivefoldError, MachineError
from fivefold.machine.child import Child
from fivefold.machine.loading.firmware import firmware
from fivefold.machine.program import HostProgram, find_program
from fivefold.machine.qemu.monitor import QemuMonitor
from fivefold.machine.qemu.text import ends_in_triple_fault
from fivefold.matrix.cells import Cell, memory_parts
from fivefold.matrix.vmm import qemu_command
from fivefold.matrix.vmm.base import MOST_CONSOLE, Ended, Files
from fivefold.matrix.vmm.cpu_time import cpu_seconds
from fivefold.matrix.vmm.grub_cd import grub_refusal, make_cd
from fivefold.memory import Source
from fivefold.memory.live import live_ram
from fivefold.memory.live.mtree import ram_ranges
from fivefold.memory.registers import parse_info_registers

VARIABLE: Final = "FIVEFOLD_QEMU"
ANSWER_SECONDS: Final = 60.0
"""How long QEMU may take to answer: under load, and with a large ``info tlb``, it takes its time."""
_LOG_KEPT: Final = 1 << 18
_CHUNK: Final = 1 << 16
_VERSION: Final = re.compile(r"version (\S+)")


class QemuDriver:
    """QEMU of the system, or *program*, with TCG or KVM."""

    name = "qemu"

    def __init__(self, accelerator: str = "tcg", program: str | None = None) -> None:
        """Nothing is looked for yet."""
        self.accelerator = accelerator
        self._given = program

    def _program(self) -> HostProgram:
        found = find_program((qemu_command.PROGRAM,), self._given, VARIABLE)
        if found is None:
            raise MachineError(f"{qemu_command.PROGRAM} is not installed: apt-get install qemu-system-x86")
        return found

    def version(self) -> str:
        """As QEMU says it."""
        try:
            done = subprocess.run(
                [*self._program().command, "--version"], capture_output=True, text=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MachineError(f"QEMU cannot be started: {error}") from error
        match = _VERSION.search(done.stdout)
        if match is None:
            raise MachineError(f"QEMU does not say its version: {(done.stderr or done.stdout).strip()[:100]!r}")
        return match[1]

    def refusal(self, cell: Cell) -> str | None:
        """Firmware, GRUB or a machine that this host has not got."""
        if cell.path == "bios-grub":
            return grub_refusal()
        if cell.path == "uefi":
            try:
                firmware()
            except MachineError as error:
                return str(error).replace("the entry efi", "the path uefi")
        if self.accelerator == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return "/dev/kvm cannot be opened"
        return None

    def command(self, cell: Cell, cmdline: str, kernel: str, initramfs: str, disk: str | None) -> Sequence[str]:
        """The command for people."""
        return qemu_command.command_for_people(cell, cmdline, kernel, initramfs, disk, self.accelerator)

    def start(self, cell: Cell, cmdline: str, files: Files) -> QemuCellMachine:
        """Start it; the boot begins at once."""
        return QemuCellMachine(self._program(), self.accelerator, cell, cmdline, files)


class QemuCellMachine:
    """A machine on QEMU. It belongs to the thread that made it: the child is killed when that thread ends."""

    def __init__(self, program: HostProgram, accelerator: str, cell: Cell, cmdline: str, files: Files) -> None:
        """Start QEMU; `MachineError` where it ends at once."""
        self.console = bytearray()
        self.ended: Ended | None = None
        self.last_words = ""
        self._written = 0
        self._log = bytearray()
        self._accelerator = accelerator
        self._cleanup = contextlib.ExitStack()
        self._source: Source | None = None
        try:
            self._start(program, cell, cmdline, files)
        except BaseException:  # Ctrl-C too must leave no process
            self.close()
            raise

    def _start(self, program: HostProgram, cell: Cell, cmdline: str, files: Files) -> None:
        ours, theirs = socket.socketpair()
        self._cleanup.callback(ours.close)
        self._serial, serial = self._pipe()
        self._notes, notes = self._pipe()
        variables = os.memfd_create("variables")
        self._cleanup.callback(os.close, variables)
        low, high = memory_parts(cell.memory)
        command = [
            *program.command,
            *qemu_command.machine_arguments(cell, self._accelerator, "ram"),
            *("-object", f"memory-backend-memfd,id=ram,size={low + high},share=on"),
            *_firmware(cell, variables),
            *self._booted(cell, cmdline, files),
            *qemu_command.disk_arguments(None if files.disk is None else f"/proc/self/fd/{files.disk}"),
            *("-chardev", f"file,id=serial,path=/proc/self/fd/{serial}", "-serial", "chardev:serial"),
            *("-chardev", f"socket,id=monitor,fd={theirs.fileno()}", "-mon", "chardev=monitor,mode=control"),
            *("-action", "reboot=shutdown,shutdown=pause"),
            *(("-d", "int,cpu_reset", "-D", f"/proc/self/fd/{notes}") if self._accelerator == "tcg" else ()),
        ]
        passed = [theirs.fileno(), serial, notes, variables, files.kernel, files.initramfs]
        try:
            self._child = Child(command, passed + ([] if files.disk is None else [files.disk]))
        except OSError as error:
            raise MachineError(f"{program.path} cannot be started: {error.strerror}") from error
        self._cleanup.callback(self._child.end)
        theirs.close()
        for end in (serial, notes):
            os.close(end)
        try:
            self._qmp = QemuMonitor(ours, ANSWER_SECONDS, (self._serial, self._notes), self._drain)
        except FivefoldError as error:
            words = self._child.end().decode(errors="replace").strip().splitlines()
            raise MachineError(
                f"QEMU ended: {words[-1][:200]}" if words else f"QEMU does not start: {error}"
            ) from error

    def _booted(self, cell: Cell, cmdline: str, files: Files) -> list[str]:
        kernel, initramfs = f"/proc/self/fd/{files.kernel}", f"/proc/self/fd/{files.initramfs}"
        if cell.path == "bios-grub":
            folder = Path(files.scratch) / "cd"
            folder.mkdir()
            self._cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            kernel = str(make_cd(folder, Path(kernel).read_bytes(), Path(initramfs).read_bytes(), cmdline))
        return qemu_command.boot_arguments(cell, cmdline, kernel, initramfs)

    def _pipe(self) -> tuple[int, int]:
        ours, theirs = os.pipe()
        self._cleanup.callback(os.close, ours)
        os.set_blocking(ours, False)
        return ours, theirs

    # -- what comes ----------------------------------------------------------------------

    @property
    def log(self) -> str:
        """QEMU's log of exceptions and resets."""
        return self._log.decode(errors="replace")

    @property
    def flooded(self) -> bool:
        """Whether the console passed its bound."""
        return self._written > MOST_CONSOLE

    def wait(self, seconds: float) -> None:
        """Take in what comes."""
        readable = (self._serial, self._notes, self._qmp.fileno())
        ready, _, _ = select.select(readable, (), (), max(seconds, 0))
        self._drain()
        if self._qmp.fileno() in ready:
            try:
                self._qmp.poll()
            except MachineError:
                self._gone()
        self._note_end()

    def _drain(self) -> None:
        for file, into in ((self._serial, self.console), (self._notes, self._log)):
            with contextlib.suppress(BlockingIOError):
                while part := os.read(file, _CHUNK):
                    if file == self._serial:
                        self._written += len(part)
                    into += part
                    if len(part) < _CHUNK:
                        break
        del self._log[:-_LOG_KEPT]
        if len(self.console) > MOST_CONSOLE:
            del self.console[MOST_CONSOLE // 2 : -MOST_CONSOLE // 4]

    def _note_end(self) -> None:
        event = next((event for event in self._qmp.events if event["event"] == "SHUTDOWN"), None)
        self._qmp.events.clear()
        if event is None or self.ended is not None:
            return
        reason = event.get("data", {}).get("reason", "")
        if reason == "guest-shutdown":
            self.ended = "off"
        elif reason == "guest-reset":
            self.ended = "triple-fault" if ends_in_triple_fault(bytes(self._log)) else "reset"
        else:
            self.ended = "reset"

    def _gone(self) -> None:
        self.last_words = self._child.end().decode(errors="replace").strip()[-500:]
        self.ended = "gone"

    # -- what can be asked ---------------------------------------------------------------

    def stop(self) -> None:
        """Let it stand still."""
        self._qmp.ask("stop")

    def go_on(self) -> None:
        """Let it run again."""
        self._qmp.ask("cont")

    def registers(self) -> str:
        """Of all CPUs."""
        return self._qmp.monitor("info registers -a")

    def worked(self) -> float | None:
        """By the kernel's own count."""
        return cpu_seconds(self._child.pid)

    def source(self) -> Source:
        """Memory and registers now; the memory is the guest's own, so that it is read without copying."""
        located = live_ram.locate(self._qmp, ram_ranges(self._qmp.monitor("info mtree -f")))
        memory, remarks = live_ram.shared_memory(self._child.pid, located, "the guest")
        cpus = parse_info_registers(self.registers())
        return Source(memory=memory, format="live QEMU, RAM by file", cpus=cpus, notes=remarks, live=True)

    def leaves(self) -> str:
        """QEMU's ``info tlb``, which walks the page tables of the first CPU."""
        return self._qmp.monitor("info tlb")

    def close(self) -> None:
        """Kill QEMU and wait for it; close all that was open."""
        self._cleanup.close()


def _firmware(cell: Cell, variables: int) -> list[str]:
    found = qemu_command.firmware_arguments(cell, f"/proc/self/fd/{variables}")
    if len(found) > 2:
        own = firmware().variables
        assert own is not None
        os.pwrite(variables, own.read_bytes(), 0)
    return found
