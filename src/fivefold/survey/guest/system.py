"""Which system a guest is, as far as its map of memory goes: Linux, Xen, or neither, with the evidence.

Names of areas, bases and audit rules about them are Linux'. A guest that is not Linux gets none of them, however much
its tables look like Linux': the image that this project boots lays its memory out in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from fivefold.memory import SourceMemory
from fivefold.survey.guest.banner import ImageBanner, image_banner
from fivefold.survey.guest.bases import LEAST_DIRECT_MAP, KernelBases
from fivefold.survey.guest.evidence import Found
from fivefold.survey.guest.vmcoreinfo import KernelNotes
from fivefold.survey.scan.scan_result import Flags, RegionKind, ScanResult
from fivefold.units import format_size, hex64

LINUX: Final = "Linux"
XEN: Final = "Xen"

HYPERVISOR: Final = range(0xFFFF_8000_0000_0000, 0xFFFF_8800_0000_0000)
"""What a 64-bit guest leaves to Xen. Source: Xen, public header ``arch-x86/xen-x86_64.h``, HYPERVISOR_VIRT_START."""

XEN_TEXT: Final = range(0xFFFF_82D0_0000_0000, 0xFFFF_82E0_0000_0000)
XEN_DIRECT_MAP: Final = 0xFFFF_8300_0000_0000
"""Where Xen has its own text, and all of memory. Source: Xen, ``arch/x86/include/asm/config.h``, "Memory layout"."""

_NO_BANNER: Final = ImageBanner(None, 0, is_whole=False)


@dataclass(frozen=True, slots=True)
class GuestSystem:
    """*name* is `LINUX`, `XEN` or None, *release* that of a Linux where it is known; both say how they are known."""

    name: Found[str | None]
    release: Found[str | None]

    @property
    def is_linux(self) -> bool:
        """Whether the map of memory is Linux' to name."""
        return self.name.value == LINUX


def guest_system(scan: ScanResult, bases: KernelBases, memory: SourceMemory, notes: KernelNotes) -> GuestSystem:
    """Which system has the tables of *scan*, one of a kernel's whole space; *bases* are read as if it were Linux'."""
    banner = image_banner(scan, memory) if memory.searchable and "OSRELEASE" not in notes.facts else _NO_BANNER
    release = release_told(notes, banner)
    if (sign := _sign_of_xen(scan)) is not None:
        guest = "" if release.value is None else f"; its guest is a paravirtual Linux: {release.how}"
        return GuestSystem(Found(XEN, sign + guest), release)
    if release.value is not None:
        return GuestSystem(Found(LINUX, release.how), release)
    missing = next((base.how for base in (bases.page_offset, bases.phys_base) if base.value is None), None)
    if missing is None and banner.is_whole:
        missing = "the code in the kernel's window comes without a banner of Linux"
    if missing is not None:
        return GuestSystem(Found(None, f"nothing shows Linux: {missing}"), Found(None, "not known to be Linux"))
    how = "a direct map and code in the kernel's window, where Linux has them"
    return GuestSystem(Found(LINUX, how), Found(None, f"{notes.where}, and no banner"))


def release_told(notes: KernelNotes, banner: ImageBanner = _NO_BANNER) -> Found[str | None]:
    """Which Linux the guest says that it is."""
    if told := notes.facts.get("OSRELEASE"):
        return Found(told, f"OSRELEASE in {notes.where}")
    if banner.release is not None:
        return Found(banner.release, f"the banner in the kernel image, at physical {hex64(banner.at)}")
    return Found(None, notes.where)


def _sign_of_xen(scan: ScanResult) -> str | None:
    """What is mapped as only Xen maps it: its text, or all of memory from its own base on; None without either."""
    mine = (scan.kind == RegionKind.MAPPED) & ~scan.user
    text = scan.start[mine & scan.executable & (scan.start >= np.uint64(XEN_TEXT.start)) & _below(scan, XEN_TEXT.stop)]
    if len(text):
        return f"code at {hex64(int(text[0]))}, where Xen keeps its own text"
    memory = mine & scan.contiguous & _below(scan, HYPERVISOR.stop) & (scan.start >= np.uint64(XEN_DIRECT_MAP))
    size = int(scan.size[memory & (scan.start - scan.phys == np.uint64(XEN_DIRECT_MAP))].sum())
    if size < LEAST_DIRECT_MAP:
        return None
    return f"{format_size(size)} of memory mapped from {hex64(XEN_DIRECT_MAP)} on, where Xen maps all of it"


def _below(scan: ScanResult, end: int) -> Flags:
    below: Flags = scan.start < np.uint64(end)
    return below
