"""A Linux put together in memory: kallsyms and BTF as a build lays them out, modules and processes as it keeps them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from fivefold.arch import PagingMode
from fivefold.memory import Ram
from fivefold.survey.names.btf import Btf
from fivefold.survey.names.kernel_memory import KernelMemory
from fivefold.survey.space import Space
from fivefold.symbols import Symbols, SymbolSpan
from fivefold.units import MIB, PhysAddr

BASE = 0xFFFF_FFFF_9A00_0000


class Types:
    """Types in order, with their names."""

    def __init__(self) -> None:
        self.types, self.texts, self.count = b"", b"\0", 0

    def text(self, name: str) -> int:
        if not name:
            return 0
        self.texts += name.encode() + b"\0"
        return len(self.texts) - len(name) - 1

    def add(self, kind: int, name: str = "", parts: int = 0, size: int = 0, flag: int = 0, body: bytes = b"") -> int:
        self.types += struct.pack("<III", self.text(name), flag << 31 | kind << 24 | parts, size) + body
        self.count += 1
        return self.count

    def struct(self, name: str, *members: tuple[str, int, int], kind: int = 4, flag: int = 0, size: int = 64) -> int:
        body = b"".join(struct.pack("<III", self.text(text), number, bits) for text, number, bits in members)
        return self.add(kind, name, len(members), size, flag, body)

    def data(self, gap: int = 0) -> bytes:
        """With *gap* bytes between header and types."""
        types, texts = len(self.types), len(self.texts)
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, gap, types, gap + types, texts)
        return head + bytes(gap) + self.types + self.texts

    def btf(self) -> Btf:
        return Btf(self.data())


Listed = tuple[int, str, str]
"""Address, kind, name."""


def symbols(count: int = 1300) -> list[Listed]:
    """Symbols at ascending addresses: per CPU first, then text and data, one of them with a very long name."""
    draw = random.Random(5)
    per_cpu = [(n * 8, "A", f"per_cpu_{n}") for n in range(5)]
    own = [
        (BASE + 16 * n + draw.randrange(8), draw.choice("tTdDrB"), f"a_{draw.choice(['function', 'table'])}_{n}")
        for n in range(count)
    ]
    # Lengths of one byte and of two, among the first, too.
    own[1], own[2] = (own[1][0], "t", "b" * 126), (own[2][0], "t", "c" * 127)
    own[0] = (own[0][0], "T", "d" * 600)
    if count > 702:
        own[700] = (own[700][0], "T", "long_" + "x" * 300)
        own[701] = (own[700][0], "t", "another_name_of_it")
        own[702] = (own[700][0], "T", "a_global_name_of_it")
    return [*per_cpu, *own]


# Codes that no name needs have empty tokens.
TOKENS = [
    chr(code) if chr(code).isalnum() or chr(code) in "_." else f"tok{code}" if code > 0x90 else ""
    for code in range(256)
]
TOKENS[0x80], TOKENS[0x81] = "function", "table"


def spell(kind: str, name: str, wide: bool) -> bytes:
    text = (kind + name).encode().replace(b"function", b"\x80").replace(b"table", b"\x81")
    if len(text) < 0x80:
        return bytes([len(text)]) + text
    assert wide
    return bytes([0x80 | len(text) & 0x7F, len(text) >> 7]) + text


def aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def offset_of(address: int, per_cpu: bool) -> int:
    if not per_cpu:
        return (address - BASE) & 0xFFFF_FFFF
    return address if address < BASE else (BASE - 1 - address) & 0xFFFF_FFFF


def kallsyms(
    listed: Sequence[Listed],
    *,
    offsets_last: bool,
    per_cpu: bool,
    markers: str = "I",
    seqs: bool = False,
) -> bytes:
    """The tables as a kernel's build lays them out, with other read-only data on both sides."""
    names, begins = b"", []
    for number, (_, kind, name) in enumerate(listed):
        if number % 256 == 0:
            begins.append(len(names))
        names += spell(kind, name, wide=True)
    words = [token.encode() + b"\0" for token in TOKENS]
    index = [sum(map(len, words[:n])) for n in range(256)]
    offsets = aligned(struct.pack(f"<{len(listed)}I", *(offset_of(at, per_cpu) for at, _, _ in listed)))
    base = struct.pack("<Q", BASE)
    by_name = aligned(bytes(3 * len(listed))) if seqs else b""
    middle = [
        aligned(struct.pack("<I", len(listed))),
        aligned(names),
        aligned(struct.pack(f"<{len(begins)}{markers}", *begins)),
        b"" if offsets_last else by_name,
        aligned(b"".join(words)),
        struct.pack("<256H", *index),
    ]
    tables = b"".join([*middle, offsets, base, by_name] if offsets_last else [offsets, base, *middle])
    draw = random.Random(9)
    return draw.randbytes(0x5000) + bytes(64) + tables + draw.randbytes(0x3000)


LAYOUTS = {
    "4.6": {"offsets_last": False, "per_cpu": True, "markers": "Q"},
    "4.20": {"offsets_last": False, "per_cpu": True},
    "6.2": {"offsets_last": False, "per_cpu": True, "seqs": True},
    "6.4": {"offsets_last": True, "per_cpu": True, "seqs": True},
    "without per-CPU": {"offsets_last": True, "per_cpu": False},
}


