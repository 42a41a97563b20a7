"""Where a machine is: names by its stack, its kernel's file and its log, in memory that is built here."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from fivefold.arch import LA57, AddressSpace, Cpu, Entry, Frames, Level, map_page
from fivefold.matrix.kernels.file_symbols import FileSymbols, file_symbols
from fivefold.matrix.result import CellCheck
from fivefold.matrix.run.console import panic_of
from fivefold.matrix.run.memory_log import log_in_memory
from fivefold.matrix.run.places import MachinePlaces, cpu_places
from fivefold.matrix.run.verdict import FailedMachine, cause_of_check
from fivefold.matrix.run.watch import Stopped
from fivefold.memory import Bank, BankedMemory, CpuState, Ram, Source
from fivefold.symbols import Symbols, SymbolSpan
from fivefold.units import MIB, PhysAddr, VirtAddr

TEXT, STACK, DATA = 0xFFFF_FFFF_8100_0000, 0xFFA0_0000_0000_4000, 0xFFFF_FFFF_8200_0000
IMAGE = 4 * MIB
"""Where the image lies in physical memory."""
NAMES = [(TEXT, "T", "_stext"), (TEXT + 0x100, "t", "waits"), (TEXT + 0x200, "T", "asks"), (TEXT + 0x300, "T", "panic"),
         (TEXT + 0x400, "t", "boots"), (TEXT + 0x500, "t", "early_fixup_exception"), (DATA, "d", "prb")]  # fmt: skip
SYMBOLS = Symbols((SymbolSpan.of(NAMES, DATA + 0x1000),), "a table of ours", is_running=True)
UNPACKER = bytes(range(1, 200))


class World:
    """Memory with five levels: a page of text, one of data, a stack of four pages, and a CPU that waits."""

    def __init__(self, rip: int = TEXT + 0x110) -> None:
        self.ram = Ram.of_size(8 * MIB)
        space = AddressSpace(self.ram, PhysAddr(0x1000), LA57, Cpu(46))
        frames = Frames(self.ram, PhysAddr(0x2000), 32)
        pages = [(TEXT, IMAGE), (DATA, IMAGE + 0x10_0000)]
        pages += [(STACK + 0x1000 * number, 0x20_0000 + 0x1000 * number) for number in range(4)]
        for va, pa in pages:
            map_page(self.ram, space, VirtAddr(va), Entry(pa | 3, Level.PT), frames)
        general = {"rip": rip, "rsp": STACK + 0x3F00}
        cpu = CpuState("ours", cr0=0x8001_0033, cr3=0x1000, cr4=0x1020, efer=0xD01, general=general)
        banks = [Bank(start, memoryview(data)) for start, data in self.ram.banks()]
        self.source = Source(BankedMemory(banks, "world"), "ours", (cpu,))
        self.places = MachinePlaces(self.source)
        self.places.__dict__["symbols"] = SYMBOLS

    def write(self, pa: int, data: bytes) -> None:
        self.ram.write(PhysAddr(pa), data)

    def push(self, *words: int) -> None:
        """What is on the stack from its top on."""
        self.write(0x20_3F00, struct.pack(f"<{len(words)}Q", *words))

    def call(self, at: int, target: int) -> int:
        """Write a call to *target* and return the address behind it."""
        self.write(IMAGE + at - TEXT, b"\xe8" + struct.pack("<i", target - at - 5))
        return at + 5


def test_the_stack_tells_who_called() -> None:
    """Return addresses behind calls only: neither a pointer into the text nor a number like one."""
    world = World()
    back = world.call(TEXT + 0x220, TEXT + 0x100)
    world.write(IMAGE + 0x410, b"\xff\xd0")  # call *%rax
    world.push(7, TEXT + 0x304, back, DATA, TEXT + 0x412, back)
    place = cpu_places(world.places, "CPU#0\nHLT=0", world.source.cpus)[0]
    assert (place.function, place.stack) == ("waits", ("asks", "boots"))
    assert place.sentence == "at 0xffffffff81000110 (waits); on its stack: asks, boots"


def test_a_stack_that_ends_where_nothing_is_mapped() -> None:
    world = World()
    assert world.places.of(0, TEXT, rsp=STACK + 0x3FF9).stack == ()
    assert world.places.of(0, TEXT, rsp=0x1234).stack == ()


class Silent:
    """A machine that never said a word."""

    console = bytearray()
    ended = None
    last_words = log = ""

    def registers(self) -> str:
        return "CPU#0\nHLT=0\n"


def logged(world: World, *lines: bytes, since_512: bool = True) -> None:
    """A log of at most four lines in a ring of 256 bytes: descriptors, what is known of each, and the texts."""
    base = IMAGE + 0x10_0000 - DATA
    ring, descriptors, known, texts = (DATA + offset for offset in (0x40, 0x100, 0x200, 0x400))
    head = struct.pack("<I4xQQ", 2, descriptors, known) + bytes(24 if since_512 else 16)
    world.write(base + DATA, struct.pack("<Q", ring))
    world.write(base + ring, head + struct.pack("<I4xQ", 8, texts))
    at = 256  # the ring went round once
    for number, line in enumerate(lines):
        size = 8 + len(line) + 7 & ~7
        if at // 256 != (at + size - 1) // 256:
            begin, end, place = at, (at // 256 + 1) * 256 + size, 0
        else:
            begin, end, place = at, at + size, at % 256
        world.write(base + descriptors + 24 * number, struct.pack("<QQQ", 1, begin, end))
        world.write(base + known + 88 * number, struct.pack("<QQH", 7 + number, 1_500_000 * number, len(line)))
        world.write(base + texts + place, struct.pack("<Q", number) + line + b"left over"[: -len(line) % 8])
        at = end


def test_a_panic_that_never_came_to_the_console() -> None:
    world = World(TEXT + 0x110)
    back = world.call(TEXT + 0x420, TEXT + 0x300)
    world.push(world.call(TEXT + 0x320, TEXT + 0x100), back)
    logged(world, b"Linux version 6.1", b"Kernel panic - not syncing: no memory at all")
    assert log_in_memory(world.places) == (
        b"[    0.000000] Linux version 6.1\n[    0.001500] Kernel panic - not syncing: no memory at all\n"
    )
    outcome, cause = FailedMachine(Silent(), Stopped("hang", None), world.places, 30).verdict()  # type: ignore[arg-type]
    assert (outcome, cause.rule, cause.symbol) == ("panic", "panic", "boots")
    assert cause.sentence.startswith("no memory at all (it never came to the console")


def test_an_exception_that_startup_code_could_not_print() -> None:
    """What 6.1 leaves in its log of an exception before it has a console: registers, and no word of why."""
    world = World(TEXT + 0x510)
    logged(world, b"RIP: 0010:start+0x74/0x1d0", b"CR2: 0000000000000010 CR3: 0")
    outcome, cause = FailedMachine(Silent(), Stopped("hang", None), world.places, 30).verdict()  # type: ignore[arg-type]
    assert (outcome, cause.rule, cause.symbol) == ("panic", "panic", "start")
    assert "in start+0x74; CR2 is 0x0000000000000010 (it never came to the console" in cause.sentence


def test_a_hang_before_the_console_tells_the_last_line_of_the_log() -> None:
    world = World()
    logged(world, b"Linux version 6.1", b"Memory: 1K", since_512=False)
    outcome, cause = FailedMachine(Silent(), Stopped("hang", None), world.places, 30).verdict()  # type: ignore[arg-type]
    assert (outcome, cause.rule, cause.symbol) == ("hang", "hang", "waits")
    assert cause.sentence.endswith("(waits); the last line is '[    0.001500] Memory: 1K'")


def test_a_text_that_would_reach_over_the_end_of_the_ring() -> None:
    world = World()
    logged(world, b"a" * 100, b"b" * 100, b"c" * 60)
    assert log_in_memory(world.places).splitlines()[-1] == b"[    0.003000] " + b"c" * 60


@pytest.mark.parametrize(("offset", "word"), [(0, 0), (0x40, 99), (0x48, 5), (0x78, 60), (0x70, 60), (0x50, 0)])
def test_a_log_that_is_broken(offset: int, word: int) -> None:
    world = World()
    logged(world, b"Kernel panic - not syncing: no")
    world.write(IMAGE + 0x10_0000 + offset, struct.pack("<Q", word))
    assert panic_of(log_in_memory(world.places)) is None


def test_a_check_that_fails_tells_what_lies_there_and_who_is_missing() -> None:
    world = World()
    bad = CellCheck("audit-wx-kernel", False, "0xffffffff81000200-0xffffffff81001000: rwx-")
    assert cause_of_check(bad, world.places, Silent()).symbol == "asks"  # type: ignore[arg-type]
    lost = CellCheck("told-cpus", False, "1 of 2")
    other = CpuState("ours", general={"rip": TEXT + 0x400})
    world.places.source = replace(world.source, cpus=(*world.source.cpus, other))
    found = cause_of_check(lost, world.places, Silent())  # type: ignore[arg-type]
    assert found.sentence.startswith(
        "check told-cpus failed: 1 of 2; CPU 1 is running in one place at 0xffffffff81000400 (boots)"
    )


def in_file() -> FileSymbols:
    return FileSymbols(SYMBOLS, TEXT, 0x1000, bytes(range(256)), UNPACKER)


def test_the_image_has_names_before_it_runs_at_its_own_addresses() -> None:
    world = World()
    head = bytearray(range(256))
    head[8:16] = bytes(8)  # relocated
    world.write(2 * MIB + 0x1000, bytes(head))  # not where an image can begin
    world.write(IMAGE, bytes(head))
    assert list(in_file().loaded_at(world.source.memory)) == [IMAGE]
    places = MachinePlaces(Source(world.source.memory, "ours"), in_file)
    assert places.name(IMAGE + 0x210) == "asks" and places.name(IMAGE + 0x2000) is None
    assert places.where(IMAGE + 0x210) == ", in the kernel's image before it runs at its own addresses"
    world.write(0x50_0000, UNPACKER)
    assert places.where(0x50_0010) == ", in the code that unpacks the kernel"
    assert places.where(0x60_0000).startswith(", in low memory") and places.where(TEXT) == ""


@pytest.mark.parametrize("data", [b"", b"MZ", b"\x7fELF", bytes(4096), b"\x7fELF\2\1\1" + bytes(57)])
def test_a_file_without_names(data: bytes, tmp_path: Path) -> None:
    assert file_symbols(data) is None
