"""Unicorn itself: the one module that imports it, with its constants and its habits.

`UnicornCore` is a processor and its address space. What Unicorn does not do for a guest is
done above, in `unicorn_engine`.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable
from typing import Any, Final

from unicorn import unicorn_const as uc_const
from unicorn import x86_const as x86
from unicorn.unicorn_py3 import unicorn as binding

from fivefold.arch import Cpu, cpu_from_cpuid
from fivefold.errors import MachineError
from fivefold.machine.base import CpuidOverride, TableRegister
from fivefold.machine.unicorn.calibration import PROBE_MEMORY, measure
from fivefold.machine.unicorn.hidden_state import Context, Places
from fivefold.machine.unicorn.instruction_hook import InstructionHook, PlainHook, native_hook
from fivefold.machine.vcpu import Vcpu, VcpuSegment
from fivefold.units import GIB, MASK64, MIB, format_size, hex64

MODELS: Final = {"la57": "ICELAKE_SERVER", "la48": "HASWELL"}
"""Unicorn's models for our two names. ICELAKE_SERVER is its only one with LA57."""

GPR_NAMES: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
"""In the manual's numbering."""

ES, CS, SS, DS, FS, GS, LDT, TR = range(8)
"""Segments by number, as `Context` and `UnicornCore.load_segments` count them."""

MSR_EFER, MSR_STAR, MSR_LSTAR, MSR_FMASK = 0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0084
EFER_LME, EFER_LMA, _EFER_NXE = 1 << 8, 1 << 10, 1 << 11
CR4_PAE, CR4_LA57 = 1 << 5, 1 << 12
CR0_LONG: Final = 0x8000_0011
"""PG, ET and PE."""

_CR0_PROTECTED, _CR0_WP = 0x11, 1 << 16
_SEGMENTS: Final = [getattr(x86, f"UC_X86_REG_{name}") for name in ("ES", "CS", "SS", "DS", "FS", "GS")]
_NAMES: Final = (*GPR_NAMES, "rip", "rflags", "cr0", "cr2", "cr3", "cr4")
_NUMBERS: Final = {name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in _NAMES}
_CPUID_RESULTS: Final = [getattr(x86, f"UC_X86_REG_{name}") for name in ("EAX", "EBX", "ECX", "EDX")]
_EMPTY_FETCH: Final = (uc_const.UC_ERR_FETCH_PROT, uc_const.UC_ERR_FETCH_UNMAPPED, uc_const.UC_ERR_INSN_INVALID)
_SCRATCH: Final = 0x1000


_TRANSLATOR: Final = GIB
"""Address space that each engine takes for translated code, most of which is never touched."""


def _check_address_space() -> None:
    """Refuse where Unicorn would not find room for its translator: it then ends the whole process, with status 1."""
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mmap.mmap(-1, _TRANSLATOR + 64 * MIB, flags=flags).close()
    except OSError as error:
        needed = format_size(_TRANSLATOR)
        raise MachineError(f"unicorn needs {needed} of address space, which is not to be had") from error


