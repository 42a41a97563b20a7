"""The kernel as plain Python over a memory of its own, right or with a mistake put back.

Vectors in text: a test that takes `NAME_vector` runs once for each line of vectors/NAME.txt.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import ClassVar

import pytest

from fivefold.arch import LA48, LA57, AddressSpace, Cpu, Mapped, PagingMode, translate
from fivefold.errors import MemoryReadError
from fivefold.kernel.modes import mode_bindings
from fivefold.machine.ports import Ports
from fivefold.memory import Extent, Ram
from fivefold.metal.program import Program
from fivefold.metal.run import interpreter
from fivefold.units import PhysAddr, VirtAddr

VECTORS = Path(__file__).parent / "vectors"
KERNEL = "fivefold.kernel"
EXTERNS = ("write_cr0", "write_cr3", "write_cr4", "write_msr", "user_read")
"""The functions that assembly provides."""
WINDOW = 1 << 56
"""Where the running code sees physical address 0: above all that is physical, so the two cannot be mistaken."""


def rows(name: str) -> list[list[str]]:
    """The lines of a vector file as their columns, which ``|`` separates."""
    text = (VECTORS / f"{name}.txt").read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    found = [[column.strip() for column in line.split("|")] for line in lines if line]
    assert found, f"{name}.txt has no vectors"
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture in metafunc.fixturenames:
        if fixture.endswith("_vector"):
            found = rows(fixture.removesuffix("_vector"))
            metafunc.parametrize(fixture, found, ids=[" ".join(row)[:60] for row in found])


@pytest.fixture(params=[LA48, LA57], ids=["la48", "la57"])
def mode(request: pytest.FixtureRequest) -> PagingMode:
    """Both modes."""
    chosen: PagingMode = request.param
    return chosen


WITH_NX = {
    (0x8000_0000, 0): (0x8000_0008, 0, 0, 0),
    (0x8000_0001, 0): (0, 0, 0, 1 << 20),
    (0x8000_0008, 0): (52, 0, 0, 0),
}
"""NX, and 52 bits of physical address: what every CPU says unless a test has it say otherwise."""


@dataclass
class Processor:
    """What plain code asks the machine: CPUID by (leaf, subleaf), and registers that `externs` write."""

    leaves: Mapping[tuple[int, int], tuple[int, int, int, int]] = field(default_factory=dict)
    max_leaf: int = 0x20
    cr0: int = 0x8000_0011
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0x20
    efer: int = 0x500
    asked: list[tuple[int, int]] = field(default_factory=list)
    ports: list[tuple[int, int]] = field(default_factory=list)
    devices: Ports = field(default_factory=Ports)

    def cpuid(self, leaf: int, subleaf: int, register: int) -> int:
        self.asked.append((leaf, subleaf))
        if leaf == 0:
            return self.max_leaf if register == 0 else 0
        return {**WITH_NX, **self.leaves}.get((leaf, subleaf), (0, 0, 0, 0))[register]

    def read_cr0(self) -> int:
        return self.cr0

    def read_cr2(self) -> int:
        return self.cr2

    def read_cr3(self) -> int:
        return self.cr3

    def read_cr4(self) -> int:
        return self.cr4

    def rdmsr(self, index: int) -> int:
        assert index == 0xC000_0080
        return self.efer

    def inb(self, port: int) -> int:
        return self.devices.read(port, 1)

    def outb(self, port: int, value: int) -> None:
        self.ports.append((port, value))
        self.devices.write(port, value)

    def outl(self, port: int, value: int) -> None:
        self.ports.append((port, value))

    def cli(self) -> None:
        pass

    def hlt(self) -> None:
        raise Stopped(self.devices.output.decode())

    def write_cr0(self, value: int) -> None:
        self.cr0 = value

    def write_cr3(self, root: int) -> None:
        self.cr3 = root

    def write_cr4(self, value: int) -> None:
        self.cr4 = value

    def write_msr(self, index: int, value: int) -> None:
        assert index == 0xC000_0080
        self.efer = value


class Stopped(AssertionError):  # noqa: N818 - named for what happened
    """The kernel said why it cannot go on, and halted."""


class Loaded:
    """A program as plain Python that is handed on when its user is gone: loading takes longer than most tests."""

    _all: ClassVar[dict[object, list[Loaded]]] = {}

    def __init__(self, program: Program, symbols: Mapping[str, int]) -> None:
        self.processor = Processor()
        self.user: Callable[[], object] = lambda: None
        self.mapped: list[int] = []
        externs = {name: self._ask(name) for name in EXTERNS}
        self.plain = interpreter.load(program, externs={**externs, **symbols}, cpu=self)

    def _ask(self, name: str) -> Callable[..., int | None]:
        return lambda *args: getattr(self.processor, name)(*args)

    def __getattr__(self, name: str) -> Callable[..., int | None]:
        return self._ask(name)

    @classmethod
    def take(cls, program: Program, symbols: Mapping[str, int], user: object) -> Loaded:
        """A program that nobody uses, as if just loaded."""
        kept = cls._all.setdefault((program.describe(), *sorted(symbols.items())), [])
        free = next((loaded for loaded in kept if loaded.user() is None), None)
        if free is None:
            free = cls(program, symbols)
            kept.append(free)
        free.user = weakref.ref(user, lambda _: free.unmap())
        free.reset()
        return free

    def unmap(self) -> None:
        """Let go of the user's memory; a program that was changed on purpose is never taken again."""
        for address in self.mapped:
            self.plain.unmap(address)
        self.mapped = []

    def reset(self) -> None:
        """Variables and buffers as at the start."""
        for variable in self.plain.unit.variables.values():
            if not variable.bound:
                self.plain.set(variable.full, int(variable.initial))
        for buffer in self.plain.unit.buffers.values():
            self.plain.write(self.plain.address(buffer.full), bytes(buffer.size))


