"""What a multiboot2 loader hands over, believed no further than it goes."""

from __future__ import annotations

import re
import struct
from importlib import resources
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fivefold.kernel.boot import multiboot2 as kernel_multiboot2
from fivefold.kernel.boot import start_info as kernel_start_info
from fivefold.kernel.boot.multiboot2 import BAD_PLACE, BAD_TAG, DONE, INFO_SIZE, MOST_BYTES, NO_MAP
from fivefold.metal.program import Program
from fivefold.metal.run import host

GIVEN = 0x10_0000
IMAGE, IMAGE_END = 0x30_0000, 0x31_0000
OUT = 0x30_4000
END = struct.pack("<II", 0, 8)
RAM, RESERVED, ACPI, NVS, BAD = 1, 2, 3, 4, 5
PC = [(0, 0x9_FC00, RAM), (0x9_FC00, 0x400, RESERVED), (0x10_0000, 0x3F0_0000, RAM), (0xFFFC_0000, 0x4_0000, RESERVED)]


def tag(kind: int, content: bytes, size: int | None = None) -> bytes:
    """A tag, padded; *size* is what it says of itself."""
    data = struct.pack("<II", kind, 8 + len(content) if size is None else size) + content
    return data + bytes(-len(data) % 8)


def memory_map(rows: list[tuple[int, int, int]], each: int = 24) -> bytes:
    """The tag with the map; *each* is the size of a row."""
    data = b"".join(struct.pack("<QQII", *row, 0x5A5A_5A5A).ljust(each, b"\xee") for row in rows)
    return tag(6, struct.pack("<II", each, 0) + data)


def information(*tags: bytes, size: int | None = None) -> bytes:
    """All of it; *size* is what it says of itself."""
    data = b"".join(tags)
    return struct.pack("<II", 8 + len(data) if size is None else size, 0) + data


def taken(code: Any, data: bytes, at: int = GIVEN) -> tuple[int, Any]:
    """The answer to *data* at *at*, and the reader; memory was full of ones."""
    helpers = code(None, "multiboot2", extents=[(0x10_0000, 0x14_0000), (IMAGE, 0x32_0000)], window=0)
    helpers.ram.write(at, data)
    answer = helpers.call("multiboot2.take_multiboot2", at, OUT, IMAGE, IMAGE_END)
    assert helpers.ram.read(OUT, 4) == struct.pack("<I", answer)
    assert set(helpers.ram.read(OUT + INFO_SIZE, 64)) == {0xFF}
    return answer, helpers


def head(helpers: Any) -> tuple[int, ...]:
    """Magic, version, modules, and the addresses of modules, command line and map, and how many rows it has."""
    magic, version, _, modules, listed, cmdline, _, rows, count = struct.unpack("<IIIIQQQQI", helpers.ram.read(OUT, 52))
    return magic, version, modules, listed, cmdline, rows, count


def rows_of(helpers: Any) -> list[tuple[int, int, int, int]]:
    *_, at, count = head(helpers)
    return list(struct.iter_unpack("<QQII", helpers.ram.read(at, 24 * count)))


def test_what_grub_says(code: Any) -> None:
    """Tags that nobody asked for lie between those that count; rows of a map may be longer than we know them."""
    answer, helpers = taken(
        code,
        information(
            tag(1, b"no5lvl kaslr=7\0"),
            tag(2, b"GRUB 2.06\0"),
            tag(3, struct.pack("<II", 0x50_0000, 0x50_1234) + b"initrd\0"),
            memory_map(PC, each=32),
            tag(9, bytes(33)),
            END,
        ),
    )
    assert answer == DONE == kernel_start_info.MAGIC
    magic, version, modules, listed, cmdline, _, _ = head(helpers)
    assert (magic, version, modules) == (kernel_start_info.MAGIC, 1, 1)
    assert helpers.ram.read(cmdline, 15) == b"no5lvl kaslr=7\0"
    assert struct.unpack("<QQQQ", helpers.ram.read(listed, 32)) == (0x50_0000, 0x1234, 0, 0)
    assert rows_of(helpers) == [(*row, 0) for row in PC]


@pytest.mark.parametrize("kind", [RAM, RESERVED, ACPI, NVS, BAD, 77])
def test_types_are_those_of_pvh(code: Any, kind: int) -> None:
    _, helpers = taken(code, information(memory_map([(0x1000, 0x1000, kind)]), END))
    assert rows_of(helpers) == [(0x1000, 0x1000, kind, 0)]


def test_without_command_line_and_modules(code: Any) -> None:
    answer, helpers = taken(code, information(memory_map(PC), END))
    assert answer == DONE
    _, _, modules, _, cmdline, _, _ = head(helpers)
    assert modules == 0
    assert helpers.ram.read(cmdline, 1) == b"\0"


