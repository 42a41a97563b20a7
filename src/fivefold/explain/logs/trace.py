"""What a log, a core or an engine says happened, before anything is explained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from fivefold.arch import HAS_ERROR_CODE, Kind, Level
from fivefold.machine.base import vector_name
from fivefold.memory import CpuState

Outcome = Literal["handled", "double-fault", "triple-fault", "oops", "emulation-failure", "reset", "unknown"]
"""How it ended.

``handled``: every exception reached its handler. ``oops``: the kernel itself reported it.
``reset``: the CPU was reset, and nothing says why. ``unknown``: the source does not say.
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


class PrintedEntry(NamedTuple):
    """A page-table entry that a kernel printed with its report, by Linux' name of its level (``PGD`` to ``PTE``)."""

    name: str
    value: int


class EmulatorReason(NamedTuple):
    """Why an emulator raised an exception, in its own words: the rule that these mean, the level if they name one.

    *times*: of how many deliveries in a row it says so, where they cannot be told apart.
    """

    text: str
    rule: str
    level: Level | None = None
    times: int = 1


class Caller(NamedTuple):
    """A line of a call trace: *address* is None where the log has only the *name*; *doubtful* has a ``?`` before it."""

    address: int | None
    name: str | None = None
    doubtful: bool = False


class Levels(NamedTuple):
    """The *number* of levels, with what it follows from."""

    number: int
    why: tuple[str, ...]


class VmExit(NamedTuple):
    """Why a hypervisor's guest stopped: the basic exit reason of VMX, and the guest physical address of an EPT exit."""

    reason: int
    qualification: int | None
    address: int | None


@dataclass(frozen=True, slots=True)
class Placement:
    """What a source says of where a kernel put its areas. *slide* is added to addresses of the image.

    *fixed*: the bases are those of the documents, because the source says that nothing is randomised, or because
    the kernel has KASAN, whose shadow does not move. *image_fixed*: the image was not moved either.
    """

    slide: int | None = None
    fixed: bool = False
    image_fixed: bool = False
    may_slide: bool = False
    """The source says that the image lies in a gibibyte that is kept for moving it."""


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
    entries: tuple[PrintedEntry, ...] = ()
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

    hashed: bool = False
    """The address is printed as a hash, and so not known."""
    kind: Kind | None = None
    """The access, where the source says it in words."""
    by_user: bool | None = None
    """Whether a process made the access, where the source says it in words."""
    absent: bool = False
    """The source says in words that the page was not present."""
    named: int | None = None
    """An address that the source itself names, with *named_as* what it calls it."""
    named_as: str | None = None
    """``non-canonical``, ``lass``, or ``maybe`` where the source is not sure."""
    shadowed: int | None = None
    """The address whose shadow KASAN was about to read."""
    symbol: str | None = None
    """RIP as a name, where the source has it: ``function+0x1a/0x40``."""
    says_no_execute: bool = False
    """The kernel says that it tried to execute a page that forbids it."""
    says_smep: bool = False
    """The kernel says that it tried to execute code of a process."""
    on_purpose: bool = False
    """The kernel raised it by itself, to stop (``BUG()``)."""
    reason: EmulatorReason | None = None
    """What an emulator says of it."""
    by_tcg: bool = False
    """Raised by QEMU's TCG, which encodes some error codes in its own way."""
    says: str | None = None
    """What happened in the source's own words, where no rule of paging can say it."""
    dropped: tuple[str, ...] = ()
    """What the source says and what cannot be believed, with the reason."""

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
    placement: Placement = Placement()
    vm_exit: VmExit | None = None
    levels: Levels | None = None
    """What the source proves of the number of levels, beside CR4 and the exceptions themselves."""
    unknown: tuple[str, ...] = ()
    """What the source leaves open, in sentences."""
    bits: int = 64
    """32 where the source is of a CPU outside of long mode."""
    says: str | None = None
    """What the source itself says happened, for where no exception explains it."""
    callers: tuple[Caller, ...] = ()
    """The call trace of the report, innermost first."""
    inferred: bool = False
    """The exceptions follow from registers and memory; no source reported them."""
