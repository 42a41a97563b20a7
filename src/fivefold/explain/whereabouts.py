"""Where each CPU of a guest is: the function of its RIP, and those on its stack that call it.

Kernels of today have no frame pointers, and their unwind tables are not in every memory: a word of the stack counts as
a frame where it points into a function, right behind a call. A word that an earlier call left behind may look so, too.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from fivefold.errors import FivefoldError
from fivefold.explain.naming import Naming
from fivefold.memory.registers import CpuState
from fivefold.units import PAGE, VirtAddr, hex64

MOST_CPUS: Final = 8
MOST_FRAMES: Final = 16
STACK: Final = 16 * 1024
"""Bytes of a kernel stack, which begins at a multiple of it. Source: Linux, ``THREAD_SIZE`` of x86-64."""

_LONGEST_CALL: Final = 7
_CALL: Final = re.compile(
    rb"\xe8.{4}\Z|(?:[\x40-\x4f])?\xff(?:[\xd0-\xd7]|[\x10-\x13\x16-\x17]|\x14.|[\x50-\x53\x55-\x57].|\x54..|"
    rb"\x15.{4}|[\x90-\x93\x95-\x97].{4}|\x94.{5})\Z",
    re.DOTALL,
)
"""``call`` with a displacement, and through a register or memory. Source: Intel SDM, volume 2, "CALL"."""

Read = Callable[[VirtAddr, int], bytes]
"""Reads virtual memory; raises an error of ours where it is not mapped."""


def whereabouts(cpus: Sequence[CpuState], read: Read, naming: Naming) -> tuple[str, ...]:
    """A sentence for each CPU that runs a kernel with names, and one for its stack."""
    found: list[str] = []
    for number, cpu in enumerate(cpus[:MOST_CPUS]):
        name = naming.name_at(cpu.rip)
        if cpu.rip is None or name is None:
            continue
        found.append(f"CPU {number} is at RIP {hex64(cpu.rip)}, in {name}")
        frames = list(_frames(cpu, read, naming))
        if frames:
            found.append(f"on the stack of CPU {number}, behind calls: {', '.join(frames)}")
    return tuple(found)


def _frames(cpu: CpuState, read: Read, naming: Naming) -> Iterator[str]:
    count = 0
    for word in _stack(cpu.rsp or 0, read):
        name = naming.name_at(word) if word >> 63 else None
        if name is not None and "+0x" in name and _is_behind_call(word, read):
            yield name
            count += 1
        if count == MOST_FRAMES:
            return


def _stack(rsp: int, read: Read) -> Iterator[int]:
    """The words from *rsp* to the end of its stack, as far as they are mapped."""
    if not rsp >> 63 or rsp % 8:
        return
    at, end = rsp, (rsp | STACK - 1) + 1
    while at < end:
        size = min(PAGE - at % PAGE, end - at)
        try:
            raw = read(VirtAddr(at), size)
        except FivefoldError:
            return
        yield from (word for (word,) in struct.iter_unpack("<Q", raw))
        at += size


def _is_behind_call(va: int, read: Read) -> bool:
    try:
        return bool(_CALL.search(read(VirtAddr(va - _LONGEST_CALL), _LONGEST_CALL)))
    except FivefoldError:
        return False
