"""Unicorn in this process: the default engine. The only module that imports unicorn.

Unicorn translates code and little more. What it leaves out is done here: exceptions go
through the guest's IDT (`delivery`), writes to control registers are judged (`police`),
``syscall`` is executed, ports have devices (`ports`), and a guest that spins is stopped.

All of that happens between two calls of ``emu_start``: a hook notes what happened and stops.
"""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from unicorn import unicorn_const as uc_const
from unicorn import x86_const as x86
from unicorn.unicorn_py3 import unicorn as binding

from fivefold.arch import FETCH, Cpu, Vector, cpu_from_cpuid
from fivefold.errors import MachineError, MemoryReadError
from fivefold.machine.base import (
    PAGE_FAULT,
    CpuidOverride,
    Event,
    ExceptionRecord,
    Exit,
    Guest,
    Halted,
    LimitReached,
    Registers,
    Shutdown,
    TableRegister,
    Timeout,
)
from fivefold.machine.calibration import PROBE_MEMORY, measure
from fivefold.machine.counter import Counter, try_counter
from fivefold.machine.decode import decode, interrupt_length
from fivefold.machine.delivery import Trap, deliver, has_error_code
from fivefold.machine.hidden_state import Context, Places
from fivefold.machine.loader import Placement, load
from fivefold.machine.mapped_ram import MappedRam
from fivefold.machine.memory_map import memory_map, ram_extents
from fivefold.machine.police import (
    Linear,
    Refusal,
    is_refused,
    page_fault_code,
)
from fivefold.machine.ports import Ports
from fivefold.machine.vcpu import BIG, FLAT_CODE32, FLAT_CODE64, FLAT_DATA, PRESENT, Segment, Vcpu
from fivefold.machine.watchdog import Watchdog
from fivefold.memory import PhysMemory
from fivefold.units import GIB, MASK64, MIB, PhysAddr, format_size, hex64

MODELS: Final = {"la57": "ICELAKE_SERVER", "la48": "HASWELL"}
"""Unicorn's models for our two names. ICELAKE_SERVER is its only one with LA57."""

_GPR_NAMES: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
_GPRS: Final = [getattr(x86, f"UC_X86_REG_{name.upper()}") for name in _GPR_NAMES]
_SEGMENTS: Final = [getattr(x86, f"UC_X86_REG_{name}") for name in ("ES", "CS", "SS", "DS", "FS", "GS")]
_ES, _CS, _SS, _DS, _FS, _GS, _LDT, _TR = range(8)
_EFER, _STAR, _LSTAR, _FMASK = 0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0084
_LME, _LMA, _NXE = 1 << 8, 1 << 10, 1 << 11
_PAE, _LA57 = 1 << 5, 1 << 12
_PG_PE_ET: Final = 0x8000_0011
_WP: Final = 1 << 16
_SCRATCH: Final = 0x1000
_CPUID_RESULTS: Final = [getattr(x86, f"UC_X86_REG_{name}") for name in ("EAX", "EBX", "ECX", "EDX")]
_LONGEST_INSTRUCTION: Final = 15
_HLT: Final = b"\xf4"
_POISON_LIMIT: Final = GIB
_HISTORY: Final = 64


