"""Run a program as Python: to read it, to step through it, to test it.

Every function is written back as Python with arithmetic that wraps, on the lines
of its source, so that tracebacks and debuggers show the program itself. Names of
the machinery hold a dot, which no name of a program can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, Final

from fivefold.errors import CompileError, MachineError
from fivefold.memory.base import PhysMemory
from fivefold.metal.check.arith import count_leading_zeros, count_trailing_zeros, divide, modulo
from fivefold.metal.check.check import reach, start
from fivefold.metal.check.context import CheckContext
from fivefold.metal.check.tree import Signature, Unit, ValueKind
from fivefold.metal.program import Program
from fivefold.metal.run.arena import Arena, BufferRegion, PhysicalRegion
from fivefold.metal.run.instance import MACHINE_WORDS, Callee, Instance, checked, find
from fivefold.metal.run.rewrite import PythonWriter, machinery
from fivefold.units import MASK64

_CODE_ADDRESS: Final = 0x6000_0000_0000
"""Where functions are said to lie; nothing can be read there."""

Extern = Callable[..., int | None] | int


def load(program: Program, *, externs: Mapping[str, Extern] | None = None, cpu: object = None) -> PlainInstance:
    """Load *program* as Python. Raises `CompileError`.

    *externs* gives a callable for each extern function that is reached and a number for each
    symbol, by bare name. The machine intrinsics call the methods of *cpu* that bear their names.
    """
    return PlainInstance(program, dict(externs or {}), cpu)


class PlainInstance(Instance):
    """A program as Python. Any function of its modules can be called, not only the roots."""

    def __init__(self, program: Program, externs: dict[str, Extern], cpu: object) -> None:
        self._context: CheckContext = start(program)
        self._externs = externs
        self._cpu = cpu
        self.memory = Arena()
        self._texts: dict[bytes, int] = {}
        self._buffers: dict[str, int] = {}
        self._functions: list[str] = []
        self._space: dict[str, Any] = _namespace(self)
        self._load()

    @property
    def unit(self) -> Unit:
        """The checked program, as far as it has been reached."""
        return self._context.unit

    def call(self, name: str, /, *args: int | str | bytes) -> int:
        signature = self._signature(name)
        kinds = tuple(kind.value for _, kind in signature.parameters)
        numbers = self.convert(name, Callee(kinds, signature.returns.value), args)
        values = [bool(n) if kind == "bool" else n for n, kind in zip(numbers, kinds, strict=True)]
        return int(self._space[signature.full](*values) or 0)

    def _signature(self, name: str) -> Signature:
        """Find a function by name; one that no root reaches is checked and loaded now."""
        names = {}
        for module_name in (*self.unit.labels, *self._context.program.modules):
            module = self._context.library.module(module_name)
            last = self.unit.labels[module_name]
            for function in module.functions:
                full = f"{module_name}.{function}"
                names[full] = names[f"{last}.{function}"] = full
        full = find(names, name, "function")
        if full not in self.unit.functions:
            reach(self._context, full)
            self._load()
        return self.unit.functions[full].signature

    def get(self, variable: str) -> int:
        full = self._variable(variable)
        if self.unit.variables[full].bound:
            return self.unit.variables[full].initial
        return int(self._space[full])

    def set(self, variable: str, value: int) -> None:
        full = self._variable(variable)
        kind = self.unit.variables[full].kind
        if self.unit.variables[full].bound:
            raise ValueError(f"{variable} is bound in this build")
        number = checked(variable, kind.value, value)
        self._space[full] = bool(number) if kind is ValueKind.BOOL else number

    def _variable(self, name: str) -> str:
        return find(self._spellings(self.unit.variables), name, "variable")

    def _spellings(self, fulls: Mapping[str, object]) -> dict[str, str]:
        return {spelling: full for full in fulls for spelling in (full, self.unit.short(full))}

    def address(self, buffer: str) -> int:
        return self._buffers[find(self._spellings(self._buffers), buffer, "buffer")]

    def read(self, addr: int, size: int) -> bytes:
        return self.memory.read(addr, size)

    def write(self, addr: int, data: bytes) -> None:
        self.memory.write(addr, data)

    def map(self, buffer: Any, /, at: int | None = None) -> int:
        """Make a Python buffer native memory, at address *at* where that matters."""
        region = BufferRegion(buffer)
        if not region.size:
            raise ValueError("cannot map an empty buffer")
        return self.memory.add(region, region.size, at)

    def map_physical(self, memory: PhysMemory, size: int, *, base: int = 0, at: int | None = None) -> int:
        """Make *size* bytes of physical memory from *base* native memory; its holes stay holes."""
        return self.memory.add(PhysicalRegion(memory, base), size, at)

    def unmap(self, addr: int) -> None:
        self.memory.remove(addr)

    def text(self, data: bytes) -> int:
        if data not in self._texts:
            region = BufferRegion(data + b"\0")
            self._texts[data] = self.memory.add(region, region.size, align=16)
        return self._texts[data]

    def function_at(self, address: int) -> str:
        """Return the full name of the function that ``address_of`` gave *address* for."""
        index, rest = divmod(address - _CODE_ADDRESS, 16)
        if rest or not 0 <= index < len(self._functions):
            raise KeyError(f"no function has the address {address:#x}")
        return self._functions[index]

    def _load(self) -> None:
        """Give the namespace all that the unit has reached since the last time."""
        unit, space = self.unit, self._space
        for variable in unit.variables.values():
            space.setdefault(
                variable.full, bool(variable.initial) if variable.kind is ValueKind.BOOL else variable.initial
            )
        for buffer in unit.buffers.values():
            if buffer.full not in self._buffers:
                storage = BufferRegion(bytearray(buffer.size))
                self._buffers[buffer.full] = space[buffer.full] = self.memory.add(
                    storage, buffer.size, align=buffer.align
                )
        for signature in unit.externs.values():
            space[signature.full] = self._extern(signature)
        for key in unit.uses:
            if key.startswith("symbol "):
                space[f"metal.{key}"] = self._given(key, int)
        for full in unit.functions:
            if full not in space:
                self._define(full)

    def _define(self, full: str) -> None:
        writer = PythonWriter(self.unit)
        code: CodeType = writer.compile(self.unit.functions[full])
        exec(code, self._space)
        for data in writer.texts:
            self._space[PythonWriter.text_name(data)] = self.text(data)
        for name in writer.addresses:
            self._space[PythonWriter.address_name(name)] = self._address_of(name)

    def _address_of(self, full: str) -> int:
        if full not in self._functions:
            self._functions.append(full)
        return _CODE_ADDRESS + 16 * self._functions.index(full)

    def _given(self, key: str, kind: type) -> Any:
        """Return what the caller gave for ``extern NAME`` or ``symbol NAME``; refuse where it is used if nothing."""
        name = key.partition(" ")[2]
        given = self._externs.get(name)
        if given is None or isinstance(given, int) is not (kind is int):
            site = self.unit.uses[key]
            raise CompileError(site.file, site.line, f"{key} is not given", f"pass externs={{{name!r}: …}}")
        return given

    def _extern(self, signature: Signature) -> Callable[..., object]:
        function = self._given(f"extern {signature.name}", object)
        if signature.returns is ValueKind.BOOL:
            return lambda *args: bool(function(*args))
        return lambda *args: int(function(*args) or 0) & MASK64

    def machine(self, name: str, *args: int) -> int:
        """Execute a machine intrinsic on the ``cpu`` that the caller gave."""
        method = getattr(self._cpu, name, None)
        if method is None:
            raise MachineError(f"plain code executes {name}, which the cpu passed to interpreter.load does not have")
        return int(method(*args) or 0) & MASK64


def _namespace(instance: PlainInstance) -> dict[str, Any]:
    """Return the globals of generated code: one entry for each intrinsic."""
    memory = instance.memory
    space: dict[str, Any] = {f"metal.{name}": word for name, word in machinery(memory).items()}
    space |= {"metal.divide": divide, "metal.modulo": modulo, "metal.min": min, "metal.max": max, "metal.int": int}
    space |= {"metal.ctz": count_trailing_zeros, "metal.clz": count_leading_zeros, "metal.popcount": int.bit_count}
    space |= {"metal.range": range}
    for name in MACHINE_WORDS:
        space[f"metal.{name}"] = _machine_word(instance, name)
    return space


def _machine_word(instance: PlainInstance, name: str) -> Callable[..., int]:
    return lambda *args: instance.machine(name, *args)
