"""The third way to ask for the mode: a branch that is patched when it is known. For fold.py; the kernel does without.

A site starts as a jump to a test of the variable, so it is right before patching too. Patched, it is five bytes of
nothing where the mode has five levels, and a jump to the other arm where it has four. Every site, inlined copies too,
records itself in `.sites`.
"""

from __future__ import annotations

import struct
from typing import Final

from fivefold.metal.check.check import check
from fivefold.metal.emit.intrinsics import Target
from fivefold.metal.emit.link import Linked
from fivefold.metal.emit.llvm import write
from fivefold.metal.emit.objects import emit
from fivefold.metal.program import Program

_NOP: Final = bytes.fromhex("0f1f440000")
_TEST: Final = """\
  %t4 = call i64 @"pgtable.p4d_folded()"() #0
  %t5 = icmp ne i64 %t4, 0
  br i1 %t5, label %then1, label %else2
"""
_SITE: Final = (
    r"771: .byte 0xe9\0A.long ${1:l} - 772f\0A772:\0A"
    r".pushsection .sites, \22a\22\0A.quad 771b, ${0:l}\0A.popsection"
)
_PATCHABLE: Final = f"""\
  callbr void asm sideeffect "{_SITE}", "!i,!i"() to label %else2 [label %then1, label %dynamic]
dynamic:
{_TEST}"""


def compile_with_jump_label(program: Program) -> bytes:
    """Compile *program* with the test in `p4d_offset` patchable; `ValueError` if it has another shape now."""
    target = Target("x86_64", "")
    text = write(check(program), target, "")
    if text.count(_TEST) != 1:
        raise ValueError("p4d_offset does not test the mode the way this bench patches")
    return emit(text.replace(_TEST, _PATCHABLE), target)


def patches(linked: Linked, five_levels: bool) -> dict[int, bytes]:
    """What to write where, once the mode is known: five bytes at each recorded site."""
    found = {}
    for site, four_levels in struct.iter_unpack("<2Q", linked.group(".sites").data):
        found[site] = _NOP if five_levels else b"\xe9" + struct.pack("<i", four_levels - site - 5)
    return found
