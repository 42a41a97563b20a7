"""What every engine shares: the guest it is given, what can be asked of it, how a run ends.

An engine is a context manager. Whatever happens inside the ``with``, nothing stays
behind it: no process, no socket, no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, NamedTuple, Protocol, Self

from fivefold.arch import Cpu, Vector
from fivefold.memory import PhysMemory
from fivefold.units import MIB, hex64

EntryPoint = Literal["pvh", "long48", "long57", "multiboot2", "efi", "efi57"]
EFI_ENTRIES: Final[tuple[EntryPoint, ...]] = ("efi", "efi57")
"""By firmware: as it enters, or through a loader of ours that turns on five levels first."""

EXIT_PORT: Final = 0xF4
"""A guest writes its exit code here; QEMU's ``isa-debug-exit`` lives at the same port."""

SERIAL_PORT: Final = 0x3F8
"""The first serial port; everything a guest writes here is `Machine.output`."""

START_SECONDS: Final = 30.0
"""How long an engine may take to start by default; start-up under load is slow."""

PAGE_FAULT: Final = 14
_NAMES: Final = {int(vector): "NMI" if vector is Vector.NMI else f"#{vector.name}" for vector in Vector}


def vector_name(vector: int) -> str:
    """The manual's mnemonic of an exception, ``vector N`` for the rest.

    >>> vector_name(14), vector_name(0x80)
    ('#PF', 'vector 128')
    """
    return _NAMES.get(vector, f"vector {vector}")


class MapRow(NamedTuple):
    """One row of a firmware memory map: *start* inclusive, *end* exclusive, E820 *kind* (1 is RAM)."""

    start: int
    end: int
    kind: int = 1


class Module(NamedTuple):
    """A file that the loader puts beside the image, with its own command line."""

    data: bytes
    cmdline: str = ""


class CpuidOverride(NamedTuple):
    """The answer to one CPUID leaf; *subleaf* None answers every subleaf."""

    leaf: int
    subleaf: int | None
    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True, slots=True)
class Guest:
    """What to run and on what. Engines refuse what they cannot do with `MachineError`."""

    image: bytes
    """An ELF64 placed by p_paddr, with a PT_NOTE "Xen" type 18 that holds the 32-bit entry; for efi an application, for
    multiboot2 an ISO whose GRUB has the command line and the modules in its menu."""
    entry: EntryPoint = "pvh"
    entry64: int | None = None
    """Physical address of the 64-bit entry; needed for long48 and long57 where no stub does it."""
    cpu: str = "la57"
    """``la57``, ``la48``, or the engine's own name of a model."""
    memory: int | tuple[MapRow, ...] = 256 * MIB
    """Bytes of RAM, split as a PC splits it, or the memory map itself (Unicorn only)."""
    cmdline: str = ""
    sites: frozenset[int] = frozenset()
    """Addresses of the image's mov-to-CR, wrmsr, lidt and lgdt, physical and high virtual."""
    modules: tuple[Module, ...] = ()
    poison: int | None = None
    """Fill RAM with this byte first, so that code which counts on zeroed memory fails."""
    cpuid: tuple[CpuidOverride, ...] = ()
    start_info: int | None = None
    """Where to put the start information; None lets the loader choose (Unicorn only)."""
    handover: int | None = None
    """Where to put the tables, GDT and stack of a 64-bit entry; None lets the loader choose (Unicorn only)."""
    cpus: int = 1
    """How many CPUs; more than one on QEMU only. All but the first wait for INIT and a startup IPI."""
    last_cpu: str | None = None
    """What the last of several CPUs is, where it differs: a mistake of the platform, for tests of how it is met."""


class TableRegister(NamedTuple):
    """GDTR or IDTR: linear *base* and *limit*, the last valid offset."""

    base: int
    limit: int


