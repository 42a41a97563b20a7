"""QEMU as a child process, with TCG or KVM, and its RAM mapped into this one.

Everything between us is an open file without a name: RAM, image and serial output are memfds
(a socket would drop bytes of a guest that does not wait for the port), the monitor and the exit
port are socket pairs, the log is a pipe. So nothing is left when either side is killed, and
the kernel kills the child when we die.

QEMU's ``isa-debug-exit`` ends the process at once, and with it the registers. Here port 0xf4
is a debug console: the byte that the guest writes arrives on a socket, and the guest, which
is expected to halt next, is paused. CR3, CR4 and RAM can then be read.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import selectors
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from fivefold.arch import Cpu, cpu_from_cpuid
from fivefold.errors import MachineError
from fivefold.machine.base import (
    EFI_ENTRIES,
    START_SECONDS,
    Event,
    Exit,
    Guest,
    Halted,
    PoweredOff,
    Registers,
    Reset,
    Shutdown,
    Timeout,
)
from fivefold.machine.child import Child
from fivefold.machine.loading.firmware import firmware, firmware_arguments
from fivefold.machine.loading.memory_map import PC_SPLIT, split_extents
from fivefold.machine.mapped_ram import MappedRam
from fivefold.machine.program import HostProgram, find_program
from fivefold.machine.qemu.command import (
    channel_arguments,
    check_guest,
    guest_arguments,
    program_arguments,
    program_environment,
)
from fivefold.machine.qemu.monitor import QemuMonitor
from fivefold.machine.qemu.text import cpu_of, ends_in_triple_fault, is_halted, last_story, parse_registers
from fivefold.memory import PhysMemory
from fivefold.memory.live.connection import ConnectionLostError
from fivefold.memory.live.qmp_client import QmpClient
from fivefold.units import format_size

PROGRAM: Final = "qemu-system-x86_64"
VARIABLE: Final = "FIVEFOLD_QEMU"
INSTALL: Final = "install it with: apt-get install qemu-system-x86"
LEAST_SECONDS: Final = 2.0
"""How long QEMU may take to answer, however short a time limit is: under load a start takes as long, and a limit
that is meant for the guest should end the guest."""

_RFLAGS_IF: Final = 1 << 9
_POLL: Final = 0.02
"""Seconds between two looks at whether the guest has halted."""

_NO_FEATURES: Final = "Host doesn't support requested features"
_LOG_KEPT: Final = 1 << 16
_CHUNK: Final = 1 << 16


class QemuMachine:
    """A guest on QEMU. See `fivefold.machine.base.Machine`.

    It belongs to the thread that made it: the child is killed when that thread ends.
    """

    opaque = ""

    def __init__(
        self, guest: Guest, accelerator: str = "tcg", timeout: float = START_SECONDS, program: str | None = None
    ) -> None:
        """Start QEMU, paused before the first instruction; `MachineError` if it cannot be, or not in *timeout* seconds.

        Later, too, it gets that long for each answer, but never less than `LEAST_SECONDS`. *program* is another
        QEMU than the system's, see `fivefold.machine.start`.
        """
        self.name = "qemu" if accelerator == "tcg" else accelerator
        self.guest = guest
        self._accelerator = accelerator
        self._cleanup = contextlib.ExitStack()
        self._serial: int | None = None
        self._output = b""
        self._log = bytearray()
        self._exit = bytearray()
        self._cpu: Cpu | None = None
        found = find_program((PROGRAM,), program, VARIABLE)
        self._program = found or HostProgram((PROGRAM,), Path("/"))
        size = check_guest(guest, self.name, self._program.root)
        try:
            self._start(guest, size, max(timeout, LEAST_SECONDS))
        except BaseException:  # Ctrl-C too must leave no process
            self.close()
            raise

    def _start(self, guest: Guest, size: int, timeout: float) -> None:
        ram = self._memfd("fivefold-ram")
        self._map_ram(ram, size, guest.poison)
        image = self._memfd("fivefold-image")
        _write_all(image, guest.image)
        self._monitor, monitor = self._socket_pair()
        self._serial = serial = self._memfd("fivefold-serial")
        self._exit_port, exit_port = self._socket_pair()
        self._log_pipe, log = self._pipe()
        command = [
            *program_arguments(self._program),
            *guest_arguments(guest, self._accelerator, size, ram, image),
            *channel_arguments(monitor.fileno(), serial, exit_port.fileno()),
            # KVM's exceptions are the CPU's own affair: nothing to log.
            *(("-d", "int,cpu_reset", "-D", f"/proc/self/fd/{log}") if self._accelerator == "tcg" else ()),
        ]
        fds = [ram, image, serial, log]
        for module in guest.modules:
            fds.append(self._memfd("fivefold-module"))
            _write_all(fds[-1], module.data)
            command += ["-initrd", f"/proc/self/fd/{fds[-1]}"]
        if guest.entry in EFI_ENTRIES:
            fds.append(self._memfd("fivefold-variables"))
            command += firmware_arguments(firmware(self._program.root), fds[-1])
        passed = [monitor.fileno(), exit_port.fileno(), *fds]
        try:
            self._child = Child(command, passed, program_environment(self._program))
        except OSError as error:
            raise MachineError(f"{self._program.path} cannot be started: {error.strerror}; {INSTALL}") from error
        self._cleanup.callback(self._child.end)
        # Our ends see the child's death only once no other process holds the other ones.
        for theirs in (monitor, exit_port):
            theirs.close()
        os.close(log)
        try:
            self._qmp = QemuMonitor(self._monitor, timeout, (self._exit_port, self._log_pipe), self._drain)
        except MachineError as error:
            raise self._failed(error) from error

    def _failed(self, error: MachineError) -> MachineError:
        """*error*, or with what words QEMU ended if it is gone. It is killed if it is not."""
        words = self._child.end().decode(errors="replace").strip().splitlines()
        if not isinstance(error, ConnectionLostError):
            return error
        if not words:
            return MachineError("QEMU ended without a word")
        if words[-1].endswith(_NO_FEATURES):
            return MachineError(f"this host's KVM cannot give a guest the CPU {self.guest.cpu}")
        return MachineError(f"QEMU ended: {words[-1].rpartition(PROGRAM + ': ')[2]}")

    # -- what can be asked ---------------------------------------------------------------

    @property
    def cpu(self) -> Cpu:
        """What CPUID says in the guest, as QEMU's own model of the CPU has it."""
        if self._cpu is None:
            self._cpu = cpu_from_cpuid(_FeatureWords(self._qmp).read)
        return self._cpu

    @property
    def memory(self) -> PhysMemory:
        """RAM, shared with the guest: reads are torn while it runs."""
        return self._ram

    @property
    def output(self) -> bytes:
        """What the guest wrote to the serial port so far."""
        if self._serial is not None:
            self._output = os.pread(self._serial, os.fstat(self._serial).st_size, 0)
        return self._output

    @property
    def instructions(self) -> None:
        """QEMU does not count."""
        return

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._child.pid

    def registers(self) -> Registers:
        """The registers now; in 32-bit code the lower halves only."""
        return parse_registers(self._qmp.monitor("info registers"))

    def all_registers(self) -> tuple[Registers, ...]:
        """The registers of every CPU, the first CPU's first."""
        numbers = sorted(cpu["cpu-index"] for cpu in self._qmp.ask("query-cpus-fast"))
        return tuple(parse_registers(self._qmp.monitor("info registers", cpu_index=number)) for number in numbers)

    def inject_nmi(self) -> None:
        """Raise an NMI on every CPU, as a front panel's button does; firmware must have let it through."""
        self._qmp.ask("inject-nmi")

    def inject_machine_check(self) -> None:
        """Raise an uncorrected machine check on the first CPU, from bank 1; with CR4.MCE off it shuts down."""
        valid_uncorrected_enabled = 0xBD00_0000_0000_0000
        self._qmp.monitor(f"mce 0 1 {valid_uncorrected_enabled:#x} 5 0 0")

    def debug(self, device: str) -> None:
        """Let a debugger in by *device*, as QEMU's ``-gdb`` spells it; `MachineError` if QEMU cannot."""
        said = self._qmp.monitor(f"gdbserver {device}").strip()
        if not said.startswith("Waiting for gdb"):
            raise MachineError(f"QEMU refused a debugger at {device}: {said}")

    # -- running -------------------------------------------------------------------------

    def run(self, timeout: float = 10.0, limit: int | None = None) -> Event:
        """Run until the guest ends, or for *timeout* seconds."""
        if limit is not None:
            raise MachineError("QEMU does not count instructions; give a time limit only")
        try:
            self._qmp.ask("cont")
            event = self._wait(time.monotonic() + timeout, timeout)
            self._qmp.ask("stop")
            self._qmp.ask("query-status")
            self._drain()
        except MachineError as error:
            raise self._failed(error) from error
        # A guest that halts right after its exit code, or switches itself off, may have been seen halted first: what it
        # asked for is carried out by another thread, before that answers a second question.
        return self._exit_event() or self._shutdown_event() or event

    def _wait(self, deadline: float, timeout: float) -> Event:
        with selectors.DefaultSelector() as selector:
            for source in (self._qmp, self._exit_port, self._log_pipe):
                selector.register(source, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                ready = selector.select(min(_POLL, left))
                for key, _ in ready:
                    if key.fileobj is self._qmp:
                        self._qmp.poll()
                self._drain()
                event = self._exit_event() or self._shutdown_event() or (None if ready else self._halt_event())
                if event is not None:
                    return event
        return Timeout(timeout, self.registers().rip)

    def _exit_event(self) -> Exit | None:
        if not self._exit:
            return None
        code = self._exit[0]
        self._exit.clear()
        return Exit(code)

    def _shutdown_event(self) -> Event | None:
        # With -action reboot=shutdown, shutdown=pause a reset arrives as this event, whatever it came from.
        event = next((event for event in self._qmp.events if event["event"] == "SHUTDOWN"), None)
        if event is None:
            return None
        self._qmp.events.clear()
        self._drain()
        if event.get("data", {}).get("reason") == "guest-shutdown":
            return PoweredOff()
        log = bytes(self._log)
        # KVM has no log: there a reset may be anything.
        if self._accelerator == "tcg" and not ends_in_triple_fault(log):
            return Reset()
        cpus = self.all_registers()
        cpu = cpu_of(last_story(log, 0), cpus)
        return Shutdown(last_story(log, cpus[cpu or 0].cr2), cpu)

    def _halt_event(self) -> Halted | None:
        text = self._qmp.monitor("info registers")
        if not is_halted(text):
            return None
        registers = parse_registers(text)
        # With interrupts on, a timer may wake it: that is for the time limit to end.
        return None if registers.rflags & _RFLAGS_IF else Halted(registers.rip)

    def _drain(self) -> None:
        """Take in exit codes and the log, as much as a pipe holds: a guest may write faster than we read."""
        with contextlib.suppress(BlockingIOError):
            self._exit += self._exit_port.recv(_CHUNK)
        with contextlib.suppress(BlockingIOError):
            self._log += os.read(self._log_pipe, _CHUNK)
        del self._log[:-_LOG_KEPT]

    # -- starting ------------------------------------------------------------------------

    def _memfd(self, name: str) -> int:
        fd = os.memfd_create(name)
        self._cleanup.callback(os.close, fd)
        return fd

    def _map_ram(self, fd: int, size: int, poison: int | None) -> None:
        try:
            os.ftruncate(fd, size)
            shared = mmap.mmap(fd, size)
        except (OSError, OverflowError) as error:
            raise MachineError(f"this host cannot reserve {format_size(size)} of guest memory") from error
        self._ram = MappedRam([(extent, shared, at) for extent, at in split_extents(size, PC_SPLIT)], self.name)
        self._cleanup.callback(self._ram.close)
        if poison is not None:
            self._ram.fill(poison)

    def _socket_pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        self._cleanup.callback(ours.close)
        self._cleanup.callback(theirs.close)
        ours.setblocking(False)
        return ours, theirs

    def _pipe(self) -> tuple[int, int]:
        ours, theirs = os.pipe()
        self._cleanup.callback(os.close, ours)
        os.set_blocking(ours, False)
        return ours, theirs

    # -- the end -------------------------------------------------------------------------

    def close(self) -> None:
        """Kill QEMU and wait for it; close all that was open. The output is kept."""
        self._output, self._serial = self.output, None
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _FeatureWords:
    """CPUID answered from the feature words of QEMU's CPU object."""

    def __init__(self, qmp: QmpClient) -> None:
        self._path = qmp.ask("query-cpus-fast")[0]["qom-path"]
        self._qmp = qmp
        self._words: dict[tuple[int, int], dict[str, int]] = {}
        for word in self._get("feature-words"):
            key = (word["cpuid-input-eax"], word.get("cpuid-input-ecx", 0))
            self._words.setdefault(key, {})[word["cpuid-register"]] = word["features"]

    def _get(self, name: str) -> Any:
        return self._qmp.ask("qom-get", path=self._path, property=name)

    def read(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX: feature bits, maximum leaves, vendor and physical width; the rest is 0."""
        if leaf == 0:
            vendor = self._get("vendor").encode()
            ebx, edx, ecx = (int.from_bytes(vendor[at : at + 4], "little") for at in (0, 4, 8))
            return self._get("level"), ebx, ecx, edx
        if leaf == 0x8000_0000:
            return self._get("xlevel"), 0, 0, 0
        if leaf == 0x8000_0008:
            return self._get("phys-bits"), 0, 0, 0
        word = self._words.get((leaf, subleaf), {})
        return word.get("EAX", 0), word.get("EBX", 0), word.get("ECX", 0), word.get("EDX", 0)


def _write_all(fd: int, data: bytes) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