class UnicornMachine:
    """A guest on Unicorn. See `fivefold.machine.base.Machine`."""

    name = "unicorn"

    def __init__(self, guest: Guest) -> None:
        """Load *guest*; `MachineError` or `ImageError` if it cannot be."""
        self.guest = guest
        self._uc: Any = None
        self._ram: MappedRam | None = None
        self._pending: Trap | None = None
        self._syscall = False
        self._ports = Ports()
        self._history: deque[ExceptionRecord] = deque(maxlen=_HISTORY)
        self._injected: deque[Trap] = deque()
        self._stale = False
        try:
            self._start(guest)
        except BaseException:
            self.close()
            raise

    def _start(self, guest: Guest) -> None:
        model = _model_number(guest.cpu)
        self.cpu: Cpu = features(model, guest.cpuid)
        self._places = places()
        rows = memory_map(guest.memory)
        top = max(row.end for row in rows if row.kind == 1)
        if top > 1 << self.cpu.phys_bits:
            raise MachineError(
                f"RAM up to {hex64(top)} does not fit the {self.cpu.phys_bits} physical address bits of {guest.cpu}"
            )
        self._ram = MappedRam.anonymous(ram_extents(rows), self.name)
        _poison(self._ram, guest.poison)
        placement = load(guest, rows, self._ram, self.cpu)
        self._uc = _new_engine(model)
        self._map_memory(1 << self.cpu.phys_bits)
        self._add_hooks()
        if placement.handover is None:
            self._start_protected(placement)
        else:
            self._start_long(placement)

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
    def instructions(self) -> int | None:
        """Instructions executed so far, None on hosts where they are not counted."""
        return None if self._counter is None else self._counter.count

    @property
    def exceptions(self) -> tuple[ExceptionRecord, ...]:
        """The latest exceptions that the guest met, delivered or not, oldest first."""
        return tuple(self._history)

    def registers(self) -> Registers:
        """The registers now."""
        vcpu = self._vcpu()
        gprs = {name: self._read(number) for name, number in zip(_GPR_NAMES, _GPRS, strict=True)}
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

    def inject(self, vector: int, error_code: int | None = None) -> None:
        """Deliver *vector* before the guest's next instruction, whatever RFLAGS.IF says.

        2 is an NMI. An exception that has an error code needs *error_code*.
        """
        if not 0 <= vector <= 255:
            raise ValueError(f"vector {vector}; expected 0 to 255")
        external = vector == 2 or vector >= 32
        if not external and has_error_code(vector) != (error_code is not None):
            raise ValueError(f"vector {vector} {'needs an' if has_error_code(vector) else 'has no'} error code")
        self._injected.append(Trap(vector, error_code, external=external))

    # -- running -------------------------------------------------------------------------

    def run(self, timeout: float = 10.0, limit: int | None = None) -> Event:
        """Run until the guest ends, or for *timeout* seconds, or for *limit* instructions."""
        if limit is not None and self._counter is None:
            raise MachineError("instructions are not counted here, so they cannot be limited; give a time limit only")
        if self._counter is not None:
            self._counter.limit_to(limit)
        with Watchdog(self._uc.emu_stop, timeout) as watchdog:
            while True:
                event = self._deliver_injected() or self._run_once(watchdog)
                if event is not None:
                    return event
                # Here too: a guest that faults for ever never stops for the watchdog.
                if watchdog.expired:
                    return Timeout(timeout, self._read(x86.UC_X86_REG_RIP))

    def _run_once(self, watchdog: Watchdog) -> Event | None:
        """Run up to the next thing that needs us; None to go on."""
        if self._stale:
            # Unicorn keeps code and translations that the host has changed: the former until
            # it is told, the latter until CR3 is written.
            self._uc.ctl_flush_tb()
            self._write(x86.UC_X86_REG_CR3, self._read(x86.UC_X86_REG_CR3))
            self._stale = False
        watchdog.ticked = False
        self._pending, self._syscall = None, False
        try:
            self._uc.emu_start(self._read(x86.UC_X86_REG_RIP), 0)
        except binding.UcError as error:
            self._pending = self._trap_for(error)
        if self._ports.exit_code is not None:
            code, self._ports.exit_code = self._ports.exit_code, None
            return Exit(code)
        if self._pending is not None:
            return self._deliver(self._pending)
        if self._syscall:
            return self._do_syscall()
        return self._why_stopped(watchdog)

    def _why_stopped(self, watchdog: Watchdog) -> Event | None:
        rip = self._read(x86.UC_X86_REG_RIP)
        if watchdog.ticked or watchdog.expired:
            return None
        if self._counter is not None and self._counter.reached:
            return LimitReached(self._counter.count, rip)
        if self._fetch(self._vcpu(), rip - 1, 1) == _HLT:
            return Halted(rip)
        raise MachineError(f"unicorn stopped at {hex64(rip)} without a reason")

    def _deliver_injected(self) -> Event | None:
        return self._deliver(self._injected.popleft()) if self._injected else None

    def _deliver(self, trap: Trap) -> Shutdown | None:
        result = deliver(trap, self._vcpu(), self._known_ram, self.cpu)
        self._history.extend(result.records)
        if isinstance(result, Shutdown):
            return result
        self._set_vcpu(result.vcpu)
        return None

    def _do_syscall(self) -> Shutdown | None:
        """SYSCALL as the manual has it: RCX and R11 keep RIP and RFLAGS, LSTAR is next."""
        vcpu = self._vcpu()
        if not (vcpu.in_64bit and vcpu.efer & 1):
            self._write(x86.UC_X86_REG_RIP, vcpu.rip - 2)
            return self._deliver(Trap(Vector.UD))
        selectors = self._msr(_STAR) >> 32 & 0xFFFC
        self._write(x86.UC_X86_REG_RCX, vcpu.rip)
        self._write(x86.UC_X86_REG_R11, vcpu.rflags & ~(1 << 16))
        self._set_vcpu(
            replace(
                vcpu,
                rip=self._msr(_LSTAR),
                rflags=vcpu.rflags & ~self._msr(_FMASK) & ~(1 << 16) | 2,
                cs=Segment.from_descriptor(selectors, FLAT_CODE64),
                ss=Segment.from_descriptor(selectors + 8, FLAT_DATA),
                cpl=0,
            )
        )
        return None

    # -- hooks: note what happened and stop ----------------------------------------------

    def _add_hooks(self) -> None:
        add = self._uc.hook_add
        add(uc_const.UC_HOOK_INTR, self._on_interrupt)
        add(uc_const.UC_HOOK_INSN_INVALID, self._on_invalid)
        add(uc_const.UC_HOOK_INSN, self._on_out, None, 1, 0, x86.UC_X86_INS_OUT)
        add(uc_const.UC_HOOK_INSN, self._on_in, None, 1, 0, x86.UC_X86_INS_IN)
        add(uc_const.UC_HOOK_INSN, self._on_syscall, None, 1, 0, x86.UC_X86_INS_SYSCALL)
        if self.guest.cpuid:
            add(uc_const.UC_HOOK_INSN, _cpuid_hook(self.guest.cpuid), None, 1, 0, x86.UC_X86_INS_CPUID)
        # The counter goes first: an instruction at which another hook stops is not executed.
        self._counter = _add_counter(self._uc) if self.guest.count else None
        add(uc_const.UC_HOOK_CODE, self._on_site, None, 0, MIB - 1)
        for site in sorted(site for site in self.guest.sites if site >= MIB):
            add(uc_const.UC_HOOK_CODE, self._on_site, None, site, site)

    def _on_interrupt(self, uc: Any, vector: int, _: object) -> None:
        context = self._context()
        if context.is_software:
            vcpu = self._vcpu()
            before = self._fetch(vcpu, vcpu.cs.base + vcpu.rip - 2, 2)
            self._stop(Trap(vector, software=True, length=interrupt_length(before, vector)))
            return
        code = context.error_code if has_error_code(vector) else None
        cr2 = self._read(x86.UC_X86_REG_CR2) if vector == PAGE_FAULT else None
        if code is None and cr2 is not None:
            code = page_fault_code(self._vcpu(), self._known_ram, self.cpu, cr2)
        self._stop(Trap(vector, code, cr2))

    def _on_invalid(self, uc: Any, _: object) -> bool:
        self._stop(Trap(Vector.UD))
        return True

    def _on_syscall(self, uc: Any, _: object) -> None:
        self._syscall = True
        uc.emu_stop()

    def _on_out(self, uc: Any, port: int, size: int, value: int, _: object) -> None:
        self._ports.write(port, value)
        if self._ports.exit_code is not None:
            uc.emu_stop()

    def _on_in(self, uc: Any, port: int, size: int, _: object) -> int:
        return self._ports.read(port, size)

    def _on_site(self, uc: Any, address: int, size: int, _: object) -> None:
        """Judge the instruction at *address* before it is executed."""
        vcpu = self._vcpu()
        vcpu = replace(vcpu, rip=address - vcpu.cs.base & MASK64)
        code = self._fetch(vcpu, address, min(size, _LONGEST_INSTRUCTION))
        bits = 64 if vcpu.in_64bit else 32 if vcpu.cs.flags & BIG else 16

        def gpr(number: int) -> int:
            return self._read(_GPRS[number])

        what = decode(code, vcpu.rip, bits, gpr)
        if what is None:
            return
        if is_refused(what, vcpu, gpr, self._known_ram, self.cpu):
            self._stop(Trap(Vector.GP, 0))

    def _stop(self, trap: Trap) -> None:
        self._pending = trap
        self._uc.emu_stop()

    def _trap_for(self, error: binding.UcError) -> Trap:
        """An empty bus gives all ones, and a fetch of those is an invalid opcode."""
        if error.errno in (uc_const.UC_ERR_FETCH_PROT, uc_const.UC_ERR_FETCH_UNMAPPED, uc_const.UC_ERR_INSN_INVALID):
            return Trap(Vector.UD)
        rip = self._read(x86.UC_X86_REG_RIP)
        raise MachineError(f"unicorn failed at {hex64(rip)}: {error}") from error

    def _fetch(self, vcpu: Vcpu, address: int, size: int) -> bytes:
        """Instruction bytes as the processor would fetch them; empty if it could not."""
        try:
            return Linear(self._known_ram, vcpu, self.cpu).read(address, size, FETCH)
        except (Refusal, MemoryReadError):
            return b""

    # -- state ---------------------------------------------------------------------------

    @property
    def _known_ram(self) -> MappedRam:
        if self._ram is None:
            raise MachineError("the machine is closed")
        return self._ram

    def _read(self, register: int) -> int:
        value: int = self._uc.reg_read(register)
        return value

    def _write(self, register: int, value: int) -> None:
        self._uc.reg_write(register, value & MASK64)

    def _msr(self, index: int) -> int:
        value: int = self._uc.msr_read(index)
        return value

    def _context(self) -> Context:
        return Context(bytearray(bytes(self._uc.context_save())), self._places)

    def _vcpu(self) -> Vcpu:
        context = self._context()
        read = self._uc.reg_read
        return Vcpu(
            rip=read(x86.UC_X86_REG_RIP),
            rsp=read(x86.UC_X86_REG_RSP),
            rflags=read(x86.UC_X86_REG_RFLAGS),
            cr0=read(x86.UC_X86_REG_CR0),
            cr2=read(x86.UC_X86_REG_CR2),
            cr3=read(x86.UC_X86_REG_CR3),
            cr4=read(x86.UC_X86_REG_CR4),
            efer=self._msr(_EFER),
            cpl=context.cpl,
            cs=context.segment(_CS),
            ss=context.segment(_SS),
            tr=context.segment(_TR),
            ldt=context.segment(_LDT),
            gdt=TableRegister(*read(x86.UC_X86_REG_GDTR)[1:3]),
            idt=TableRegister(*read(x86.UC_X86_REG_IDTR)[1:3]),
        )

    def _set_vcpu(self, vcpu: Vcpu) -> None:
        """Put the processor where a handler starts; control registers but CR2 are not touched."""
        self._set_segments({_CS: vcpu.cs, _SS: vcpu.ss}, vcpu.cpl, vcpu.long_mode)
        self._write(x86.UC_X86_REG_RIP, vcpu.rip)
        self._write(x86.UC_X86_REG_RSP, vcpu.rsp)
        self._write(x86.UC_X86_REG_RFLAGS, vcpu.rflags)
        self._write(x86.UC_X86_REG_CR2, vcpu.cr2)

    def _set_segments(self, segments: dict[int, Segment], cpl: int, long_mode: bool) -> None:
        saved = self._uc.context_save()
        context = Context(bytearray(bytes(saved)), self._places)
        for number, segment in segments.items():
            context.set_segment(number, segment)
        context.set_mode(cpl, long_mode)
        context.end_exception()
        ctypes.memmove(saved.context, bytes(context.raw), saved.size)
        self._uc.context_restore(saved)

    # -- starting ------------------------------------------------------------------------

    def _map_memory(self, end: int) -> None:
        """RAM where it is; everywhere else up to *end* a bus on which nobody answers."""
        at = 0
        for extent, pointer in self._known_ram.pointers():
            if at < extent.start:
                _map_empty_bus(self._uc, at, extent.start - at)
            self._uc.mem_map_ptr(extent.start, extent.end - extent.start, uc_const.UC_PROT_ALL, pointer)
            at = extent.end
        if at < end:
            _map_empty_bus(self._uc, at, end - at)

    def _start_protected(self, placement: Placement) -> None:
        """The PVH start: 32-bit protected mode, no paging, flat segments, EBX = start information."""
        _leave_long_mode(self._uc)
        code, data = Segment.from_descriptor(0x08, FLAT_CODE32), Segment.from_descriptor(0x10, FLAT_DATA)
        # A busy 32-bit TSS at 0, as the ABI promises; no GDT, because it promises none.
        task = Segment(0, 0, 0x67, 0x0B00 | PRESENT)
        segments = {_ES: data, _CS: code, _SS: data, _DS: data, _FS: data, _GS: data, _TR: task}
        self._set_segments(segments, cpl=0, long_mode=False)
        self._write(x86.UC_X86_REG_RBX, placement.start_info)
        self._write(x86.UC_X86_REG_RIP, placement.entry)

    def _start_long(self, placement: Placement) -> None:
        """The 64-bit start of `fivefold.machine.handover`: RSI = start information."""
        handover = placement.handover
        assert handover is not None and self.guest.entry64 is not None
        five = _LA57 if self.guest.entry == "long57" else 0
        self._uc.msr_write(_EFER, _LME | _LMA)
        self._write(x86.UC_X86_REG_CR4, _PAE | five)
        self._write(x86.UC_X86_REG_CR3, handover.root)
        self._write(x86.UC_X86_REG_CR0, _PG_PE_ET)
        self._uc.reg_write(x86.UC_X86_REG_GDTR, (0, *handover.gdt, 0))
        code, data = Segment.from_descriptor(0x08, FLAT_CODE64), Segment.from_descriptor(0x10, FLAT_DATA)
        segments = {_ES: data, _CS: code, _SS: data, _DS: data, _FS: data, _GS: data}
        self._set_segments(segments, cpl=0, long_mode=True)
        self._write(x86.UC_X86_REG_RSI, placement.start_info)
        self._write(x86.UC_X86_REG_RSP, handover.stack)
        self._write(x86.UC_X86_REG_RIP, placement.entry)

    # -- the end -------------------------------------------------------------------------

    def close(self) -> None:
        """Give the engine and the RAM back."""
        # The engine goes first: it points into the RAM. Its last reference is this one.
        self._uc = None
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


