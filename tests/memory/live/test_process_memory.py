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
