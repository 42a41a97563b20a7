"""Plain code: bounds, tracebacks, externs, the cpu, mapped memory."""

from __future__ import annotations

import mmap
import traceback

import pytest

from fivefold.errors import CompileError, MachineError, MemoryReadError
from fivefold.memory.base import Extent, Ram
from fivefold.metal import lang
from fivefold.metal.program import Program
from fivefold.metal.run import interpreter

TEXT = """
BUF: Final = buffer(64)
count: u64 = 1
ready: bool = False
@extern
def outside(a: u64, odd: bool) -> bool: ...
@export
def peek(at: u64) -> u64:
    return (
        load64(at)
    )
@export
def poke(at: u64, value: u64) -> None:
    store64(at, value)
@export
def base() -> u64:
    return BUF
@export
def asks(a: u64) -> u64:
    return u64(outside(a, True)) + symbol("mark")
@export
def machine() -> u64:
    outb(0x3F8, 65)
    return read_cr3() + cpuid(7, 0, 1)
@export
def where() -> u64:
    return address_of(peek)
def unreached(flag: bool) -> bool:
    global ready
    ready = not flag
    return ready
"""


@pytest.fixture(scope="module")
def name(make_module):
    return make_module(TEXT)


@pytest.fixture
def instance(name):
    return interpreter.load(Program((name,)), externs={"outside": lambda a, odd: odd and a > 3, "mark": 0x1000})


def test_access_outside_memory_raises(instance, name):
    start = instance.call(f"{name}.base")

    assert instance.call(f"{name}.peek", start + 56) == 0
    with pytest.raises(MemoryReadError, match=r"^native memory has no memory at 0x00005[0-9a-f]{11} \(\+8 bytes\)$"):
        instance.call(f"{name}.peek", start + 57)
    with pytest.raises(MemoryReadError):
        instance.call(f"{name}.poke", start - 1, 5)
    with pytest.raises(MemoryReadError):
        instance.call(f"{name}.peek", 0)


def test_traceback_shows_the_source(instance, name):
    with pytest.raises(MemoryReadError) as caught:
        instance.call(f"{name}.peek", 8)
    frames = [frame for frame in traceback.extract_tb(caught.tb) if frame.filename.endswith(f"{name}.py")]

    assert [(frame.name, frame.line) for frame in frames] == [(f"{name}.peek", "return (")]


def test_externs_and_symbols(instance, name):
    assert instance.call(f"{name}.asks", 4) == 0x1001
    assert instance.call(f"{name}.asks", 3) == 0x1000
    with pytest.raises(CompileError, match=r":\d+: extern outside is not given; pass externs=\{'outside': …\}$"):
        interpreter.load(Program((name,)), externs={"mark": 1})
    with pytest.raises(CompileError, match=r":\d+: symbol mark is not given; pass externs=\{'mark': …\}$"):
        interpreter.load(Program((name,)), externs={"outside": lambda a, odd: True})


def test_machine_intrinsics_call_the_cpu(instance, name):
    class Cpu:
        sent: list[tuple[int, int]] = []  # noqa: RUF012

        def outb(self, port, value):
            self.sent.append((port, value))

        def read_cr3(self):
            return 0x5000

        def cpuid(self, leaf, subleaf, register):
            return leaf * 100 + subleaf * 10 + register

    loaded = interpreter.load(Program((name,), roots=()), externs={"outside": print, "mark": 1}, cpu=Cpu())

    assert loaded.call(f"{name}.machine") == 0x5000 + 701
    assert Cpu.sent == [(0x3F8, 65)]
    with pytest.raises(
        MachineError, match=r"^plain code executes outb, which the cpu passed to interpreter\.load does not have$"
    ):
        instance.call(f"{name}.machine")


def test_function_that_no_root_reaches_can_be_called(instance, name):
    assert instance.call(f"{name}.unreached", False) == 1
    assert instance.get(f"{name}.ready") == 1
    assert instance.function_at(instance.call(f"{name}.where")) == f"{name}.peek"
    with pytest.raises(KeyError, match=rf"no function {name}.nothing; there are {name}.asks"):
        instance.call(f"{name}.nothing")


def test_arguments_are_checked(instance, name):
    with pytest.raises(TypeError, match=r"poke takes 2 arguments, not 1$"):
        instance.call(f"{name}.poke", 1)
    with pytest.raises(ValueError, match=r"peek: -0x1 is not a u64$"):
        instance.call(f"{name}.peek", -1)
    with pytest.raises(ValueError, match=r"unreached: 0x2 is not a bool$"):
        instance.call(f"{name}.unreached", 2)
    with pytest.raises(TypeError, match=r"peek: 'x' is not a u64$"):
        instance.call(f"{name}.peek", "x")
    with pytest.raises(ValueError, match=r"count: 0x10000000000000000 is not a u64$"):
        instance.set(f"{name}.count", 1 << 64)


def test_maps_buffers_of_any_kind(instance, name):
    store = bytearray(16)
    at = instance.map(store)
    instance.call(f"{name}.poke", at + 8, 0x1122)

    assert store[8:10] == b"\x22\x11"
    with pytest.raises(BufferError):
        store.append(0)
    instance.unmap(at)
    store.append(0)
    with pytest.raises(MemoryReadError):
        instance.call(f"{name}.peek", at)
    with mmap.mmap(-1, 4096) as pages:
        at = instance.map(memoryview(pages)[8:24], at=0xFF11_0000_0000_0000)
        instance.call(f"{name}.poke", at, 7)
        assert pages[8] == 7
        with pytest.raises(ValueError, match=r"cannot map 16 bytes at 0xff11000000000008: the place is taken$"):
            instance.map(bytearray(16), at=at + 8)
        instance.unmap(at)


def test_maps_physical_memory_with_holes(instance, name):
    ram = Ram([Extent(0x1000, 0x2000), Extent(0x3000, 0x4000)])
    window = instance.map_physical(ram, 0x4000, at=0xFFFF_8880_0000_0000)
    instance.call(f"{name}.poke", window + 0x1FF8, 9)

    assert ram.read(0x1FF8, 1) == b"\x09"
    with pytest.raises(MemoryReadError, match=r"ram has no memory at 0x0000000000002000"):
        instance.call(f"{name}.peek", window + 0x2000)


def test_intrinsics_mean_nothing_outside_a_program():
    with pytest.raises(RuntimeError, match=r"^load64 has a meaning only in a compiled or loaded metal program$"):
        lang.load64(8)
