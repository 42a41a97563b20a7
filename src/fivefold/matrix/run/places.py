"""Where a machine is: functions by name, also before the kernel runs at its own addresses; and what its stack holds."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from fivefold.arch import Mapped, translate
from fivefold.errors import FivefoldError, MemoryReadError
from fivefold.matrix.kernels.file_symbols import FileSymbols
from fivefold.memory import CpuState, Source
from fivefold.survey.names.kernel_memory import KernelMemory
from fivefold.survey.space import Space
from fivefold.symbols import Symbols
from fivefold.units import MIB, PhysAddr, VirtAddr, hex64

MOST_CALLERS: Final = 6
_STACK: Final = 1 << 14
"""Linux' stack of a task on x86-64, THREAD_SIZE without KASAN; one of an interrupt is as large."""
_LOW: Final = 1 << 47
_HLT: Final = re.compile(r"\bHLT=([01])")

Unpacked = Callable[[], FileSymbols | None]
"""The symbols of the kernel's file, which are looked for when they are first asked for."""


@dataclass(frozen=True)
class CpuPlace:
    """Where one CPU is. *stack*: functions that its stack has return addresses into, innermost first."""

    number: int
    rip: int
    halted: bool
    function: str | None
    where: str
    stack: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Its address, what is there, and what the stack holds."""
        name = f" ({self.function})" if self.function else ""
        behind = f"; on its stack: {', '.join(self.stack)}" if self.stack else ""
        return f"at {hex64(self.rip)}{name}{self.where}{behind}"


@dataclass
class MachinePlaces:
    """Names of addresses in a machine that stands still; none where its memory cannot be read."""

    source: Source | None
    unpacked: Unpacked = field(default=lambda: None)

    @cached_property
    def _space(self) -> Space | None:
        try:
            return Space(self.source) if self.source is not None else None
        except (FivefoldError, OSError, ValueError):
            return None

    @cached_property
    def symbols(self) -> Symbols:
        """What the kernel in memory carries."""
        try:
            return self._space.symbols if self._space is not None else Symbols((), "no memory")
        except (FivefoldError, OSError, ValueError) as error:
            return Symbols((), str(error))

    @cached_property
    def memory(self) -> KernelMemory | None:
        """Memory by the addresses of the first CPU."""
        return KernelMemory(self._space.tables, "the guest") if self._space is not None else None

    @cached_property
    def _image(self) -> tuple[FileSymbols, tuple[int, ...]] | None:
        """The symbols of the kernel's file, and where in physical memory its image begins."""
        file = self.unpacked() if self.source is not None else None
        if file is None or self.source is None:
            return None
        return file, tuple(file.loaded_at(self.source.memory))

    def name(self, va: int) -> str | None:
        """The function at *va*, without a distance."""
        if (found := self.symbols.symbol_at(va)) is not None:
            return found.name
        pa = self._phys(va)
        return self._name_in_image(pa) if pa is not None and self._image is not None else None

    def _phys(self, va: int) -> int | None:
        if self._space is None:
            return va if va < _LOW else None
        found = translate(self._space.tables, VirtAddr(va))
        return int(found.pa) if isinstance(found, Mapped) else None

    def _name_in_image(self, pa: int) -> str | None:
        assert self._image is not None
        file, bases = self._image
        names = (file.name(pa - base) for base in bases if 0 <= pa - base < file.size)
        return next(names, None)

    def where(self, va: int) -> str:
        """What kind of place *va* is in words that follow its address; empty in the kernel's own half."""
        if va >= _LOW:
            return ""
        if self._image is not None and (pa := self._phys(va)) is not None:
            if self._name_in_image(pa) is not None:
                return ", in the kernel's image before it runs at its own addresses"
            if self._is_unpacker(pa):
                return ", in the code that unpacks the kernel"
        if va < MIB:
            return ", below 1 MiB, where firmware runs and secondary CPUs begin"
        return ", in low memory, so before or below the kernel's own half"

    def _is_unpacker(self, pa: int) -> bool:
        assert self._image is not None and self.source is not None
        try:
            return self._image[0].in_unpacker(self.source.memory.read(PhysAddr(pa & ~7), 32))
        except MemoryReadError:
            return False

    def of(self, number: int, rip: int, halted: bool = False, rsp: int | None = None) -> CpuPlace:
        """A CPU that is at *rip* with its stack at *rsp*."""
        function = self.name(rip)
        stack: list[str] = []
        for name in self._on_stack(rsp) if rsp is not None else ():
            if name not in (function, *stack):
                stack.append(name)
            if len(stack) == MOST_CALLERS:
                break
        return CpuPlace(number, rip, halted, function, self.where(rip), tuple(stack))

    def _on_stack(self, rsp: int) -> Iterator[str]:
        """Functions with a call before an address that lies on the stack; leftovers of older calls are among them."""
        if self.memory is None:
            return
        for (word,) in struct.iter_unpack("<Q", self._stack(rsp)):
            name = self.name(word - 1) if word >> 47 else None
            if name is not None and self._is_call(word):
                yield name

    def _stack(self, rsp: int) -> bytes:
        """What can be read from *rsp* on, up to the end of a stack that is aligned to its size."""
        start, end = rsp + 7 & ~7, (rsp | _STACK - 1) + 1
        found = b""
        assert self.memory is not None
        while start < end:
            part = min(end, (start | 0xFFF) + 1) - start
            try:
                found += self.memory.read(start, part)
            except MemoryReadError:
                break
            start += part
        return found

    def _is_call(self, after: int) -> bool:
        """Whether the instruction that ends at *after* is a call: E8 with a distance, or FF /2."""
        assert self.memory is not None
        try:
            code = self.memory.read(after - 7, 7)
        except MemoryReadError:
            return False
        if code[2] == 0xE8:
            (distance,) = struct.unpack("<i", code[3:])
            return self.name(after + distance) is not None
        return any(code[7 - size] == 0xFF and code[8 - size] >> 3 & 7 == 2 for size in (2, 3, 6, 7))


def cpu_places(places: MachinePlaces, registers: str, cpus: Sequence[CpuState]) -> list[CpuPlace]:
    """Where each of *cpus* is; *registers* is QEMU's text of them, which says who is halted."""
    halted = _HLT.findall(registers)
    return [
        places.of(number, cpu.rip, number < len(halted) and halted[number] == "1", cpu.rsp)
        for number, cpu in enumerate(cpus)
        if cpu.rip is not None
    ]
