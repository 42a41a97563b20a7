"""Looking at the tables of a live guest again and again: what changed since the look before.

The guest stands still while its tables are copied, so that a look is of one moment, and runs while two looks are
compared. How long it stands still is bounded for a look, and as a share of time.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

from fivefold import _arguments
from fivefold.arch import ENTRIES, TABLE_SIZE, TooManyRuns
from fivefold.errors import NotKnownError
from fivefold.memory import Bank, BankedMemory, Source, SourceMemory
from fivefold.memory.source import LiveGuest
from fivefold.survey.diff.diff import Change, DiffSettings, diff
from fivefold.survey.scan.tables import P, Tables
from fivefold.survey.space import Space
from fivefold.units import PhysAddr, hex64

SHARE: Final = 20
"""The guest stands still for at most this part of the time, one in twenty, however short the interval."""

MOST_STILL: Final = 0.25
"""Seconds after which a look is given up and the guest let go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLook:
    """One look. *at*: seconds since the first; *stood_still*: seconds, 0 where the guest was stopped already.

    *changes* since the last whole look; None for the first look, for one that was given up, and where there are too
    many to compare: *missed* says which.
    """

    number: int
    at: float
    stood_still: float
    stopped: bool
    tables: int
    changes: tuple[Change, ...] | None
    missed: str = ""


class Watcher:
    """The address space of a live guest, looked at when asked."""

    def __init__(self, space: Space, settings: DiffSettings | None = None, *, most_still: float = MOST_STILL) -> None:
        """*space* of a source that is live and read in place, else `NotKnownError`; *most_still* in seconds."""
        _arguments.opened("space", space, Space)
        self.guest = _guest_of(space.source)
        self.space = space.kernel_space if space.given.cr3 is None else space
        self.settings = settings or DiffSettings()
        self.most_still = most_still
        self._areas = self.space.areas  # looked for while the guest runs
        self._began = time.monotonic()
        self._number = 0
        self._last: Space | None = None

    def look(self) -> WatchLook:
        """Stop the guest, copy its tables, let it go on, compare. `MachineError` where it went away."""
        self._number += 1
        copy = _Copy(self.space.source.memory)
        at = time.monotonic() - self._began
        with _uninterrupted(), self.guest.stopped_briefly() as stopped:
            whole = copy.tables(self.space, time.monotonic() + self.most_still if stopped else None)
        still = self.guest.stood_still
        changes, missed = None, f"given up after {still * 1000:.0f} ms"
        if whole:
            changes, missed = self._compared(copy)
        return WatchLook(
            number=self._number,
            at=at,
            stood_still=still,
            stopped=not stopped,
            tables=len(copy.pages),
            changes=changes,
            missed=missed,
        )

    def _compared(self, copy: _Copy) -> tuple[tuple[Change, ...] | None, str]:
        before, self._last = self._last, self._space_of(copy)
        if before is None:
            return None, ""
        _check_root(before, self._last)
        try:
            return diff(before, self._last, self.settings).changes, ""
        except TooManyRuns as error:
            return None, str(error)

    def _space_of(self, copy: _Copy) -> Space:
        """The tables of a look as a space, named as in the guest."""
        source = Source(memory=copy.memory(), format="a look", cpus=self.space.source.cpus)
        found = Space(source, self.space.given, root=self.space.root, mode=self.space.mode)
        found.c_bit, found.areas = self.space.c_bit, self._areas
        return found


def watch(
    watcher: Watcher,
    *,
    interval: float = 1.0,
    count: int | None = None,
    seconds: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[WatchLook]:
    """Look every *interval* seconds, or less often where the guest would stand still for more than its share of time.

    Ends after *count* looks or *seconds*, whichever comes first; without either never. The interval doubles, up to
    eight times, while looks are given up.
    """
    ends = None if seconds is None else time.monotonic() + seconds
    patience = 1
    while True:
        began = time.monotonic()
        look = watcher.look()
        yield look
        patience = min(patience * 2, 8) if look.changes is None and look.missed else 1
        due = max(began + interval * patience, began + look.stood_still * SHARE)
        if look.number == count or (ends is not None and due > ends):
            return
        sleep(max(due - time.monotonic(), 0.0))


class _Copy:
    """The tables that one look read, by their addresses."""

    def __init__(self, memory: SourceMemory) -> None:
        self._memory = memory
        self._ends: float | None = None
        self.pages: dict[int, bytes] = {}

    def tables(self, space: Space, ends: float | None) -> bool:
        """Read all tables below the root of *space*; False where *ends* came first."""
        self._ends = ends
        try:
            for _ in Tables(self, space.cpu, nxe=space.tables.nxe).by_level(space.root.value, space.mode.value.top):
                pass
        except _TooLongError:
            return False
        return True

    def read(self, pa: PhysAddr, size: int, /) -> bytes:
        """Read a table, and keep it."""
        if self._ends is not None and time.monotonic() > self._ends:
            raise _TooLongError
        page = self.pages[pa] = self._memory.read(pa, size)
        return page

    def memory(self) -> BankedMemory:
        """What was read; tables beside each other are one bank."""
        banks: list[tuple[int, list[bytes]]] = []
        for at in sorted(self.pages):
            if banks and banks[-1][0] + TABLE_SIZE * len(banks[-1][1]) == at:
                banks[-1][1].append(self.pages[at])
            else:
                banks.append((at, [self.pages[at]]))
        runs = [Bank(start, memoryview(b"".join(parts))) for start, parts in banks]
        return BankedMemory(runs, self._memory.name)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Have what would end this process wait until the ``with`` block is over: it takes no longer than the monitor."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _TooLongError(Exception):
    """The guest stood still for as long as it may."""


def refuse_what_stands_still(name: str, form: str) -> NoReturn:
    """Raise `NotKnownError` for a source that shows no changes, or whose guest cannot be stopped for moments."""
    raise NotKnownError(
        f"{name} ({form}) cannot be watched; expected a live guest whose RAM is read in place: "
        "qmp:SOCKET, libvirt:DOMAIN or pid:NUMBER, with RAM in a shared file or the right to read QEMU's process"
    )


def _guest_of(source: Source) -> LiveGuest:
    return source.guest or refuse_what_stands_still(source.name, source.format)


def _check_root(before: Space, after: Space) -> None:
    """Refuse a table that lost all entries of its upper half at once: no root does, before it is one no more."""
    ours, theirs = (Tables(space.source.memory).read(space.root.value) for space in (before, after))
    if ours is None or theirs is None:
        return
    upper = slice(ENTRIES // 2, ENTRIES)
    had = ours[upper] & P != 0
    if had.any() and not (had & (ours[upper] == theirs[upper])).any():
        raise NotKnownError(
            f"the table at {hex64(before.root.value)} is no root any more: its process ended, or the guest started anew"
        )
