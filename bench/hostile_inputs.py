"""Hostile files of every format, a few lines each, for `hostile.py`, `fuzz.py` and tests/cli/test_hostile.py."""

from __future__ import annotations

import gzip
import lzma
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

PAGE: Final = 4096
ESCAPES: Final = b"6.1\x1b[2J\x1b]0;x\x07\x9b31m"
P_RW_US: Final = 7

Tables = npt.NDArray[np.uint64]


def note(name: bytes, kind: int, data: bytes) -> bytes:
    """An ELF note."""
    owner = name + b"\0"
    head = struct.pack("<III", len(owner), len(data), kind)
    return b"".join([head, owner, bytes(-len(owner) % 4), data, bytes(-len(data) % 4)])


def qemu_note(cr3: int, cr4: int = 0x20) -> bytes:
    """The note of a CPU in 64-bit mode."""
    segments = struct.pack("<IIIIQ", 0x10, 0xFFFFFFFF, 0xA09B00, 0, 0) * 10
    general = [0] * 16 + [0xFFFFFFFF81000000, 2]
    head = struct.pack("<II18Q", 1, 440, *general)
    return note(b"QEMU", 0, head + segments + struct.pack("<5Q", 0x80050033, 0, 0, cr3, cr4))


def elf(loads: list[tuple[int, bytes]], notes: bytes = b"") -> bytes:
    """An ELF core with a PT_LOAD for each (physical address, bytes)."""
    return elf_headers([(at, len(data)) for at, data in loads], notes) + b"".join(data for _, data in loads)


def elf_headers(loads: list[tuple[int, int]], notes: bytes, same: bool = False) -> bytes:
    """Headers and notes of a core whose data follow; those of all *loads* are the *same* bytes if so wanted."""
    count = len(loads) + 1
    extended = count >= 0xFFFF
    table = 64 + 64 * extended
    at = table + 56 * count
    segments = [struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), len(notes), 0)]
    at += len(notes)
    for start, size in loads:
        segments.append(struct.pack("<IIQQQQQQ", 1, 0, at, 0, start, size, size, 0))
        at += 0 if same else size
    numbers = (table, 64 if extended else 0, 0, 64, 56, 0xFFFF if extended else count, 64, int(extended), 0)
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, 62, 1, 0, *numbers)
    first = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0) if extended else b""
    return head + first + b"".join(segments) + notes


def guest(tables: Tables, notes: bytes = b"", five: bool = False) -> bytes:
    """A core whose memory is *tables*, the first of them the root."""
    return elf([(0, tables.tobytes())], qemu_note(0, 0x1020 if five else 0x20) + notes)


def sharing(count: int) -> Tables:
    """Tables that all point at each other."""
    index = np.arange(512, dtype=np.uint64)
    return np.stack([index * np.uint64(2 * n + 1) % np.uint64(count) << np.uint64(12) | P_RW_US for n in range(count)])


def uneven(count: int) -> Tables:
    """The same, every second entry read-only: they are met under several rights."""
    tables = sharing(count)
    tables[:, 1::2] &= ~np.uint64(2)
    return tables


