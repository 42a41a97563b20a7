"""Firecracker and cloud-hypervisor: monitors that need KVM, take a vmlinux, and show the console on stdout.

Written against their documents: *firecracker*, docs/getting-started.md (``--no-api --config-file``, and the machine's
configuration in JSON); *cloud-hypervisor*, README.md and docs/api.md (``--kernel``, ``--cmdline``, ``--serial tty``).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fivefold.errors import MachineError
from fivefold.machine.program import HostProgram, find_program
from fivefold.matrix.cells import Cell, memory_parts
from fivefold.matrix.vmm.base import Files
from fivefold.matrix.vmm.console_only import ConsoleMachine
from fivefold.units import MIB

KVM: Final = "/dev/kvm"
_VERSION: Final = re.compile(r"v?(\d+\.\d+[^\s]*)")


class KvmOnlyDriver:
    """What the two share. *program* is another one than the path's; *kvm* the device that must be there."""

    name = ""

    def __init__(self, program: str | None = None, kvm: str = KVM) -> None:
        """Nothing is looked for yet."""
        self._given, self._kvm = program, kvm

    def _program(self) -> HostProgram:
        found = find_program((self.name,), self._given, f"FIVEFOLD_{self.name.upper().replace('-', '_')}")
        if found is None:
            raise MachineError(f"{self.name} is not installed")
        return found

    def version(self) -> str:
        """As the program says it. `MachineError` without KVM, too: nothing could be started."""
        if not os.access(self._kvm, os.R_OK | os.W_OK):
            raise MachineError(self._without_kvm())
        try:
            done = subprocess.run(
                [*self._program().command, "--version"], capture_output=True, text=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MachineError(f"{self.name} cannot be started: {error}") from error
        match = _VERSION.search(done.stdout)
        if match is None:
            raise MachineError(f"{self.name} does not say its version")
        return match[1]

    def refusal(self, cell: Cell) -> str | None:
        """Without KVM everything; with it all that such a monitor has not got: firmware, a chipset, other CPUs."""
        if not os.access(self._kvm, os.R_OK | os.W_OK):
            return self._without_kvm()
        if cell.path != "pvh":
            return f"{self.name} takes a vmlinux: only cells with the path pvh"
        if cell.hibernate:
            return f"{self.name} has no NVMe disk to hibernate to"
        if memory_parts(cell.memory)[1]:
            return f"{self.name} places its memory itself"
        if cell.cpu != "la48" and not _host_has_la57():
            return f"the CPU {cell.cpu} is asked for, and this host's has no LA57"
        return None

    def _without_kvm(self) -> str:
        return f"{self.name} needs KVM, and {self._kvm} cannot be opened here"

    def _memory(self, cell: Cell) -> int:
        return memory_parts(cell.memory)[0] // MIB


def _host_has_la57() -> bool:
    try:
        return " la57" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class FirecrackerDriver(KvmOnlyDriver):
    """Firecracker, told by a configuration file and not through its socket, so that no socket is left."""

    name = "firecracker"

    def _config(self, cell: Cell, cmdline: str, kernel: str, initramfs: str) -> str:
        return json.dumps(
            {
                "boot-source": {"kernel_image_path": kernel, "initrd_path": initramfs, "boot_args": cmdline},
                "drives": [],
                "machine-config": {"vcpu_count": cell.smp, "mem_size_mib": self._memory(cell), "smt": False},
            }
        )

    def command(self, cell: Cell, cmdline: str, kernel: str, initramfs: str, disk: str | None) -> Sequence[str]:
        """With the configuration on stdin of a shell, for it wants a file."""
        config = self._config(cell, cmdline, kernel, initramfs)
        return ["sh", "-c", f"echo '{config}' > vm.json; firecracker --no-api --config-file vm.json"]

    def start(self, cell: Cell, cmdline: str, files: Files) -> ConsoleMachine:
        """Start it with a configuration that is a file without a name."""
        cleanup = contextlib.ExitStack()
        config = os.memfd_create("config")
        cleanup.callback(os.close, config)
        text = self._config(cell, cmdline, f"/proc/self/fd/{files.kernel}", f"/proc/self/fd/{files.initramfs}")
        os.write(config, text.encode())
        command = [*self._program().command, "--no-api", "--config-file", f"/proc/self/fd/{config}"]
        try:
            return ConsoleMachine(command, [config, files.kernel, files.initramfs], cleanup)
        except MachineError:
            cleanup.close()
            raise


class CloudHypervisorDriver(KvmOnlyDriver):
    """cloud-hypervisor, with the first serial port on its terminal."""

    name = "cloud-hypervisor"

    def _arguments(self, cell: Cell, cmdline: str, kernel: str, initramfs: str) -> list[str]:
        return [
            *("--kernel", kernel, "--initramfs", initramfs, "--cmdline", cmdline),
            *("--cpus", f"boot={cell.smp}", "--memory", f"size={self._memory(cell)}M"),
            *("--serial", "tty", "--console", "off"),
        ]

    def command(self, cell: Cell, cmdline: str, kernel: str, initramfs: str, disk: str | None) -> Sequence[str]:
        """The command for people."""
        return [self.name, *self._arguments(cell, cmdline, kernel, initramfs)]

    def start(self, cell: Cell, cmdline: str, files: Files) -> ConsoleMachine:
        """Start it."""
        cleanup = contextlib.ExitStack()
        own = (f"/proc/self/fd/{files.kernel}", f"/proc/self/fd/{files.initramfs}")
        command = [*self._program().command, *self._arguments(cell, cmdline, *own)]
        try:
            return ConsoleMachine(command, [files.kernel, files.initramfs], cleanup)
        except MachineError:
            cleanup.close()
            raise