class UnicornCore:
    """A processor of Unicorn's in 64-bit mode without paging, and no memory yet."""

    def __init__(self, cpu: str, overrides: tuple[CpuidOverride, ...] = ()) -> None:
        """*cpu* is one of our names or of Unicorn's; `MachineError` if it is neither."""
        _check_address_space()
        self._uc: Any = binding.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
        self._uc.ctl_set_cpu_model(_model_number(cpu))
        # With "until" the engine translates that address at every stop, which faults and so
        # overwrites CR2. An empty list of exits has no such effect.
        self._uc.ctl_exits_enabled(True)
        self._uc.ctl_set_exits([])
        if overrides:
            self._hook_instruction(x86.UC_X86_INS_CPUID, _cpuid_hook(overrides))

    # -- running -------------------------------------------------------------------------

    def run(self) -> bool:
        """Run from RIP until a hook calls `stop`, or to HLT.

        False if the guest jumped to where nothing answers. Raises what a hook raised.
        """
        try:
            self._uc.emu_start(self.read("rip"), 0)
        except binding.UcError as error:
            if error.errno in _EMPTY_FETCH:
                return False
            raise MachineError(f"unicorn failed at {hex64(self.read('rip'))}: {error}") from error
        return True

    def stop(self) -> None:
        """End `run` after this hook. From another thread Unicorn would lose its place."""
        self._uc.emu_stop()

    def forget_translations(self) -> None:
        """Take notice of memory that the host has changed: code at once, tables by writing CR3."""
        self._uc.ctl_flush_tb()
        self.write("cr3", self.read("cr3"))

    # -- state ---------------------------------------------------------------------------

    def read(self, name: str) -> int:
        """A general register, RIP, RFLAGS, CR0, CR2, CR3 or CR4, by its name in lower case."""
        value: int = self._uc.reg_read(_NUMBERS[name])
        return value

    def write(self, name: str, value: int) -> None:
        """Set one of the registers that `read` knows; no rule is checked."""
        self._uc.reg_write(_NUMBERS[name], value & MASK64)

    def gpr(self, number: int) -> int:
        """General register *number* in the manual's numbering."""
        return self.read(GPR_NAMES[number])

    def msr(self, index: int) -> int:
        """A model-specific register."""
        value: int = self._uc.msr_read(index)
        return value

    def set_msr(self, index: int, value: int) -> None:
        """Set a model-specific register; no rule is checked."""
        self._uc.msr_write(index, value)

    def set_gdt(self, table: TableRegister) -> None:
        """Load GDTR."""
        self._uc.reg_write(x86.UC_X86_REG_GDTR, (0, *table, 0))

    def context(self) -> Context:
        """The hidden state, to read."""
        return Context(bytearray(bytes(self._uc.context_save())), places())

    def vcpu(self) -> Vcpu:
        """All that an exception reads or changes."""
        context = self.context()
        return Vcpu(
            **{name: self.read(name) for name in ("rip", "rsp", "rflags", "cr0", "cr2", "cr3", "cr4")},
            efer=self.msr(MSR_EFER),
            cpl=context.cpl,
            cs=context.segment(CS),
            ss=context.segment(SS),
            tr=context.segment(TR),
            ldt=context.segment(LDT),
            gdt=TableRegister(*self._uc.reg_read(x86.UC_X86_REG_GDTR)[1:3]),
            idt=TableRegister(*self._uc.reg_read(x86.UC_X86_REG_IDTR)[1:3]),
        )

    def set_vcpu(self, vcpu: Vcpu) -> None:
        """Put the processor where a handler starts; control registers but CR2 are not touched."""
        self.load_segments({CS: vcpu.cs, SS: vcpu.ss}, vcpu.cpl, vcpu.long_mode)
        for name in ("rip", "rsp", "rflags", "cr2"):
            self.write(name, getattr(vcpu, name))

    def load_segments(self, segments: dict[int, VcpuSegment], cpl: int, long_mode: bool) -> None:
        """Load *segments* and the privilege level unchecked, and end the exception in flight."""
        saved = self._uc.context_save()
        context = Context(bytearray(bytes(saved)), places())
        for number, segment in segments.items():
            context.set_segment(number, segment)
        context.set_mode(cpl, long_mode)
        context.end_exception()
        self._restore(saved, context.raw)

    def leave_long_mode(self) -> None:
        """From the 64-bit mode at the start to 32-bit protected mode without paging."""
        self.write("cr4", CR4_PAE)
        self.write("cr0", CR0_LONG)
        self.write("cr0", _CR0_PROTECTED)
        self.set_msr(MSR_EFER, 0)
        self.write("cr4", 0)

    def _restore(self, saved: Any, raw: bytearray) -> None:
        ctypes.memmove(saved.context, bytes(raw), saved.size)
        self._uc.context_restore(saved)

    # -- memory and hooks ----------------------------------------------------------------

    def map_ram(self, start: int, size: int, pointer: int) -> None:
        """Memory of this process at *pointer*; it must outlive the core."""
        self._uc.mem_map_ptr(start, size, uc_const.UC_PROT_ALL, pointer)

    def map_empty_bus(self, start: int, size: int) -> None:
        """Addresses where nothing answers: reads give ones, writes are lost."""
        self._uc.mmio_map(start, size, _read_ones, None, _ignore_write, None)

    def on_interrupt(self, note: Callable[[int], None]) -> None:
        """Call *note(vector)* for exceptions but #UD, and for ``int n``; it must `stop`."""
        self._uc.hook_add(uc_const.UC_HOOK_INTR, lambda uc, vector, _: note(vector))

    def on_invalid_opcode(self, note: Callable[[], None]) -> None:
        """Call *note()* for #UD; it must `stop`."""

        def hook(uc: Any, _: object) -> bool:
            note()
            return True

        self._uc.hook_add(uc_const.UC_HOOK_INSN_INVALID, hook)

    def on_syscall(self, note: Callable[[], None]) -> None:
        """Call *note()* instead of executing ``syscall``; RIP is past it once `run` has ended."""
        self._hook_instruction(x86.UC_X86_INS_SYSCALL, lambda uc, _: note())

    def on_ports(self, read: Callable[[int, int], int], write: Callable[[int, int], None]) -> None:
        """Answer ``in`` by *read(port, size)* and ``out`` by *write(port, value)*."""
        self._hook_instruction(x86.UC_X86_INS_IN, lambda uc, port, size, _: read(port, size))
        self._hook_instruction(x86.UC_X86_INS_OUT, lambda uc, port, size, value, _: write(port, value))

    def _hook_instruction(self, instruction: int, hook: Callable[..., Any]) -> None:
        self._uc.hook_add(uc_const.UC_HOOK_INSN, hook, None, 1, 0, instruction)

    def watch_instructions(self) -> InstructionHook:
        """Add a hook that is called before every instruction; in machine code where that can be."""
        library = getattr(binding, "uclib", None)
        handle = getattr(self._uc, "_uch", None)
        if library is not None and handle is not None:
            native = native_hook(ctypes.cast(library.uc_emu_stop, ctypes.c_void_p).value)
            if native is not None and self._add_native(library, handle, native.address):
                return native
        plain = PlainHook(self.stop)
        self._uc.hook_add(uc_const.UC_HOOK_CODE, lambda uc, address, size, _: plain(address))
        return plain

    def _add_native(self, library: Any, handle: Any, address: int) -> bool:
        hook = ctypes.c_size_t()
        everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0))
        kind = uc_const.UC_HOOK_CODE
        status = library.uc_hook_add(handle, ctypes.byref(hook), kind, ctypes.c_void_p(address), None, *everywhere)
        return bool(status == uc_const.UC_ERR_OK)


