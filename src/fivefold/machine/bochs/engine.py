"""Bochs as a child process: it boots an ISO, and what it shows is the serial port and its log.

Configuration, ISO and serial output are memfds, the log is a pipe: nothing has a name that could be left behind, and
the kernel kills the child when we die. Bochs' debugger is not used, so memory and registers cannot be read.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from types import TracebackType
from typing import Final, Self

from fivefold.arch import Cpu
from fivefold.errors import MachineError
from fivefold.machine.base import START_SECONDS, Event, Guest, Registers, Timeout
from fivefold.machine.bochs.config import check_guest, configuration, cpu_model, installation
from fivefold.machine.bochs.log import BochsLogReader
from fivefold.machine.child import Child
from fivefold.memory import PhysMemory

OPAQUE: Final = "bochs shows its serial port: memory, registers and page tables are not read"
_POLL: Final = 0.02
_CHUNK: Final = 1 << 16


class BochsMachine:
    """A guest on Bochs. See `fivefold.machine.base.Machine`; of the rest only `output` and `log` can be asked."""

    name = "bochs"
    opaque = OPAQUE
    instructions = None

    def __init__(self, guest: Guest, timeout: float = START_SECONDS, program: str | None = None) -> None:
        """Find Bochs and see whether it can run *guest*; it is started by the first `run`. Raises `MachineError`."""
        self.guest = guest
        self._bochs = installation(program)
        check_guest(guest)
        cpu_model(self._bochs, guest.cpu)
        self._cleanup = contextlib.ExitStack()
        self._child: Child | None = None
        self._output = b""
        self._serial: int | None = None
        self._log = BochsLogReader()

    @property
    def cpu(self) -> Cpu:
        """Bochs cannot be asked: raises `MachineError`."""
        raise MachineError(OPAQUE)

    @property
    def memory(self) -> PhysMemory:
        """Bochs cannot be asked: raises `MachineError`."""
        raise MachineError(OPAQUE)

    @property
    def output(self) -> bytes:
        """What the guest wrote to the serial port so far."""
        if self._serial is not None:
            self._output = os.pread(self._serial, os.fstat(self._serial).st_size, 0)
        return self._output

    @property
    def log(self) -> bytes:
        """The end of Bochs' log, with the registers of a CPU that found no way on."""
        return self._log.text

    def registers(self) -> Registers:
        """Bochs cannot be asked: raises `MachineError`."""
        raise MachineError(OPAQUE)

    def all_registers(self) -> tuple[Registers, ...]:
        """Bochs cannot be asked: raises `MachineError`."""
        raise MachineError(OPAQUE)

    @property
    def processor_seconds(self) -> float:
        """Processor time that Bochs has used so far."""
        return self._child.processor_seconds if self._child else 0.0

    # -- running -------------------------------------------------------------------------

    def run(self, timeout: float = 10.0, limit: int | None = None) -> Event:
        """Run until the guest ends, or for *timeout* seconds; then it is stopped until the next call."""
        if limit is not None:
            raise MachineError("Bochs does not count instructions; give a time limit only")
        if self._child is None:
            self._start()
        assert self._child is not None
        self._child.send(signal.SIGCONT)
        deadline = time.monotonic() + timeout
        while self._log.event is None and (left := deadline - time.monotonic()) > 0:
            gone = self._child.is_gone
            self._wait(min(left, _POLL))
            if gone and self._log.event is None:
                raise self._failed()
        self._child.send(signal.SIGSTOP)
        return self._log.event or Timeout(timeout, None)

    def _wait(self, seconds: float) -> None:
        """Read what the log has, or wait for it."""
        ready, _, _ = select.select([self._log_pipe], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while ready and (data := os.read(self._log_pipe, _CHUNK)):
                self._log.take(data)

    def _failed(self) -> MachineError:
        assert self._child is not None
        words = self._child.end().decode(errors="replace").strip().splitlines()
        error = self._log.end()
        return error if self._log.panic or not words else MachineError(f"Bochs ended: {words[-1]}")

    def _start(self) -> None:
        try:
            iso, text = self._memfd("fivefold-iso"), self._memfd("fivefold-bochsrc")
            self._serial = serial = self._memfd("fivefold-serial")
            self._log_pipe, log = os.pipe()
            self._cleanup.callback(os.close, self._log_pipe)
            os.set_blocking(self._log_pipe, False)
            go = self._memfd("fivefold-go")
            _write(go, b"c\n")
            _write(iso, self.guest.image)
            _write(text, configuration(self._bochs, self.guest, iso, serial, log).encode())
            command = [*self._bochs.program.command, "-q", "-f", f"/proc/self/fd/{text}"]
            if self._bochs.waits:
                command += ["-rc", f"/proc/self/fd/{go}"]
            try:
                self._child = Child(command, [iso, text, serial, log, go], self._bochs.environment)
            finally:
                os.close(log)
        except OSError as error:
            raise MachineError(f"{self._bochs.program.path} cannot be started: {error.strerror}") from error
        self._cleanup.callback(self._child.end)

    def _memfd(self, name: str) -> int:
        fd = os.memfd_create(name)
        self._cleanup.callback(os.close, fd)
        return fd

    # -- the end -------------------------------------------------------------------------

    def close(self) -> None:
        """Kill Bochs and wait for it; close all that was open. The output is kept."""
        self._output, self._serial = self.output, None
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _write(fd: int, data: bytes) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
