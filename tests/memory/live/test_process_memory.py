"""Memory of a process, with this one as the victim."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

from fivefold.errors import MachineError, MemoryReadError
from fivefold.memory.live.process_memory import ProcessMemory, mapping_at, mappings_of, open_shared_file


def test_bytes_of_a_process() -> None:
    text = ctypes.create_string_buffer(b"these bytes")
    process = ProcessMemory(os.getpid())
    assert process.read(ctypes.addressof(text), 11) == b"these bytes"
    with pytest.raises(MemoryReadError, match=rf"^process {os.getpid()} has no memory at 0x0000000000001000"):
        process.read(0x1000, 8)
    process.close()
    with pytest.raises(MachineError, match=r"^cannot read /proc/999999999/mem: No such file or directory$"):
        ProcessMemory(999999999)


def test_a_shared_file_is_found_again() -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 1 << 16)
    shared = mmap.mmap(fd, 1 << 15, offset=1 << 15)
    address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    mapping = mapping_at(mappings_of(os.getpid()), address, 1 << 15)
    assert mapping is not None and mapping.shared and mapping.offset == 1 << 15
    found = open_shared_file(os.getpid(), mapping)
    assert found is not None
    shared[0:4] = b"live"
    assert os.pread(found, 4, 1 << 15) == b"live"
    with pytest.raises(OSError):
        os.write(found, b"x")
    os.close(found)
    os.close(fd)


def test_a_private_mapping_of_a_file_does_not_show_what_was_written() -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 1 << 14)
    private = mmap.mmap(fd, 1 << 14, flags=mmap.MAP_PRIVATE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(private))
    mapping = mapping_at(mappings_of(os.getpid()), address, 1 << 14)
    assert mapping is not None and mapping.inode != 0
    assert open_shared_file(os.getpid(), mapping) is None
    os.close(fd)


def test_anonymous_memory_has_no_file() -> None:
    text = ctypes.create_string_buffer(1 << 12)
    mapping = mapping_at(mappings_of(os.getpid()), ctypes.addressof(text), 1)
    assert mapping is not None
    assert open_shared_file(os.getpid(), mapping) is None
    assert mapping_at(mappings_of(os.getpid()), 0x1000, 1) is None


def test_a_process_that_is_not_there() -> None:
    with pytest.raises(MachineError, match=r"^cannot read /proc/999999999/maps: No such file or directory$"):
        mappings_of(999999999)


def test_permission_denied_says_what_to_do(monkeypatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MachineError) as error:
        ProcessMemory(4321)
    assert str(error.value) == (
        "cannot read /proc/4321/mem: permission denied; run as the same user as the process, "
        "with kernel.yama.ptrace_scope=0, or with CAP_SYS_PTRACE"
    )


MAPS = """\
00001000-00003000 rw-s 00000000 00:01 7    /memfd:ram (deleted)
00003000-00004000 rw-s 00002000 00:01 7    /memfd:ram (deleted)
00005000-00006000 rw-s 00003000 00:01 7    /memfd:ram (deleted)
00006000-00007000 rw-s 00009000 00:01 7    /memfd:ram (deleted)
00007000-00008000 rw-p 0000a000 00:01 7    /memfd:ram (deleted)
00008000-00009000 rw-p 0000b000 00:02 7    /memfd:ram (deleted)
00009000-0000a000 rw-p 0000c000 00:02 8    /memfd:ram (deleted)
0000a000-0000b000 rw-p 0000d000 10:02 8    /a file: with spaces
0000b000-0000c000 rw-p 00000000 00:00 0
0000c000-0000d000 rw-p 00001000 00:00 0
"""


def test_parts_of_one_file_that_run_on_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, errors: MAPS if str(path) == "/proc/77/maps" else "")
    found = mappings_of(77)
    assert [(one.start, one.end, one.shared, one.offset, one.inode) for one in found] == [
        (0x1000, 0x4000, True, 0, 7),
        (0x5000, 0x6000, True, 0x3000, 7),
        (0x6000, 0x7000, True, 0x9000, 7),
        (0x7000, 0x8000, False, 0xA000, 7),
        (0x8000, 0x9000, False, 0xB000, 7),
        (0x9000, 0xA000, False, 0xC000, 8),
        (0xA000, 0xB000, False, 0xD000, 8),
        (0xB000, 0xC000, False, 0, 0),
        (0xC000, 0xD000, False, 0x1000, 0),
    ]
    assert (os.major(found[6].device), os.minor(found[6].device)) == (0x10, 2)
    assert mapping_at(found, 0x1000, 0x3000) == found[0]
    assert mapping_at(found, 0x1000, 0x3001) is mapping_at(found, 0xFFF, 2) is mapping_at(found, 0x4000, 1) is None


def test_closed_twice() -> None:
    process = ProcessMemory(os.getpid())
    process.close()
    other = os.open("/dev/null", os.O_RDONLY)  # which may have the number that was let go
    process.close()
    assert os.fstat(other)
    os.close(other)


def test_pages_that_were_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in steps of four pages, so that runs are cut where a step ends; the last page is wanted in part."""
    monkeypatch.setattr("fivefold.memory.live.process_memory._PAGEMAP_STEP", 4 * mmap.PAGESIZE)
    size = mmap.PAGESIZE
    memory = mmap.mmap(-1, 20 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for page in (1, 2, 3, 4, 9, 14, 15, 17):
        memory[page * size] = 1
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    process = ProcessMemory(os.getpid())
    found = [
        ((low - start) / size, (high - start) / size) for low, high in process.present(start, start + 17 * size + 8)
    ]
    assert found == [(1, 4), (4, 5), (9, 10), (14, 16), (17, 17 + 8 / size)]
    process.close()


def test_all_pages_where_nothing_says_which_were_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    process = ProcessMemory(os.getpid())
    process.close()
    process.pid = 999999999
    assert list(process.present(0x1000, 0x3000)) == [(0x1000, 0x3000)]
    monkeypatch.setattr("fivefold.memory.live.process_memory._PAGEMAP_STEP", 4 * mmap.PAGESIZE)
    process.pid = os.getpid()
    beyond = 1 << 47  # above the user half, of which pagemap has nothing
    assert list(process.present(beyond, beyond + 0x8000)) == [(beyond, beyond + 0x8000)]
