"""Symbols from files, and what they make of addresses."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fivefold.errors import FivefoldError, FormatError
from fivefold.symbols import moved, read_symbols

MAP = """\
0000000000000000 A per_cpu_start
ffffffff81000000 T _text
ffffffff81000000 T _stext
ffffffff81000100 t helper
ffffffff81000100 T do_it
ffffffff82000000 D some_data
ffffffff83000000 B _end
ffffffffc0000000 t init_it\t[dummy]
ffffffffc0000040 t use_it [dummy]
"""


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "System.map"
    path.write_text(MAP)
    return path


@pytest.mark.parametrize(
    ("va", "name"),
    [
        (0xFFFFFFFF81000000, "_stext"),
        (0xFFFFFFFF8100011A, "do_it+0x1a"),
        (0xFFFFFFFF81000100 + (1 << 20) - 1, "do_it+0xfffff"),
        (0xFFFFFFFF81000100 + (1 << 20), None),
        (0xFFFFFFFF82800000, "some_data+0x800000"),
        (0xFFFFFFFF83000000, "_end"),
        (0xFFFFFFFF83000001, None),
        (0xFFFFFFFF80FFFFFF, None),
        (0xFFFFFFFFC0000044, "use_it+0x4 [dummy]"),
        (0xFFFFFFFFC0001000, None),
        (0x10, None),
    ],
)
def test_names(listed: Path, va: int, name: str | None) -> None:
    assert read_symbols(str(listed)).at(va) == name


def test_moved(listed: Path) -> None:
    found = moved(read_symbols(str(listed)), 0x1200000)
    assert found.at(0xFFFFFFFF82200101) == "do_it+0x1"
    assert found.how.endswith("moved by 0x0000000001200000")
    assert moved(found, -0x1200000).at(0xFFFFFFFF83000000) == "_end"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no symbols"),
        ("hello\n", "line 1: 'hello"),
        ("0000000000000000 T _text\n", "all are 0"),
        ("0000000000001000 T _text\n", "no symbol lies in a kernel's half"),
        ("ffffffff81000000 T _text\n" + "f" * 5000, "line 2"),
    ],
)
def test_other_files(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(FormatError, match=says):
        read_symbols(str(path))


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FivefoldError, match="cannot read"):
            read_symbols(str(path))


def vmlinux() -> bytes:
    """An ELF file with .text, .data, a symbol table and its names."""
    texts = b"\0_text\0do_it\0data\0weak\0file.c\0"
    rows = [
        (texts.index(b"_text"), 0x10, 1, 0xFFFFFFFF81000000),
        (texts.index(b"do_it"), 0x02, 1, 0xFFFFFFFF81000040),
        (texts.index(b"data"), 0x11, 2, 0xFFFFFFFF82000000),
        (texts.index(b"weak"), 0x22, 1, 0xFFFFFFFF81000080),
        (texts.index(b"file.c"), 0x04, 0xFFF1, 0),
    ]
    table = b"".join(struct.pack("<IBBHQQ", name, info, 0, section, value, 0) for name, info, section, value in rows)
    sections = [
        (0, 0, 0, 0, 0, 0, 0),
        (1, 6, 0xFFFFFFFF81000000, 0, 0, 0, 0),
        (1, 3, 0xFFFFFFFF82000000, 0, 0, 0, 0),
        (2, 0, 0, 64, len(table), 4, 24),
        (3, 0, 0, 64 + len(table), len(texts), 0, 0),
    ]
    at = 64 + len(table) + len(texts)
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 0, at, 0, 64, 0, 0, 64, len(sections), 0
    )
    headers = b"".join(
        struct.pack("<IIQQQQIIQQ", 0, kind, flags, address, offset, size, link, 0, 0, entry)
        for kind, flags, address, offset, size, link, entry in sections
    )
    return head + table + texts + headers


def test_vmlinux(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux())
    (span,) = read_symbols(str(path)).spans
    assert [(one.kind, one.name) for one in span] == [("T", "_text"), ("t", "do_it"), ("W", "weak"), ("D", "data")]
    assert span.at(0xFFFFFFFF81000044) is not None


def test_cut_vmlinux(tmp_path: Path) -> None:
    """However much is missing: an error of ours, or the symbols."""
    whole, path = vmlinux(), tmp_path / "vmlinux"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            read_symbols(str(path))