@dataclass(frozen=True, slots=True)
class Registers:
    """A processor's registers at rest. Tables are None where the engine cannot tell."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rbp: int
    rsp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    cs: int
    ss: int
    cpl: int
    gdt: TableRegister | None = None
    idt: TableRegister | None = None


class ExceptionRecord(NamedTuple):
    """One exception on its way: what was raised, where, with what.

    *rip* and *rsp* are those of the interrupted code; *cr2* is None but for a page fault.
    """

    vector: int
    error_code: int | None
    cr2: int | None
    rip: int
    rsp: int

    def __str__(self) -> str:
        code = "" if self.error_code is None else f"({self.error_code:#x})"
        address = "" if self.cr2 is None else f" at {hex64(self.cr2)}"
        return f"{vector_name(self.vector)}{code}{address}, rip {hex64(self.rip)}"


@dataclass(frozen=True, slots=True)
class Exit:
    """The guest wrote *code* (one byte) to the exit port."""

    code: int

    def __str__(self) -> str:
        return f"exit with code {self.code}"


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Triple fault. *records* are the exceptions that led to it, oldest first, where known.

    *cpu* is the number of the CPU that raised them, None where that is not known.
    """

    records: tuple[ExceptionRecord, ...]
    cpu: int | None = 0

    def __str__(self) -> str:
        story = " -> ".join(str(record) for record in self.records)
        where = f" on CPU {self.cpu}" if self.cpu else ""
        return f"triple fault{where}: {story}" if story else f"triple fault{where}"


@dataclass(frozen=True, slots=True)
class Reset:
    """The machine was reset, and not by a triple fault: the keyboard controller, port 0xcf9 or ACPI."""

    def __str__(self) -> str:
        return "reset by the guest: no triple fault"


@dataclass(frozen=True, slots=True)
class PoweredOff:
    """The guest switched the machine off."""

    def __str__(self) -> str:
        return "powered off by the guest"


@dataclass(frozen=True, slots=True)
class Halted:
    """HLT with nothing left that could wake the guest; *rip* is past it, None where the engine cannot tell."""

    rip: int | None

    def __str__(self) -> str:
        return "halted" if self.rip is None else f"halted before {hex64(self.rip)}"


@dataclass(frozen=True, slots=True)
class Timeout:
    """The guest still ran after *seconds*; *rip* is None where the engine cannot tell."""

    seconds: float
    rip: int | None

    def __str__(self) -> str:
        place = "" if self.rip is None else f", at {hex64(self.rip)}"
        return f"still running after {self.seconds:g} s{place}"


@dataclass(frozen=True, slots=True)
class LimitReached:
    """The guest executed *instructions*, as many as it was allowed to; *rip* is the next."""

    instructions: int
    rip: int

    def __str__(self) -> str:
        return f"stopped after {self.instructions} instructions, at {hex64(self.rip)}"


Event = Exit | Shutdown | Reset | PoweredOff | Halted | Timeout | LimitReached
"""How a run ended. Each prints as one line."""


class Machine(Protocol):
    """A guest on an engine, not running until `run` is called. Use it in a ``with``."""

    name: str
    guest: Guest
    opaque: str
    """Why memory, CPU and registers cannot be asked for, "" where they can; those that cannot raise `MachineError`."""

    @property
    def cpu(self) -> Cpu:
        """The features of the processor that the guest sees."""
        ...

    @property
    def memory(self) -> PhysMemory:
        """RAM; anything else raises `MemoryReadError`. Consistent while the guest does not run."""
        ...

    @property
    def output(self) -> bytes:
        """What the guest wrote to the serial port so far."""
        ...

    @property
    def instructions(self) -> int | None:
        """Instructions executed so far, None where the engine does not count."""
        ...

    def registers(self) -> Registers:
        """The registers now. Only meaningful while the guest does not run."""
        ...

    def all_registers(self) -> tuple[Registers, ...]:
        """The registers of every CPU, the first CPU's first."""
        ...

    def run(self, timeout: float = 10.0, limit: int | None = None) -> Event:
        """Run until the guest ends, or for *timeout* seconds, or for *limit* instructions.

        Can be called again after Timeout and LimitReached. Raises `MachineError`
        if the engine fails, or cannot count and *limit* is given.
        """
        ...

    def close(self) -> None:
        """End the guest and give everything back. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
