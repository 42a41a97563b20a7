"""A guest's walk through second-level tables: the address of each of its tables is translated before it is read.

Sources: Intel SDM volume 3, "EPT and Guest-Physical Addresses"; AMD APM volume 2, "Nested Table Walk".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fivefold.arch.walk import AddressSpace, TableReader, Translation, translate
from fivefold.errors import FivefoldError
from fivefold.units import PhysAddr, VirtAddr


class SecondLevelFault(FivefoldError):  # noqa: N818 - the name of the thing
    """The second level has no translation for a guest's physical address. *final*: for the page itself."""

    def __init__(self, gpa: int, reason: str, final: bool) -> None:
        super().__init__(f"guest-physical {gpa:#x}: {reason}")
        self.gpa, self.reason, self.final = gpa, reason, final


class SecondLevel(Protocol):
    """From a guest's physical address to the host's, or `SecondLevelFault`."""

    def __call__(self, gpa: int, final: bool, /) -> PhysAddr:
        """Translate *gpa*; *final* says that it is the page and not a table of the guest's."""
        ...


@dataclass(frozen=True, slots=True)
class ThroughSecondLevel:
    """The guest's memory as its own walk sees it, read from the host's *memory*."""

    memory: TableReader
    second: SecondLevel

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        """*size* bytes at the guest's physical *pa*, page by page."""
        out = b""
        while size:
            part = min(size, 4096 - (pa & 0xFFF))
            out += self.memory.read(self.second(pa, False), part)
            pa, size = PhysAddr(pa + part), size - part
        return out


def nested_translate(space: AddressSpace, second: SecondLevel, va: VirtAddr) -> tuple[Translation, PhysAddr | None]:
    """Translate *va* by the guest's *space* and then by *second*: the guest's answer, and the host's address.

    *space* has the host's memory; its root and entries hold the guest's addresses. `SecondLevelFault` where a table
    or the page has no second-level translation.
    """
    guest = AddressSpace(
        ThroughSecondLevel(space.memory, second), space.root, space.mode, space.cpu, space.nxe, space.hlat, space.owned
    )
    found = translate(guest, va)
    pa = getattr(found, "pa", None)
    return found, None if pa is None else second(pa, True)


def reads_of(levels: int, second_levels: int) -> int:
    """How many entries a nested walk of 4 KiB pages reads at most.

    >>> reads_of(4, 4), reads_of(5, 5)
    (24, 35)
    """
    return (levels + 1) * (second_levels + 1) - 1
