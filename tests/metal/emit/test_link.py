"""Objects are placed, their symbols resolved, and what does not fit is refused."""

from __future__ import annotations

import pytest

from fivefold.errors import ImageError
from fivefold.metal.emit.elf import read_object
from fivefold.metal.emit.link import DEFAULT_GROUPS, Fixup, Group, link
from fivefold.metal.emit.objects import assemble

BASE = 0xFFFF_FFFF_8100_0000
GROUPS = (Group(".head", (".boot", ".note")), *DEFAULT_GROUPS)
BOOT = """
.section .note.start, "a"
.long start - 0xffffffff80000000
.section .boot, "ax"
.code32
.globl start
start:
    movl $(finish - start), %eax
    call finish
.text
.code64
.globl finish
finish:
    movq $table, %rax
    leaq zeros(%rip), %rbx
    ret
.data
.globl table
table: .quad finish, 7
.bss
.globl zeros
zeros: .skip 0x1800
"""


def word(image, address, size):
    return int.from_bytes(image.flat()[address - BASE : address - BASE + size], "little")


def test_places_groups_and_fills_addresses():
    image = link({"boot": assemble(BOOT)}, base=BASE, groups=GROUPS)
    placed = [(group.name, group.address - BASE, group.size, len(group.data)) for group in image.groups]
    finish, table = image.symbols["finish"], image.symbols["table"]

    assert placed == [
        (".head", 0, 14, 14),
        (".text", 0x1000, 15, 15),
        (".rodata", 0x2000, 0, 0),
        (".data", 0x2000, 16, 16),
        (".bss", 0x3000, 0x1800, 0),
    ]
    assert word(image, BASE + 1, 4) == finish - BASE
    assert (word(image, BASE + 6, 4) + BASE + 10) & 0xFFFF_FFFF == finish & 0xFFFF_FFFF
    assert word(image, BASE + 10, 4) == 0x100_0000
    assert word(image, finish + 3, 4) == table & 0xFFFF_FFFF
    assert word(image, table, 8) == finish
    assert image.fixups == (Fixup(BASE + 10, 4), Fixup(finish + 3, 4), Fixup(table, 8))
    assert image.end == BASE + 0x4800
    assert len(image.flat()) == 0x2010


def test_linker_defines_ends_of_groups():
    symbols = link([assemble(BOOT)], base=BASE, groups=GROUPS, defines={"landmark": 0x55}).symbols

    assert symbols["__text_end"] - symbols["__text_start"] == 15
    assert symbols["__bss_end"] - symbols["__bss_start"] == 0x1800
    assert (symbols["__image_start"], symbols["__image_end"]) == (BASE, BASE + 0x4800)
    assert symbols["landmark"] == 0x55


def test_several_objects_share_symbols():
    first = assemble(".globl one\none: call two\nret\n")
    second = assemble(".globl two\ntwo: jmp one\n.code16\nmovw $here, %ax\nhere:\n")
    image = link([first, second], base=0x7000)

    assert image.symbols["two"] > image.symbols["one"] == 0x7000
    assert image.flat()[1:5] == (image.symbols["two"] - 0x7005).to_bytes(4, "little")


def test_gap_between_code_is_int3():
    first, second = assemble(".byte 0x90\n"), assemble(".p2align 4\n.byte 0x90\n")

    assert link([first, second], base=0x7000).flat() == b"\x90" + b"\xcc" * 15 + b"\x90"


def test_32_bit_object_beside_64_bit():
    small = assemble(".globl early\nearly: call later\nret\n", arch="i386")
    large = assemble(".code32\n.globl later\nlater: jmp early\n")
    image = link([small, large], base=0x10_0000)

    assert image.flat()[1:5] == (image.symbols["later"] - 0x10_0005).to_bytes(4, "little")


REFUSED = {
    "undefined": ([".globl a\na: call missing\n"], "object 0: missing is not defined"),
    "duplicate": ([".globl a\na: ret\n", ".globl a\na: ret\n"], "a is defined by object 0 and by object 1"),
    "of the linker": ([".globl __text_end\n__text_end: ret\n"], "__text_end is defined by the linker and by object 0"),
    "no group": (['.section .odd, "a"\n.byte 1\n'], "object 0: section .odd is in no group"),
    "too far": (
        [".globl a\na: movl $a, %eax\n"],
        "object 0: .text+0x1: a is out of reach: 0xffffffff81000000 does not fit 32",
    ),
    "16 bits": (
        [".code16\n.globl a\na: movw $a, %ax\n"],
        "object 0: .text+0x1: a is out of reach: 0xffffffff81000000 does not fit 16",
    ),
    "far call": (
        ["call far\n", ".globl far\nfar = 0x100000000000\n"],
        "object 0: .text+0x1: far is out of reach: 0x000010007efffffb does not fit pc32",
    ),
    "GOT": ([".globl a\na: movq b@GOTPCREL(%rip), %rax\n"], "object 0: relocation type 42 is not supported"),
    "common": ([".comm shared, 8, 8\n"], "object 0: shared is a common symbol; give it a section"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    sources, message = REFUSED[case]
    with pytest.raises(ImageError) as caught:
        link([assemble(source) for source in sources], base=BASE)

    assert str(caught.value).startswith(message)


def test_damaged_objects_are_refused():
    good = assemble(BOOT)

    with pytest.raises(ImageError, match=r"^kernel is not a little-endian ELF object$"):
        link({"kernel": b"MZ" + bytes(100)}, base=BASE)
    with pytest.raises(ImageError, match=r"^object is no relocatable x86 or AArch64 object \(type 2, machine 62\)$"):
        read_object(good[:16] + b"\x02" + good[17:])
    for size in range(0, len(good), 7):
        with pytest.raises(ImageError):
            link([good[:size]], base=BASE, groups=GROUPS)


def test_every_damaged_byte_links_or_is_refused():
    """No forged header ends in anything but an `ImageError`."""
    good = assemble(BOOT)
    refused = 0
    for at in range(16, len(good)):
        for change in (0xFF, 0x01, 0x80):
            forged = bytearray(good)
            forged[at] ^= change
            try:
                link([bytes(forged)], base=BASE, groups=GROUPS)
            except ImageError as error:
                refused += 1
                assert "\n" not in str(error)

    assert refused > len(good) // 4


def test_missing_group_is_named():
    with pytest.raises(ImageError, match=r"^no group \.user; there are \.text, \.rodata, \.data, \.bss$"):
        link([], base=BASE).group(".user")