HEAP = 0x14_0000
"""Physical memory from which tasks and modules take theirs; the image lies above it."""
TEXT_AT, DATA_AT = 0x30_0000, 0x20_0000
"""The image's two halves of 1 MiB, in memory the other way round."""
MODULES = 0xFFFF_FFFF_C000_0000
PRESENT, WRITABLE, GLOBAL, NO_EXECUTE = 1, 2, 0x100, 1 << 63
KTHREAD = 0x20_0000
UNMAPPED = 0xFFFF_C900_0000_0000

TASK = {
    "flags": 0x2C,
    "tasks": 0x320,
    "mm": 0x370,
    "active_mm": 0x378,
    "pid": 0x3A0,
    "thread_node": 0x4E8,
    "comm": 0x5F0,
    "signal": 0x640,
}
MM_PGD, THREAD_HEAD = 0x50, 0x18
MODULE = {"list": 8, "name": 0x18, "kallsyms": 0x1A8}
TABLE = {"symtab": 0, "num_symtab": 8, "strtab": 0x10, "typetab": 0x18}


@dataclass
class Image:
    """The bytes of a kernel's image, and the symbols in it."""

    data: bytearray
    symbols: list[Listed]

    def put(self, at: int, data: bytes, name: str, kind: str = "D") -> int:
        """Place *data* at an offset under a name; return its address."""
        self.data[at : at + len(data)] = data
        self.symbols.append((BASE + at, kind, name))
        return BASE + at


