"""Checks from outside of what the booted kernel would hand over on: an identity map, and an image of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from struct import iter_unpack
from typing import Final

from fivefold.arch import ENTRIES, AddressSpace, regions
from fivefold.boot.judge.evidence import Evidence
from fivefold.boot.result import Bounds, Check
from fivefold.units import MASK64, PhysAddr, hex64

_MAGIC: Final = int.from_bytes(b"5FOLDHIB", "little")
_STIR: Final = 0x9E37_79B9_7F4A_7C15


def handover_checks(seen: Evidence, words: Mapping[str, int]) -> Iterator[Check]:
    """The kept root maps the kernel and all memory (identity map); the kept image names this kernel and its mode."""
    space = replace(seen.space, root=PhysAddr(words.get("handover_root", 0)))
    yield Check.outside("ident_map_memory", _memory_at_itself(seen, space))
    yield Check.outside("kexec_root", _kernel_half(seen, space))
    yield Check.outside("hibernate_image", _saved_image(seen, words))


def _memory_at_itself(seen: Evidence, space: AddressSpace) -> str:
    """Exactly the memory of the map, at its own address, for the kernel to run from."""
    shown: list[Bounds] = []
    for run in regions(space, range(space.mode.gap.start), contiguous=True):
        if int(run.phys) != int(run.start) or run.rights.user or not run.rights.execute:
            return str(run)
        if shown and shown[-1].end == run.start:
            shown[-1] = Bounds(shown[-1].start, run.end)
        else:
            shown.append(Bounds(run.start, run.end))
    return "" if tuple(shown) == seen.ram else f"{len(shown)} ranges, expected the {len(seen.ram)} of the memory map"


def _kernel_half(seen: Evidence, space: AddressSpace) -> str:
    """The instruction that loads this root is still there after it: the kernel's half is the kernel's own."""
    half = 8 * ENTRIES // 2
    ours, theirs = (seen.memory.read(PhysAddr(root + half), half) for root in (seen.space.root, space.root))
    return "" if ours == theirs else "the upper half of the root differs from the kernel's"


def _saved_image(seen: Evidence, words: Mapping[str, int]) -> str:
    """The image's header, against sums and numbers made here."""
    header = seen.memory.read(PhysAddr(words.get("hibernate_sample", 0)), 32)
    magic, levels, kernel, load = (value for (value,) in iter_unpack("<Q", header))
    start, end = (seen.image.physical(name, seen.load) for name in ("trap_stubs", "_erodata"))
    expected = (_MAGIC, len(list(seen.space.mode.levels)), _sum(seen.memory.read(start, end - start)), seen.load)
    if (magic, levels, kernel, load) == expected:
        return ""
    return f"magic, levels, sum and load address are {', '.join(map(hex64, (magic, levels, kernel, load)))}"


def _sum(data: bytes) -> int:
    """The sum of an image as its format defines it: for each word exclusive or, multiply, rotate by seven."""
    total = _MAGIC
    for (word,) in iter_unpack("<Q", data):
        total = (total ^ word) * _STIR & MASK64
        total = (total << 7 | total >> 57) & MASK64
    return total
