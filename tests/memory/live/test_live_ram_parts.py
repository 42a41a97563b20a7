"""Live RAM that is no file: what is copied, and what is said where that is forbidden."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

from fivefold.memory.live.live_ram import Located, _copied, _touched
from fivefold.memory.live.mtree import RamRange
from fivefold.memory.live.process_memory import ProcessMemory

GUEST = 0x1_0000_0000


def test_nothing_private_asks_for_nothing() -> None:
    assert _copied(999999999, []) == ([], ())


@pytest.mark.parametrize("into", [0, 3, 8])
def test_what_was_touched_by_the_addresses_of_the_guest(into: int) -> None:
    """A range of twelve pages that begins *into* pages after the mapping, of which pages 4 and 9 were written."""
    size = mmap.PAGESIZE
    memory = mmap.mmap(-1, 20 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[4 * size] = memory[9 * size] = 1
    host = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + into * size
    item = Located(RamRange(GUEST, GUEST + 12 * size, "ram", 0), host)
    process = ProcessMemory(os.getpid())
    pages = [page - into for page in (4, 9) if 0 <= page - into < 12]
    assert list(_touched(process, item)) == [(GUEST + page * size, GUEST + (page + 1) * size) for page in pages]
    # Where a page of the guest is no page of the process, nothing is known.
    crooked = Located(item.ram._replace(end=GUEST + size), host + 16)
    assert list(_touched(process, crooked)) == [(GUEST, GUEST + size)]
    process.close()
