"""What a log, a core or an engine says happened, before anything is explained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from fivefold.arch import HAS_ERROR_CODE
from fivefold.machine.base import vector_name
from fivefold.memory import CpuState

Outcome = Literal["handled", "double-fault", "triple-fault", "oops", "emulation-failure", "reset", "unknown"]
"""How it ended.

``handled``: every exception reached its handler. ``oops``: the kernel itself reported it.
``reset``: the CPU was reset, and nothing says why. ``unknown``: the source does not tell.
"""

NO_VECTOR: Final = 0xFFFF_FFFF
"""What QEMU prints as the old exception where none was being delivered."""


@dataclass(frozen=True, slots=True)
class Code:
    """Instruction bytes that a log printed; *at* is the index of the byte at RIP."""

    data: bytes
    at: int

    @property
    def from_rip(self) -> bytes:
        """The bytes from RIP on."""
        return self.data[self.at :]


@dataclass(frozen=True, slots=True)
class RaisedException:
    """One exception. What the source does not say is None.

    *during* is the vector in whose delivery it was raised. *software*: by INT n, INT3 or INTO.
    *entries* are page-table entries that a kernel printed, from the top. *repeats* counts
    equal ones in a row, *last_rsp* is the stack pointer of the last of these.
    """

    vector: int
    during: int | None = None
    error_code: int | None = None
    cr2: int | None = None
    rip: int | None = None
    rsp: int | None = None
    cpl: int | None = None
    software: bool = False
    cpu: CpuState | None = None
    code: Code | None = None
    entries: tuple[int, ...] = ()
    line: int = 0
    repeats: int = 1
    last_rsp: int | None = None
    linked: bool = False
    """Raised at the first instruction of the handler of the one before."""
    disguised: bool = False
    """P in the error code is the kernel's own doing."""
    guard: bool = False
    """The kernel itself says that it was a guard page below a stack."""
    external: bool = False
    """An interrupt from outside, whatever its vector: the firmware leaves the timer on vector 8."""

    @property
    def name(self) -> str:
        """The manual's mnemonic, or the number of an interrupt."""
        return f"interrupt {self.vector:#x}" if self.external else vector_name(self.vector)

    @property
    def has_error_code(self) -> bool:
        """Whether its delivery pushes an error code."""
        return self.vector in HAS_ERROR_CODE and not (self.software or self.external)


@dataclass(frozen=True, slots=True)
class Trace:
    """The exceptions to be explained, oldest first, and what else the source says.

    *cpu* holds the registers at the end. *total* counts all exceptions in the source, *resets*
    the triple faults. *dialect* names the format in words.
    """

    source: str
    dialect: str
    exceptions: tuple[RaisedException, ...] = ()
    outcome: Outcome = "unknown"
    cpu: CpuState | None = None
    code: Code | None = None
    total: int = 0
    resets: int = 0
    truncated: bool = False
    remarks: tuple[str, ...] = field(default=())
    release: str | None = None
    inferred: bool = False
    """The exceptions follow from registers and memory; nobody reported them."""
