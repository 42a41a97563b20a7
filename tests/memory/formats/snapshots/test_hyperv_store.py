"""Blocks of a Hyper-V snapshot, and the runs of memory that lie in them."""

from __future__ import annotations

import random
import struct
import zlib

import pytest

from fivefold.errors import FormatError
from fivefold.memory.files import FileBytes
from fivefold.memory.formats.snapshots import hyperv
from fivefold.memory.formats.snapshots.hyperv import _CACHED, _Store, read_hyperv
from fivefold.memory.formats.snapshots.xpress import BLOCK
from fivefold.units import PAGE, PhysAddr

DATA = random.Random(5).randbytes(3 * BLOCK)


def store(**runs: tuple[int, int, int]) -> _Store:
    """Three blocks of the file one after the other; numbers of blocks are those of their places."""
    blocks = {number: (number * BLOCK, BLOCK) for number in range(3)}
    return _Store(FileBytes(DATA, "toy.vmrs"), blocks, dict(enumerate(runs.values())))


@pytest.mark.parametrize(
    ("pa", "size", "parts"),
    [
        (0, 0x2000, [(BLOCK - 0x1000, 0x2000)]),
        (0x2800, 0x1000, [(BLOCK + 0x1800, 0x800), (7, 0x800)]),
        (0x3000, 8, [(7, 8)]),
        (0x2FFF, 1, [(BLOCK + 0x1FFF, 1)]),
        (0x3FFF, 1, [(0x1006, 1)]),
        (0x9000_0000, 2 * BLOCK, [(BLOCK // 2, 2 * BLOCK)]),
    ],
)
def test_memory_across_blocks_and_runs(pa: int, size: int, parts: list[tuple[int, int]]) -> None:
    runs = store(low=(0, 0x3000, BLOCK - 0x1000), next=(0x3000, 0x1000, 7), high=(0x9000_0000, 2 * BLOCK, BLOCK // 2))
    assert runs.fetch(pa, size) == b"".join(DATA[at : at + length] for at, length in parts)


def test_a_block_is_unpacked_once_and_few_are_kept() -> None:
    read: list[int] = []

    class Counted(FileBytes):
        def read_at(self, at: int, size: int) -> bytes:
            read.append(at)
            return bytes([at & 0xFF]) * size

    blocks = {number: (number, BLOCK) for number in range(_CACHED + 1)}
    runs = _Store(Counted(b"", "toy.vmrs"), blocks, {})
    assert [runs.block(number)[0] for number in range(_CACHED)] == list(range(_CACHED))
    assert runs.block(0)[0] == 0 and read == list(range(_CACHED))
    runs.block(_CACHED)  # in the place of the first
    runs.block(1)
    assert len(read) == _CACHED + 1
    runs.block(0)
    assert read[_CACHED + 1 :] == [0]


def test_a_block_that_is_packed_wrongly_is_named() -> None:
    runs = _Store(FileBytes(bytes(64), "toy.vmrs"), {3: (0, 64)}, {})
    with pytest.raises(FormatError, match=r"^toy.vmrs: RamBlock3"):
        runs.block(3)


HEAD_SIZE, TABLE_SIZE = 46, 16 * PAGE
PLACE = 20 * PAGE
"""Where the one block's packed bytes lie, behind a table of keys at the fourth page."""


def header(length: int = HEAD_SIZE) -> bytes:
    """With the checksum of its first *length* bytes."""
    head = struct.pack("<IIHIIIIQQI", 0x01282014, 0, 5, 0x400, 0, 0, PAGE, 0x3000, PAGE, 7)
    return head[:4] + struct.pack("<I", zlib.crc32(head[:length])) + head[8:]


def key(name: bytes, value: bytes, *, kind: int = 7, flags: int = 0, size: int | None = None) -> bytes:
    whole = 21 + len(name) + 1 + len(value)
    return struct.pack("<BBIHIIIB", kind, flags, size or whole, 0, 0, 0, 1, len(name) + 1) + name + b"\0" + value


def run_key(number: int, pages: int, first: int, start: int, tail: int = 16) -> bytes:
    value = struct.pack("<IIQQQ", 3, 0, pages, first, start) + bytes(tail)
    return key(b"RamMemoryBlock%d" % number, struct.pack("<I", len(value)) + value)


def block_key(number: int, size: int = BLOCK, at: int = PLACE) -> bytes:
    return key(b"RamBlock%d" % number, struct.pack("<IQ", size, at), flags=1)


def vmrs(*tables: tuple[int, int, bytes], heads: tuple[bytes, bytes] | None = None, blocks: int = 1) -> FileBytes:
    """Tables as (page, sequence, keys), and blocks full of their numbers, from 1 on."""
    out = bytearray(PLACE) + b"".join(bytes([number + 1]) * BLOCK for number in range(blocks))
    for at, head in zip((0, PAGE), heads or (header(), header()), strict=True):
        out[at : at + HEAD_SIZE] = head
    for page, sequence, keys in tables:
        head = struct.pack("<HHH", 2, 0, sequence)
        whole = head + struct.pack("<I", zlib.crc32(head + bytes(4))) + keys
        out[page * PAGE : page * PAGE + len(whole)] = whole
    return FileBytes(bytes(out), "toy.vmrs")


ONE = run_key(0, 256, 0, 16) + block_key(0)


def extents(file: FileBytes) -> list[tuple[int, int]]:
    return [tuple(extent) for extent in read_hyperv(file).extents]


def wrong(at: int) -> bytes:
    return header()[:at] + bytes([header()[at] ^ 1]) + header()[at + 1 :]


@pytest.mark.parametrize("at", range(HEAD_SIZE))
def test_one_of_two_headers_does(at: int) -> None:
    """The checksum is of 46 bytes, itself taken for zeros."""
    for heads in ((wrong(at), header()), (header(), wrong(at))):
        assert extents(vmrs((4, 1, ONE), heads=heads)) == [(16 * PAGE, 16 * PAGE + BLOCK)]
    with pytest.raises(FormatError, match="neither header of Hyper-V's store has a checksum that fits"):
        read_hyperv(vmrs((4, 1, ONE), heads=(wrong(at), wrong(at))))


@pytest.mark.parametrize("length", [HEAD_SIZE - 1, HEAD_SIZE - 4])
def test_the_checksum_of_a_shorter_header(length: int) -> None:
    with pytest.raises(FormatError, match="neither header"):
        read_hyperv(vmrs((4, 1, ONE), heads=(header(length), header(length))))


def test_the_later_sequence_counts() -> None:
    """Wherever the tables lie; of one table the last key of a name."""
    low, high = run_key(0, 256, 0, 16), run_key(0, 256, 0, 1 << 20)
    block = block_key(0)
    assert extents(vmrs((4, 1, low + block), (8, 2, high)))[0][0] == 1 << 32
    assert extents(vmrs((4, 2, low + block), (8, 1, high)))[0][0] == 16 * PAGE
    assert extents(vmrs((4, 1, low + block + high)))[0][0] == 1 << 32
    spoilt = vmrs((4, 1, low + block), (8, 2, high)).read_at(0, PLACE + BLOCK)
    spoilt = spoilt[: 8 * PAGE + 9] + bytes([spoilt[8 * PAGE + 9] ^ 1]) + spoilt[8 * PAGE + 10 :]
    assert extents(FileBytes(spoilt, "toy.vmrs"))[0][0] == 16 * PAGE


@pytest.mark.parametrize(
    ("keys", "is_found"),
    [
        (key(b"x", bytes(9)) + ONE, True),
        (key(b"RamBlock1", bytes(9), kind=5) + ONE, True),
        (key(b"RamBlock", bytes(9), flags=1) + key(b"RamBlock123456789", bytes(12), flags=1) + ONE, True),
        (key(b"xRamBlock1", bytes(12), flags=1) + key(b"RamBlock1x", bytes(12), flags=1) + ONE, True),
        (key(b"x", b"", kind=0) + ONE, False),
        (key(b"x", b"", size=20) + ONE, False),
        (key(b"x", b"", size=21) + b"x\0" + ONE, False),
        (key(b"x", b"", size=TABLE_SIZE) + ONE, False),
        (key(b"x", b"", size=1 << 30) + ONE, False),
        (key(b"RamBlock0", struct.pack("<IQ", BLOCK, PLACE)) + run_key(0, 256, 0, 16), False),
        (key(b"RamBlock0", struct.pack("<IQ", BLOCK, PLACE)[:-1], flags=1) + run_key(0, 256, 0, 16), False),
    ],
)
def test_which_keys_count(keys: bytes, is_found: bool) -> None:
    if is_found:
        assert extents(vmrs((4, 1, keys))) == [(16 * PAGE, 16 * PAGE + BLOCK)]
    else:
        with pytest.raises(FormatError, match=r"toy.vmrs holds no memory \(RamBlock, RamMemoryBlock\): expected"):
            read_hyperv(vmrs((4, 1, keys)))


@pytest.mark.parametrize(("fill", "is_inside"), [(0, True), (1, False)])
def test_keys_up_to_the_end_of_the_table(fill: int, is_inside: bool) -> None:
    """Sixteen pages, of which the first ten bytes are the table's head."""
    used = 10 + 23 + len(ONE)
    keys = key(b"x", bytes(TABLE_SIZE - used + fill)) + ONE
    assert 10 + len(keys) == TABLE_SIZE + fill
    if is_inside:
        assert extents(vmrs((4, 1, keys))) == [(16 * PAGE, 16 * PAGE + BLOCK)]
    else:
        with pytest.raises(FormatError, match="holds no memory"):
            read_hyperv(vmrs((4, 1, keys)))


def test_a_run_of_memory_may_lie_elsewhere() -> None:
    """As a block does: its size and its place stand for it."""
    value = struct.pack("<IIQQQ", 3, 0, 256, 0, 16)
    keys = block_key(0) + key(b"RamMemoryBlock0", struct.pack("<IQ", len(value), 0x3000), flags=1)
    data = bytearray(vmrs((4, 1, keys)).read_at(0, PLACE + BLOCK))
    data[0x3000 : 0x3000 + len(value)] = value
    assert extents(FileBytes(bytes(data), "toy.vmrs")) == [(16 * PAGE, 16 * PAGE + BLOCK)]
    large = keys.replace(struct.pack("<IQ", len(value), 0x3000), struct.pack("<IQ", 1 << 31, 0x3000))
    data[4 * PAGE + 10 : 4 * PAGE + 10 + len(large)] = large
    assert extents(FileBytes(bytes(data), "toy.vmrs")) == [(16 * PAGE, 16 * PAGE + BLOCK)]


@pytest.mark.parametrize(
    ("key_of_run", "says"),
    [
        (run_key(3, 256, 0, 16, 0)[:-1], "RamMemoryBlock3 has 31 bytes, expected 32 or more"),
        (run_key(3, 0, 0, 16), "RamMemoryBlock3 has 0 pages from page 0x10 on"),
        (run_key(3, 1 << 40, 0, 16), f"RamMemoryBlock3 has {1 << 40} pages from page 0x10 on"),
        (run_key(3, 1, 1 << 40, 16), "RamMemoryBlock3 has 1 pages from page 0x10 on"),
        (run_key(3, 1, 0, 1 << 40), "RamMemoryBlock3 has 1 pages from page 0x10000000000 on"),
        (run_key(3, 1 << 32, 0, 16) + run_key(4, 1, 0, 0), f"more than {1 << 44} bytes of memory"),
        (run_key(3, 16, 0, 0) + run_key(4, 1, 0, 15), "runs of memory overlap, expected each byte once"),
    ],
)
def test_runs_that_cannot_be(key_of_run: bytes, says: str) -> None:
    keys = block_key(0) + key_of_run
    if says.startswith("RamMemoryBlock3 has 31"):
        keys = block_key(0) + key(b"RamMemoryBlock3", struct.pack("<I", 31) + bytes(31))
    with pytest.raises(FormatError) as error:
        read_hyperv(vmrs((4, 1, keys)))
    assert str(error.value) == f"toy.vmrs: {says}" or str(error.value).startswith(f"toy.vmrs: {says}")


def test_runs_that_can() -> None:
    source = read_hyperv(vmrs((4, 1, block_key(0) + run_key(0, 16, 0, 0, 0) + run_key(1, 1, 16, 16))))
    assert source.extents == [(0, 17 * PAGE)]
    assert source.notes == ("Hyper-V's registers are not read: the root is looked for in memory",)
    far = read_hyperv(vmrs((4, 1, block_key(0) + run_key(0, 1, 0, (1 << 40) - 1))))
    assert far.extents == [((1 << 52) - PAGE, 1 << 52)]
    large = read_hyperv(vmrs((4, 1, block_key(0) + run_key(0, (1 << 32) - 16, 0, 0) + run_key(1, 16, 0, 1 << 38))))
    assert large.extents == [(0, BLOCK), (1 << 50, (1 << 50) + 16 * PAGE)]
    assert large.notes[1] == f"{(1 << 44) - BLOCK - 16 * PAGE} bytes of memory are not in the file, and are a hole"


def test_blocks_that_are_not_in_the_file() -> None:
    """A run of four blocks that begins amid the first; the second and the last are missing."""
    keys = block_key(0) + block_key(2, at=PLACE + BLOCK) + run_key(0, 3 * 256, 128, 0)
    source = read_hyperv(vmrs((4, 1, keys), blocks=2))
    half = BLOCK // 2
    assert source.extents == [(0, half), (half + BLOCK, half + 2 * BLOCK)]
    assert source.notes[1:] == (f"{3 * BLOCK - half - BLOCK} bytes of memory are not in the file, and are a hole",)
    assert source.memory.read(PhysAddr(half - 1), 1) == b"\1"
    assert source.memory.read(PhysAddr(half + BLOCK), BLOCK) == b"\2" * BLOCK


@pytest.mark.parametrize(
    ("size", "at", "is_well"),
    [
        (BLOCK, PLACE, True),
        (1, PLACE + BLOCK - 1, True),
        (BLOCK + 1, PLACE - 1, False),
        (0, PLACE, False),
        (BLOCK, PLACE + 1, False),
        (1, PLACE + BLOCK, False),
    ],
)
def test_where_blocks_may_lie(size: int, at: int, is_well: bool) -> None:
    file = vmrs((4, 1, run_key(0, 256, 0, 16) + block_key(0, size, at)))
    if is_well:
        assert extents(file) == [(16 * PAGE, 16 * PAGE + BLOCK)]
    else:
        with pytest.raises(FormatError) as error:
            read_hyperv(file)
        assert str(error.value) == (
            f"toy.vmrs: RamBlock0 of {size} bytes at {at:#x}, the file ends at {PLACE + BLOCK:#x}: "
            "truncated or forged; copy or take it again"
        )


@pytest.mark.parametrize(
    ("bound", "most", "says"),
    [
        ("MOST_TABLES", 2, "more than 2 tables of keys"),
        ("MOST_KEYS", 3, "more than 3 keys"),
        ("MAX_SPANS", 2, "runs of memory overlap, expected each byte once"),
    ],
)
def test_bounds_of_a_store(bound: str, most: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = vmrs((4, 1, ONE), (5, 2, run_key(1, 1, 0, 0)))
    monkeypatch.setattr(hyperv, bound, most)
    assert len(extents(file)) == 2
    monkeypatch.setattr(hyperv, bound, most - 1)
    with pytest.raises(FormatError, match=says.replace(str(most), str(most - 1))):
        read_hyperv(file)


def test_parts_of_memory_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs may lie in the same blocks, of which every second is missing."""
    blocks = b"".join(block_key(number) for number in range(0, 8, 2))
    file = vmrs((4, 1, blocks + b"".join(run_key(number, 8 * 256, 0, number << 16) for number in range(3))))
    monkeypatch.setattr(hyperv, "MAX_SPANS", 12)
    assert extents(file) == [
        ((number << 28) + at * BLOCK, (number << 28) + (at + 1) * BLOCK) for number in range(3) for at in (0, 2, 4, 6)
    ]
    monkeypatch.setattr(hyperv, "MAX_SPANS", 11)
    with pytest.raises(FormatError, match=r"^toy.vmrs: more than 11 parts of memory$"):
        read_hyperv(file)


def test_keys_are_counted_in_tables_that_lie_over_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hyperv, "MOST_KEYS", 9)
    file = vmrs((4, 1, key(b"x", b"") * 7 + ONE))
    assert len(extents(file)) == 1
    with pytest.raises(FormatError, match="more than 9 keys"):
        read_hyperv(vmrs((4, 1, key(b"x", b"") * 8 + ONE)))


def test_what_may_be_copied() -> None:
    source = read_hyperv(vmrs((4, 1, ONE)), max_copy=BLOCK)
    assert bytes(source.memory.banks()[0].data[:2]) == b"\1\1"
    with pytest.raises(Exception, match=f"at most {BLOCK - 1} are allowed"):
        read_hyperv(vmrs((4, 1, ONE)), max_copy=BLOCK - 1).memory.banks()