def test_two_maps_and_many_modules(code: Any) -> None:
    module = tag(3, struct.pack("<II", 0x50_0000, 0x50_0000) + b"\0")
    answer, helpers = taken(code, information(*[module] * 20, memory_map(PC[:2]), memory_map(PC[2:]), END))
    assert answer == DONE
    assert head(helpers)[2] == kernel_start_info.MAX_MODULES
    assert [row[:3] for row in rows_of(helpers)] == PC


def test_more_rows_than_there_is_room_for_are_counted(code: Any) -> None:
    """The kernel stops then: what is lost may be a row that takes memory back."""
    many = [(0x1000 * i, 0x1000, RAM) for i in range(1, 700)]
    answer, helpers = taken(code, information(memory_map(many), END))
    assert answer == DONE
    *_, at, count = head(helpers)
    kept = struct.iter_unpack("<QQII", helpers.ram.read(at, 24 * kernel_start_info.MAX_MAP_ENTRIES))
    assert (count, [row[:3] for row in kept]) == (699, many[: kernel_start_info.MAX_MAP_ENTRIES])


@pytest.mark.parametrize(
    "text",
    [b"x" * 5000, b"x" * 4096, b"x" * 4095 + b"\0", b"quiet"],
    ids=["long", "one more", "all", "without its end"],
)
def test_command_line_is_cut_and_ends(code: Any, text: bytes) -> None:
    answer, helpers = taken(code, information(tag(1, text), memory_map(PC), END))
    assert answer == DONE
    cmdline = head(helpers)[4]
    kept = helpers.ram.read(cmdline, 4096)
    assert kept == text.rstrip(b"\0")[:4095].ljust(4096, b"\0")


MAP = memory_map(PC)
REFUSED = [
    ("no size", information(MAP, END, size=0), BAD_PLACE),
    ("only a head", information(size=8), BAD_PLACE),
    ("larger than can be", information(MAP, END, size=MOST_BYTES + 8), BAD_PLACE),
    ("all of 32 bits", information(MAP, END, size=0xFFFF_FFFF), BAD_PLACE),
    ("no tags but the end", information(END), NO_MAP),
    ("no map", information(tag(1, b"quiet\0"), END), NO_MAP),
    ("no end", information(MAP), BAD_TAG),
    ("cut before the end", information(MAP, END, size=8 + len(MAP)), BAD_TAG),
    ("cut in the end", information(MAP, END, size=8 + len(MAP) + 4), BAD_TAG),
    ("cut in the map", information(MAP, END, size=8 + len(MAP) - 24), BAD_TAG),
    ("tag of size 0", information(tag(1, b"quiet\0", size=0), MAP, END), BAD_TAG),
    ("tag of size 7", information(tag(9, b"quiet\0", size=7), MAP, END), BAD_TAG),
    ("tag beyond the end", information(MAP, tag(9, b"", size=0x1000), END), BAD_TAG),
    ("tag that wraps", information(MAP, tag(9, b"", size=0xFFFF_FFF8), END), BAD_TAG),
    ("padding beyond the end", information(MAP, tag(9, b"1234567", size=15), size=8 + len(MAP) + 15), BAD_TAG),
    ("rows of 16 bytes", information(tag(6, struct.pack("<IIQQ", 16, 0, 0, 4096)), END), BAD_TAG),
    ("rows of 0 bytes", information(tag(6, struct.pack("<II", 0, 0)), END), BAD_TAG),
    ("rows of 28 bytes", information(memory_map(PC[:1], each=28), END), BAD_TAG),
    ("rows of 4 GiB", information(tag(6, struct.pack("<IIQQQ", 0xFFFF_FFF8, 0, 0, 4096, 1)), END), BAD_TAG),
    ("half a row", information(tag(6, struct.pack("<IIQQQQ", 24, 0, 0, 4096, 1, 0)), END), BAD_TAG),
    ("map without a head", information(tag(6, b"1234"), END), BAD_TAG),
    ("module that ends before it starts", information(tag(3, struct.pack("<II", 0x2000, 0x1000)), MAP, END), BAD_TAG),
    ("module without an end", information(tag(3, struct.pack("<I", 0)), MAP, END), BAD_TAG),
]  # fmt: skip


