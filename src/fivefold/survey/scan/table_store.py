"""The host's side of `metal.table_store`: tables are read when a program waits for them, each once."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import numpy as np
import numpy.typing as npt

from fivefold.arch import ENTRIES, TABLE_SIZE, TableReader
from fivefold.errors import MemoryReadError
from fivefold.metal.run.instance import Instance
from fivefold.units import MASK64, PhysAddr

Words = npt.NDArray[np.uint64]
Bring = Callable[[Words], tuple[npt.NDArray[np.bool_], Words]]
"""Reads the pages at ascending addresses: which of them memory has, and a row of 512 entries for each that it has."""

MAX_TABLES: Final = 1 << 22
"""Tables that have a number; a guest of 2 TiB has fewer in pages of 4 KiB."""

_STORE: Final = "fivefold.metal.table_store"
_RECORD: Final = np.dtype([("frame", "<u8"), ("copy", "<u8"), ("number", "<u8")])
_FIRST_RECORDS: Final = 1 << 12
_FIRST_PIECE: Final = 64
_LARGEST_PIECE: Final = 1 << 14
"""Copies lie in pieces of memory, each with room for twice as many as the one before, within these bounds."""


def bring_from(memory: TableReader, mask: int = 0) -> Bring:
    """What reads tables of *memory*, without the bits of entries that are in *mask*."""
    kept = np.uint64(~mask & MASK64)

    def bring(frames: Words) -> tuple[npt.NDArray[np.bool_], Words]:
        rows, there = np.empty((len(frames), ENTRIES), np.uint64), np.zeros(len(frames), np.bool_)
        for number, frame in enumerate(frames.tolist()):
            with suppress(MemoryReadError):
                rows[number] = np.frombuffer(memory.read(PhysAddr(frame), TABLE_SIZE), "<u8")
                there[number] = True
        return there, rows[there] & kept

    return bring


class TableStore:
    """Copies of the tables that *instance* was given so far."""

    def __init__(self, instance: Instance, bring: Bring) -> None:
        """*bring* is asked once for each frame."""
        self._instance, self._bring = instance, bring
        self._pieces: list[int] = []
        self._piece = np.zeros((0, ENTRIES), np.uint64)
        self._used = 0
        self._known = np.zeros(_FIRST_RECORDS // 2, _RECORD)
        self._entered = 0
        self._tables = 0
        self._hash = 0
        self._enlarge()

    def knows(self, frame: int) -> bool:
        """Whether the table at *frame* was brought, or is known to be missing."""
        return bool(self._instance.call(f"{_STORE}.is_known", frame))

    def need(self, frame: int) -> None:
        """Bring the table at *frame* unless it is known."""
        if not self.knows(frame):
            self.fetch(np.array([frame], np.uint64))

    def fetch(self, frames: Words) -> None:
        """Bring the tables at *frames*, of which none is known yet; one may be named several times."""
        wanted = _distinct(frames)
        there, rows = self._bring(wanted)
        new = np.zeros(len(wanted), _RECORD)
        new["frame"] = wanted
        count = len(rows)
        if count:
            new["copy"][there] = self._keep(rows) + TABLE_SIZE * np.arange(count, dtype=np.uint64)
            new["number"][there] = self._tables + np.arange(count, dtype=np.uint64)
            self._tables += count
        self._enter(new)

    def close(self) -> None:
        """Let go of all copies; the program then knows no table."""
        for address in (*self._pieces, self._hash):
            self._instance.unmap(address)
        self._pieces = []

    def _keep(self, rows: Words) -> np.uint64:
        """Copy *rows*, one after the other, and return where the first is."""
        if self._used + len(rows) > len(self._piece):
            room = max(len(rows), min(max(2 * len(self._piece), _FIRST_PIECE), _LARGEST_PIECE))
            memory = mmap.mmap(-1, room * TABLE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._piece, self._used = np.frombuffer(memory, np.uint64).reshape(room, ENTRIES), 0
            self._pieces.append(self._instance.map(memory))
        first = self._used
        self._used += len(rows)
        self._piece[first : self._used] = rows
        return np.uint64(self._pieces[-1] + first * TABLE_SIZE)

    def _enter(self, new: npt.NDArray[np.void]) -> None:
        end = self._entered + len(new)
        if end > len(self._known):
            self._known = np.concatenate([self._known[: self._entered], np.zeros(end, _RECORD)])
            self._enlarge()
        self._known[self._entered : end] = new
        self._entered = end
        self._put(new)

    def _enlarge(self) -> None:
        """Make a new hash with room for twice as many records as can be known, and enter what is known."""
        bits = (2 * len(self._known) - 1).bit_length()
        old, memory = self._hash, np.zeros(1 << bits, _RECORD)
        self._hash = self._instance.map(memory)
        self._instance.set(f"{_STORE}.records", self._hash)
        self._instance.set(f"{_STORE}.shift", 64 - bits)
        if old:
            self._instance.unmap(old)
        self._put(self._known[: self._entered])

    def _put(self, entries: npt.NDArray[np.void]) -> None:
        if len(entries):
            at = self._instance.map(np.ascontiguousarray(entries))
            self._instance.call(f"{_STORE}.put_all", at, len(entries))
            self._instance.unmap(at)


def _distinct(words: Words) -> Words:
    """What `np.unique` returns, which takes numpy's masked arrays along."""
    ordered = np.sort(words)
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    distinct: Words = ordered[first]
    return distinct
