"""A laboratory for faults: small guests whose page tables are built here, each with one thing broken.

A guest starts in 32-bit code at `BASE`, turns on paging in the mode of its case and runs its
snippet in 64-bit code at `HIGH`. Tables are built in Python, broken by the case, and come with the image.
"""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from elftools.elf.elffile import ELFFile

from fivefold.arch import AddressSpace, Cpu, Entry, Flag, Frames, Level, PagingMode, map_page, map_range, walk
from fivefold.memory import Ram
from fivefold.units import MIB, PhysAddr, VirtAddr

DATA = Path(__file__).parent.parent / "data" / "faults"
BASE = 0x20_0000
"""Physical, and mapped to itself: the code."""
HIGH = 0xFFFF_FFFF_8000_0000
"""Where the same code is mapped for 64-bit mode, in 4 KiB pages."""
HIGH_SIZE = 0x20000
STACK = HIGH + 0x10000
"""Top of the stack: the page below is its only one, the one below that is a hole."""
PAGE = HIGH + 0x18000
"""A data page of its own, at physical `BASE` + 0x18000."""
USER = 0x40_0000_0000
"""A user page, at physical `BASE` + 0x1a000."""
TABLES = 0x30_0000
MEMORY = 32 * MIB

SOURCE = """
.text
.code32
start:
  movl ${cr4:#x}, %eax
  movl %eax, %cr4
  movl ${cr3:#x}, %eax
  movl %eax, %cr3
  movl $0xc0000080, %ecx
  movl ${efer:#x}, %eax
  xorl %edx, %edx
  wrmsr
  movl ${cr0:#x}, %eax
  movl %eax, %cr0
  lgdt ({base:#x} + gdt_pointer - start)
  ljmp $8, $({base:#x} + long - start)
.code64
long:
  movl $0x10, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %ss
  movabsq $({high:#x} + high - start), %rax
  jmp *%rax
high:
  movabsq ${stack:#x}, %rsp
  lidt idt_pointer(%rip)
  lgdt gdt_high_pointer(%rip)
  movl $0x28, %eax
  ltr %ax
  xorl %eax, %eax
  xorl %ebx, %ebx
  xorl %ecx, %ecx
  xorl %edx, %edx
  {snippet}
  movb $0x11, %al
  outb %al, $0xf4
hang:
  cli
  hlt
  jmp hang
handler:
  movb $0x22, %al
  outb %al, $0xf4
  jmp hang
.balign 16
gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff
tss_descriptor: .quad 0x8000890000000067 | (({high:#x} + tss - start) & 0xffffff) << 16, 0xffffffff
gdt_pointer: .word 55
  .quad {base:#x} + gdt - start
gdt_high_pointer: .word 55
  .quad {high:#x} + gdt - start
idt_pointer: .word {idt_limit}
  .quad {idt_base}
.balign 16
tss: .long 0
  .quad {rsp0:#x}
  .fill 92, 1, 0
.balign 4096
idt: .fill 4096, 1, 0
"""

TO_USER = """
  movabsq ${user:#x}, %rdi
  leaq 8f(%rip), %rsi
  movl $(9f - 8f), %ecx
  rep movsb
  pushq $0x1b
  movabsq ${user:#x} + 0x800, %rax
  pushq %rax
  pushq $2
  pushq $0x23
  movabsq ${user:#x}, %rax
  pushq %rax
  iretq
8:
  {snippet}
9:
"""

Break = Callable[["Bench"], None]


@dataclass
class Case:
    """A guest and what is true of it. *snippet* runs at `HIGH` at level 0, *user* in the page `USER` at level 3."""

    name: str
    mode: PagingMode
    rule: str
    level: Level | None = None
    address: int | None = None
    snippet: str = ""
    user: str = ""
    broken: Break = lambda bench: None
    cr4: int = 0
    cr0: int = 0x8001_0011
    efer: int = 0xD00
    idt_limit: str = "0xfff"
    idt_base: str = f"{HIGH:#x} + idt - start"
    log_rules: frozenset[str] = frozenset()
    """Rules that a log alone may name; empty for the true one only."""
    engines: tuple[str, ...] = ("unicorn", "qemu")
    access: str | None = None
    gates: bool = False
    user_maps: bool = False
    tables_of: PagingMode | None = None
    """The depth of the tables, where it is not the mode's."""
    rsp0: int = STACK
    says: str = ""
    """Words of the cause's sentence where memory is there."""


