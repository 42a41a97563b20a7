"""Three ways to the RAM of a QEMU guest: its shared file, its process's memory, copies QEMU writes."""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

from fivefold.errors import MachineError, MemoryReadError
from fivefold.memory.banked import Bank, BankedMemory, PagedMemory
from fivefold.memory.base import Extent
from fivefold.memory.bus_error import BusGuard
from fivefold.memory.live.monitor import Monitor
from fivefold.memory.live.mtree import RamRange
from fivefold.memory.live.process_memory import (
    Mapping,
    ProcessMemory,
    mapping_at,
    mappings_of,
    open_shared_file,
)
from fivefold.memory.spans import extents_of
from fivefold.units import GIB, MIB, PAGE

MAX_ROM: Final = 64 * MIB
"""Private ranges up to this size in all (firmware, video) are copied when RAM itself is shared."""

MAX_LOCATED: Final = 1 << 10
"""Ranges whose place in QEMU's process is asked for: QEMU's own machines have some ten."""

PMEMSAVE_SPEED: Final = 50 * MIB
"""Bytes a second that QEMU is given at least to write before it counts as hung."""

MOST_SEARCHED: Final = GIB
"""Bytes of RAM that a search for names reads at most. Of a larger guest QEMU writes only what is asked for."""

_HVA: Final = re.compile(r"Host virtual address for 0x[0-9a-f]+ \(.*\) is 0x([0-9a-f]+)")


class Located(NamedTuple):
    """A range of guest RAM and where QEMU's process has it."""

    ram: RamRange
    host: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.ram.end - self.ram.start


def locate(client: Monitor, ranges: Sequence[RamRange]) -> list[Located]:
    """Ask QEMU for the host address of each range; `MachineError` when its monitor does not answer that."""
    if len(ranges) > MAX_LOCATED:
        raise MachineError(f"{len(ranges)} ranges of RAM, at most {MAX_LOCATED} are asked for one by one")
    located = []
    for ram in ranges:
        answer = client.monitor(f"gpa2hva {ram.start:#x}")
        match = _HVA.search(answer)
        if match is None:
            raise MachineError(f"QEMU does not say where {ram.start:#x} lies: {answer.strip()[:80]!r}")
        located.append(Located(ram, int(match[1], 16)))
    return located


def shared_memory(pid: int, located: Sequence[Located], name: str) -> tuple[BankedMemory, tuple[str, ...]]:
    """Guest RAM mapped from the file that QEMU shares: zero-copy, and it shows what the guest does.

    Small private ranges beside it are copied once. Returns the memory and remarks. `MachineError`
    when most of RAM is not shared.
    """
    mappings = mappings_of(pid)
    banks: list[Bank] = []
    private: list[Located] = []
    guards: list[BusGuard] = []
    for item in located:
        mapping = mapping_at(mappings, item.host, item.size)
        mapped = _map_shared(pid, mapping, item) if mapping else None
        if mapped is None:
            private.append(item)
        else:
            banks.append(Bank(item.ram.start, memoryview(mapped)[len(mapped) - item.size :]))
            guards.append(BusGuard(mapped))
    if sum(item.size for item in private) > MAX_ROM or not banks:
        raise MachineError(
            f"RAM of process {pid} is not shared: start QEMU with -object memory-backend-memfd,share=on "
            "or read it another way"
        )
    copies, remarks = _copied(pid, private)

    def check() -> None:
        if any(guard.broken for guard in guards):
            raise MachineError(f"RAM of process {pid} went away while it was read")

    return BankedMemory([*banks, *copies], name, on_close=check, check=check), remarks


def _map_shared(pid: int, mapping: Mapping, item: Located) -> mmap.mmap | None:
    fd = open_shared_file(pid, mapping)
    if fd is None:
        return None
    try:
        offset = mapping.offset + item.host - mapping.start
        slack = offset % mmap.ALLOCATIONGRANULARITY
        if offset + item.size > os.fstat(fd).st_size:
            return None
        return mmap.mmap(fd, item.size + slack, prot=mmap.PROT_READ, offset=offset - slack)
    except OSError as error:
        raise MachineError(f"cannot map RAM of process {pid}: {error.strerror}") from error
    finally:
        os.close(fd)