class KernelInMemory:
    """Tables, image and heap of a Linux: what is in it is written word by word, and its names are found in memory.

    A kernel since 6.4 has modules in seven parts (``mem``), one before that in two layouts; *typed* says whether
    modules keep the kinds of their symbols, as since 5.2.
    """

    def __init__(self, build: Any, mode: PagingMode, layout: str = "6.4", *, typed: bool = True) -> None:
        self.ram = Ram.of_size(4 * MIB - 0x1000, start=PhysAddr(0x1000))
        self.built = build(mode, self.ram)
        self.direct = 0xFFFF_8880_0000_0000 if int(mode.top) == 4 else 0xFF11_0000_0000_0000
        self.built.pages(self.direct, 64 * MIB, PRESENT | WRITABLE | GLOBAL | NO_EXECUTE)
        self.built.pages(BASE, MIB, TEXT_AT | PRESENT | GLOBAL)
        self.built.pages(BASE + MIB, MIB, DATA_AT | PRESENT | WRITABLE | GLOBAL | NO_EXECUTE)
        self.image = Image(bytearray(2 * MIB), [])
        self.layout, self.typed, self.next = layout, typed, HEAP
        self.has_parts = layout in ("6.4", "without per-CPU")
        self.image.put(0, b"\x90" * 64, "_text", "T")
        self.image.put(0x1_0000, b"Linux version 6.4.0 (toy)\n\0", "linux_banner", "R")
        self.init_task = self.image.put(0x18_0000, bytes(0x800), "init_task")
        self.modules = self.image.put(0x18_1000, bytes(16), "modules")

    def take(self, size: int, align: int = 64) -> int:
        """New memory of zeros, by its address in the direct map."""
        self.next = -(-self.next // align) * align + size
        assert self.next <= 0x20_0000
        return self.direct + self.next - size

    def write(self, va: int, data: bytes) -> None:
        """Into the image, or to the heap."""
        if va >= BASE:
            self.image.data[va - BASE : va - BASE + len(data)] = data
        else:
            self.ram.write(PhysAddr(va - self.direct), data)

    def word(self, va: int, value: int) -> None:
        self.write(va, struct.pack("<Q", value & (1 << 64) - 1))

    def ring(self, nodes: Sequence[int]) -> None:
        """Link list heads in a circle."""
        for here, there in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
            self.word(here, there)

    def mm(self, root: int, at: int | None = None) -> int:
        """An address space with a top table at physical *root*."""
        at = self.take(0x100) if at is None else at
        self.word(at + MM_PGD, self.direct + root)
        return at

    def task(self, pid: int, comm: str, *, mm: int = 0, active: int = 0, flags: int = 0, at: int | None = None) -> int:
        """A task of one thread, not linked yet."""
        at = self.take(0x800) if at is None else at
        for name, value in {"mm": mm, "active_mm": active}.items():
            self.word(at + TASK[name], value)
        self.write(at + TASK["pid"], struct.pack("<I", pid))
        self.write(at + TASK["flags"], struct.pack("<I", flags))
        self.write(at + TASK["comm"], comm.encode())
        self.threads(at, [])
        return at

    def threads(self, leader: int, spaces: Sequence[int]) -> None:
        """Threads beside *leader*, with the `mm` of each."""
        signal = self.take(0x100)
        others = [self.take(0x800) for _ in spaces]
        for at, space in zip(others, spaces, strict=True):
            self.word(at + TASK["mm"], space)
        for at in (leader, *others):
            self.word(at + TASK["signal"], signal)
        self.ring([signal + THREAD_HEAD, *(at + TASK["thread_node"] for at in (leader, *others))])

    def listed(self, *tasks: int) -> None:
        """The list of processes: init_task and *tasks*."""
        self.ring([at + TASK["tasks"] for at in (self.init_task, *tasks)])

    def module(self, name: str, parts: Sequence[tuple[int, int]], symbols: Sequence[tuple[int, str, str, int]]) -> int:
        """One module, not linked: *parts* are base and size of each; symbols are address, kind, name and section."""
        at, table = self.take(0x400), self.take(0x20)
        self.write(at + MODULE["name"], name.encode())
        self.word(at + MODULE["kallsyms"], table)
        for number, (base, size) in enumerate(parts):
            place = at + (0x80 + 0x20 * number if self.has_parts else 0x80 + 0x40 * number)
            self.word(place + 8, base)
            self.write(place + (0x18 if self.has_parts else 0x10), struct.pack("<I", size))
        texts, rows, kinds = b"\0", b"", b""
        for value, kind, text, section in symbols:
            info = (0x10 if kind.isupper() else 0) | 2 if self.typed else ord(kind)
            rows += struct.pack("<IBBHQQ", len(texts), info, 0, section, value, 0)
            texts, kinds = texts + text.encode() + b"\0", kinds + kind.lower().encode()
        places = [self.take(len(data)) for data in (rows, texts, kinds)]
        for place, data in zip(places, (rows, texts, kinds), strict=True):
            self.write(place, data)
        self.word(table + TABLE["symtab"], places[0])
        self.write(table + TABLE["num_symtab"], struct.pack("<I", len(symbols)))
        self.word(table + TABLE["strtab"], places[1])
        self.word(table + TABLE["typetab"], places[2])
        return at

    def loaded(self, *modules: int) -> None:
        """The list of modules."""
        self.ring([self.modules, *(at + MODULE["list"] for at in modules)])

    def types(self, without: tuple[str, str] = ("", "")) -> bytes:
        """What the kernel says of its structures; a member of *without* goes by another name."""
        types = Types()

        def struct_of(name: str, members: dict[str, int], size: int = 0x800) -> int:
            kept = {"other" if (name, member) == without else member: at for member, at in members.items()}
            return types.struct(name, *((member, 0, 8 * at) for member, at in kept.items()), size=size)

        struct_of("task_struct", TASK)
        struct_of("mm_struct", {"pgd": MM_PGD})
        struct_of("signal_struct", {"thread_head": THREAD_HEAD})
        struct_of("mod_kallsyms", {name: at for name, at in TABLE.items() if self.typed or name != "typetab"})
        if self.has_parts:
            struct_of("module_memory", {"base": 8, "size": 0x18}, 0x20)
            struct_of("module", MODULE | {"mem": 0x80})
        else:
            struct_of("module_layout", {"base": 8, "size": 0x10}, 0x40)
            struct_of("module", MODULE | {"core_layout": 0x80, "init_layout": 0xC0})
        return types.data()

    def finish(self, btf: bytes | None = None) -> Space:
        """Put BTF, kallsyms and the image into memory, and open the whole."""
        self.image.put(0x2_0000, self.types() if btf is None else btf, "__start_BTF", "R")
        fillers = [(BASE + 0x100 + 16 * n, "t", f"filler_function_{n}") for n in range(1300)]
        layout: dict[str, Any] = LAYOUTS[self.layout]
        tables = kallsyms(sorted([*self.image.symbols, *fillers]), **layout)
        at = MIB - 0x8000  # in both halves
        self.image.data[at : at + len(tables)] = tables
        self.ram.write(PhysAddr(TEXT_AT), bytes(self.image.data[:MIB]))
        self.ram.write(PhysAddr(DATA_AT), bytes(self.image.data[MIB:]))
        space: Space = self.built.space()
        return space

    def parts(self, space: Space) -> tuple[KernelMemory, Symbols, Btf]:
        """What readers of the kernel's own structures take."""
        symbols = Symbols([SymbolSpan.of(self.image.symbols)], "test")
        return KernelMemory(space.tables, "test"), symbols, Btf(self.types())


@pytest.fixture
def kallsyms_of() -> Callable[..., tuple[list[Listed], bytes]]:
    """Symbols as a release lists them, and an image that holds their tables."""

    def made(release: str, count: int = 1300, last: str = "a_last_name") -> tuple[list[Listed], bytes]:
        layout: dict[str, Any] = LAYOUTS[release]
        listed = symbols(count)[0 if layout["per_cpu"] else 5 :]
        listed[-1] = (*listed[-1][:2], last)
        return listed, kallsyms(listed, **layout)

    return made


@pytest.fixture
def new_types() -> Callable[[], Types]:
    """Make types that are filled by hand."""
    return Types


@pytest.fixture
def kernel_in_memory(build: Any) -> Iterator[Callable[..., KernelInMemory]]:
    """Make a kernel of a mode and a release."""
    yield lambda *about, **options: KernelInMemory(build, *about, **options)
