"""Images are hostile input: each way to lie about the file has its line."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.errors import ImageError
from fivefold.machine.loading.elf import load_segments, pvh_entry

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM = struct.Struct("<IIQQQQQQ")
IDENT = b"\x7fELF\2\1\1" + bytes(9)


def image(*headers, machine=62, size=56, ident=IDENT, tail=b""):
    head = HEADER.pack(ident, 2, machine, 1, 0, 64, 0, 0, 64, size, len(headers), 0, 0, 0)
    return head + b"".join(PROGRAM.pack(*header) for header in headers) + tail


def load(pa, filesz=0, memsz=0x1000, offset=0):
    return (1, 7, offset, pa, pa, filesz, memsz, 1)


REFUSED = {
    "nothing": (b"", "the image is not a little-endian ELF64 file"),
    "32 bits": (image(ident=b"\x7fELF\1\1\1" + bytes(9)), "the image is not a little-endian ELF64 file"),
    "big endian": (image(ident=b"\x7fELF\2\2\1" + bytes(9)), "the image is not a little-endian ELF64 file"),
    "arm": (image(load(0x1000), machine=183), "the image is for ELF machine 183, expected 62 (x86-64)"),
    "odd headers": (image(load(0x1000), size=32), "the image has program headers of 32 bytes, expected 56"),
    "no segment": (image(), "the image has no segment to load"),
    "cut short": (
        image(load(0x1000, filesz=0x100)),
        "the image is cut short: 256 bytes at offset 0x0 expected, the file has 0x78",
    ),
    "offset beyond": (
        image(load(0x1000, filesz=1, offset=1 << 63)),
        "the image is cut short: 1 bytes at offset 0x8000000000000000 expected, the file has 0x78",
    ),
    "shrinks": (
        image(load(0x1000, filesz=8, memsz=4)),
        "segment at 0x0000000000001000 has 8 bytes in the file, 4 in memory",
    ),
    "too high": (
        image(load((1 << 52) - 0x800)),
        "segment at 0x000ffffffffff800 ends beyond 52 physical address bits",
    ),
    "overlap": (image(load(0x3000), load(0x2800)), "segments overlap at 0x0000000000003000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_lies_are_refused(name):
    data, words = REFUSED[name]
    with pytest.raises(ImageError) as refusal:
        load_segments(data)

    assert str(refusal.value) == words


def test_segments_come_ascending_with_their_bytes():
    data = image(load(0x9000), load(0x3000, filesz=4, memsz=8, offset=64 + 112), tail=b"code")

    assert [tuple(segment) for segment in load_segments(data)] == [(0x3000, 0x3008, b"code"), (0x9000, 0xA000, b"")]


def note(name, kind, desc):
    return struct.pack("<III", len(name), len(desc), kind) + name.ljust(-(-len(name) // 4) * 4, b"\0") + desc


@pytest.mark.parametrize(
    ("notes", "entry"),
    [
        (note(b"Xen\0", 18, struct.pack("<I", 0x201000)), 0x201000),
        (note(b"GNU\0", 3, b"x" * 20) + note(b"Xen\0", 18, struct.pack("<Q", 0x300000)), 0x300000),
        (note(b"Xen\0", 6, b"2.0\0") + note(b"Linux\0", 18, b"\1\0\0\0"), None),
        (note(b"Xen\0", 18, b"\0\0"), None),
        (b"\xff" * 16, None),
        (b"", None),
    ],
)
def test_entry_is_found_among_notes(notes, entry):
    data = image((4, 4, 64 + 56, 0, 0, len(notes), len(notes), 4), tail=notes)
    if entry is not None:
        assert pvh_entry(data) == entry
        return
    with pytest.raises(ImageError, match=r"^the image has no PVH entry \(a PT_NOTE named Xen of type 18\)$"):
        pvh_entry(data)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_read_or_refused(noise, at):
    data = bytearray(image(load(0x3000, filesz=4, memsz=8), (4, 4, 120, 0, 0, 16, 16, 4), tail=bytes(64)))
    data[at : at + len(noise)] = noise
    for read in (load_segments, pvh_entry):
        try:
            read(bytes(data))
        except ImageError as refusal:
            assert "\n" not in str(refusal)