def _model_number(cpu: str) -> int:
    name = MODELS.get(cpu, cpu).upper().replace("-", "_")
    number: int | None = getattr(x86, f"UC_CPU_X86_{name}", None)
    if number is None or name == "ENDING":
        raise MachineError(f"unicorn has no CPU {cpu!r}; expected la57, la48 or a model such as {_some_models()}")
    return number


def _some_models() -> str:
    return ", ".join(sorted(MODELS.values()))


def _new_engine(model: int) -> Any:
    uc = binding.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
    uc.ctl_set_cpu_model(model)
    # With "until" the engine translates that address at every stop, which faults and so
    # overwrites CR2. An empty list of exits has no such effect.
    uc.ctl_exits_enabled(True)
    uc.ctl_set_exits([])
    return uc


def _leave_long_mode(uc: Any) -> None:
    """From the 64-bit mode that an engine starts in to 32-bit protected mode without paging."""
    for register, value in ((x86.UC_X86_REG_CR4, _PAE), (x86.UC_X86_REG_CR0, _PG_PE_ET), (x86.UC_X86_REG_CR0, 0x11)):
        uc.reg_write(register, value)
    uc.msr_write(_EFER, 0)
    uc.reg_write(x86.UC_X86_REG_CR4, 0)


def _map_empty_bus(uc: Any, start: int, size: int) -> None:
    uc.mmio_map(start, size, lambda uc, offset, width, _: (1 << 8 * width) - 1, None, lambda *_: None, None)


