"""Where a kernel put its areas, from its page tables alone.

The direct map is the one large thing that is mapped at a constant distance from physical
memory; the others follow from it: vmalloc is the first thing mapped after it, and vmemmap
begins where page descriptors for just that much memory lie. Rules of Linux: bases are multiples of
1 GiB, and descriptors are mapped by sections of 128 MiB of memory, 2 MiB at a time (`sparsemem.h`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fivefold.arch import Flag
from fivefold.layout import linux_constants, shadow_bounds
from fivefold.notebook import html_table
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.vmcoreinfo import KERNEL_WINDOW
from fivefold.survey.scan.scan_result import RegionKind, ScanResult
from fivefold.units import GIB, MASK64, MIB, PAGE, format_size, hex64

KERNEL_WINDOW_END: Final = 0xFFFF_FFFF_C000_0000
RANDOMISED_END: Final = 0xFFFF_FE00_0000_0000
"""Movable areas lie below: here the CPU entry area begins."""

SECTION: Final = 128 * MIB
DESCRIPTOR_SIZES: Final = (64, 56)
"""Bytes of a page descriptor: Linux aligns it to 16 bytes but with SLOB, its smallest allocator."""

LEAST_DIRECT_MAP: Final = 2 * MIB
UNCACHED: Final = int(Flag.PWT | Flag.PCD)
_KERNEL_HALF: Final = 1 << 63
LOWEST_RELEASE: Final = "4.12"
"""No Linux has its direct map lower than this one."""


class _Run(NamedTuple):
    """A mapped range of the kernel half; *last* inclusive, *phys* None unless it is physically contiguous."""

    start: int
    last: int
    phys: int | None
    executable: bool
    plain: bool
    """Writable, cached, and not executable unless all is, as on a CPU without NX."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelBases:
    """The bases of one address space, each with its evidence; addresses, or None with the reason.

    *phys_base* is as in Linux: what to add to an address in the kernel window, less the
    window's start, modulo 2**64. *direct_map_end* is exclusive. *kasan* says whether a shadow is mapped.
    """

    page_offset: Found[int | None]
    vmalloc: Found[int | None]
    vmemmap: Found[int | None]
    kernel_text: Found[int | None]
    phys_base: Found[int | None]
    direct_map_end: int | None
    kasan: bool

    def _repr_html_(self) -> str:
        rows = [
            (name, "not known" if base.value is None else hex64(base.value), base.how)
            for name, base in self.named().items()
        ]
        return html_table("bases", ("what", "value", "known from"), rows)

    @classmethod
    def unknown(cls, reason: str) -> KernelBases:
        """None of them, for one reason."""
        nothing: Found[int | None] = Found(None, reason)
        return cls(
            page_offset=nothing,
            vmalloc=nothing,
            vmemmap=nothing,
            kernel_text=nothing,
            phys_base=nothing,
            direct_map_end=None,
            kasan=False,
        )

    def disowned(self, reason: str) -> KernelBases:
        """The same without values: what was not found keeps its reason, the rest gets *reason*."""

        def without(found: Found[int | None]) -> Found[int | None]:
            return found if found.value is None else Found(None, reason)

        return KernelBases(
            page_offset=without(self.page_offset),
            vmalloc=without(self.vmalloc),
            vmemmap=without(self.vmemmap),
            kernel_text=without(self.kernel_text),
            phys_base=without(self.phys_base),
            direct_map_end=None,
            kasan=False,
        )

    def named(self) -> dict[str, Found[int | None]]:
        """The five by the names of the kernel's variables, ``kernel_text`` for ``_text``."""
        return {
            "page_offset_base": self.page_offset,
            "vmalloc_base": self.vmalloc,
            "vmemmap_base": self.vmemmap,
            "phys_base": self.phys_base,
            "kernel_text": self.kernel_text,
        }


def find_bases(scan: ScanResult) -> KernelBases:
    """The bases in *scan*, one of the whole space that noted physical contiguity."""
    runs = _kernel_runs(scan)
    shadow = shadow_bounds(scan.levels)
    kasan = any(run.start <= shadow.start <= run.last for run in runs)
    page_offset, end = _direct_map(scan)
    text, phys_base = _image(runs, known=page_offset.value is not None)
    if page_offset.value is None or end is None:
        missing: Found[int | None] = Found(None, "follows from the direct map, which was not found")
        return KernelBases(
            page_offset=page_offset,
            vmalloc=missing,
            vmemmap=missing,
            kernel_text=text,
            phys_base=phys_base,
            direct_map_end=None,
            kasan=kasan,
        )
    limit = shadow.start if kasan else RANDOMISED_END
    above = [run for run in runs if end <= run.start < limit]
    vmemmap = _vmemmap(above, end - page_offset.value)
    return KernelBases(
        page_offset=page_offset,
        vmalloc=_vmalloc(above, vmemmap.value),
        vmemmap=vmemmap,
        kernel_text=text,
        phys_base=phys_base,
        direct_map_end=end,
        kasan=kasan,
    )


def _kernel_runs(scan: ScanResult) -> list[_Run]:
    """The mapped ranges of the kernel half, ascending."""
    rows = np.flatnonzero((scan.kind == RegionKind.MAPPED) & (scan.start >= np.uint64(_KERNEL_HALF)))
    # Of the leaf: what control registers make of it is no matter here.
    plain = (scan.flags & np.uint64(int(Flag.RW)) != 0) & (scan.flags & np.uint64(UNCACHED) == 0)
    if not scan.executable[rows].all():
        plain &= ~scan.executable
    columns = (scan.start, scan.last, scan.phys, scan.contiguous, scan.executable, plain)
    start, last, phys, follows, executable, kept = (column[rows].tolist() for column in columns)
    return [
        _Run(begin, end, pa if whole else None, x, w)
        for begin, end, pa, whole, x, w in zip(start, last, phys, follows, executable, kept, strict=True)
    ]


