"""Names of addresses from System.map, kallsyms and ELF files."""

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
    assert table.name_at(0xFFFFFFFF8100010F) == "demo_open+0xf"
    assert table.name_at(0xFFFFFFFF82000000) == "demo_table+0x0"
    assert table.name_at(0xFFFFFFFF82001000) is None
    assert table.name_at(0xFFFFFFFFC0000000) is None
    assert table.address_of("demo_open") == 0xFFFFFFFF81000100
    assert table.address_of("helper") is None
    assert table.address_of("nothing") is None
    assert not table.is_running


def test_kallsyms_of_a_running_kernel(tmp_path: Path) -> None:
    path = tmp_path / "k.txt.gz"
    path.write_bytes(gzip.compress(b"ffffffffa1000100 T demo_open\nffffffffc0400000 t demo_poll\t[demo]\n"))
    table = read_symbols(path)
    assert table.is_running
    assert table.name_at(0xFFFFFFFFC0400004) == "demo_poll+0x4"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holds no symbols"),
        (b"0000000000000000 T _text\n0000000000000000 T demo\n", "hides the addresses"),
        (b"\x7fELF\1\1" + bytes(60), "is not a 64-bit little-endian ELF file"),
        (b"\x7fELF\2\1" + bytes(58), "it was stripped"),
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
    subprocess.run(["cc", "-O0", "-o", path, source], check=True, timeout=60)
    said = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True, timeout=60).stdout
    table = read_symbols(path)
    for line in said.splitlines():
        address, _, name = line.split()
        if name in ("main", "table", "inner"):
            assert table.address_of(name) == int(address, 16)
            assert table.name_at(int(address, 16) + 1) == f"{name}+0x1"


def test_a_cut_elf(tmp_path: Path) -> None:
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 2, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, 3, 0)
    path = tmp_path / "cut"
    path.write_bytes(header + bytes(40))
    with pytest.raises(FormatError, match="was cut"):
        read_symbols(path)