@dataclass
class Bench:
    """The memory of a guest while it is put together; `edit` breaks an entry."""

    ram: Ram
    space: AddressSpace
    labels: dict[str, int] = field(default_factory=dict)

    def edit(self, va: int, level: Level, change: Callable[[int], int]) -> None:
        """Replace the entry of *level* on the path of *va*."""
        step = next(step for step in walk(self.space, VirtAddr(va)) if step.entry.level == level)
        self.ram.write(step.at, change(step.entry.raw).to_bytes(8, "little"))

    def replace(self, va: int, level: Level, raw: int) -> None:
        """Make an entry *raw*."""
        self.edit(va, level, lambda old: raw)

    def clear(self, va: int, level: Level) -> None:
        """Make an entry empty."""
        self.edit(va, level, lambda raw: 0)

    def without(self, va: int, level: Level, bits: int) -> None:
        """Clear *bits* of an entry."""
        self.edit(va, level, lambda raw: raw & ~bits)

    def with_bits(self, va: int, level: Level, bits: int) -> None:
        """Set *bits* of an entry."""
        self.edit(va, level, lambda raw: raw | bits)

    def map(self, va: int, pa: int, flags: int) -> None:
        """Map one page."""
        map_page(self.ram, self.space, VirtAddr(va), Entry(pa | flags, Level.PT), self.frames)

    @property
    def frames(self) -> Frames:
        """Table frames."""
        return self._frames

    def __post_init__(self) -> None:
        self._frames = Frames(self.ram, PhysAddr(TABLES + 0x1000), 60)

    def gate(self, vector: int, offset: int, flags: int = 0x8E00, selector: int = 8) -> None:
        """Write the gate of *vector*."""
        low = offset & 0xFFFF | selector << 16 | flags << 32 | (offset >> 16 & 0xFFFF) << 48
        at = self.labels["idt"] + 16 * vector
        self.ram.write(PhysAddr(at), struct.pack("<QQ", low, offset >> 32))


def build(case: Case) -> Bench:
    """The memory of *case*: code at `BASE`, tables at `TABLES`."""
    ram = Ram.of_size(2 * MIB, BASE)
    tables = case.tables_of or case.mode
    bench = Bench(ram, AddressSpace(ram, PhysAddr(TABLES), tables, Cpu(phys_bits=40)))
    la57 = 1 << 12 if case.mode.top > Level.PML4 else 0
    snippet = TO_USER.format(user=USER, snippet=case.user) if case.user else case.snippet
    code, labels = assemble(
        SOURCE.format(
            cr4=0x20 | la57 | case.cr4, cr3=TABLES, efer=case.efer & ~0x400, cr0=case.cr0, base=BASE, high=HIGH,
            stack=STACK, snippet=snippet, idt_limit=case.idt_limit, idt_base=case.idt_base, rsp0=case.rsp0,
        )
    )  # fmt: skip
    bench.labels = {name: BASE + at for name, at in labels.items()}
    ram.write(PhysAddr(BASE), code)
    _map(bench, bool(case.user) or case.user_maps)
    if case.gates:
        handler = HIGH + labels["handler"]
        for vector in range(32):
            bench.gate(vector, handler, 0xEE00 if vector == 3 else 0x8E00)
    case.broken(bench)
    return bench


def _map(bench: Bench, with_user: bool) -> None:
    flags = int(Flag.P | Flag.RW)
    map_range(bench.ram, bench.space, range(4 * MIB), flags, bench.frames)
    for offset in range(0, HIGH_SIZE, 0x1000):
        if offset not in (0xE000, 0x10000):
            bench.map(HIGH + offset, BASE + offset, flags)
    if with_user:
        bench.map(USER, BASE + 0x1A000, flags | int(Flag.US))


@cache
def assemble(text: str) -> tuple[bytes, dict[str, int]]:
    """AT&T syntax through LLVM: the bytes and where its labels are in them."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_target()
    llvm.initialize_native_asmparser()
    quoted = "\n".join(
        'module asm "' + line.replace("\\", "\\5C").replace('"', "\\22") + '"' for line in text.splitlines() if line
    )
    module = llvm.parse_assembly('target triple = "x86_64-unknown-none-elf"\n' + quoted)
    target = llvm.Target.from_triple("x86_64-unknown-none-elf").create_target_machine()
    parsed = ELFFile(io.BytesIO(target.emit_object(module)))
    symbols = parsed.get_section_by_name(".symtab").iter_symbols()
    labels = {symbol.name: symbol["st_value"] for symbol in symbols if symbol.name}
    return parsed.get_section_by_name(".text").data(), labels


def image_of(bench: Bench) -> bytes:
    """The memory as a bootable ELF with the 32-bit entry at `BASE`."""
    (start, data), *_ = bench.ram.banks()
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", BASE)
    offset = 64 + 2 * 56
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 2, 62, 1, BASE, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, offset + len(note), start, start, len(data), len(data), 16)
    notes = struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, len(note), len(note), 4)
    return header + load + notes + note + bytes(data)


def run_qemu(bench: Bench, folder: Path, cpu: str = "max") -> tuple[Path, Path]:
    """Run on QEMU until it resets or exits: its log and its memory, a raw image."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    image, log, memory = folder / "image.elf", folder / "qemu.log", folder / "ram"
    image.write_bytes(image_of(bench))
    command = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", cpu,
        "-M", "microvm,memory-backend=ram", "-m", f"{MEMORY}B", "-object",
        f"memory-backend-file,id=ram,size={MEMORY},mem-path={memory},share=on", "-no-reboot",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-d", "int,cpu_reset", "-D", str(log), "-kernel", str(image),
    ]  # fmt: skip
    subprocess.run(command, timeout=20, check=False, capture_output=True)
    return log, memory


@dataclass(frozen=True)
class Lab:
    """What tests build guests with; see the functions of the same names."""

    case: type[Case] = Case
    build: Callable[[Case], Bench] = build
    image_of: Callable[[Bench], bytes] = image_of
    run_qemu: Callable[..., tuple[Path, Path]] = run_qemu
    assemble: Callable[[str], tuple[bytes, dict[str, int]]] = assemble


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()


@pytest.fixture(scope="session")
def data() -> Path:
    """The recorded faults; see tests/data/ORIGIN.md."""
    return DATA