def _direct_map(scan: ScanResult) -> tuple[Found[int | None], int | None]:
    """The commonest distance of virtual from physical addresses, and where what has it ends."""
    # What lies lower is another's, such as the direct map of a hypervisor in the hole that Linux leaves to it.
    low = np.uint64(linux_constants(LOWEST_RELEASE, scan.levels).page_offset)
    high = np.uint64(RANDOMISED_END)
    # Device memory may be larger than RAM, but it is not cached.
    chosen = scan.contiguous & (scan.start >= low) & (scan.start < high) & (scan.flags & np.uint64(UNCACHED) == 0)
    distance = scan.start[chosen] - scan.phys[chosen]
    size = scan.size[chosen]
    aligned = (distance % np.uint64(GIB) == 0) & (distance >= low)
    base, weight, total = _commonest(distance[aligned], size[aligned])
    if base is None or weight < LEAST_DIRECT_MAP:
        what = f"the most at one distance is {format_size(weight)}" if weight else "nothing lies so"
        return Found(
            None, f"no 2M of the kernel half lie at one distance from physical memory that a base can have: {what}"
        ), None
    same = scan.contiguous & (scan.start - scan.phys == np.uint64(base)) & (scan.start < high)
    how = f"commonest va - pa in the kernel half: {format_size(weight)} of {format_size(total)} that could be it"
    return Found(base, how), int(scan.last[same].max()) + 1


def _commonest(values: npt.NDArray[np.uint64], weights: npt.NDArray[np.uint64]) -> tuple[int | None, int, int]:
    """The value with the greatest weight, that weight, and all weights together."""
    if not len(values):
        return None, 0, 0
    names, which = np.unique(values, return_inverse=True)
    sums = np.zeros(len(names), np.uint64)
    np.add.at(sums, which, weights)
    best = int(sums.argmax())
    return int(names[best]), int(sums[best]), int(sums.sum())


def _vmalloc(above: list[_Run], vmemmap: int | None) -> Found[int | None]:
    if not above:
        return Found(None, "nothing is mapped between the direct map and the CPU entry area")
    first, last, _ = _clusters(above)[0]
    # Early in a boot page descriptors are made, and nothing else is there yet.
    if first == vmemmap:
        return Found(None, f"nothing is mapped between the direct map and vmemmap at {hex64(first)}")
    descriptors = above[0].plain and first % GIB == 0 and last - first >= 2 * MIB - 1
    if vmemmap is None and descriptors:
        return Found(None, f"first mapping after the direct map, {hex64(first)}, may be page descriptors")
    return Found(first & ~(GIB - 1), f"first mapping after the direct map, {hex64(first)}, rounded down to 1G")


def _vmemmap(above: list[_Run], memory_end: int) -> Found[int | None]:
    """Where plain data begins at a multiple of 1 GiB that ends with the descriptor of the last page of memory."""
    clusters = _clusters(above)
    # vmalloc comes first, and may look so by chance. One page with other rights, a fault of the guest, hides nothing.
    starts = [start for start, last, plain in reversed(clusters) if start % GIB == 0 and 2 * plain > last + 1 - start]
    for size in DESCRIPTOR_SIZES:
        last_descriptor = (memory_end - 1) // PAGE * size
        limit = _up(_up(memory_end, SECTION) // PAGE * size, 2 * MIB)
        for start in starts:
            ends = (high - start for low, high, _ in clusters if low >= start and low - start <= last_descriptor)
            if any(last_descriptor <= end < limit for end in ends):
                how = f"begins at a multiple of 1G and ends with the descriptors of {format_size(memory_end)} of memory"
                return Found(start, how)
    return Found(None, "nothing mapped above vmalloc has the size of the page descriptors")


def _up(value: int, unit: int) -> int:
    """*value* rounded up to a multiple of *unit*."""
    return -(-value // unit) * unit


def _clusters(runs: list[_Run]) -> list[tuple[int, int, int]]:
    """First and last addresses of what is mapped without a gap, and how many bytes of it are plain data."""
    joined: list[tuple[int, int, int]] = []
    for run in runs:
        plain = run.last + 1 - run.start if run.plain else 0
        if joined and joined[-1][1] + 1 == run.start:
            joined[-1] = (joined[-1][0], run.last, joined[-1][2] + plain)
        else:
            joined.append((run.start, run.last, plain))
    return joined


def _image(runs: list[_Run], *, known: bool) -> tuple[Found[int | None], Found[int | None]]:
    """Where the kernel's text begins, and ``phys_base``."""
    code = next(
        (run for run in runs if KERNEL_WINDOW <= run.start < KERNEL_WINDOW_END and run.executable and run.phys), None
    )
    if code is None or code.phys is None:
        reason: Found[int | None] = Found(None, "nothing executable is mapped in the kernel's window")
        return reason, reason
    how = f"code at {hex64(code.start)} lies at physical {hex64(code.phys)}"
    phys_base: Found[int | None] = Found(code.phys - (code.start - KERNEL_WINDOW) & MASK64, how)
    if not known:
        return Found(None, "this space maps code of the kernel, but may leave out its beginning"), phys_base
    return Found(code.start, "first executable mapping in the kernel's window"), phys_base