def _copied(pid: int, private: Sequence[Located]) -> tuple[list[Bank], tuple[str, ...]]:
    if not private:
        return [], ()
    regions = ", ".join(sorted({item.ram.region for item in private}))
    try:
        process = ProcessMemory(pid)
    except MachineError as error:
        return [], (f"left out as holes, because not shared: {regions} ({error})",)
    try:
        copies = [Bank(i.ram.start, memoryview(process.read(i.host, i.size))) for i in private]
    finally:
        process.close()
    return copies, (f"copied when attached, because not shared: {regions}",)


def process_memory(pid: int, located: Sequence[Located], name: str, max_copy: int) -> PagedMemory:
    """Guest RAM read from QEMU's process, anew at each read. `MachineError` when that is not allowed."""
    process = ProcessMemory(pid)
    starts = [item.ram.start for item in located]

    def fetch(pa: int, size: int) -> bytes:
        parts = []
        index = bisect_right(starts, pa) - 1
        while size > 0:
            item = located[index]
            take = min(size, item.ram.end - pa)
            parts.append(_fetched(process, item, pa, take, name))
            pa, size, index = pa + take, size - take, index + 1
        return b"".join(parts)

    def written() -> list[Extent]:
        return extents_of(run for item in located for run in _touched(process, item))

    extents = [Extent(item.ram.start, item.ram.end) for item in located]
    try:
        for item in located:
            fetch(item.ram.start, 1)
    except MemoryReadError as error:
        process.close()
        raise MachineError(f"process {pid} is not the QEMU that answers: {error}") from error
    return PagedMemory(extents, fetch, name, on_close=process.close, max_copy=max_copy, written=written)


def _touched(process: ProcessMemory, item: Located) -> Iterator[tuple[int, int]]:
    """The parts of a range that QEMU or its guest ever touched, by the guest's addresses; all of one with a file."""
    size = item.ram.end - item.ram.start
    mapping = mapping_at(mappings_of(process.pid), item.host, size)
    if mapping is None or mapping.inode or item.host % PAGE:
        yield item.ram.start, item.ram.end
        return
    for low, high in process.present(item.host, item.host + size):
        yield item.ram.start + low - item.host, item.ram.start + high - item.host


def _fetched(process: ProcessMemory, item: Located, pa: int, size: int, name: str) -> bytes:
    try:
        return process.read(item.host + pa - item.ram.start, size)
    except MemoryReadError as error:
        # The guest's address is what the reader knows; QEMU's own stays in the cause.
        raise MemoryReadError(pa, size, f"{name} (process {process.pid} gone or memory unplugged)") from error


def saved_memory(client: Monitor, ranges: Sequence[RamRange], name: str, max_copy: int) -> PagedMemory:
    """Guest RAM that QEMU writes, as it is asked for, to a file without a name: nothing is left, however we end.

    `MachineError` when QEMU may not write where we may read, and by any read once QEMU does not answer.
    """
    held = ExitStack()
    try:
        saved = held.enter_context(_Saved.lent(client))
        saved.fetch(ranges[0].start, 1)  # refused here, where another way may be taken
    except BaseException:
        held.close()
        raise
    extents = [Extent(ram.start, ram.end) for ram in ranges]
    small = sum(extent.end - extent.start for extent in extents) <= MOST_SEARCHED
    return PagedMemory(extents, saved.fetch, name, on_close=held.close, max_copy=max_copy, searchable=small)


class _Saved:
    """A file of ours that QEMU writes parts of RAM to, one over the other."""

    def __init__(self, client: Monitor, file: int, path: str) -> None:
        self._client, self._file, self._path = client, file, path

    @classmethod
    @contextmanager
    def lent(cls, client: Monitor) -> Iterator[_Saved]:
        with tempfile.TemporaryFile(prefix="fivefold-") as file:
            # Without a name it can only be reached through us; QEMU may be another user, and opens it anew.
            os.fchmod(file.fileno(), 0o666)
            with client.lend(file.fileno()) as path:
                yield cls(client, file.fileno(), path)

    def fetch(self, pa: int, size: int) -> bytes:
        with self._client.patience(size / PMEMSAVE_SPEED):
            self._client.ask("pmemsave", val=pa, size=size, filename=self._path)
        found = os.pread(self._file, size, 0)
        saved = os.fstat(self._file).st_size
        if saved != size or len(found) != size:
            raise MachineError(f"QEMU saved {saved} bytes at {pa:#x}, expected {size}")
        os.ftruncate(self._file, 0)
        return found