def irregular(count: int, seed: int = 1) -> Tables:
    """Entries drawn at random: tables, large pages, holes, reserved bits."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 2 * count, (count, 512), dtype=np.uint64) << np.uint64(12)
    flags = np.array([0, 1, 3, 7, 0x67, 0x83, 0x87, 1 << 63 | 3, 1 << 51 | 7, 0x1E7], np.uint64)
    return frames | flags[rng.integers(0, len(flags), (count, 512))]


def cyclic() -> Tables:
    """One table, and every entry of it leads to itself."""
    return np.full((1, 512), P_RW_US, np.uint64)


def chains(count: int) -> Tables:
    """Each table leads to itself once, to the next, and to pages everywhere."""
    index = np.arange(count, dtype=np.uint64)
    tables = np.tile(np.arange(512, dtype=np.uint64) * np.uint64(0x201000) | np.uint64(0x63), (count, 1))
    tables[:, 510] = index << np.uint64(12) | np.uint64(P_RW_US)
    tables[:, 511] = (index + np.uint64(1)) % np.uint64(count) << np.uint64(12) | np.uint64(P_RW_US)
    return tables


def scattered(count: int) -> Tables:
    """A kernel half of *count* page tables of writable and executable pages, no two of which are one run."""
    upper = 2 + -(-count // 512)
    tables = np.zeros((upper + count, 512), np.uint64)
    pages = np.arange(count * 512, dtype=np.uint64) * np.uint64(2) + np.uint64(0x10_0000)
    tables[upper:] = (pages << np.uint64(12) | np.uint64(3)).reshape(count, 512)
    tables[0, 256] = 1 << 12 | P_RW_US
    tables[1, : upper - 2] = np.arange(2, upper, dtype=np.uint64) << np.uint64(12) | np.uint64(P_RW_US)
    leaves = np.zeros((upper - 2) * 512, np.uint64)
    leaves[:count] = np.arange(upper, upper + count, dtype=np.uint64) << np.uint64(12) | np.uint64(P_RW_US)
    tables[2:upper] = leaves.reshape(upper - 2, 512)
    return tables


def vmcoreinfo(text: bytes) -> bytes:
    """A guest that says *text* of itself."""
    return guest(chains(4), note(b"VMCOREINFO", 0, text))


def kdump(
    pages: dict[int, bytes], notes: bytes, same: bytes | None = None, damaged: int | None = None
) -> Iterator[bytes]:
    """A kdump file in pieces. With *same* every page is these packed bytes; page *damaged* cannot be unpacked."""
    count = max(pages) + 1
    bits = np.zeros(-(-count // (8 * PAGE)) * 8 * PAGE, np.uint8)
    bits[list(pages)] = 1
    bitmap = np.packbits(bits, bitorder="little").tobytes()
    blocks = len(bitmap) // PAGE
    numbers = (1, PAGE, 1, 2 * blocks, min(count, 0xFFFFFFFF), 0, 0, 0, 0, 1)
    yield struct.pack("<8si390s6x16sIiiIIIIIIi", b"KDUMP   ", 6, b"", b"", *numbers).ljust(PAGE, b"\0")
    data_at = 2 * PAGE + 2 * len(bitmap) + 24 * len(pages)
    packed = [] if same is not None else [zlib.compress(pages[number], 1) for number in sorted(pages)]
    if damaged is not None:
        packed[damaged] = b"\xff" * len(packed[damaged])
    notes_at = data_at + (len(same) if same is not None else sum(map(len, packed)))
    sub = struct.pack("<QiiQQQQQQQQQQQ", 0, 0, 0, 0, 0, 0, 0, notes_at, len(notes), 0, 0, 0, 0, count)
    yield sub.ljust(PAGE, b"\0") + bitmap * 2
    if same is not None:
        yield struct.pack("<QIIQ", data_at, len(same), 1, 0) * len(pages) + same + notes
        return
    for piece in packed:
        yield struct.pack("<QIIQ", data_at, len(piece), 1, 0)
        data_at += len(piece)
    yield from packed
    yield notes


def nothing_described(pages: int) -> Iterator[bytes]:
    """A kdump of so many *pages*, packed: every descriptor of them is zeros, which take no room."""
    heads = b"".join(kdump({pages - 1: b""}, qemu_note(0), b""))[: 2 * PAGE]
    bitmap = b"\xff" * (pages // 8)
    bitmap += bytes(-len(bitmap) % PAGE)
    yield lzma.compress(heads + bitmap * 2, preset=0)
    step = 1 << 20
    yield lzma.compress(bytes(24 * step), preset=0) * (pages // step) + lzma.compress(bytes(24 * (pages % step) + PAGE))


def lime(ranges: list[tuple[int, int]]) -> bytes:
    """A LiME file with zeros for each (start, size); a size may claim more than there is."""
    return b"".join(
        struct.pack("<IIQQ8x", 0x4C694D45, 1, start, start + size - 1 & (1 << 64) - 1) + bytes(min(size, 16))
        for start, size in ranges
    )


def repeated(pack: Callable[[bytes], bytes], data: bytes, times: int) -> bytes:
    """So many packed streams in a row, which unpack to one file."""
    return pack(data) * times


@dataclass(frozen=True)
class Hostile:
    """A file to be: *make* yields its bytes."""

    name: str
    make: Callable[[], Iterator[bytes]]

    def write(self, folder: Path) -> Path:
        """Write it into *folder*."""
        path = folder / self.name
        with path.open("wb") as file:
            for piece in self.make():
                file.write(piece)
        return path


def _whole(name: str, make: Callable[[], bytes]) -> Hostile:
    return Hostile(name, lambda: iter([make()]))


def _pages(tables: Tables, more: Iterator[int]) -> dict[int, bytes]:
    pages = dict.fromkeys(more, bytes(PAGE))
    pages.update({number: table.tobytes() for number, table in enumerate(tables)})
    return pages


def inputs(scale: int) -> list[Hostile]:
    """One of each kind; *scale* 1 is small enough for a test, 16 what a breaker would send."""
    mib = 1 << 20
    many = 4096 * scale
    cpu = qemu_note(0)
    words = b"OSRELEASE=" + ESCAPES + b"\nSYMBOL(init_top_pgt)=" + ESCAPES + b"\n"
    loads = [(n << 13, PAGE) for n in range(many * 16)]
    overlaps = [(n << 12, 8 * PAGE) for n in range(many)]
    letters = zlib.compress(b"\x67" * PAGE)
    noise = random.Random(1)
    return [
        *(_whole(f"sharing-{n}.elf", lambda n=n: guest(sharing(n))) for n in (2 * scale, 8 * scale, 16 * scale)),
        *(_whole(f"uneven-{n}.elf", lambda n=n: guest(uneven(n))) for n in (2 * scale, 8 * scale, 16 * scale)),
        _whole("uneven-five.elf", lambda: guest(uneven(4 * scale), five=True)),
        *(_whole(f"irregular-{n}.elf", lambda n=n: guest(irregular(n))) for n in (4 * scale, 16 * scale)),
        _whole("cyclic.elf", lambda: guest(cyclic())),
        _whole("cyclic-five.elf", lambda: guest(cyclic(), five=True)),
        _whole("chains.elf", lambda: guest(chains(4 * scale))),
        _whole("scattered.elf", lambda: guest(scattered(512 * scale))),
        _whole("release.elf", lambda: vmcoreinfo(b"OSRELEASE=foo\n")),
        _whole("escapes.elf", lambda: vmcoreinfo(words)),
        _whole("many-lines.elf", lambda: vmcoreinfo(b"".join(b"K%d=1\n" % n for n in range(many * 8)))),
        _whole("many-cpus.elf", lambda: elf([(0, cyclic().tobytes())], cpu * (many // 4))),
        _whole("note-sizes.elf", lambda: elf([(0, bytes(PAGE))], struct.pack("<III", 1 << 31, 1 << 31, 0) + cpu)),
        _whole("many-loads.elf", lambda: elf_headers(loads, cpu, True) + bytes(PAGE)),
        _whole("overlaps.elf", lambda: elf_headers(overlaps, cpu, True) + bytes(8 * PAGE)),
        Hostile("fragments.kdump", lambda: kdump(_pages(chains(4), iter(range(256, 256 + 9 * many, 2))), cpu)),
        Hostile("damaged.kdump", lambda: kdump(_pages(chains(4), iter(range(4, 16))), cpu, damaged=9)),
        Hostile("one-page.kdump", lambda: kdump(dict.fromkeys(range(16 * many), b""), cpu, letters)),
        Hostile("nothing-described.kdump.xz", lambda: nothing_described(many * 2048)),
        _whole("many.lime", lambda: lime([(n << 13, 16) for n in range(many)])),
        _whole("beyond.lime", lambda: lime([(0, 1 << 63), (1 << 63, 1 << 63)])),
        _whole("zeros.xz", lambda: repeated(lzma.compress, bytes(64 * mib), 64 * scale)),
        _whole("zeros.gz", lambda: repeated(gzip.compress, bytes(16 * mib), 64 * scale)),
        _whole("letters.xz", lambda: repeated(lzma.compress, b"\x55" * (16 * mib), 16 * scale)),
        _whole("noise.raw", lambda: noise.randbytes(mib * scale)),
        _whole("links.raw", lambda: struct.pack("<Q", 0x67) * (mib * scale // 8)),
        _whole("ones.raw", lambda: b"\xff" * (mib * scale)),
        _whole("\x1b]0;x\x07\u202ename.elf", lambda: guest(cyclic())),
        _whole("nothing.log", lambda: bytes(mib * scale)),
        _whole("one-line.log", lambda: b"CR2=" + b"f" * (mib * scale)),
        _whole("numbers.log", lambda: b"check_exception old: 0xffffffff new 0xe\n" * (many * 4)),
    ]
