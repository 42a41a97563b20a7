"""Guests for the engines: assembled here, wrapped into the smallest bootable ELF."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm
import pytest
from elftools.elf.elffile import ELFFile

from fivefold.machine import Guest, Machine, Timeout, available, start

BASE = 0x200000
"""Where every test guest is loaded."""

PRELUDE = f"""
.set BASE, {BASE:#x}
.macro putc char
  movw $0x3f8, %dx
  movb $\\char, %al
  outb %al, %dx
.endm
.macro exit code
  movb $\\code, %al
  outb %al, $0xf4
  cli
  hlt
  jmp .-1
.endm
start:
"""

# 32-bit code: long mode with identity tables for 1 GiB, the depth by `levels`.
# Tables lie at 0x300000: PML5, PML4, PDPT, PD (512 pages of 2 MiB).
LONG_MODE = """
.set TABLES, 0x300000
.macro long_mode levels, efer=0x100, cr0=0x80000011
  movl $TABLES, %edi
  xorl %eax, %eax
  movl $0x1000, %ecx
  cld
  rep stosl
  movl $(TABLES + 0x1007), TABLES
  movl $(TABLES + 0x2007), TABLES + 0x1000
  movl $(TABLES + 0x3007), TABLES + 0x2000
  movl $0x87, %eax
  movl $(TABLES + 0x3000), %edi
1:
  movl %eax, (%edi)
  addl $0x200000, %eax
  addl $8, %edi
  cmpl $(TABLES + 0x4000), %edi
  jne 1b
  .if \\levels == 5
  movl $0x1020, %eax
  movl %eax, %cr4
  movl $TABLES, %eax
  .else
  movl $0x20, %eax
  movl %eax, %cr4
  movl $(TABLES + 0x1000), %eax
  .endif
  movl %eax, %cr3
  movl $0xc0000080, %ecx
  movl $\\efer, %eax
  xorl %edx, %edx
  wrmsr
  movl $\\cr0, %eax
enable_paging:
  movl %eax, %cr0
  lgdt BASE + gdt_pointer - start
  ljmp $8, $(BASE + in_long_mode - start)
.endm
.macro descriptors
.balign 16
gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff
tss_descriptor: .quad 0x0000890000000067 | ((BASE + tss - start) & 0xffffff) << 16, 0
gdt_pointer: .word 55
  .quad BASE + gdt - start
idt_pointer: .word 0xfff
  .quad 0x308000
.balign 16
tss: .long 0
  .quad 0x310000
  .fill 92, 1, 0
.endm
# The IDT lies at 0x308000. Clobbers RAX and RDI.
.macro gate vector, handler, ist=0, flags=0x8e00
  movl $(BASE + \\handler - start), %eax
  movl $(0x308000 + 16 * \\vector), %edi
  movw %ax, (%edi)
  movw $8, 2(%edi)
  movw $(\\flags | \\ist), 4(%edi)
  shrl $16, %eax
  movl %eax, 6(%edi)
.endm
.macro long_data
  movw $0x10, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  movabsq $0x320000, %rsp
  lidt BASE + idt_pointer - start
  movw $0x28, %ax
  ltr %ax
.endm
"""


@dataclass(frozen=True)
class Code:
    """Assembled code for `BASE` and the addresses of its labels."""

    data: bytes
    labels: dict[str, int]

    @property
    def image(self) -> bytes:
        """As a bootable ELF whose 32-bit entry is `BASE`."""
        return elf(self.data)


@cache
def assemble(text: str, prelude: str = PRELUDE + LONG_MODE) -> Code:
    """AT&T syntax through LLVM; code starts as 32-bit."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()
    lines = "\n".join(
        "module asm " + quoted(line) for line in (".text\n.code32\n" + prelude + text).splitlines() if line.strip()
    )
    module = llvm.parse_assembly('target triple = "x86_64-unknown-none-elf"\n' + lines)
    target = llvm.Target.from_triple("x86_64-unknown-none-elf").create_target_machine()
    parsed = ELFFile(io.BytesIO(target.emit_object(module)))
    assert not [s for s in parsed.iter_sections() if s["sh_type"] in ("SHT_RELA", "SHT_REL")], "not self-contained"
    symbols = parsed.get_section_by_name(".symtab").iter_symbols()
    labels = {s.name: BASE + s["st_value"] for s in symbols if s["st_shndx"] != "SHN_ABS"}
    return Code(parsed.get_section_by_name(".text").data(), labels)


def quoted(line: str) -> str:
    """A line as a string of LLVM's text form."""
    return '"' + line.replace("\\", "\\5C").replace('"', "\\22") + '"'


def elf(code: bytes, at: int = BASE, entry: int | None = None, memory_size: int | None = None) -> bytes:
    """One PT_LOAD at physical *at* and the Xen note with the 32-bit *entry*."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", (at if entry is None else entry) & 0xFFFFFFFF)
    offset = 64 + 2 * 56
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 2, 62, 1, at, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    body = offset + len(note)
    size = len(code) if memory_size is None else memory_size
    loads = struct.pack("<IIQQQQQQ", 1, 7, body, at, at, len(code), size, 16)
    notes = struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, len(note), len(note), 4)
    return header + loads + notes + note + code


LONG_GUEST = """
  {before}
  long_mode {levels} {options}
.code64
in_long_mode:
  long_data
  {body}
  descriptors
"""


def long_code(body: str, levels: int = 4, options: str = "", before: str = "") -> Code:
    """*body* in 64-bit mode under *levels*; *before* runs in 32-bit mode and may set gates."""
    return assemble(LONG_GUEST.format(body=body, levels=levels, options=options, before=before))


def run_until_output(machine: Machine) -> None:
    """Run a guest that goes on for ever until it has written something: firmware takes its time under load."""
    for _ in range(200):
        assert isinstance(machine.run(0.1), Timeout)
        if machine.output:
            return
    pytest.fail("the guest wrote nothing", pytrace=False)


@dataclass(frozen=True)
class Workshop:
    """What tests build guests with; see the functions of the same names."""

    base: int = BASE
    assemble: Callable[..., Code] = assemble
    long_code: Callable[..., Code] = long_code
    elf: Callable[..., bytes] = elf
    run_until_output: Callable[[Machine], None] = run_until_output


@pytest.fixture(scope="session")
def workshop() -> Workshop:
    return Workshop()


Boot = Callable[..., Machine]


def _boot(engine: str) -> Iterator[Boot]:
    with ExitStack() as machines:
        yield lambda image, **guest: machines.enter_context(start(engine, Guest(image, **guest)))


@pytest.fixture
def unicorn() -> Iterator[Boot]:
    """Start a guest on Unicorn; closed at the end of the test."""
    yield from _boot("unicorn")


def need(engine: str) -> None:
    """Skip the test, with the reason, where *engine* is not available."""
    if (reason := available(engine)) is not None:
        pytest.skip(reason)


@pytest.fixture
def qemu() -> Iterator[Boot]:
    """Start a guest on QEMU with TCG; closed at the end of the test."""
    need("qemu")
    yield from _boot("qemu")


@pytest.fixture(params=["unicorn", pytest.param("qemu", marks=pytest.mark.qemu)])
def boot(request: pytest.FixtureRequest) -> Iterator[Boot]:
    """Start a guest on each engine in turn."""
    need(request.param)
    yield from _boot(request.param)
