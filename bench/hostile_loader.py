"""A loader of our own that leaves a drawn world (`loader_worlds.py`) in a real machine's memory and enters `entry_64`.

    python bench/hostile_loader.py --worlds 20 --seed 1 --engine qemu
    python bench/hostile_loader.py --worlds 1 --seed 7 --output hostile.elf     # for another machine

It is one file for PVH and multiboot2 loaders. It lies above the world's memory, which its map does not show, copies all
that the world has to its place, and leaves by a page of that world: with the world's tables, GDT, stack and registers.
The exit status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from fivefold.arch import LA57
from fivefold.boot import BootOptions, Image, Run, build_image
from fivefold.boot.image.iso import iso_file
from fivefold.boot.image.multiboot2 import ImageExtent, multiboot2_header
from fivefold.boot.run import boot_guest
from fivefold.errors import FivefoldError
from fivefold.machine import Guest
from fivefold.metal.emit.elf import read_object
from fivefold.metal.emit.objects import assemble
from fivefold.units import GIB, MIB
from loader_worlds import LARGE, PAGE, Wish, World, draw_world

HEADER: Final = PAGE
"""Bytes of the file before its code: the ELF headers and, at 0x800, multiboot2's."""
MB2_AT: Final = 0x800
STUB_AT: Final = 0x1000
TABLES_AT: Final = 0x2000
"""Tables of the loader's own: one above the other, then eight of 1 GiB in pages of 2 MiB."""
GIBS: Final = 8
LIST_AT: Final = TABLES_AT + (3 + GIBS) * PAGE
LEAVE_STACK: Final = 0xFF0
PAE, CR4_LA57 = 1 << 5, 1 << 12
PCIDE: Final = 1 << 17
PG_ET_PE: Final = 1 << 31 | 1 << 4 | 1

STUB: Final = """
        .section .text
        .code32
start:  cli
        cld
        movl    $({cr4}), %eax
        movl    %eax, %cr4
        movl    $({tables}), %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000001, %eax
        movl    %eax, %cr0
        lgdt    {base} + gdt_pointer - start
        ljmpl   $8, ${base} + long - start
        .code64
long:   movl    ${list}, %ebp
1:      movq    0(%rbp), %rdi
        movq    8(%rbp), %rsi
        movq    16(%rbp), %rcx
        addq    $24, %rbp
        testq   %rcx, %rcx
        jz      3f
        testq   %rsi, %rsi
        jz      2f
        rep     movsb
        jmp     1b
2:      xorl    %eax, %eax
        rep     stosb
        jmp     1b
3:      movabsq ${leave}, %rax
        jmp     *%rax
        .p2align 3
gdt:    .quad   0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
        .word   23
        .long   {base} + gdt - start
        .p2align 4
last:   leaq    LAST_STACK(%rip), %rsp
        lgdt    last_pointer(%rip)
        movl    $0xc0000080, %ecx
        rdmsr
        andl    $~0x800, %eax
        orl     $({efer}), %eax
        wrmsr
        movabsq ${root}, %rax
        movq    %rax, %cr3
        movl    $({cr0}), %eax
        movq    %rax, %cr0
        movl    $({leave_cr4}), %eax
        movq    %rax, %cr4
        movl    $0x18, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    %eax, %fs
        movl    %eax, %gs
        pushq   $0x10
        leaq    1f(%rip), %rax
        pushq   %rax
        lretq
1:      movabsq ${info}, %rsi
        movabsq ${entry}, %rdx
        movq    $-1, %rbx
        movq    %rbx, %rbp
        movq    %rbx, %rdi
        std
        jmp     *%rdx
        .p2align 3
last_gdt:
        .quad   0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
last_pointer:
        .word   31
        .quad   {leave} + last_gdt - last
last_end:
        .set    LAST_STACK, last + 0xff0
"""


def stub(world: World, base: int, entry: int, more_cr4: int = 0) -> tuple[bytes, bytes]:
    """Machine code of the loader, for address *base*, and of its last page."""
    five = CR4_LA57 if world.mode is LA57 else 0
    assert world.registers is not None
    text = STUB.format(
        base=base + STUB_AT,
        cr4=PAE | five,
        tables=base + TABLES_AT,
        list=base + LIST_AT,
        leave=world.leave,
        efer=0x800 if world.registers.nxe else 0,
        root=world.root,
        cr0=PG_ET_PE | world.registers.cr0,
        leave_cr4=PAE | five | world.registers.cr4 | more_cr4,
        info=world.info,
        entry=entry,
    )
    found = read_object(assemble(text), "the loader")
    code = next(section for section in found.sections if section.name == ".text").data
    last = next(symbol.value for symbol in found.symbols if symbol.name == "last")
    return code, code[last:]


def own_tables(world: World, base: int) -> bytes:
    """The tables that the loader runs on while it copies: 8 GiB mapped at itself."""
    five = world.mode is LA57
    places = [base + TABLES_AT + i * PAGE for i in range(3 + GIBS)]
    top, pdpt, pds = places[0], places[2] if five else places[1], places[3:]
    tables = {at: bytearray(PAGE) for at in places}
    struct.pack_into("<Q", tables[top], 0, (places[1] if five else pdpt) | 3)
    if five:
        struct.pack_into("<Q", tables[places[1]], 0, pdpt | 3)
    for gib, at in enumerate(pds):
        struct.pack_into("<Q", tables[pdpt], 8 * gib, at | 3)
        struct.pack_into("<512Q", tables[at], 0, *(gib * GIB + i * LARGE | 0x83 for i in range(512)))
    return b"".join(bytes(tables[at]) for at in places)


