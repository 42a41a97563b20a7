"""What a root is for, by evidence: the kernel's own, the real-mode trampoline's, a process', a user half."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from fivefold.arch import AddressSpace, Cpu, Mapped, translate
from fivefold.errors import MemoryReadError
from fivefold.memory import Source
from fivefold.survey.guest.identify import MODES
from fivefold.survey.guest.roots import Confidence, Root
from fivefold.survey.guest.vmcoreinfo import kernel_notes
from fivefold.units import MIB, PhysAddr, VirtAddr, hex64

TRAMPOLINE: Final = "real-mode trampoline"
KERNEL_ONLY: Final = "kernel half only"
HAS_USER_HALF: Final = "has a user half"
OWN_TABLE: Final = "init_top_pgt"

_USE: Final = {HAS_USER_HALF: 1, OWN_TABLE: 2, KERNEL_ONLY: 3, TRAMPOLINE: 4}
_USER_SLOTS: Final = 256
_LAST: Final = 8 * 511


def labelled(source: Source, roots: Iterable[Root], cpu: Cpu | None = None) -> list[Root]:
    """*roots* with labels, those of most use first: of a CPU, of processes, the kernel's own, then all that are unsure.

    The user half of an isolated pair follows its kernel half.
    """
    given = []
    for root in roots:
        label, how = _label(source, root, cpu or Cpu())
        given.append(replace(root, label=label, label_known_from=how))
    order: dict[PhysAddr | None, tuple[int, ...]] = {root.root: _order(root) for root in given}
    # A user half comes right after its kernel half.
    leader = {root.root: root.pair if root.is_user_half and root.pair in order else root.root for root in given}
    return sorted(given, key=lambda root: (order[leader[root.root]], root.is_user_half))


def _order(root: Root) -> tuple[int, ...]:
    use = 0 if root.cpus else _USE.get(root.label or "", 1)
    return (int(root.confidence is Confidence.LOW), use, -root.confidence, root.root)


def _label(source: Source, root: Root, cpu: Cpu) -> tuple[str, str]:
    if root.is_user_half and root.pair is not None:
        return (
            f"user half of {hex64(root.pair)}",
            "the page after it, with the same lower half and little of the kernel",
        )
    notes = kernel_notes(source)
    if notes.root == root.root:
        return OWN_TABLE, f"init_top_pgt and phys_base in {notes.where}"
    if is_trampoline(AddressSpace(source.memory, root.root, MODES[root.levels], cpu)):
        return TRAMPOLINE, "it lies below 1 MiB, maps itself where it lies and has the kernel's last entry"
    used = sum(entry & 1 for entry in _lower_half(source, root))
    if not used:
        return KERNEL_ONLY, "its lower half is empty"
    return HAS_USER_HALF, f"{used} entr{'y' if used == 1 else 'ies'} of its lower half"


def _lower_half(source: Source, root: Root) -> list[int]:
    try:
        raw = source.memory.read(root.root, 8 * _USER_SLOTS)
    except MemoryReadError:
        return []
    return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]


def is_trampoline(tables: AddressSpace) -> bool:
    """Whether the root is the one that Linux starts CPUs with: low, and mapped where it lies (``realmode/init.c``).

    Firmware and loaders map themselves so, too; it alone shares the kernel's last entry, for code to jump to.
    """
    if tables.root >= MIB:
        return False
    try:
        if not tables.memory.read(PhysAddr(tables.root + _LAST), 8)[0] & 1:
            return False
        found = translate(tables, VirtAddr(tables.root))
    except MemoryReadError:
        return False
    return isinstance(found, Mapped) and found.pa == PhysAddr(tables.root) and not found.rights.user