def _poison(ram: MappedRam, byte: int | None) -> None:
    if byte is None:
        return
    size = sum(extent.end - extent.start for extent in ram.extents)
    if size > _POISON_LIMIT:
        raise MachineError(f"poisoning touches all RAM; expected at most {format_size(_POISON_LIMIT)}")
    ram.fill(byte)


def _cpuid_hook(overrides: tuple[CpuidOverride, ...]) -> Any:
    """Answer the leaves in *overrides*, leave the others to the engine."""

    def on_cpuid(uc: Any, _: object) -> int:
        leaf = uc.reg_read(x86.UC_X86_REG_EAX)
        subleaf = uc.reg_read(x86.UC_X86_REG_ECX)
        for override in overrides:
            if override.leaf == leaf and override.subleaf in (None, subleaf):
                for register, value in zip(_CPUID_RESULTS, override[2:], strict=True):
                    uc.reg_write(register, value)
                return 1
        return 0

    return on_cpuid


def _add_counter(uc: Any) -> Counter | None:
    """Count in machine code where host and binding allow it."""
    library = getattr(binding, "uclib", None)
    handle = getattr(uc, "_uch", None)
    if library is None or handle is None:
        return None
    counter = try_counter(ctypes.cast(library.uc_emu_stop, ctypes.c_void_p).value)
    if counter is None:
        return None
    hook = ctypes.c_size_t()
    everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0))
    status = library.uc_hook_add(
        handle, ctypes.byref(hook), uc_const.UC_HOOK_CODE, ctypes.c_void_p(counter.address), None, *everywhere
    )
    return counter if status == uc_const.UC_ERR_OK else None


