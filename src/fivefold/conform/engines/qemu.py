"""QEMU of any version, TCG or KVM."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

from fivefold.conform.engines.base import EngineError
from fivefold.conform.engines.machine import RAM, MachineEngine, SharedRam
from fivefold.conform.payload.build import elf_file
from fivefold.errors import MachineError
from fivefold.machine.child import Child
from fivefold.machine.program import HostProgram, find_program
from fivefold.machine.qemu.command import program_arguments, program_environment
from fivefold.machine.qemu.engine import VARIABLE
from fivefold.units import MIB

PROGRAM: Final = "qemu-system-x86_64"
INSTALL: Final = "install it with: apt-get install qemu-system-x86"


class QemuEngine(MachineEngine):
    """One QEMU program and CPU model. Each call of `run` starts machines; nothing stays behind."""

    def __init__(
        self, program: str | None = None, model: str | None = None, accelerator: str = "tcg", timeout: float = 60.0
    ) -> None:
        """Start once, for the version and the CPU; *model* as in ``-cpu``. Raises `EngineError`.

        *program* is a QEMU, or a folder that its packages were unpacked into.
        """
        self.name = "qemu" if accelerator == "tcg" else accelerator
        self.program, self.accelerator = _find(program), accelerator
        self.model = model or ("max" if accelerator == "tcg" else "host")
        self.version = _version(self.program)
        super().__init__(timeout)

    def _start(self, written: bytes, ram: SharedRam) -> Child:
        image = os.memfd_create("fivefold-conform-image")
        try:
            with open(image, "wb", closefd=False) as file:
                file.write(elf_file(written))
            return Child(
                self._command(f"/proc/self/fd/{image}", ram.fd), [image, ram.fd], program_environment(self.program)
            )
        finally:
            os.close(image)

    def _command(self, image: str, fd: int) -> list[str]:
        return [
            *program_arguments(self.program),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-machine", f"pc,memory-backend=ram,accel={self.accelerator}", "-cpu", self.model),
            *("-object", f"memory-backend-file,id=ram,share=on,size={RAM},mem-path=/proc/self/fd/{fd}"),
            *("-m", str(RAM // MIB), "-kernel", image),
        ]


def _find(given: str | None) -> HostProgram:
    try:
        return find_program((PROGRAM,), given, VARIABLE) or HostProgram((PROGRAM,), Path("/"))
    except MachineError as error:
        raise EngineError(str(error)) from error


def _version(program: HostProgram) -> str:
    command = [*program.command, "--version"]
    try:
        said = subprocess.run(command, capture_output=True, timeout=30, check=False, text=True).stdout
    except OSError as error:
        raise EngineError(f"{program.path} cannot be started: {error.strerror}; {INSTALL}") from error
    except (subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        raise EngineError(f"{program.path} does not say which version of QEMU it is") from error
    found = re.search(r"QEMU emulator version (\d+(?:\.\d+)+)", said)
    if found is None:
        raise EngineError(f"{program.path} does not say which version of QEMU it is")
    return found[1]
