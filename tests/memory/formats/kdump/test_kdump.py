"""kdump files, made field by field, plain and flattened; QEMU's own are in test_live_qemu."""

from __future__ import annotations

import contextlib
import importlib.util
import lzma
import random
import struct
import sys
import zlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.errors import FormatError, MachineError, MemoryReadError
from fivefold.memory import open_source
from fivefold.memory.files import FileBytes
from fivefold.memory.formats import kdump_pages
from fivefold.memory.formats.kdump_bitmap import ranks, runs_of_bits
from fivefold.memory.formats.kdump_flat import FlatBytes
from fivefold.units import PhysAddr

PAGES = {number: bytes([number % 251 + 1]) * 2000 + bytes(2096) for number in (3, 4, 5, 40, 70000)}


@pytest.mark.parametrize("flat", [False, True])
def test_pages_and_holes(make, saved, flat: bool) -> None:
    plain = make.kdump(PAGES)
    with open_source(saved(make.flattened(plain) if flat else plain)) as source:
        assert source.extents == [(0x3000, 0x6000), (0x28000, 0x29000), (0x11170000, 0x11171000)]
        for number, page in PAGES.items():
            assert source.memory.read(PhysAddr(number * 4096), 4096) == page
        assert source.memory.read(PhysAddr(0x3FFE), 4) == b"\0\0\x05\x05"
        assert [bank.start for bank in source.memory.banks()] == [0x3000, 0x28000, 0x11170000]
        assert source.memory.banks()[2].data == PAGES[70000]
        assert source.vmcoreinfo == {"OSRELEASE": "6.1.0"}
        assert source.format == ("kdump, flattened" if flat else "kdump")
        with pytest.raises(MemoryReadError):
            source.memory.read(PhysAddr(0x5FFF), 2)


def test_uncompressed_pages(make, saved) -> None:
    with open_source(saved(make.kdump(PAGES, pack=bytes, flags=0))) as source:
        assert source.memory.read(PhysAddr(0x28000), 4096) == PAGES[40]


def test_notes(make, saved) -> None:
    status = make.note(b"CORE", 1, struct.pack("<112x27Q8x", *range(27)))
    with open_source(saved(make.kdump(PAGES, notes=status * 3))) as source:
        assert len(source.cpus) == 3


