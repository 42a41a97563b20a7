"""Where CPUs are, by function: RIP, and words of the stack that a call left there."""

from __future__ import annotations

import struct

import pytest

from fivefold.errors import MemoryReadError
from fivefold.explain.naming import Naming
from fivefold.explain.whereabouts import MOST_FRAMES, whereabouts
from fivefold.memory import CpuState
from fivefold.symbols import Symbols, SymbolSpan
from fivefold.units import PhysAddr

TEXT, STACK = 0xFFFF_FFFF_8100_0000, 0xFFFF_C900_0000_0000
TABLE = Symbols(
    [SymbolSpan.of([(TEXT, "T", "idle"), (TEXT + 0x100, "T", "caller"), (TEXT + 0x200, "T", "start")], TEXT + 0x1000)],
    "made here",
    is_running=True,
)
NAMING = Naming(TABLE, 0, "made here")


def sentences(code: bytes, stack: list[int], rsp: int = STACK + 0x3F00, rip: int = TEXT + 4) -> tuple[str, ...]:
    """With *code* right in front of ``caller+0x50``, and *stack* at *rsp*."""
    text = bytearray(b"\x90" * 0x1000)
    text[0x150 - len(code) : 0x150] = code
    words = struct.pack(f"<{len(stack)}Q", *stack)
    memory = {TEXT: bytes(text), rsp: words.ljust(0x4000 - rsp % 0x4000, b"\0")}

    def read(va: int, size: int) -> bytes:
        for start, data in memory.items():
            if start <= va and va + size <= start + len(data):
                return data[va - start : va - start + size]
        raise MemoryReadError(PhysAddr(va), size, "made here")

    return whereabouts([CpuState("made here", general={"rip": rip, "rsp": rsp})], read, NAMING)


CALLER = TEXT + 0x150
CALLS = ["e8 01020304", "ffd0", "41ffd7", "ff10", "ff14 25 01020304"[:8], "ff15 01020304", "ff5008", "ff542408"]
CALLS += ["ff90 0a0a0a0a", "ff9424 01020304", "e8 0000000a"]


@pytest.mark.parametrize("code", CALLS)
def test_a_word_behind_a_call(code: str) -> None:
    here, stack = sentences(bytes.fromhex(code), [7, CALLER, STACK])
    assert here == "CPU 0 is at RIP 0xffffffff81000004, in idle+0x4"
    assert stack == "on the stack of CPU 0, behind calls: caller+0x50"


@pytest.mark.parametrize("code", ["9090", "ffe0", "ff20", "ff25 01020304", "e9 01020304", "ff30"])
def test_a_word_behind_anything_else(code: str) -> None:
    """Jumps and pushes are no calls; nor is the first byte of a function behind what ends with one."""
    assert len(sentences(bytes.fromhex(code), [CALLER])) == 1
    assert len(sentences(b"", [TEXT + 0x100])) == 1


def test_bounds() -> None:
    """A stack without end, one that is not mapped, and one of a user."""
    call = bytes.fromhex("ffd0")
    (_, stack) = sentences(call, [CALLER] * 100, rsp=STACK + 0x3000)
    assert stack.count("caller") == MOST_FRAMES
    assert len(sentences(call, [CALLER], rsp=0x7FFF_0000)) == 1
    assert len(sentences(call, [CALLER], rsp=STACK + 0x3F04)) == 1
    assert sentences(call, [CALLER], rip=0x40_0000) == ()
