"""Check from outside that all CPUs of a machine live in one address space, by their registers alone."""

from __future__ import annotations

from collections.abc import Sequence

from fivefold.arch import Cr4
from fivefold.boot.result import Check
from fivefold.machine.base import Registers


def cpu_checks(cpus: Sequence[Registers], expected: int) -> list[Check]:
    """As many CPUs as expected; the same depth of paging, the same EFER and the same root on all of them."""
    first = cpus[0]
    modes = [i for i, cpu in enumerate(cpus) if (cpu.cr4 ^ first.cr4) & Cr4.LA57 or cpu.efer != first.efer]
    roots = [i for i, cpu in enumerate(cpus) if cpu.cr3 != first.cr3]
    return [
        Check.outside(
            "smp_count", "" if len(cpus) == expected else f"the machine has {len(cpus)} CPUs, expected {expected}"
        ),
        Check.outside("smp_same_mode", f"CPUs {modes} differ from the first in CR4.LA57 or EFER" if modes else ""),
        Check.outside("smp_same_root", f"CPUs {roots} have another CR3 than the first" if roots else ""),
    ]
