"""Unicorn in this process: the default engine.

Unicorn translates code and little more. What it leaves out is done here: exceptions go
through the guest's IDT (`delivery`), writes to control registers are judged (`police`),
``syscall`` is executed, ports have devices (`ports`), and a guest that spins is stopped.

All of that happens between two runs of the engine: a hook notes what happened and stops.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from fivefold.arch import FETCH, Cpu, Vector
from fivefold.errors import MachineError
from fivefold.machine.base import (
    PAGE_FAULT,
    Event,
    ExceptionRecord,
    Exit,
    Guest,
    Halted,
    LimitReached,
    Registers,
    Shutdown,
    Timeout,
)
from fivefold.machine.loading.loader import load
from fivefold.machine.loading.memory_map import memory_map, ram_extents
from fivefold.machine.mapped_ram import Bus, MappedRam
from fivefold.machine.ports import Ports
from fivefold.machine.unicorn.core import GPR_NAMES, MSR_FMASK, MSR_LSTAR, MSR_STAR, UnicornCore, features
from fivefold.machine.unicorn.decode import decode, interrupt_length
from fivefold.machine.unicorn.delivery import Trap, deliver, has_error_code
from fivefold.machine.unicorn.instruction_hook import LOW_END
from fivefold.machine.unicorn.limits import unicorn_lacks
from fivefold.machine.unicorn.privileged_writes import GuestException, Linear, is_refused, page_fault_code
from fivefold.machine.unicorn.start import enter, map_memory, poison
from fivefold.machine.vcpu import BIG, FLAT_CODE64, FLAT_DATA, RFLAGS_IF, RFLAGS_RF, Vcpu, VcpuSegment
from fivefold.memory import PhysMemory
from fivefold.units import MASK64, PhysAddr, hex64

_EFER_SCE: Final = 1 << 0
_LONGEST_INSTRUCTION: Final = 15
_SLICE: Final = 1_000_000
"""Instructions between two looks at the clock and at signals such as Ctrl-C."""

_HISTORY: Final = 64


class UnicornMachine:
    """A guest on Unicorn. See `fivefold.machine.base.Machine`."""

    name = "unicorn"
    opaque = ""

    def __init__(self, guest: Guest) -> None:
        """Load *guest*; `MachineError` or `ImageError` if it cannot be."""
        self.guest = guest
        self._core: UnicornCore | None = None
        self._ram: MappedRam | None = None
        self._pending: Trap | None = None
        self._syscall = False
        self._judged: int | None = None
        self._ports = Ports()
        self._history: deque[ExceptionRecord] = deque(maxlen=_HISTORY)
        self._injected: deque[Trap] = deque()
        self._waiting: deque[Trap] = deque()
        self._stale = False
        try:
            self._start(guest)
        except BaseException:  # Ctrl-C too must leave no mapping of the guest's size
            self.close()
            raise

    def _start(self, guest: Guest) -> None:
        if (reason := unicorn_lacks(guest.entry, guest.cpus)) is not None:
            raise MachineError(f"the engine {reason}; use qemu")
        self.cpu: Cpu = features(guest.cpu, guest.cpuid)
        rows = memory_map(guest.memory)
        top = max(row.end for row in rows if row.kind == 1)
        if top > 1 << self.cpu.phys_bits:
            raise MachineError(
                f"RAM up to {hex64(top)} does not fit the {self.cpu.phys_bits} physical address bits of {guest.cpu}"
            )
        self._ram = MappedRam.anonymous(ram_extents(rows), self.name)
        poison(self._ram, guest.poison)
        placement = load(guest, rows, self._ram, self.cpu)
        self._core = UnicornCore(guest.cpu, guest.cpuid)
        map_memory(self._core, self._ram, 1 << self.cpu.phys_bits)
        self._add_hooks()
        enter(self._core, placement)

    # -- what can be asked ---------------------------------------------------------------

    @property
    def memory(self) -> PhysMemory:
        """RAM. A write is seen by the guest at once, in code and in page tables too."""
        return _LiveMemory(self)

    @property
    def output(self) -> bytes:
        """What the guest wrote to the serial port so far."""
        return bytes(self._ports.output)

    @property
    def instructions(self) -> int:
        """Instructions executed so far; each round of a repeated string instruction counts."""
        return self._hook.count

    @property
    def exceptions(self) -> tuple[ExceptionRecord, ...]:
        """The latest exceptions that the guest met, delivered or not, oldest first."""
        return tuple(self._history)

    def registers(self) -> Registers:
        """The registers now."""
        vcpu = self._engine.vcpu()
        gprs = {name: self._engine.read(name) for name in GPR_NAMES}
        return Registers(
            **gprs,
            rip=vcpu.rip,
            rflags=vcpu.rflags,
            cr0=vcpu.cr0,
            cr2=vcpu.cr2,
            cr3=vcpu.cr3,
            cr4=vcpu.cr4,
            efer=vcpu.efer,
            cs=vcpu.cs.selector,
            ss=vcpu.ss.selector,
            cpl=vcpu.cpl,
            gdt=vcpu.gdt,
            idt=vcpu.idt,
        )

    def all_registers(self) -> tuple[Registers, ...]:
        """The registers of the one CPU that there is."""
        return (self.registers(),)

    def inject(self, vector: int, error_code: int | None = None) -> None:
        """Deliver *vector* before the guest's next instruction, whatever RFLAGS.IF says.

        2 is an NMI. `interrupt` is for what waits until the guest lets it in.
        An exception that has an error code needs *error_code*.
        """
        if not 0 <= vector <= 255:
            raise ValueError(f"vector {vector}; expected 0 to 255")
        external = vector == 2 or vector >= 32
        if not external and has_error_code(vector) != (error_code is not None):
            raise ValueError(f"vector {vector} {'needs an' if has_error_code(vector) else 'has no'} error code")
        self._injected.append(Trap(vector, error_code, external=external))

    def interrupt(self, vector: int) -> None:
        """Hold up interrupt *vector*, 32 to 255, until the guest sets RFLAGS.IF; it is looked at whenever a run starts.

        `pending` says what has not been let in.
        """
        if not 32 <= vector <= 255:
            raise ValueError(f"interrupt {vector}; expected 32 to 255")
        self._waiting.append(Trap(vector, external=True))

    @property
    def pending(self) -> tuple[int, ...]:
        """Vectors of the interrupts that wait, oldest first."""
        return tuple(trap.vector for trap in self._waiting)

    # -- running -------------------------------------------------------------------------

    def run(self, timeout: float = 10.0, limit: int | None = None) -> Event:
        """Run until the guest ends, or for *timeout* seconds, or for *limit* instructions."""
        deadline = time.monotonic() + timeout
        last = None if limit is None else self._hook.count + limit
        while True:
            event = self._deliver_injected() or self._run_slice(last)
            if event is not None:
                return event
            if time.monotonic() >= deadline:
                return Timeout(timeout, self._engine.read("rip"))

    def _run_slice(self, last: int | None) -> Event | None:
        """Run up to the next thing that needs us; None to go on."""
        if self._stale:
            self._engine.forget_translations()
            self._stale = False
        if last is not None and self._hook.count >= last:
            return LimitReached(self._hook.count, self._engine.read("rip"))
        slice_end = _SLICE if last is None else min(_SLICE, last - self._hook.count)
        self._hook.arm(slice_end, allow_next=self._judged == self._engine.read("rip"))
        self._pending, self._syscall, self._judged = None, False, None
        if not self._engine.run():
            # An empty bus gives all ones, and a fetch of those is an invalid opcode.
            self._pending = Trap(Vector.UD)
        return self._after_slice()

    def _after_slice(self) -> Event | None:
        if self._ports.exit_code is not None:
            code, self._ports.exit_code = self._ports.exit_code, None
            return Exit(code)
        if self._pending is not None:
            return self._deliver(self._pending)
        if self._syscall:
            return self._do_syscall()
        if self._hook.stopped:
            return None if self._hook.spent else self._judge()
        return Halted(self._engine.read("rip"))

    def _judge(self) -> Shutdown | None:
        """Deliver #GP if the next instruction is a write that the processor would refuse."""
        self._judged = rip = self._engine.read("rip")
        # Code segments with a base belong to trampolines, whose offsets are low.
        if rip >= LOW_END and rip not in self.guest.sites:
            return None
        vcpu = self._engine.vcpu()
        address = vcpu.cs.base + rip & MASK64
        bits = 64 if vcpu.in_64bit else 32 if vcpu.cs.flags & BIG else 16
        what = decode(self._fetch(vcpu, address), rip, bits, self._engine.gpr)
        if what is None or not is_refused(what, vcpu, self._engine.gpr, self._bus, self.cpu):
            return None
        return self._deliver(Trap(Vector.GP, 0))

    def _deliver_injected(self) -> Event | None:
        if self._injected:
            return self._deliver(self._injected.popleft())
        if self._waiting and self._engine.vcpu().rflags & RFLAGS_IF:
            return self._deliver(self._waiting.popleft())
        return None

    def _deliver(self, trap: Trap) -> Shutdown | None:
        result = deliver(trap, self._engine.vcpu(), self._bus, self.cpu)
        self._history.extend(result.records)
        if isinstance(result, Shutdown):
            return result
        self._engine.set_vcpu(result.vcpu)
        return None

    def _do_syscall(self) -> Shutdown | None:
        """SYSCALL as the manual has it: RCX and R11 keep RIP and RFLAGS, LSTAR is next."""
        vcpu = self._engine.vcpu()
        if not (vcpu.in_64bit and vcpu.efer & _EFER_SCE):
            self._engine.write("rip", vcpu.rip - 2)
            return self._deliver(Trap(Vector.UD))
        selectors = self._engine.msr(MSR_STAR) >> 32 & 0xFFFC
        self._engine.write("rcx", vcpu.rip)
        self._engine.write("r11", vcpu.rflags & ~RFLAGS_RF)
        self._engine.set_vcpu(
            replace(
                vcpu,
                rip=self._engine.msr(MSR_LSTAR),
                rflags=vcpu.rflags & ~self._engine.msr(MSR_FMASK) & ~RFLAGS_RF | 2,
                cs=VcpuSegment.from_descriptor(selectors, FLAT_CODE64),
                ss=VcpuSegment.from_descriptor(selectors + 8, FLAT_DATA),
                cpl=0,
            )
        )
        return None

    # -- hooks: note what happened and stop ----------------------------------------------

    def _add_hooks(self) -> None:
        engine = self._engine
        engine.on_interrupt(self._on_interrupt)
        engine.on_invalid_opcode(lambda: self._stop(Trap(Vector.UD)))
        engine.on_syscall(self._on_syscall)
        engine.on_ports(self._ports.read, self._on_out)
        self._hook = engine.watch_instructions()
        self._hook.watch(self.guest.sites)

    def _on_interrupt(self, vector: int) -> None:
        context = self._engine.context()
        if context.is_software:
            vcpu = self._engine.vcpu()
            before = self._fetch(vcpu, vcpu.cs.base + vcpu.rip - 2, 2)
            self._stop(Trap(vector, software=True, length=interrupt_length(before, vector)))
            return
        code = context.error_code if has_error_code(vector) else None
        cr2 = self._engine.read("cr2") if vector == PAGE_FAULT else None
        if code is None and cr2 is not None:
            code = page_fault_code(self._engine.vcpu(), self._bus, self.cpu, cr2)
        self._stop(Trap(vector, code, cr2))

    def _on_syscall(self) -> None:
        self._syscall = True
        self._engine.stop()

    def _on_out(self, port: int, value: int) -> None:
        self._ports.write(port, value)
        if self._ports.exit_code is not None:
            self._engine.stop()

    def _stop(self, trap: Trap) -> None:
        self._pending = trap
        self._engine.stop()

    def _fetch(self, vcpu: Vcpu, address: int, size: int = _LONGEST_INSTRUCTION) -> bytes:
        """Up to *size* instruction bytes as the processor would fetch them, fewer where it could not."""
        linear = Linear(self._bus, vcpu, self.cpu)
        first = min(size, 0x1000 - address % 0x1000)
        code = b""
        with suppress(GuestException):
            code = linear.read(address, first, FETCH)
            code += linear.read(address + first, size - first, FETCH) if size > first else b""
        return code

    # -- state ---------------------------------------------------------------------------

    @property
    def _known_ram(self) -> MappedRam:
        if self._ram is None:
            raise MachineError("the machine is closed")
        return self._ram

    @property
    def _engine(self) -> UnicornCore:
        if self._core is None:
            raise MachineError("the machine is closed")
        return self._core

    @property
    def _bus(self) -> Bus:
        """Memory as the processor sees it, for what is done in its stead."""
        return Bus(self._known_ram)

    # -- the end -------------------------------------------------------------------------

    def close(self) -> None:
        """Give the engine and the RAM back."""
        # The engine goes first: it points into the RAM. Its last reference is this one.
        self._core = None
        if self._ram is not None:
            self._ram.close()
            self._ram = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _LiveMemory:
    """A machine's RAM, with a note to the engine when it was written."""

    def __init__(self, machine: UnicornMachine) -> None:
        self._machine = machine

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        return self._machine._known_ram.read(pa, size)

    def write(self, pa: PhysAddr, data: bytes, /) -> None:
        self._machine._known_ram.write(pa, data)
        self._machine._stale = True
