"""A run as it is told to the supervisor: one JSON object; the kernel and the initramfs are open files by number."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from fivefold.errors import MachineError
from fivefold.matrix.cells import Cell
from fivefold.matrix.vmm.base import Driver


@dataclass(frozen=True)
class Job:
    """What the supervisor is told. *patience* is in seconds; the last three are as `driver_named` takes them."""

    cell: Cell
    kind: str
    kernel: int
    initramfs: int
    scratch: str
    patience: float
    silent: float
    keep: str | None = None
    driver: str = "qemu"
    accelerator: str = "tcg"
    program: str | None = None

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The way back."""
        data: dict[str, Any] = json.loads(text)
        data["cell"]["kexec"] = tuple(data["cell"]["kexec"])
        return cls(**{**data, "cell": Cell(**data["cell"])})


def driver_named(name: str, accelerator: str = "tcg", program: str | None = None) -> Driver:
    """The driver called *name*; `MachineError` for one that is not known."""
    if name == "qemu":
        from fivefold.matrix.vmm.qemu import QemuDriver

        return QemuDriver(accelerator, program)
    if name in ("firecracker", "cloud-hypervisor"):
        from fivefold.matrix.vmm.kvm_only import CloudHypervisorDriver, FirecrackerDriver

        return (FirecrackerDriver if name == "firecracker" else CloudHypervisorDriver)(program)
    raise MachineError(f"no driver is called {name!r}; expected qemu, firecracker or cloud-hypervisor")
