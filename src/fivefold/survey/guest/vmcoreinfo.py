"""What a Linux says of itself for readers of dumps: VMCOREINFO, from a note of the source or from the guest's memory.

Linux keeps the text in a page of its own, which begins with ``OSRELEASE=`` (`kernel/vmcore_info.c`). Any process can
write such a page, too, so what is found in memory counts only where the tables confirm it: the text names a symbol of
the kernel and where the kernel lies, and a walk from the kernel's own root has to lead from one to the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from fivefold.arch import FRAME_BITS, LA48, LA57, AddressSpace, Cpu, Mapped, PagingMode, translate
from fivefold.errors import FormatError, MemoryReadError
from fivefold.memory import Source, SourceMemory, parse_vmcoreinfo
from fivefold.metal import first_literals
from fivefold.units import GIB, MASK64, PAGE, PhysAddr, VirtAddr, hex64

KERNEL_WINDOW: Final = 0xFFFF_FFFF_8000_0000
"""Where the kernel's image lies; ``phys_base`` counts from here."""

LINKED_AT: Final = KERNEL_WINDOW + 0x100_0000
"""Where ``_text`` is unless the kernel was built for another address (CONFIG_PHYSICAL_START) or moved."""

FIRST_LINE: Final = b"OSRELEASE="
MOST_TEXTS: Final = 16
"""Pages that look like VMCOREINFO and are read; memory may hold forged ones without end."""

_IN_NOTE: Final = "VMCOREINFO"
_NAMES: Final = ("_stext", "init_top_pgt", "swapper_pg_dir")


@dataclass(frozen=True, slots=True)
class KernelNotes:
    """The lines of VMCOREINFO as *facts*, and *where* they are from, in words; without any, why.

    *unconfirmed*: places of such texts in memory that the tables do not confirm.
    """

    facts: Mapping[str, str]
    where: str
    unconfirmed: tuple[int, ...] = ()

    def number(self, key: str) -> int | None:
        """A number of VMCOREINFO, as ``NUMBER(phys_base)``, modulo 2**64; None where there is none."""
        return _number(self.facts.get(f"NUMBER({key})"), 0)

    def symbol(self, name: str) -> int | None:
        """The address of a symbol, None where it has none."""
        return _number(self.facts.get(f"SYMBOL({name})"), 16)

    @property
    def image_limit(self) -> int | None:
        """Bytes of the kernel's window that are kept for its image, where that is a size known here."""
        size = self.number("KERNEL_IMAGE_SIZE")
        return size if size in (GIB // 2, GIB) else None

    @property
    def mode(self) -> PagingMode | None:
        """The mode by ``pgtable_l5_enabled``."""
        return {0: LA48, 1: LA57}.get(-1 if (enabled := self.number("pgtable_l5_enabled")) is None else enabled)

    @property
    def root(self) -> PhysAddr | None:
        """Where the kernel's own top table lies: a symbol in the kernel image, moved by ``phys_base``."""
        symbol, base = self.symbol("init_top_pgt") or self.symbol("swapper_pg_dir"), self.number("phys_base")
        if symbol is None or base is None:
            return None
        return PhysAddr(symbol - KERNEL_WINDOW + base & MASK64 & FRAME_BITS)


def _number(text: str | None, base: int) -> int | None:
    if text is None:
        return None
    try:
        return int(text[:40], base) & MASK64
    except ValueError:
        return None


_KNOWN: WeakKeyDictionary[SourceMemory, KernelNotes] = WeakKeyDictionary()


def kernel_notes(source: Source) -> KernelNotes:
    """VMCOREINFO of *source*: its note's, else what lies in memory and is confirmed there. Memory is searched once."""
    if source.vmcoreinfo:
        return KernelNotes(source.vmcoreinfo, _IN_NOTE)
    if source.memory not in _KNOWN:
        _KNOWN[source.memory] = _in_memory(source.memory)
    return _KNOWN[source.memory]


def _in_memory(memory: SourceMemory) -> KernelNotes:
    if not memory.searchable:
        return KernelNotes({}, "no VMCOREINFO note; memory was not searched for it, which would take long")
    confirmed: dict[str, KernelNotes] = {}
    refused: list[int] = []
    for at, facts in texts(memory):
        notes = KernelNotes(facts, f"{_IN_NOTE} in memory at {hex64(at)}")
        if is_confirmed(notes, memory):
            confirmed.setdefault(repr(facts), notes)
        else:
            refused.append(at)
    if len(confirmed) == 1:
        (found,) = confirmed.values()
        return KernelNotes(found.facts, f"{found.where}, confirmed by the tables", tuple(refused))
    if confirmed:
        places = ", ".join(notes.where.rpartition(" ")[2] for notes in confirmed.values())
        return KernelNotes({}, f"memory holds the VMCOREINFO of {len(confirmed)} kernels, at {places}", tuple(refused))
    why = "no VMCOREINFO in the source"
    if refused:
        why += f" that the tables confirm; the text at {hex64(refused[0])} they do not"
    return KernelNotes({}, why, tuple(refused))


def texts(memory: SourceMemory) -> Iterator[tuple[int, dict[str, str]]]:
    """The pages that begin like VMCOREINFO, as their addresses and facts; the first `MOST_TEXTS`."""
    for number, at in enumerate(memory.pages_that_begin(FIRST_LINE, first_literals.that_may_begin)):
        if number == MOST_TEXTS:
            return
        with suppress(MemoryReadError, FormatError):
            text, _, _ = memory.read(PhysAddr(at), PAGE).partition(b"\0")
            yield at, parse_vmcoreinfo(text)


def is_confirmed(notes: KernelNotes, memory: SourceMemory) -> bool:
    """Whether the kernel's own root leads from a symbol in *notes* to where they say that it lies."""
    root, base = notes.root, notes.number("phys_base")
    symbol = next((at for name in _NAMES if (at := notes.symbol(name)) is not None), None)
    if root is None or base is None or symbol is None:
        return False
    # Before 4.18 nothing says how many levels there are.
    mask = notes.number("sme_mask") or 0
    cpu = Cpu(c_bit=mask.bit_length() - 1) if 1 << 32 <= mask < 1 << 52 else Cpu()
    for mode in (LA48, LA57) if notes.mode is None else (notes.mode,):
        with suppress(MemoryReadError):
            found = translate(AddressSpace(memory, root, mode, cpu), VirtAddr(symbol))
            if isinstance(found, Mapped) and found.pa == symbol - KERNEL_WINDOW + base & MASK64:
                return True
    return False


def claims(notes: KernelNotes) -> dict[str, int]:
    """What *notes* say of what the tables show, too: the number of levels, and bases by the names of `KernelBases`."""
    mode, moved = notes.mode, _number(notes.facts.get("KERNELOFFSET"), 16)
    told = {
        "levels": None if mode is None else int(mode.top),
        "phys_base": notes.number("phys_base"),
        "vmalloc_base": notes.number("VMALLOC_START"),
        "vmemmap_base": notes.symbol("vmemmap"),
        "kernel_text": None if moved is None else LINKED_AT + moved,
    }
    return {name: value for name, value in told.items() if value is not None}
