"""A migration stream entry by entry, and where its RAM is placed: what QEMU 7.2 told of machines of each size."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fivefold.errors import FormatError
from fivefold.memory.files import FileBytes
from fivefold.memory.formats import compressed, qemu_stream
from fivefold.memory.formats.qemu_stream import _Pages, _placed, _Stream, read_qemu_stream
from fivefold.units import GIB, MIB, PAGE, PhysAddr

HEAD = b"QEVM" + struct.pack(">I", 3)
MACHINE = b"\x07" + struct.pack(">I", 10) + b"pc-q35-7.2"
RAM = b"\x01" + struct.pack(">I", 0x0A0B0C0D) + b"\3ram" + struct.pack(">II", 0, 4)
SECTION = struct.pack(">I", 0x0A0B0C0D)
END = struct.pack(">Q", 0x10)
PART, LAST = b"\x02" + SECTION, b"\x03" + SECTION
FOOT = b"\x7e" + SECTION


def name(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def sizes(*blocks: tuple[bytes, int]) -> bytes:
    total = sum(size for _, size in blocks)
    return struct.pack(">Q", total | 4) + b"".join(name(one) + struct.pack(">Q", size) for one, size in blocks)


def entry(number: int, flags: int, *rest: bytes) -> bytes:
    return struct.pack(">Q", number * PAGE | flags) + b"".join(rest)


def page(letter: bytes) -> bytes:
    return letter * PAGE


PC = name(b"pc.ram")


def stream(*entries: bytes, blocks: bytes = sizes((b"pc.ram", 8 * PAGE), (b"rom", PAGE)), after: bytes = b"") -> bytes:
    return HEAD + MACHINE + RAM + blocks + END + FOOT + PART + b"".join(entries) + END + FOOT + LAST + END + after


def opened(data: bytes) -> Any:
    return read_qemu_stream(FileBytes(data, "toy"))


def pages_of(data: bytes) -> dict[int, int]:
    """The first byte of each page that the stream has."""
    source = opened(data)
    return {
        pa // PAGE: source.memory.read(PhysAddr(pa), PAGE)[0]
        for extent in source.extents
        for pa in range(extent.start, extent.end, PAGE)
    }


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([], {}),
        ([entry(7, 8, PC, page(b"a"))], {7: 97}),
        ([entry(7, 8, PC, page(b"a")), entry(6, 0x28, page(b"b"))], {6: 98, 7: 97}),
        ([entry(0, 8, name(b"rom"), page(b"a")), entry(0, 8, PC, page(b"b"))], {0: 98}),
        ([entry(1, 2, PC, b"\0")], {1: 0}),
        ([entry(1, 2, PC, b"\x01"), entry(2, 0x22, b"\xff")], {1: 1, 2: 255}),
        ([entry(1, 2, PC, b"\x01"), END + FOOT + PART, entry(2, 0x22, b"\xff")], {1: 1, 2: 255}),
        ([entry(1, 8, PC, page(b"a")), entry(1, 0x22, b"\0")], {1: 0}),
        ([entry(0, 0), entry(1, 0x200), entry(1, 2, PC, b"\x05")], {1: 5}),
        ([entry(1, 0x202, PC, b"\x05")], {1: 5}),
    ],
)
def test_entries(entries: list[bytes], found: dict[int, int]) -> None:
    assert pages_of(stream(*entries)) == found


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([entry(8, 8, PC, page(b"a"))], "a page at 0x8000 of no block of RAM, named at "),
        ([entry(1, 2, name(b"rom"), b"\0")], "a page at 0x1000 of no block of RAM, named at "),
        ([entry(0, 0x22, b"\0")], "a page at 0x0 of no block of RAM, named at "),
        ([entry(0, 2, name(b"pc.rom"), b"\0")], "a page at 0x0 of no block of RAM, named at "),
        ([entry(0, 0x40)], "XBZRLE at "),
        ([entry(0, 0x80)], "a hook of RDMA at "),
        ([entry(0, 0x100)], "compressed pages at "),
        ([entry(0, 0x400)], "mapped RAM at "),
        ([entry(0, 0x800)], "flags 0x800 at "),
        ([entry(0, 0x1)], "flags 0x1 at "),
    ],
)
def test_entries_that_cannot_be(entries: list[bytes], says: str) -> None:
    data = stream(*entries)
    with pytest.raises(FormatError) as error:
        opened(data)
    assert str(error.value).startswith(f"toy: {says}0x")
    if "expected a stream without" in str(error.value):
        at = data.index(PART) + len(PART)
        assert str(error.value) == f"toy: {says}{at:#x}; expected a stream without"


def test_a_stream_that_ends_amid_ram() -> None:
    whole = stream(entry(1, 8, PC, page(b"a")), entry(2, 0x22, b"\x07"))
    last = len(whole)
    assert pages_of(whole) == {1: 97, 2: 7}
    word = whole.index(entry(1, 8, PC)) + 8  # behind which the block's name is missing
    for size in (*range(last - 40, last), last - 5000, word - 1, word, word + 1):
        with pytest.raises(FormatError):
            opened(whole[:size])
    with pytest.raises(FormatError) as error:
        opened(whole[:-1])
    assert str(error.value) == f"toy ends at {last - 1:#x}, before RAM does: truncated; copy or take it again"


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        (struct.pack(">Q", 2 * PAGE | 4) + PC + struct.pack(">Q", 3 * PAGE), "block b'pc.ram' of 12288 bytes"),
        (struct.pack(">Q", 2 * PAGE | 4) + PC + struct.pack(">Q", PAGE + 1), "block b'pc.ram' of 4097 bytes"),
        (struct.pack(">Q", 2 * PAGE | 4) + PC + struct.pack(">Q", 0), "block b'pc.ram' of 0 bytes"),
        (struct.pack(">Q", (1 << 44) + PAGE | 4) + PC + struct.pack(">Q", PAGE), f"{(1 << 44) + PAGE} bytes of RAM"),
        (struct.pack(">Q", PAGE | 4) + name(b"x" * 60) + struct.pack(">Q", 1), f"block b'{'x' * 40}' of 1 bytes"),
    ],
)
def test_blocks_that_do_not_fit(blocks: bytes, says: str) -> None:
    with pytest.raises(FormatError) as error:
        opened(stream(blocks=blocks))
    tail = f", expected at most {1 << 44}" if "bytes of RAM" in says else " does not fit its RAM"
    assert str(error.value) == f"toy: {says}{tail}"


def test_how_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = sizes(*((b"%d" % number, PAGE) for number in range(3)), (b"pc.ram", 2 * PAGE))
    data = stream(entry(1, 2, PC, b"\x05"), blocks=blocks)
    monkeypatch.setattr(qemu_stream, "MOST_BLOCKS", 4)
    assert pages_of(data) == {1: 5}
    monkeypatch.setattr(qemu_stream, "MOST_BLOCKS", 3)
    with pytest.raises(FormatError, match=r"block b'pc\.ram' of 8192 bytes does not fit its RAM"):
        opened(data)
    monkeypatch.setattr(qemu_stream, "MOST_BLOCKS", 4)
    monkeypatch.setattr(qemu_stream, "MOST_RAM", 5 * PAGE)
    assert pages_of(data) == {1: 5}


COMMAND = b"\x08" + struct.pack(">HH", 12, 3) + b"\x7e\x7e\x7e"


@pytest.mark.parametrize(
    ("between", "says"),
    [
        (FOOT, ""),
        (b"", ""),
        (FOOT + COMMAND, ""),
        (COMMAND + FOOT + COMMAND * 3, ""),
        (FOOT + b"\x02\0\0\0\7data\x7e\0\0\0\7", ""),
        (FOOT + b"\x04\0\0\0\7\x7e\0\0\0\7" + COMMAND, ""),
        (FOOT + b"\x02\0\0\0\7", "the section at {}, before RAM has ended, has no end"),
        (FOOT + b"\x03\0\0\0\7", "the section at {}, before RAM has ended, has no end"),
        (FOOT + b"\x01", "the section at {}, before RAM has ended, has no end"),
        (FOOT + b"\x04\0\0\0\0", "the section at {}, before RAM has ended, has no end"),
        (FOOT + b"\x00", "section of kind 0x0 at {} before RAM has ended"),
    ],
)
def test_between_sections(between: bytes, says: str) -> None:
    start = HEAD + MACHINE + RAM + sizes((b"pc.ram", PAGE)) + END
    data = start + between + LAST + entry(0, 2, PC, b"\x07") + END
    if says:
        at = len(start) + len(FOOT) + (0 if "no end" in says else 1)
        with pytest.raises(FormatError) as error:
            opened(data)
        assert str(error.value) == f"toy: {says.format(hex(at))}"
    else:
        assert pages_of(data) == {0: 7}


def test_how_many_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    data = HEAD + MACHINE + RAM + sizes((b"pc.ram", PAGE)) + END + FOOT + COMMAND * 2 + LAST + END
    monkeypatch.setattr(qemu_stream, "MOST_COMMANDS", 3)
    assert pages_of(data) == {}
    monkeypatch.setattr(qemu_stream, "MOST_COMMANDS", 2)
    with pytest.raises(FormatError):
        opened(data)
    other = b"\x02\0\0\0\7\x7e\0\0\0\7"
    with pytest.raises(FormatError, match=r"more than 2 parts between two of RAM at 0x[0-9a-f]+$"):
        opened(data[: -len(LAST + END)][: -2 * len(COMMAND)] + other * 3 + LAST + END)


def test_how_long_a_section_of_another_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    other = b"\x02\0\0\0\7" + bytes(100_000) + b"\x7e\0\0\0\7"
    data = HEAD + MACHINE + RAM + sizes((b"pc.ram", PAGE)) + END + FOOT + other + LAST + END
    monkeypatch.setattr(qemu_stream, "MOST_SKIPPED", 100_000)
    assert pages_of(data) == {}
    monkeypatch.setattr(qemu_stream, "MOST_SKIPPED", 60_000)
    with pytest.raises(FormatError, match=r"has no end$"):
        opened(data)


def test_how_far_the_first_section_may_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    data = HEAD + MACHINE + bytes(100) + RAM + sizes((b"pc.ram", PAGE)) + END + LAST + END
    at = len(MACHINE) + 100 + len(RAM)
    monkeypatch.setattr(qemu_stream, "_HEAD", at)
    assert pages_of(data) == {}
    monkeypatch.setattr(qemu_stream, "_HEAD", at - 1)
    with pytest.raises(FormatError, match=f"no section of RAM, of version 4, in the first {at - 1} bytes$"):
        opened(data)


@pytest.mark.parametrize(
    ("text", "machine"),
    [
        (b"pc-q35-7.2", "pc-q35-7.2"),
        (b"pc-i440fx-10.0", "pc-i440fx-10.0"),
        (b"microvm", "microvm"),
        (b"q35", "q35"),
        (b"pc-q35-noble-v2", "pc-q35"),
        (b"isapc", ""),
        (b"", ""),
    ],
)
def test_the_machine(text: bytes, machine: str) -> None:
    data = HEAD + b"\x07" + name(text) + RAM + sizes((b"pc.ram", PAGE)) + END + LAST + END
    read = _Stream(FileBytes(data, "toy"), 0)
    read.read()
    assert (read.machine, read.is_mapped, read.at) == (machine, False, len(data))
    told = machine or "pc, which the stream does not name"
    assert opened(data).notes == (
        "the stream does not describe its CPUs: the root is looked for in memory",
        f"RAM is placed as on machine {told}",
    )


@pytest.mark.parametrize(
    ("machine", "size", "low"),
    [
        ("pc-q35-7.2", 0xB000_0000 - PAGE, None),
        ("pc-q35-7.2", 0xB000_0000, 2 * GIB),
        ("q35", 4 * GIB, 2 * GIB),
        ("pc-i440fx-7.2", 0xE000_0000 - PAGE, None),
        ("pc-i440fx-7.2", 0xE000_0000, 3 * GIB),
        ("", 0xE000_0000 - PAGE, None),
        ("", 0xE000_0000, 3 * GIB),
        ("microvm", 3 * GIB, None),
        ("microvm", 3 * GIB + MIB, 3 * GIB),
        ("microvm", 3 * GIB + PAGE, 3 * GIB),
    ],
)
def test_where_ram_is_placed(machine: str, size: int, low: int | None) -> None:
    places = np.arange(size // PAGE, dtype=np.uint64)
    spans, _ = _placed({b"pc.ram": places, b"rom": places[:1]}, machine)
    if low is None:
        assert [(start, len(part)) for start, part in spans] == [(0, len(places))]
    else:
        assert [(start, len(part)) for start, part in spans] == [(0, low // PAGE), (4 * GIB, (size - low) // PAGE)]
        assert spans[1][1][0] == low // PAGE


def test_which_block_is_ram() -> None:
    few, many = np.zeros(2, np.uint64), np.zeros(9, np.uint64)
    assert len(_placed({b"pc.ram": few, b"vga": many}, "")[0][0][1]) == 2
    assert len(_placed({b"a": few, b"microvm.ram": many}, "microvm")[0][0][1]) == 9
    with pytest.raises(FormatError, match="no block of RAM"):
        _placed({}, "")


def test_pages_by_their_places() -> None:
    data = bytes(PAGE) + page(b"a") + page(b"b") + b"z"
    low = np.array([PAGE, 0, 1, 2 * PAGE], np.uint64)
    high = np.array([(3 * PAGE) | 1 << 63, 0, 2 * PAGE], np.uint64)
    pages = _Pages(FileBytes(data, "toy"), [(0, low), (4 * GIB, high)])
    at = 4 * GIB
    assert pages.extents() == [(0, PAGE), (2 * PAGE, 4 * PAGE), (at, at + PAGE), (at + 2 * PAGE, at + 3 * PAGE)]
    assert pages.written() == [(0, PAGE), (3 * PAGE, 4 * PAGE), (at, at + PAGE), (at + 2 * PAGE, at + 3 * PAGE)]
    assert pages.fetch(0, PAGE) == page(b"a")
    assert pages.fetch(3 * PAGE - 2, 4) == b"\0\0bb"
    assert pages.fetch(2 * PAGE + 5, 2 * PAGE - 5) == bytes(PAGE - 5) + page(b"b")
    assert pages.fetch(at + 1, PAGE - 1) == b"z" * (PAGE - 1)
    assert pages.fetch(at + 3 * PAGE - 1, 1) == b"b"


def libvirt(inner: bytes, *, version: int = 2, size: int = 64, packed: int = 0) -> bytes:
    return b"LibvirtQemudSave" + struct.pack("<19I", version, size, 1, packed, *[0] * 15) + bytes(64) + inner


@pytest.mark.parametrize("inner", [b"no stream" * 100, b"QEVM" + bytes(900)])
def test_what_libvirt_packed_is_closed_where_it_is_no_stream(inner: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "_IN_MEMORY", 100)
    monkeypatch.setattr("fivefold.memory.files.SMALL", 100)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FormatError, match=r"no QEMU stream behind libvirt's 64 bytes|QEMU stream of version 0"):
        opened(libvirt(gzip.compress(inner), packed=1))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (libvirt(stream(), version=1), ""),
        (libvirt(stream(), version=0), "no QEMU stream behind libvirt's 64 bytes of configuration"),
        (libvirt(stream(), version=3), "no QEMU stream behind libvirt's 64 bytes of configuration"),
        (libvirt(stream(), version=3, packed=9), "no QEMU stream behind libvirt's 64 bytes of configuration"),
        (libvirt(stream(), size=63), "no QEMU stream behind libvirt's 63 bytes of configuration"),
        (libvirt(stream(), packed=6), "toy is saved by libvirt in way 6; expected raw, gzip, bzip2, xz or lzop"),
        (libvirt(b"QEVM\0\0\0"), "no QEMU stream behind libvirt's 64 bytes of configuration"),
        (libvirt(b"")[:91], "toy ends in libvirt's header"),
        (libvirt(b"")[:92], "no QEMU stream behind libvirt's 64 bytes of configuration"),
        (b"LibvirtQemudPart", "toy: libvirt was stopped while it saved; expected a complete image"),
    ],
)
def test_libvirts_header(data: bytes, says: str) -> None:
    if says:
        with pytest.raises(FormatError) as error:
            opened(data)
        assert str(error.value).removeprefix("toy: ") == says.removeprefix("toy: ")
    else:
        assert opened(data).format == "QEMU migration stream in a libvirt image"
