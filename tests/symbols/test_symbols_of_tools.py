"""Symbols from files as tools write them: packed, of a running kernel, of binutils."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from fivefold.errors import FormatError, MissingFileError
from fivefold.symbols import read_symbols

MAP = """\
0000000000000000 D __per_cpu_start
ffffffff81000000 T _text
ffffffff81000100 T demo_open
ffffffff81000100 t __pfx_demo_open
ffffffff81000140 t helper
ffffffff81000180 t helper
ffffffff82000000 D demo_table
"""


def test_system_map(tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    path.write_text(MAP)
    table = read_symbols(path)
    assert table.at(0xFFFFFFFF8100010F) == "demo_open+0xf"
    assert table.at(0xFFFFFFFF82000000) == "demo_table"
    assert table.at(0xFFFFFFFF82001000) is None
    assert table.at(0xFFFFFFFFC0000000) is None
    assert table.only_address("demo_open") == 0xFFFFFFFF81000100
    assert table.only_address("helper") is None
    assert table.only_address("nothing") is None
    assert not table.is_running


def test_kallsyms_of_a_running_kernel(tmp_path: Path) -> None:
    path = tmp_path / "k.txt.gz"
    path.write_bytes(gzip.compress(b"ffffffffa1000100 T demo_open\nffffffffc0400000 t demo_poll\t[demo]\n"))
    table = read_symbols(path)
    assert table.is_running
    assert table.at(0xFFFFFFFFC0400004) == "demo_poll+0x4 [demo]"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no symbols"),
        (b"0000000000000000 T _text\n0000000000000000 T demo\n", "all are 0, as /proc/kallsyms shows them to users"),
        (b"\x7fELF\1\1" + bytes(60), "an ELF file for another machine; expected x86-64, of 64 bits"),
        (b"\x7fELF\2\1" + bytes(12) + b"\x3e" + bytes(45), "without sections; expected vmlinux with a symbol table"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "broken or cut gzip or xz data"),
        (b"\xfd7zXZ\0\0\x04", "broken or cut gzip or xz data"),
    ],
)
def test_refused_with_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "symbols"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=words):
        read_symbols(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_symbols(tmp_path / "nowhere")


def test_elf_against_nm(tmp_path: Path) -> None:
    """Binutils reads the same table."""
    if shutil.which("nm") is None or shutil.which("cc") is None:
        pytest.skip("nm and cc are not installed")
    source, path = tmp_path / "a.c", tmp_path / "a.out"
    source.write_text(
        "int table[4] = {1};\nstatic int inner(int a) { return a + table[1]; }\nint main(int c) { return inner(c); }\n"
    )
    link = ["-static", "-nostdlib", "-mcmodel=kernel", "-fno-pie", "-no-pie", "-Wl,-Ttext=0xffffffff81000000,-e,main"]
    subprocess.run(["cc", "-O0", *link, "-o", path, source], check=True, timeout=60)
    said = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True, timeout=60).stdout
    table = read_symbols(path)
    for line in said.splitlines():
        address, _, name = line.split()
        if name in ("main", "table", "inner"):
            assert table.only_address(name) == int(address, 16)
            assert table.at(int(address, 16) + 1) == f"{name}+0x1"


def test_a_cut_elf(tmp_path: Path) -> None:
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 2, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, 3, 0)
    path = tmp_path / "cut"
    path.write_bytes(header + bytes(40))
    with pytest.raises(FormatError, match="the file lacks"):
        read_symbols(path)
