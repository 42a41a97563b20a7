"""What an engine must ask `fivefold.arch` because it does not know it itself.

Unicorn refuses no write to a control register and reads no descriptor table for an
exception. The rules are arch's; here is only the way to them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fivefold.arch import (
    MSRS,
    READ,
    WRITE,
    Access,
    AddressSpace,
    Cpu,
    Fault,
    Kind,
    Paging,
    Refused,
    Register,
    Vector,
    access,
    accessed_and_dirty,
    check_write,
)
from fivefold.errors import MachineError, MemoryReadError
from fivefold.machine.unicorn.decode import LoadTable, MovToCr, Policed, ReadGpr, WriteMsr
from fivefold.machine.vcpu import Vcpu
from fivefold.memory import PhysMemory
from fivefold.units import MASK64, PhysAddr, VirtAddr

CONTROL_REGISTERS: Final = {0: Register.CR0, 3: Register.CR3, 4: Register.CR4}
_RAX, _RCX, _RDX = 0, 1, 2
_LOW: Final = 0xFFFF_FFFF


class GuestException(Exception):  # noqa: N818 - never leaves the engine: an exception of the guest's, not ours
    """The guest's own next exception, raised while the engine acts for the processor."""

    def __init__(self, vector: int, error_code: int | None, cr2: int | None = None) -> None:
        super().__init__(f"vector {vector}")
        self.vector = vector
        self.error_code = error_code
        self.cr2 = cr2


class Linear:
    """Memory as *vcpu* addresses it: every access is decided by arch, at *vcpu*'s privilege.

    An access that the processor would refuse raises `GuestException`. Accessed and dirty bits are set.
    Lives for one exception at most: it remembers the pages it has been allowed to use.
    """

    def __init__(self, memory: PhysMemory, vcpu: Vcpu, cpu: Cpu) -> None:
        self._memory = memory
        self._vcpu = vcpu
        self._control = vcpu.control
        paging = self._control.paging
        if paging in (Paging.BITS32, Paging.PAE):
            raise MachineError(f"exceptions under {paging.value} are not modelled by this engine")
        self._space: AddressSpace | None = None
        self._allowed: dict[tuple[int, Access], int] = {}
        if paging is not Paging.NONE:
            self._space = AddressSpace.from_state(memory, self._control, cpu)

    def read(self, va: int, size: int, how: Access = READ) -> bytes:
        """*size* bytes at linear *va*, at most a page of them."""
        return b"".join(self._memory.read(pa, part) for pa, part in self._pieces(va, size, how))

    def write(self, va: int, data: bytes, how: Access = WRITE) -> None:
        """Store *data* at linear *va*; refused as a whole or not at all."""
        at = 0
        for pa, part in self._pieces(va, len(data), how):
            self._memory.write(pa, data[at : at + part])
            at += part

    def _pieces(self, va: int, size: int, how: Access) -> list[tuple[PhysAddr, int]]:
        if self._space is None:
            return [(PhysAddr(va & 0xFFFF_FFFF), size)]
        page, offset = va >> 12, va & 0xFFF
        frame = self._allowed.get((page, how))
        if frame is not None and offset + size <= 0x1000:
            return [(PhysAddr(frame | offset), size)]
        verdict = access(self._space, self._control, VirtAddr(va & MASK64), replace(how, size=size))
        if isinstance(verdict, Fault):
            raise GuestException(int(verdict.vector), verdict.error_code, verdict.cr2)
        for where, raw in accessed_and_dirty(verdict, how):
            self._memory.write(where, raw.to_bytes(8, "little"))
        self._allowed[page, how] = verdict.pa & ~0xFFF
        first = min(size, 0x1000 - offset)
        parts = [first] if len(verdict.pages) == 1 else [first, size - first]
        return [(found.pa, part) for found, part in zip(verdict.pages, parts, strict=True)]


def is_refused(what: Policed, vcpu: Vcpu, gpr: ReadGpr, memory: PhysMemory, cpu: Cpu) -> bool:
    """Whether the processor would raise #GP(0) instead of doing *what*."""
    write = written(what, vcpu, gpr, memory, cpu)
    return write is not None and isinstance(check_write(vcpu.control, *write, cpu), Refused)


def written(what: Policed, vcpu: Vcpu, gpr: ReadGpr, memory: PhysMemory, cpu: Cpu) -> tuple[Register, int] | None:
    """The register and the value that *what* would write, None if it is not arch's to judge."""
    match what:
        case MovToCr(number, source):
            register = CONTROL_REGISTERS.get(number)
            value = gpr(source) if vcpu.in_64bit else gpr(source) & _LOW
        case WriteMsr():
            register = MSRS.get(gpr(_RCX) & _LOW)
            value = (gpr(_RDX) & _LOW) << 32 | gpr(_RAX) & _LOW
        case LoadTable(name, address):
            register = Register.GDTR if name == "gdt" else Register.IDTR
            try:
                base = Linear(memory, vcpu, cpu).read(address + 2, 8 if vcpu.in_64bit else 4)
            except (GuestException, MemoryReadError):
                # The instruction itself will fault on its operand.
                return None
            value = int.from_bytes(base, "little")
    return None if register is None else (register, value)


def page_fault_code(vcpu: Vcpu, memory: PhysMemory, cpu: Cpu, va: int) -> int:
    """The error code of a #PF at *va* by the tables alone, for engines that hide theirs.

    The kind of access is not known: the first of fetch at RIP, write, read that faults is it.
    """
    control = vcpu.control
    space = AddressSpace.from_state(memory, control, cpu)
    kinds = [Kind.FETCH] if 0 <= va - vcpu.rip < 15 else [Kind.READ, Kind.WRITE]
    for kind in kinds:
        verdict = access(space, control, VirtAddr(va), Access(kind))
        if isinstance(verdict, Fault) and verdict.vector is Vector.PF:
            return verdict.error_code
    return 0