@pytest.mark.parametrize(("data", "answer"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(code: Any, data: bytes, answer: int) -> None:
    assert taken(code, data)[0] == answer


@pytest.fixture(scope="module")
def native() -> Any:
    """The walk over the tags as native code; the whole takes addresses below 4 GiB only."""
    return host.load(
        Program(("fivefold.kernel.boot.multiboot2",), roots=("fivefold.kernel.boot.multiboot2.take_tags",))
    )


@pytest.mark.parametrize("data", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_native_code_says_the_same(code: Any, native: Any, data: bytes) -> None:
    """To the end that the information has, whatever it says of its size."""
    helpers = code(None, "multiboot2", extents=[(0x10_0000, 0x14_0000), (IMAGE, 0x32_0000)], window=0)
    helpers.ram.write(GIVEN, data)
    helpers.ram.write(OUT, bytes(INFO_SIZE))
    given, out = native.map(bytearray(data)), native.map(kept := bytearray(INFO_SIZE))
    answer = helpers.call("multiboot2.take_tags", GIVEN + 8, GIVEN + len(data), OUT)
    assert native.call("multiboot2.take_tags", given + 8, given + len(data), out) == answer
    assert bytes(kept) == helpers.ram.read(OUT, INFO_SIZE)
    native.unmap(given)
    native.unmap(out)


@pytest.mark.parametrize("at", [GIVEN + 4, IMAGE, IMAGE_END - 8, IMAGE - 8], ids=hex)
def test_places_that_cannot_be(code: Any, at: int) -> None:
    """Not at a multiple of 8, or where the image lies, which would be overwritten while it is read."""
    data = information(MAP, END)
    helpers = code(None, "multiboot2", extents=[(0x10_0000, 0x14_0000), (IMAGE - 0x1000, 0x32_0000)], window=0)
    helpers.ram.write(at, data)
    assert helpers.call("multiboot2.take_multiboot2", at, OUT, IMAGE, IMAGE_END) == BAD_PLACE
    assert helpers.ram.read(OUT, 8) == struct.pack("<II", BAD_PLACE, 0)


def test_at_the_end_of_what_32_bits_reach(code: Any) -> None:
    data = information(MAP, END)
    for at, answer in (((1 << 32) - len(data), DONE), ((1 << 32) - len(data) + 8, BAD_PLACE)):
        helpers = code(None, "multiboot2", extents=[(0xFFFF_F000, 0x1_0000_1000), (IMAGE, 0x32_0000)], window=0)
        helpers.ram.write(at, data)
        assert helpers.call("multiboot2.take_multiboot2", at, OUT, IMAGE, IMAGE_END) == answer


@pytest.mark.parametrize("kind", [1, 3, 6, 9], ids=["command line", "module", "map", "other"])
def test_a_tag_beyond_the_end_is_not_read(code: Any, kind: int) -> None:
    data = information(MAP, tag(kind, struct.pack("<II", 24, 0), size=0x1000))
    helpers = code(None, "multiboot2", extents=[(0x20_0000 - len(data), 0x20_0000), (IMAGE, 0x32_0000)], window=0)
    helpers.ram.write(0x20_0000 - len(data), data)
    assert helpers.call("multiboot2.take_multiboot2", 0x20_0000 - len(data), OUT, IMAGE, IMAGE_END) == BAD_TAG


@settings(max_examples=60)
@given(st.data())
def test_forged_information_is_never_read_beyond_its_end(code: Any, data: st.DataObject) -> None:
    """Any 32-bit words may lie: memory ends where the information does, and a read behind it would raise."""
    good = bytearray(information(tag(1, b"quiet\0"), tag(3, struct.pack("<II", 1, 2)), MAP, END))
    at = data.draw(st.integers(2, len(good) // 4 - 1))
    struct.pack_into("<I", good, 4 * at, data.draw(st.sampled_from([0, 1, 3, 6, 7, 8, 24, len(good), 0xFFFF_FFFF])))
    extent = (0x20_0000 - len(good), 0x20_0000)
    helpers = code(None, "multiboot2", extents=[extent, (IMAGE, 0x32_0000)], window=0)
    helpers.ram.write(extent[0], bytes(good))
    answer = helpers.call("multiboot2.take_multiboot2", extent[0], OUT, IMAGE, IMAGE_END)
    assert answer in (DONE, BAD_TAG, NO_MAP)


def test_the_buffer_has_the_size_that_is_filled() -> None:
    assembly = resources.files("fivefold.kernel").joinpath("boot", "entry.S").read_text()
    found = re.search(r"^multiboot2_info:\n\s+\.fill\s+(\w+), 1, 0", assembly, re.MULTILINE)
    assert found is not None
    assert int(found[1], 0) == INFO_SIZE
    assert kernel_multiboot2.INFO_CMDLINE + kernel_start_info.MAX_CMDLINE <= kernel_multiboot2.INFO_ROWS


def test_of_two_command_lines_the_last_counts_alone(code: Any) -> None:
    """Nothing of a longer one before it stays behind."""
    data = information(tag(1, b"kaslr=7 no5lvl\0"), tag(1, b"kasan\0"), memory_map(PC), END)
    answer, helpers = taken(code, data)
    assert answer == DONE
    assert helpers.ram.read(OUT + kernel_multiboot2.INFO_CMDLINE, 6) == b"kasan\0"
