"""What opening a source gives: its memory, its CPUs, and what is known about both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from fivefold.errors import both_told
from fivefold.memory.banked import BankedMemory, PagedMemory, SourceMemory
from fivefold.memory.base import Extent
from fivefold.memory.registers import CpuState

Progress = Callable[[int, int | None], None]
"""Called with bytes done and bytes in all, None where that is not known."""


class LiveGuest(Protocol):
    """What can stop a live guest for a moment. *stood_still*: for how many seconds it did the last time, at most."""

    stood_still: float

    def stopped_briefly(self) -> AbstractContextManager[bool]:
        """Have it stand still inside the ``with`` block; True where it ran before and runs afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source. Close it, or use it in a ``with`` statement.

    *format* names what it was recognised as. *cpus* is empty where the source has no registers.
    *notes* are remarks for people: what was assumed, left out or found odd. *live* says that a
    guest is behind it, *torn* that it runs while it is read, so that two reads may disagree.
    *guest* stops it for a moment, where that can be done and its memory is read in place.
    """

    memory: SourceMemory
    format: str
    cpus: tuple[CpuState, ...] = ()
    notes: tuple[str, ...] = ()
    vmcoreinfo: dict[str, str] = field(default_factory=dict)
    live: bool = False
    torn: bool = False
    guest: LiveGuest | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.memory.name

    @property
    def extents(self) -> list[Extent]:
        """Physical memory that can be read, ascending, end exclusive."""
        return self.memory.extents

    @property
    def left_out(self) -> list[int]:
        """Pages that were damaged when all of memory was copied, and are holes in the copy."""
        return list(self.memory.left_out) if isinstance(self.memory, PagedMemory) else []

    @property
    def closed(self) -> bool:
        """Whether it was closed: then nothing can be read."""
        return bool(getattr(self.memory, "closed", False))

    def check(self) -> None:
        """Raise `FormatError` or `MachineError` where a part of it went away while it was read in place."""
        if isinstance(self.memory, BankedMemory):
            self.memory.check()

    def close(self) -> None:
        """Let go of everything behind it; a guest that was frozen runs again."""
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with both_told(error):
            self.close()
