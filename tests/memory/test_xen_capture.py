"""What Xen itself wrote: `xl dump-core` of a paravirtual Linux, cut to its page tables and the page of its banner."""

from __future__ import annotations

from pathlib import Path

from fivefold.arch import LA48, AddressSpace, Mapped, translate
from fivefold.memory import open_source
from fivefold.units import PhysAddr, VirtAddr

CORE = Path(__file__).parents[1] / "data" / "others" / "xen-pv-6.1.core.xz"
BANNER = 0xFFFF_FFFF_8211_FFE0
"""``linux_banner``, by the guest's own /proc/kallsyms; the text goes on on the next page."""


def test_a_paravirtual_guest() -> None:
    """Its tables hold machine frames, by which its pages are placed: the kernel's banner lies where they lead."""
    with open_source(CORE) as source:
        assert source.format == "Xen core in xz" and "machine addresses" in source.notes[0]
        (cpu,) = source.cpus
        assert cpu.cr0 == 0x8005_0033 and cpu.cr4 is None
        tables = AddressSpace(source.memory, PhysAddr(cpu.cr3 or 0), LA48)
        found = translate(tables, VirtAddr(BANNER))
        assert isinstance(found, Mapped) and found.rights.user
        assert source.memory.read(found.pa, 32) == b"Linux version 6.1.0-57-cloud-amd"
        assert isinstance(translate(tables, VirtAddr(cpu.rip or 0)), Mapped)