@functools.cache
def features(model: int, overrides: tuple[CpuidOverride, ...] = ()) -> Cpu:
    """What CPUID says on *model*, asked by executing it."""
    uc = _new_engine(model)
    uc.mem_map(_SCRATCH, 0x1000)
    uc.mem_write(_SCRATCH, b"\x0f\xa2\xf4")
    if overrides:
        uc.hook_add(uc_const.UC_HOOK_INSN, _cpuid_hook(overrides), None, 1, 0, x86.UC_X86_INS_CPUID)

    def cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        uc.reg_write(x86.UC_X86_REG_RAX, leaf)
        uc.reg_write(x86.UC_X86_REG_RCX, subleaf)
        uc.emu_start(_SCRATCH, 0)
        eax, ebx, ecx, edx = (uc.reg_read(register) for register in _CPUID_RESULTS)
        return eax, ebx, ecx, edx

    return cpu_from_cpuid(cpuid)


@functools.cache
def places() -> Places:
    """Where this version of unicorn hides its state; measured once in a process."""
    return measure(_Probe())


class _Probe:
    """A fresh engine for `measure`."""

    def __init__(self) -> None:
        self._uc = _new_engine(x86.UC_CPU_X86_ICELAKE_SERVER)
        self._uc.mem_map(0, PROBE_MEMORY)
        self._uc.hook_add(uc_const.UC_HOOK_INTR, lambda uc, vector, _: uc.emu_stop())

    def write_memory(self, address: int, data: bytes) -> None:
        self._uc.mem_write(address, data)

    def set_gprs(self, values: tuple[int, ...]) -> None:
        for register, value in zip(_GPRS, values, strict=True):
            self._uc.reg_write(register, value)

    def set_gdt(self, base: int, limit: int) -> None:
        self._uc.reg_write(x86.UC_X86_REG_GDTR, (0, base, limit, 0))

    def set_selectors(self, selectors: tuple[int, ...]) -> None:
        for register, selector in zip(_SEGMENTS, selectors, strict=True):
            self._uc.reg_write(register, selector)

    def enable_paging(self, root: int) -> None:
        self._uc.msr_write(_EFER, _LME | _LMA | _NXE)
        self._uc.reg_write(x86.UC_X86_REG_CR4, _PAE)
        self._uc.reg_write(x86.UC_X86_REG_CR3, root)
        self._uc.reg_write(x86.UC_X86_REG_CR0, _PG_PE_ET | _WP)

    def run_to_trap(self, rip: int) -> bytes:
        self._uc.emu_start(rip, 0)
        return self.context()

    def context(self) -> bytes:
        return bytes(self._uc.context_save())

    def forget_exception(self, at: int | None) -> None:
        if at is not None:
            saved = self._uc.context_save()
            raw = bytearray(bytes(saved))
            raw[at : at + 4] = b"\xff" * 4
            ctypes.memmove(saved.context, bytes(raw), saved.size)
            self._uc.context_restore(saved)