@given(st.binary(max_size=40))
def test_runs_are_the_set_bits(bitmap: bytes) -> None:
    got = [number for first, end in runs_of_bits(bitmap) for number in range(first, end)]

    assert got == [i for i in range(8 * len(bitmap)) if bitmap[i // 8] >> i % 8 & 1]
    assert ranks(bitmap, 4) == [sum(i < 32 * n for i in got) for n in range(-(-len(bitmap) // 4) + 1)]


def test_ranks_over_a_large_bitmap(make, saved) -> None:
    """Each page's bytes say its number, so a wrong rank shows."""
    numbers = random.Random(5).sample(range(1, 200_000), 60)
    pages = {n: struct.pack("<Q", n) * 512 for n in numbers}
    with open_source(saved(make.kdump(pages))) as source:
        for number in numbers:
            assert struct.unpack("<Q", source.memory.read(PhysAddr(number * 4096), 8)) == (number,)


PACKERS = {
    2: ("lzallright", "lzallright", lambda lzo, page: lzo.LZOCompressor().compress(page)),
    4: ("snappy", "python-snappy", lambda snappy, page: snappy.compress(page)),
    0x20: ("zstandard", "zstandard", lambda zstandard, page: zstandard.compress(page)),
}
"""By the flag of a page: the module, the package that has it, and how makedumpfile packs."""


@pytest.mark.parametrize("flags", PACKERS)
def test_pages_packed_by_optional_packages(make, saved, flags: int) -> None:
    name, _, pack = PACKERS[flags]
    module = pytest.importorskip(name)
    noise = random.Random(7).randbytes(2048) + bytes(2048)
    pages = {**PAGES, 41: noise}
    with open_source(saved(make.kdump(pages, pack=lambda page: pack(module, page), flags=flags))) as source:
        for number, page in pages.items():
            assert source.memory.read(PhysAddr(number * 4096), 4096) == page


@pytest.mark.parametrize("flags", PACKERS)
def test_pages_that_optional_packages_do_not_shrink(make, saved, flags: int) -> None:
    """Packed they have exactly the size of a page, and are no page as they are: by every way in which one is read."""
    name, _, pack = PACKERS[flags]
    module = pytest.importorskip(name)
    noise = random.Random(7).randbytes(4096)
    # zstd takes what it cannot shrink well as it is, which is larger; what follows its frame does not count.
    every = (noise[:100] + bytes(size) + noise[100 : 4096 - size] for size in range(400))
    page = noise[:2000] + bytes(2096) if flags == 0x20 else next(one for one in every if len(pack(module, one)) == 4096)
    pages = {3: page, 4: KINDS[3], 5: page}

    def packed(one: bytes) -> bytes:
        return bytes(pack(module, one)).ljust(4096 if one == page else 0, b"\0")

    with open_source(saved(make.kdump(pages, pack=packed, flags=flags))) as source:
        assert source.memory.read(PhysAddr(0x3000), 0x3000) == page + KINDS[3] + page
        assert list(source.memory.pages_that_begin(noise[:8])) == [0x3000, 0x5000]
        assert list(source.memory.pages_that_begin(KINDS[3][:8])) == [0x4000]
        assert list(source.memory.pages_that_begin(pack(module, page)[:8])) == []
        assert [row.tobytes() for batch in source.memory.page_batches() for row in batch.rows] == list(pages.values())


def test_a_snappy_page_is_not_believed(make, saved) -> None:
    snappy = pytest.importorskip("snappy")
    for size in (4095, 4097, 8192):
        forged = make.kdump({3: PAGES[3]}, pack=lambda page, size=size: snappy.compress(bytes(size)), flags=4)
        with open_source(saved(forged)) as source, pytest.raises(FormatError, match="length in front is not that of"):
            source.memory.read(PhysAddr(0x3000), 8)


def test_few_pages_are_kept(make, saved) -> None:
    """Unpacked, while single words are read of all."""
    numbers = range(1, 400)
    with open_source(saved(make.kdump({n: struct.pack("<Q", n) * 512 for n in numbers}))) as source:
        pages = source.memory._fetch.__self__
        for number in [*numbers, *numbers]:
            assert source.memory.read(PhysAddr(number * 4096), 8) == struct.pack("<Q", number)
            assert len(pages._kept) <= 64


@pytest.mark.parametrize("flags", PACKERS)
def test_optional_packages(make, saved, flags: int) -> None:
    """Broken data where the package is installed, its name where it is not."""
    name, package, _ = PACKERS[flags]
    installed = importlib.util.find_spec(name) is not None
    wanted = FormatError if installed else MachineError
    with open_source(saved(make.kdump(PAGES, flags=flags))) as source, pytest.raises(wanted) as error:
        source.memory.read(PhysAddr(0x3000), 8)
    want = f"page 0x3 has broken {package} data" if installed else f"packed with {package}: pip install {package}"
    assert want in str(error.value)


@pytest.mark.parametrize("size", [4095, 4097, 1 << 20])
@pytest.mark.parametrize("flags", PACKERS)
def test_pages_that_unpack_to_another_size(make, saved, flags: int, size: int) -> None:
    name, _, pack = PACKERS[flags]
    module = pytest.importorskip(name)
    forged = make.kdump({3: PAGES[3]}, pack=lambda page: pack(module, bytes(size)), flags=flags)
    with open_source(saved(forged)) as source, pytest.raises(FormatError, match=r"page 0x3 "):
        source.memory.read(PhysAddr(0x3000), 8)


def test_a_zstd_page_that_claims_to_be_huge(make, saved) -> None:
    """The size in front is not allocated on its word."""
    pytest.importorskip("zstandard")
    frame = b"\x28\xb5\x2f\xfd\xe0" + (1 << 46).to_bytes(8, "little") + b"\x01\x00\x00"
    forged, message = make.kdump({3: PAGES[3]}, pack=lambda page: frame, flags=0x20), "claims 70368744177664 bytes"
    with open_source(saved(forged)) as source, pytest.raises(FormatError, match=message):
        source.memory.read(PhysAddr(0x3000), 8)


def patched(data: bytes, at: int, form: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


FORGED = [
    (8, "<i", 99, "kdump header version 99, expected 1 to 6"),
    (428, "<i", 8192, "kdump block size 8192, expected 4096"),
    (432, "<i", -1, "kdump sub-header of -1 blocks, expected a few"),
    (436, "<I", 0xFFFF_FFFF, "two bitmaps of 8796093020160 bytes at 0x2000, the file has"),
    (4096 + 12, "<i", 1, "is one part of a split dump; join the parts with makedumpfile --reassemble"),
    (4096 + 40, "<Q", 1 << 63, "VMCOREINFO of 9223372036854775808 bytes, at most 67108864 are read"),
    (4096 + 32, "<Q", 1 << 63, "expected 16 bytes at 0x8000000000000000: truncated or forged; copy or take it again"),
    (4096 + 56, "<Q", 1 << 40, "notes of 1099511627776 bytes, at most 67108864 are read"),
]


@pytest.mark.parametrize(("at", "form", "value", "message"), FORGED)
def test_forged_headers(make, saved, at: int, form: str, value: int, message: str) -> None:
    with pytest.raises(FormatError) as error:
        open_source(saved(patched(make.kdump(PAGES), at, form, value)))
    assert message in str(error.value)


def test_a_dump_of_a_32_bit_system(make, saved) -> None:
    """Its time stamp is two words of 32 bits, so that its block size stands twelve bytes in front."""
    path = saved(patched(patched(make.kdump(PAGES), 428, "<i", 1), 416, "<i", 4096))
    with pytest.raises(FormatError) as error:
        open_source(path)
    assert str(error.value) == (
        f"{path} is a kdump of a 32-bit system, whose tables are those of 32-bit or PAE paging; "
        "expected 4- or 5-level paging"
    )


def test_page_count_beyond_the_bitmap_is_cut(make, saved) -> None:
    huge = patched(make.kdump(PAGES), 4096 + 96, "<Q", (1 << 64) - 1)
    with open_source(saved(huge)) as source:
        assert source.extents[-1].end == 0x11171000


def test_bits_without_descriptors(make, saved) -> None:
    plain = make.kdump({3: PAGES[3]}, pack=bytes, flags=0)
    full = plain[: 3 * 4096] + b"\xff" * 4096 + plain[4 * 4096 :]
    full = patched(full, 4096 + 96, "<Q", 32768)
    with pytest.raises(FormatError, match=r"32768 page descriptors need bytes up to 0xc4000, the file ends at"):
        open_source(saved(full))


DESCRIPTOR = 2 * 4096 + 2 * 4096

DAMAGED = [
    (DESCRIPTOR, "<Q", 1 << 62, "expected 26 bytes at 0x4000000000000000: truncated or forged; copy or take it again"),
    (DESCRIPTOR + 8, "<I", 0xFFFF_FFFF, "page 0x3 has 4294967295 bytes in the file, expected 1 to 4096"),
    (DESCRIPTOR + 8, "<I", 0, "page 0x3 has 0 bytes in the file, expected 1 to 4096"),
    (DESCRIPTOR + 8, "<I", 1, "page 0x3 unpacks to 0 bytes, expected 4096"),
    (DESCRIPTOR + 12, "<I", 3, "page 0x3 has flags 0x3, expected one way of compression at most"),
    (DESCRIPTOR + 12, "<I", 0, "page 0x3 unpacks to 26 bytes, expected 4096"),
]


@pytest.mark.parametrize(("at", "form", "value", "message"), DAMAGED)
def test_damaged_pages(make, saved, at: int, form: str, value: int, message: str) -> None:
    path = saved(
        patched(make.kdump({3: bytes(4096), 4: PAGES[4]}, pack=lambda p: zlib.compress(p, 9)), at, form, value)
    )
    with open_source(path) as source:
        with pytest.raises(FormatError) as error:
            source.memory.read(PhysAddr(0x3000), 8)
        assert source.memory.read(PhysAddr(0x4000), 4096) == PAGES[4]
    assert message in str(error.value).replace(f"{len(zlib.compress(bytes(4096), 9))} bytes", "26 bytes")


@pytest.mark.parametrize("size", [1, 5000])
def test_pages_of_another_size(make, saved, size: int) -> None:
    """A page that unpacks to more or less is damage; more is not even unpacked."""
    path = saved(make.kdump(PAGES, pack=lambda _: zlib.compress(bytes(size))))
    message = rf"page 0x3 unpacks to {min(size, 4097)} bytes, expected 4096$"
    with open_source(path) as source, pytest.raises(FormatError, match=message):
        source.memory.read(PhysAddr(0x3000), 8)


def test_broken_zlib(make, saved) -> None:
    path = saved(make.kdump(PAGES, pack=lambda page: b"\xff" * 30))
    with open_source(path) as source, pytest.raises(FormatError, match=r"page 0x3 has broken zlib data: "):
        source.memory.read(PhysAddr(0x3000), 8)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ((0, 1 << 40), "flattened record before 0x1010 claims 1099511627776 bytes at 0, 8 are left"),
        ((-5, 4), "flattened record before 0x1010 claims 4 bytes at -5, 8 are left"),
        ((-1, 4), "flattened record before 0x1010 claims 4 bytes at -1, 8 are left"),
        ((0, -1), "flattened record before 0x1010 claims -1 bytes at 0, 8 are left"),
        ((0, 9), "flattened record before 0x1010 claims 9 bytes at 0, 8 are left"),
        ((0, 0), "flattened record before 0x1010 claims 0 bytes at 0, 8 are left"),
    ],
)
def test_forged_records(make, saved, record: tuple[int, int], message: str) -> None:
    head = make.flattened(b"")[:4096]
    with pytest.raises(FormatError) as error:
        open_source(saved(head + struct.pack(">qq", *record) + bytes(8)))
    assert message in str(error.value)


def test_flattened_without_an_end(make, saved) -> None:
    flat = make.flattened(make.kdump(PAGES))[:-16]
    with pytest.raises(FormatError, match=r"truncated or forged; copy or take it again$"):
        open_source(saved(flat))


def test_flattened_far_away_is_zeros_not_memory(make, saved) -> None:
    """A record at 2^62 makes a huge file; nothing of it is allocated."""
    flat = make.flattened(make.kdump(PAGES))[:-16] + struct.pack(">qq", 1 << 62, 1) + b"x" + struct.pack(">qq", -1, -1)
    with open_source(saved(flat)) as source:
        assert source.memory.read(PhysAddr(0x28000), 4096) == PAGES[40]


def test_truncated(make, saved) -> None:
    plain = make.kdump(PAGES)
    for keep in (30, 464, 5000, 9000):
        with pytest.raises(FormatError, match=r"truncated or forged; copy or take it again$"):
            open_source(saved(plain[:keep]))


KINDS = (bytes(4096), b"OSRELEASE=a" + bytes(4085), b"OSRELEASE=b" * 300 + bytes(796), b"\x67" * 4096)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    st.dictionaries(st.integers(1, 400) | st.integers(65_500, 65_600), st.integers(0, 3), min_size=1),
    st.booleans(),
    st.sampled_from([0, 1]),
)
def test_pages_are_found_by_how_they_begin(make, saved, chosen: dict[int, int], share: bool, flags: int) -> None:
    """By one look at each descriptor, also where equal pages share their bytes; and what is empty is told then."""
    pack = zlib.compress if flags else bytes
    kinds = {number: KINDS[kind] for number, kind in chosen.items()}
    with open_source(saved(make.kdump(kinds, pack=pack, flags=flags, share=share))) as source:
        memory = source.memory
        for head in (b"OSRELEASE=", b"OSRELEASE=a", b"\x67" * 8, bytes(8), b"nowhere!"):
            want = [number * 4096 for number in sorted(kinds) if kinds[number].startswith(head)]
            assert list(memory.pages_that_begin(head)) == want
        filled = {at for run in memory.written() for at in range(run.start, run.end, 4096)}
        empty = [number for number, page in kinds.items() if not any(page)]
        # A descriptor is looked at where several pages have it, among the 65,536 that are read together.
        together = Counter(number // 65_536 for number in empty)
        known = empty if share and max(together.values(), default=0) > 1 else []
        assert filled == {number * 4096 for number in kinds} - {number * 4096 for number in known}
        batches = list(memory.page_batches())
        assert [pa for batch in batches for pa in batch.addresses.tolist()] == sorted(filled)
        rows = [row.tobytes() for batch in batches for row in batch.rows]
        assert rows == [kinds[pa // 4096] for pa in sorted(filled)]


DAMAGE = {
    "too long": (8, "<I", 4097),
    "no bytes": (8, "<I", 0),
    "cut": (8, "<I", 10),
    "past the end": (0, "<Q", 1 << 40),
    "packed twice": (12, "<I", 3),
    "not packed as it says": (12, "<I", 0),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_batches_leave_out_what_is_damaged(make, saved, damage: str, shared: bool) -> None:
    """Page 5 is damaged; those before and behind it, which may be the same bytes as it was, are as they were."""
    noise = random.Random(3).randbytes(1024) + bytes(3072)
    pages = {3: KINDS[1], 4: noise, 5: noise, 6: noise if shared else KINDS[2], 7: KINDS[1]}
    data = bytearray(make.kdump(pages, share=shared))
    at, form, value = DAMAGE[damage]
    struct.pack_into(form, data, DESCRIPTOR + 2 * 24 + at, value)
    with open_source(saved(bytes(data) + bytes(8192))) as source:
        found = {
            pa // 4096: row.tobytes()
            for batch in source.memory.page_batches()
            for pa, row in zip(batch.addresses.tolist(), batch.rows, strict=True)
        }
        del pages[5]
        assert found == pages
        assert source.left_out == [0x5000]
        assert [bank.start for bank in source.memory.banks()] == [0x3000, 0x6000]
        assert source.left_out == [0x5000]
        with pytest.raises(FormatError):
            source.memory.read(PhysAddr(0x4000), 0x3000)
        assert source.memory.read(PhysAddr(0x3000), 0x2000) == pages[3] + pages[4]
        assert source.memory.read(PhysAddr(0x6FF0), 0x20) == pages[6][-16:] + pages[7][:16]


def test_batches_are_bounded(make, saved) -> None:
    with open_source(saved(make.kdump(dict.fromkeys(range(1, 4098), KINDS[3]), share=True))) as source:
        assert [len(batch.addresses) for batch in source.memory.page_batches()] == [2048, 2048, 1]


def test_pages_that_share_their_bytes_are_unpacked_once(make, saved, monkeypatch) -> None:
    unpacked: list[object] = []
    begin = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", lambda: unpacked.append(None) or begin())
    with open_source(saved(make.kdump(dict.fromkeys(range(5000), KINDS[3]), share=True))) as source:
        assert list(source.memory.pages_that_begin(b"OSRELEASE=")) == []
        assert len(unpacked) == 2  # once to see whether they are empty
        assert source.memory.read(PhysAddr(0), 5000 * 4096) == KINDS[3] * 5000
        assert len(unpacked) == 3


def test_pages_that_share_their_bytes_in_turns_are_unpacked_once(make, saved, monkeypatch) -> None:
    """Two, packed to the same length, at every second page each."""
    unpacked: list[object] = []
    begin = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", lambda: unpacked.append(None) or begin())
    pages = {number: bytes([0x67 + number % 2]) * 4096 for number in range(200)}
    assert len({len(zlib.compress(page)) for page in pages.values()}) == 1
    with open_source(saved(make.kdump(pages, share=True))) as source:
        assert list(source.memory.pages_that_begin(b"\x68" * 9)) == list(range(4096, 200 * 4096, 2 * 4096))
        assert len(unpacked) == 4  # each once to see whether it is empty, and once for the head


def test_a_head_is_looked_for_past_damage(make, saved) -> None:
    """Of pages and of descriptors; a page that is broken behind its head is found, and read says so."""
    data = bytearray(make.kdump(dict.fromkeys(range(3, 8), KINDS[1])))
    at = DESCRIPTOR
    struct.pack_into("<I", data, at + 8, 5000)
    struct.pack_into("<Q", data, at + 24, 1 << 62)
    struct.pack_into("<I", data, at + 48 + 12, 3)
    fourth, size = struct.unpack_from("<QI", data, at + 72)
    data[fourth + size - 4 : fourth + size] = b"\xff" * 4  # its check sum
    with open_source(saved(bytes(data) + bytes(8192))) as source:
        assert list(source.memory.pages_that_begin(b"OSRELEASE=")) == [0x6000, 0x7000]
        with pytest.raises(FormatError, match=r"page 0x6 has broken zlib data"):
            source.memory.read(PhysAddr(0x6000), 8)


@pytest.mark.parametrize("last", [None, 9, 70_000])
def test_nothing_but_empty_pages(make, saved, last: int | None) -> None:
    """In all of the file, in all of a part of it, or with one page behind them."""
    pages = dict.fromkeys(range(3, 9), KINDS[0]) | ({} if last is None else {last: KINDS[3]})
    with open_source(saved(make.kdump(pages, share=True))) as source:
        assert source.memory.written() == ([] if last is None else [(last * 4096, last * 4096 + 4096)])
        assert [len(batch.rows) for batch in source.memory.page_batches()] == ([] if last is None else [1])
        assert list(source.memory.pages_that_begin(KINDS[3][:8])) == ([] if last is None else [last * 4096])


def test_a_shared_page_that_cannot_be_unpacked_is_not_taken_for_empty(make, saved) -> None:
    forged = make.kdump(dict.fromkeys(range(3, 9), bytes(4096)), pack=lambda _: b"\xff" * 30, share=True)
    with open_source(saved(forged)) as source:
        assert source.memory.written() == [(0x3000, 0x9000)]


def test_packed_otherwise_at_one_place_is_another_page(make, saved) -> None:
    """All have one offset; what is empty if it is whole is not if a length differs."""
    data = bytearray(make.kdump(dict.fromkeys(range(3, 9), bytes(4096)), pack=bytes, flags=0, share=True))
    struct.pack_into("<I", data, DESCRIPTOR + 2 * 24 + 8, 100)
    with open_source(saved(bytes(data))) as source:
        assert source.memory.written() == [(0x5000, 0x6000)]


def test_too_many_runs_are_told_whole(make, saved, monkeypatch) -> None:
    pages = {n: KINDS[n % 2 * 3] for n in range(3, 60)}
    with open_source(saved(make.kdump(pages, share=True))) as source:
        assert len(source.memory.written()) == 29
        monkeypatch.setattr(kdump_pages, "MAX_RUNS", 20)
        assert source.memory.written() == [(0x3000, 60 * 4096)]


def test_a_dump_that_describes_more_than_it_can_hold(make, saved, monkeypatch) -> None:
    """Descriptors of nothing pack to nothing: a small file may not have us look at all of them."""
    plain = make.kdump(dict.fromkeys(range(4000), KINDS[3]), share=True)
    monkeypatch.setattr(kdump_pages, "LEAST_FILLED", 100)
    with open_source(saved(lzma.compress(plain))) as source:
        assert len(source.memory.written()) == 1
        for looks in (lambda: list(source.memory.page_batches()), lambda: list(source.memory.pages_that_begin(b"any"))):
            with pytest.raises(FormatError, match=r"fills 4000 pages, a file that takes \d+K? on disk may have 100: "):
                looks()
        assert source.memory.read(PhysAddr(0x3000), 4096) == KINDS[3]
    with open_source(saved(plain)) as source:
        assert len(list(source.memory.page_batches())) == 2
    monkeypatch.setattr(kdump_pages, "LEAST_DESCRIBED", 100)
    with pytest.raises(FormatError, match=r"describes 4000 pages, .* forged, or packed once more; unpack it first$"):
        open_source(saved(lzma.compress(plain)))
    open_source(saved(plain)).close()


def test_empty_pages_are_described_and_fill_nothing(make, saved, monkeypatch) -> None:
    path = saved(lzma.compress(make.kdump(dict.fromkeys(range(4000), KINDS[0]) | {4000: KINDS[1]}, share=True)))
    monkeypatch.setattr(kdump_pages, "LEAST_FILLED", 100)
    with open_source(path) as source:
        assert list(source.memory.pages_that_begin(b"OSRELEASE")) == [4000 * 4096]


@pytest.mark.parametrize("version", range(1, 7))
def test_what_a_version_has_of_the_second_header(make, saved, version: int) -> None:
    """Parts of a split dump since version 2, VMCOREINFO since 3; before that there may be anything in their places."""
    part = saved(make.kdump(PAGES, version=version, split=1))
    if version >= 2:
        with pytest.raises(FormatError, match="is one part of a split dump"):
            open_source(part)
    else:
        with open_source(part) as source:
            assert source.memory.read(PhysAddr(0x3000), 4096) == PAGES[3]
    with open_source(saved(make.kdump(PAGES, version=version))) as source:
        assert bool(source.vmcoreinfo) == (version >= 3)
    fewer = bytearray(make.kdump(PAGES, version=version))
    struct.pack_into("<Q", fewer, 4096 + 96, 4)  # how many pages there are, since version 6
    with open_source(saved(bytes(fewer))) as source:
        assert next(extent.end for extent in source.extents) == (0x4000 if version >= 6 else 0x6000)


@pytest.mark.parametrize("flags", PACKERS)
def test_a_package_that_is_missing(make, saved, monkeypatch: pytest.MonkeyPatch, flags: int) -> None:
    name, package, _ = PACKERS[flags]
    monkeypatch.setitem(sys.modules, name, None)
    with open_source(saved(make.kdump(PAGES, flags=flags))) as source, pytest.raises(MachineError) as error:
        source.memory.read(PhysAddr(0x3000), 8)
    assert str(error.value).endswith(f"page 0x3 is packed with {package}: pip install {package}")


@pytest.mark.parametrize("number", range(11))
def test_runs_of_bits(number: int) -> None:
    """Whole bytes are one run, others one bit each; together they are what is set."""
    bits = bytes([0x00, 0xFF, 0xFF, 0x81, 0x10, 0xFF, 0x00, 0xFE])[number % 8 :] + bytes(number)
    runs = list(runs_of_bits(bits))
    wanted = [bit for bit in range(8 * len(bits)) if bits[bit // 8] >> bit % 8 & 1]
    assert [bit for first, end in runs for bit in range(first, end)] == wanted
    assert all(end - first == 1 or first % 8 == end % 8 == 0 for first, end in runs)


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (0x10, 1 << 40), (1 << 40, 1)])
def test_a_flattened_file_has_no_more_than_it_rebuilds_to(make, tmp_path: Path, offset: int, size: int) -> None:
    (tmp_path / "flat").write_bytes(make.flattened(make.kdump(PAGES)))
    with contextlib.closing(FileBytes.open(tmp_path / "flat")) as file:
        flat = FlatBytes(file)
        assert len(flat.read_at(flat.size - 3, 3)) == 3
        for at, length in ((offset, size), (flat.size - 3, 4)):
            with pytest.raises(FormatError, match=rf"rebuilds to {flat.size:#x} bytes; expected {length} at {at:#x}: "):
                flat.read_at(at, length)