class Code:
    """Modules of the kernel as plain Python, with the mode bound, and physical memory behind `WINDOW`.

    A module is named whole, or one function of it as ``module.function`` where the rest needs too much.
    """

    def __init__(
        self,
        mode: PagingMode | None,
        *modules: str,
        package: str = KERNEL,
        extents: Sequence[tuple[int, int]] = ((0x10_0000, 0x50_0000),),
        processor: Processor | None = None,
        symbols: Mapping[str, int] | None = None,
        window: int = WINDOW,
    ) -> None:
        self.mode = mode
        self.window = window
        self.ram = Ram([Extent(*extent) for extent in extents])
        for start, data in self.ram.banks():
            self.ram.write(PhysAddr(start), b"\xff" * len(data))
        roots = tuple(full_name(name, package) for name in (*modules, "phys"))
        program = Program((f"{package}.paging.phys",), bindings(mode, package) if mode else {}, roots=roots)
        loaded = Loaded.take(program, symbols or {}, self)
        self.processor = loaded.processor = processor or Processor()
        self.plain = loaded.plain
        for extent in self.ram.extents:
            at, size = window + extent.start, extent.end - extent.start
            loaded.mapped.append(self.plain.map_physical(self.ram, size, base=extent.start, at=at))
        self.set("phys.phys_window", window)

    def call(self, name: str, /, *args: int | str | bytes) -> int:
        return self.plain.call(name, *args)

    def get(self, variable: str) -> int:
        return self.plain.get(variable)

    def set(self, variable: str, value: int) -> None:
        self.plain.set(variable, value)

    def address(self, buffer: str) -> int:
        return self.plain.address(buffer)

    def add_memory(self) -> None:
        """Tell memblock of all of the memory."""
        for extent in self.ram.extents:
            self.call("memblock.add", extent.start, extent.end - extent.start)

    def table(self) -> int:
        """A fresh table; its address as the running code sees it."""
        page = self.call("memblock.allocate_table")
        assert page, "no memory for a table"
        return page + self.window

    def space(self, top: int, cpu: Cpu | None = None) -> AddressSpace:
        """The address space of the table at *top*, as `arch` reads it."""
        assert self.mode is not None
        return AddressSpace(self.ram, PhysAddr(top - self.window), self.mode, cpu or Cpu())

    def physical(self, top: int, va: int) -> int | None:
        """Where `arch` says that *va* leads, None where it does not."""
        found = translate(self.space(top), VirtAddr(va))
        return found.pa if isinstance(found, Mapped) else None


def full_name(name: str, package: str = KERNEL) -> str:
    """The root for *name*, ``module`` or ``module.function``, whose module lies in some room of the kernel."""
    module, _, function = name.partition(".")
    place = Path(str(resources.files(KERNEL)))
    (file,) = place.rglob(f"{module}.py")
    return ".".join([package, *file.relative_to(place).with_suffix("").parts, function or "*"])


def bindings(mode: PagingMode, package: str = KERNEL) -> dict[str, int]:
    """The three numbers of *mode*, as the image's two kernels have them."""
    return mode_bindings(int(mode.top), package)


Check = Callable[[str], None]


@pytest.fixture
def guards(mutated: Callable[..., str]) -> Callable[..., None]:
    """Show that a check, given a kernel package, passes for ours and fails for one with text changed."""

    def guard(check: Check, file: str, *changes: tuple[str, str]) -> None:
        check(KERNEL)
        wrong = mutated(file, *changes)
        with pytest.raises((AssertionError, MemoryReadError, pytest.fail.Exception)):
            check(wrong)

    return guard


@pytest.fixture(scope="session")
def code() -> type[Code]:
    """`Code`, for tests that load the kernel themselves."""
    return Code


@pytest.fixture(scope="session")
def processor() -> type[Processor]:
    """`Processor`."""
    return Processor


@pytest.fixture(scope="session")
def stopped() -> type[Stopped]:
    """`Stopped`."""
    return Stopped
