"""Files that shrink while they are mapped: an error, and never the end of the process."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import capstone
import numpy as np
import pytest

from fivefold.errors import FormatError
from fivefold.memory import bus_error, open_source
from fivefold.memory.bus_error import HANDLER
from fivefold.memory.files import SMALL, FileBytes
from fivefold.units import PhysAddr

SIZE = SMALL + (4 << 20)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "guest"
    path.write_bytes(b"\x55" * SIZE)
    return path


def test_a_view_of_a_file_that_is_cut_reads_zeros_and_is_told(file: Path) -> None:
    data = FileBytes.open(file)
    seen = np.frombuffer(data.view(0, SIZE), np.uint8)
    os.truncate(file, 8192 + 10)
    assert int(seen[:8192].min()) == 0x55
    assert int(seen[12288:].max()) == 0
    with pytest.raises(FormatError, match=rf"was cut from {SIZE} to 8202 bytes while in use$"):
        data.read_at(0, 4)
    with pytest.raises(FormatError, match=r"was cut from"):
        data.close()
    data.close()
    assert int(seen[-1]) == 0


def test_a_file_that_is_whole_again_is_told_nevertheless(file: Path) -> None:
    """As one that is copied anew while we look: what was read of it were zeros."""
    source = open_source(str(file))
    (bank,) = source.memory.banks()
    os.truncate(file, 0)
    assert bank.data[SIZE - 1] == 0
    os.truncate(file, SIZE)
    with pytest.raises(FormatError, match=r"could not be read any more while in use"):
        source.memory.read(PhysAddr(0), 8)
    with pytest.raises(FormatError, match=r"could not be read any more while in use"):
        source.close()


def test_other_mappings_stay_as_they_are(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"\xaa" * SIZE)
    first, second, third = (FileBytes.open(path) for path in (file, tmp_path / "other", file))
    third.close()
    os.truncate(file, 0)
    assert bytes(first._view[-2:]) == b"\0\0"
    assert second.read_at(SIZE - 2, 2) == b"\xaa\xaa"
    second.close()
    with pytest.raises(FormatError):
        first.close()


ELSEWHERE = """
import mmap, os, sys
from fivefold.memory.files import FileBytes
ours = FileBytes.open(sys.argv[1])
fd = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 4096)
theirs = mmap.mmap(fd, 4096)
os.ftruncate(fd, 0)
theirs[0]
"""


def test_a_bus_error_elsewhere_ends_the_process(file: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, file, tmp_path / "their"], timeout=60)
    assert done.returncode == -signal.SIGBUS


def test_more_mappings_than_are_guarded(file: Path) -> None:
    """And their places are used again."""
    for _ in range(3):
        files = [FileBytes.open(file) for _ in range(200)]
        assert all(isinstance(each._data, mmap.mmap) for each in files)
        for each in files:
            each.close()
    last = FileBytes.open(file)
    seen = last.view(0, SIZE)
    os.truncate(file, 0)
    assert seen[SIZE // 2] == 0
    with pytest.raises(FormatError):
        last.close()


def test_the_handler_is_what_its_comments_say() -> None:
    """As capstone reads the bytes, which this project did not write."""
    lines = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(HANDLER, 0)
    said = [f"{line.mnemonic} {line.op_str}".strip() for line in lines]
    assert said == [
        "mov rax, qword ptr [rsi + 0x10]",
        "lea r8, [rip + 0xff5]",
        "mov rcx, qword ptr [r8]",
        "add r8, 0x10",
        "dec rcx",
        "js 0x66",
        "cmp rax, qword ptr [r8]",
        "jb 0x22",
        "cmp rax, qword ptr [r8 + 8]",
        "jb 0x28",
        "add r8, 0x18",
        "jmp 0x12",
        "mov qword ptr [r8 + 0x10], 1",
        "mov rdi, rax",
        "and rdi, 0xfffffffffffff000",
        "mov rsi, qword ptr [r8 + 8]",
        "sub rsi, rdi",
        "mov edx, 1",
        "mov r10d, 0x32",
        "mov r8, 0xffffffffffffffff",
        "xor r9d, r9d",
        "mov eax, 9",
        "syscall",
        "cmp rax, -0x1000",
        "ja 0x66",
        "ret",
        *["push 0"] * 4,
        "mov edi, 7",
        "mov rsi, rsp",
        "xor edx, edx",
        "mov r10d, 8",
        "mov eax, 0xd",
        "syscall",
        "add rsp, 0x20",
        "ret",
    ]


def test_a_mapping_may_end_while_another_one_is_guarded() -> None:
    """A collection can come in the middle of `add`, and end a mapping there: that must not wait for itself."""
    table = bus_error._installed()
    assert table is not None
    number = table.add(1 << 40, (1 << 40) + 4096)
    assert number is not None
    with table.lock:
        assert table.lock.acquire(blocking=False)
        table.lock.release()
        table.remove(number)
    assert table.entry(number) == (0, 0, 0)
