"""What a boot does to the registers that choose the paging mode: `mode_changes` watches one from its entry on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fivefold.boot.guests import make_guest
from fivefold.boot.image.elf_image import Image
from fivefold.boot.options import BootOptions
from fivefold.errors import MachineError
from fivefold.machine import LimitReached, Machine, start
from fivefold.machine.base import Registers
from fivefold.units import MIB, PhysAddr

STRIDE: Final = 160
"""Instructions between two looks of the first run; only stretches in which something changed are gone through again."""
MOST: Final = 1 << 23
"""Instructions of a boot of ours up to its own tables, generously."""
_LONG_CODE: Final = 1 << 53
"""L of a code segment's descriptor (Intel SDM, "Segment Descriptors")."""
_LINKED: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class ModeState:
    """The registers that choose the mode, and where the CPU is with them: a label of the image, and bytes behind it."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    code_bits: int
    """64, or 32 where the code segment or the mode says so."""
    root: str
    """The nearest exported label at or below what CR3 points at; "" where that is not in the image."""
    label: str
    """The like of the instruction that made the change, and of an accessor's caller; the entry at first."""
    code: bytes
    """The instruction that made the change, and what follows it: 16 bytes."""


def mode_changes(cpu: str, options: BootOptions, image: Image) -> tuple[ModeState, ...]:
    """The states from the entry to the kernel's own tables: one for each change of CR0, CR3, CR4, EFER or code size.

    Runs the image on Unicorn twice: with few looks, then with one for each instruction where something changed. Raises
    `MachineError` for a boot that ends before.
    """
    stretches = list(_stretches(cpu, options, image))
    with start("unicorn", make_guest(cpu, options, image)) as machine:
        watch = _Watch(machine, image)
        states = [watch.state(machine.registers())]
        for begin, end in stretches:
            _run(machine, begin - _count(machine))
            while _count(machine) < end:
                before = machine.registers()
                _run(machine, 1)
                if watch.has_changed(states[-1]):
                    states.append(watch.state(before))
    return tuple(states)


def _stretches(cpu: str, options: BootOptions, image: Image) -> Iterator[tuple[int, int]]:
    """Where something changes, as instructions executed before and after, up to a stretch beyond the kernel's own root.

    With its own tables the kernel sets the last bits of CR4.
    """
    with start("unicorn", make_guest(cpu, options, image)) as machine:
        watch = _Watch(machine, image)
        before, has_own_root = watch.key(), False
        while _count(machine) < MOST:
            begun = _count(machine)
            _run(machine, STRIDE)
            if (after := watch.key()) != before:
                yield begun, _count(machine)
            if has_own_root:
                return
            has_own_root = watch.has_own_root(before, after)
            before = after
    raise MachineError(f"no tables of the kernel's own after {MOST} instructions")


def _run(machine: Machine, instructions: int) -> None:
    if instructions and not isinstance(event := machine.run(limit=instructions), LimitReached):
        raise MachineError(f"the boot ended before it had tables of its own: {event}")


def _count(machine: Machine) -> int:
    count = machine.instructions
    assert count is not None  # Unicorn counts
    return count


class _Watch:
    """A machine, looked at for what chooses its mode."""

    def __init__(self, machine: Machine, image: Image) -> None:
        self._machine = machine
        self._image = image
        self._load = image.load_address
        self._labels = sorted((at, name) for name, at in image.symbols.items() if not name.startswith("site_"))
        self._copy: int | None = None
        """Where the trampoline runs, once it does: below 1 MiB is nothing else of ours."""
        self._early_root = image.physical("startup.early_top", self._load)

    def key(self) -> tuple[int, int, int, int, int]:
        """CR0, CR3, CR4, EFER and the size of the code."""
        now = self._machine.registers()
        return now.cr0, now.cr3, now.cr4, now.efer, self._code_bits(now)

    def has_changed(self, last: ModeState) -> bool:
        """Whether the machine is in another state than *last*."""
        return self.key() != (last.cr0, last.cr3, last.cr4, last.efer, last.code_bits)

    def has_own_root(self, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
        """Whether CR3 went from the early tables to others."""
        return before[1] == self._early_root != after[1]

    def state(self, before: Registers) -> ModeState:
        """The state now, to which the instruction led that was next in *before*."""
        cr0, cr3, cr4, efer, bits = self.key()
        inside = self._load <= cr3 < self._load + self._image.size
        root = self._label(self._linked(cr3)) if inside else ""
        return ModeState(cr0, cr3, cr4, efer, bits, root, self._where(before), self._code(before.rip))

    def _where(self, before: Registers) -> str:
        label = self._label(self._linked(before.rip))
        if not label.startswith("write_"):
            return label
        caller = int.from_bytes(self._machine.memory.read(self._at(before.rsp), 8), "little")
        return f"{self._label(self._linked(caller))}: {label}"

    def _label(self, linked: int) -> str:
        return max((one for one in self._labels if one[0] <= linked), default=(0, ""))[1]

    def _linked(self, rip: int) -> int:
        """The linked address of what runs at *rip*: in the image's place, high, or in the trampoline's copy."""
        if rip & _LINKED:
            return rip
        if rip >= MIB:
            return rip - self._load + self._image.link_address
        self._copy = self._copy if self._copy is not None else rip
        return self._image.symbol("trampoline_start") + rip - self._copy

    def _at(self, address: int) -> PhysAddr:
        """Where *address* is in memory: linked addresses are the image's, others are identity-mapped."""
        return PhysAddr(address - self._image.link_address + self._load if address & _LINKED else address)

    def _code(self, rip: int) -> bytes:
        return self._machine.memory.read(self._at(rip), 16)

    def _code_bits(self, now: Registers) -> int:
        if now.gdt is None or not now.cs:
            return 32
        descriptor = self._machine.memory.read(self._at(now.gdt.base + (now.cs & ~7)), 8)
        return 64 if int.from_bytes(descriptor, "little") & _LONG_CODE else 32