@functools.cache
def features(cpu: str, overrides: tuple[CpuidOverride, ...] = ()) -> Cpu:
    """What CPUID says on *cpu*, asked by executing it."""
    core = UnicornCore(cpu, overrides)
    core._uc.mem_map(_SCRATCH, 0x1000)
    core._uc.mem_write(_SCRATCH, b"\x0f\xa2\xf4")

    def cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        for name, value in (("rax", leaf), ("rcx", subleaf), ("rip", _SCRATCH)):
            core.write(name, value)
        core.run()
        eax, ebx, ecx, edx = (core._uc.reg_read(register) for register in _CPUID_RESULTS)
        return eax, ebx, ecx, edx

    return cpu_from_cpuid(cpuid)


@functools.cache
def places() -> Places:
    """Where this version of unicorn hides its state; measured once in a process."""
    return measure(_Probe())


class _Probe:
    """A fresh engine for `measure`."""

    def __init__(self) -> None:
        self._core = UnicornCore("la57")
        self._uc = self._core._uc
        self._uc.mem_map(0, PROBE_MEMORY)
        self._core.on_interrupt(lambda vector: self._core.stop())

    def write_memory(self, address: int, data: bytes) -> None:
        self._uc.mem_write(address, data)

    def set_gprs(self, values: tuple[int, ...]) -> None:
        for name, value in zip(GPR_NAMES, values, strict=True):
            self._core.write(name, value)

    def set_gdt(self, base: int, limit: int) -> None:
        self._core.set_gdt(TableRegister(base, limit))

    def set_selectors(self, selectors: tuple[int, ...]) -> None:
        for register, selector in zip(_SEGMENTS, selectors, strict=True):
            self._uc.reg_write(register, selector)

    def enable_paging(self, root: int) -> None:
        self._core.set_msr(MSR_EFER, EFER_LME | EFER_LMA | _EFER_NXE)
        self._core.write("cr4", CR4_PAE)
        self._core.write("cr3", root)
        self._core.write("cr0", CR0_LONG | _CR0_WP)

    def run_to_trap(self, rip: int) -> bytes:
        self._core.write("rip", rip)
        self._core.run()
        return self.context()

    def context(self) -> bytes:
        return bytes(self._uc.context_save())

    def forget_exception(self, at: int) -> None:
        saved = self._uc.context_save()
        raw = bytearray(bytes(saved))
        raw[at : at + 4] = b"\xff" * 4
        self._core._restore(saved, raw)


def _model_number(cpu: str) -> int:
    name = MODELS.get(cpu, cpu).upper().replace("-", "_")
    number: int | None = getattr(x86, f"UC_CPU_X86_{name}", None)
    if number is None or name == "ENDING":
        models = ", ".join(sorted(MODELS.values()))
        raise MachineError(f"unicorn has no CPU {cpu!r}; expected la57, la48 or a model such as {models}")
    return number


def _read_ones(uc: Any, offset: int, size: int, _: object) -> int:
    return (1 << 8 * size) - 1


def _ignore_write(uc: Any, offset: int, size: int, value: int, _: object) -> None:
    """Nothing answers."""


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