def loader_file(world: World, image: Image, more_cr4: int = 0) -> tuple[bytes, int]:
    """The file for *world*, entered by PVH or multiboot2, and how much memory its machine needs."""
    base = max(at + size for at, size, kind in world.rows if kind == 1 and at < 4 * GIB) + LARGE - 1 & -LARGE
    code, last = stub(world, base, image.physical("entry_64", world.load), more_cr4)
    blocks = {**world.memory, world.leave: last}
    for part in image.parts:
        at = part.start - image.link_address + world.load
        blocks[at] = part.data
    end = world.load + image.size
    filled = world.load + max(part.start + len(part.data) for part in image.parts) - image.link_address
    listed, payload = [(filled, 0, end - filled)], bytearray()
    start = base + LIST_AT + PAGE * (1 + len(blocks) * 24 // PAGE + 1)
    for at, data in blocks.items():
        listed.append((at, start + len(payload), len(data)))
        payload += data
    rows = b"".join(struct.pack("<3Q", *row) for row in listed) + bytes(24)
    body = code.ljust(TABLES_AT - STUB_AT, b"\0") + own_tables(world, base)
    body += rows.ljust(start - base - LIST_AT, b"\0") + bytes(payload)
    high = any(at >= 4 * GIB for at in blocks)
    size = 3 * GIB + 64 * MIB if high else base + HEADER + len(body) + 8 * MIB & -MIB
    return elf_file(base, body), size


def elf_file(base: int, body: bytes) -> bytes:
    """One segment, from the headers on, entered at its second page in 32 bits, by PVH's note or multiboot2's header."""
    size = HEADER + len(body)
    entry = base + STUB_AT
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", entry)
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 2, 62, 1, entry, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 7, 0, base, base, size, size, PAGE)
    head += struct.pack("<IIQQQQQQ", 4, 4, 64 + 2 * 56, 0, 0, len(note), len(note), 4)
    extent = ImageExtent(base + MB2_AT, base, base + size, base + size)
    return (head + note).ljust(MB2_AT, b"\0") + multiboot2_header(extent, entry).ljust(HEADER - MB2_AT, b"\0") + body


def boot_world(world: World, image: Image, cpu: str, options: BootOptions) -> Run:
    """Boot *image* in *world*, with *options* whose command line is the world's: judged as any other boot."""
    file, memory = loader_file(world, image)
    on_bochs = options.runs_on == "bochs"
    guest = Guest(
        image=iso_file(None, file) if on_bochs else file,
        entry="multiboot2" if on_bochs else "pvh",
        cpu=cpu,
        memory=memory,
        cmdline=options.full_cmdline,
        sites=image.sites(world.load),
        cpus=options.cpus,
    )
    return boot_guest(guest, replace(options, memory=memory, load_address=world.load), image)


def entry_of(world: World, engine: str) -> str:
    """The entry by which a run in *world* is judged."""
    return "multiboot2" if engine == "bochs" else "long57" if world.mode is LA57 else "long48"


def bootable(seed: int, wish: Wish, cpu: str) -> World | None:
    """The world of *seed* if it has room and a depth that *cpu* has; else None."""
    try:
        world = draw_world(seed, wish)
    except AssertionError:
        return None
    return world if cpu == "la57" or world.mode is not LA57 else None


def draws(first: int, count: int, engine: str, image: Image) -> Iterator[tuple[int, str, World, BootOptions]]:
    """Worlds from seed *first* on with a CPU and options for each."""
    seed = first
    while count:
        dice = random.Random(f"words {seed}")
        cpu = dice.choice(("la57", "la48"))
        words = [f"kaslr={dice.getrandbits(32)}" if dice.random() < 0.7 else ""]
        words += [word for word in ("no5lvl", "kasan", "pages=4k") if dice.random() < 0.2]
        smp = dice.choice((1, 2)) if engine != "unicorn" else 1
        line = " ".join(filter(None, words))
        full = BootOptions(cmdline=line, smp=smp, engine=engine if engine == "qemu" else None).full_cmdline
        wish = Wish(image.size, full, high=engine != "bochs" and dice.random() < 0.3, largest=GIB)
        world = bootable(seed, wish, cpu)
        if world is not None:
            entry = entry_of(world, engine)
            yield seed, cpu, world, BootOptions(engine=engine, entry=entry, cmdline=line, smp=smp, timeout=120)  # type: ignore[arg-type]
            count -= 1
        seed += 1


def main() -> int:
    """Boot as many worlds as asked, or write one; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("unicorn", "qemu", "bochs"), default="unicorn")
    parser.add_argument("--output", type=Path, help="write the loader of the first world instead")
    given = parser.parse_args()
    image, failed = build_image(), 0
    for seed, cpu, world, options in draws(given.seed, given.worlds, given.engine, image):
        if given.output is not None:
            file, memory = loader_file(world, image)
            given.output.write_bytes(file)
            split = ", split at 3 GiB (QEMU: -M pc,max-ram-below-4g=3G)" if memory > 3 * GIB else ""
            print(f"world {seed} for {cpu}: {given.output}, {memory // MIB} MiB of memory{split}")
            return 0
        try:
            run = boot_world(world, image, cpu, options)
            wrong = [f"{check.name}: {check.detail}" for check in run.checks if not check.ok]
        except FivefoldError as error:
            wrong = [str(error)]
        failed += bool(wrong)
        if wrong:
            print(f"world {seed}: {cpu} {options.full_cmdline}: {'; '.join(wrong)}", flush=True)
    print(f"{given.worlds} worlds on {given.engine}, {failed} failed, from seed {given.seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
