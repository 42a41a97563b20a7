"""Compressed files: the same source inside, bounded, truncation seen."""

from __future__ import annotations

import gzip
import importlib.util
import io
import lzma
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fivefold.errors import FormatError, MachineError
from fivefold.memory import open_source
from fivefold.memory.formats import compressed
from fivefold.units import PhysAddr

ZSTD = importlib.util.find_spec("zstandard") is not None
PACKERS: dict[str, Callable[[bytes], bytes]] = {"xz": lzma.compress, "gzip": gzip.compress}
IMAGE = random.Random(1).randbytes(10_000) + bytes(3 << 20) + b"end"


@pytest.mark.parametrize("kind", PACKERS)
def test_raw_image_inside(saved, kind: str) -> None:
    steps: list[tuple[int, int | None]] = []
    path = saved(PACKERS[kind](IMAGE))
    with open_source(path, progress=lambda done, total: steps.append((done, total))) as source:
        assert source.memory.read(PhysAddr(0), len(IMAGE)) == IMAGE
        assert (source.format, source.name) == (f"raw image in {kind}", path)
    size = Path(path).stat().st_size
    assert steps[-1] == (size, size)


@pytest.mark.parametrize("kind", PACKERS)
def test_zeros_at_the_end_are_kept(saved, kind: str) -> None:
    with open_source(saved(PACKERS[kind](b"x" + bytes((5 << 20) - 1)))) as source:
        assert source.extents == [(0, 5 << 20)]


@pytest.mark.parametrize("kind", PACKERS)
def test_several_streams_are_one_file(saved, kind: str) -> None:
    pack = PACKERS[kind]
    with open_source(saved(pack(IMAGE[:5000]) + pack(IMAGE[5000:]))) as source:
        assert source.memory.read(PhysAddr(0), len(IMAGE)) == IMAGE


@given(
    st.lists(st.binary(max_size=40) | st.just(bytes(5000)), min_size=1, max_size=4),
    st.sampled_from([b"", bytes(9), bytes(70_000), b"x", b"\x1f\x8b"]),
    st.integers(0, 60),
    st.sampled_from([7, 4096]),
)
def test_gzip_is_read_like_the_standard_library_does(parts: list[bytes], after: bytes, cut: int, step: int) -> None:
    """Streams in a row, zeros and other things behind them, cut short; either bytes or a refusal."""
    packed = (bytes(9) if len(after) > 9 else b"").join(map(gzip.compress, parts)) + after
    packed = packed[: len(packed) - cut] if cut < len(packed) - 18 and len(after) < 3 else packed
    try:
        want: bytes | None = gzip.decompress(packed)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        want = None
    stream = compressed._Gzip(io.BufferedReader(io.BytesIO(packed)))
    try:
        got: bytes | None = b"".join(iter(lambda: stream.read(step), b""))
    except (EOFError, zlib.error):
        got = None
    assert got == want


def test_a_ram_map_counts_unpacked_bytes(saved) -> None:
    with open_source(saved(gzip.compress(IMAGE)), ram_map="1M-0x101000=0x1000") as source:
        assert source.memory.read(PhysAddr(0x100000), 4096) == IMAGE[4096:8192]


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("keep", [30, 4000])
def test_truncated(saved, kind: str, keep: int) -> None:
    path = saved(PACKERS[kind](IMAGE)[:keep])
    with pytest.raises(FormatError) as error:
        open_source(path)
    assert str(error.value) == f"{path}: {kind} data ends in the middle: truncated; copy or take it again"


@pytest.mark.parametrize("kind", PACKERS)
def test_damaged(saved, kind: str) -> None:
    packed = bytearray(PACKERS[kind](IMAGE))
    packed[3000:3100] = bytes(100)
    path = saved(bytes(packed))
    with pytest.raises(FormatError, match=rf"guest: broken {kind} data before 0x[0-9a-f]+: \S"):
        open_source(path)


@pytest.mark.parametrize("kind", PACKERS)
def test_bombs_are_bounded(saved, kind: str) -> None:
    path = saved(PACKERS[kind](bytes(4 << 20)))
    with pytest.raises(FormatError) as error:
        open_source(path, max_unpacked=1 << 20)
    assert str(error.value) == f"{path} unpacks to more than 1048576 bytes; allow more with --max-unpacked SIZE"


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize(
    ("limits", "data", "told"),
    [
        (("LEAST_UNPACKED", "MAX_RATIO"), bytes(4 << 20), "bytes"),
        (("LEAST_WRITTEN", "MAX_WRITTEN_RATIO"), b"x" * (4 << 20), "bytes that are not zeros"),
    ],
    ids=["zeros", "other"],
)
def test_a_file_unpacks_to_what_its_size_gives_cause_for(
    saved, monkeypatch, kind: str, limits: tuple[str, str], data: bytes, told: str
) -> None:
    least, ratio = limits
    packed = PACKERS[kind](data)
    monkeypatch.setattr(compressed, ratio, 2)
    monkeypatch.setattr(compressed, least, 4 << 20)
    path = saved(packed)
    with open_source(path) as source:
        assert source.extents == [(0, 4 << 20)]
    monkeypatch.setattr(compressed, least, (4 << 20) - 1)
    with pytest.raises(FormatError) as error:
        open_source(path)
    assert (
        str(error.value) == f"{path} unpacks to more than {(4 << 20) - 1} {told}; allow more with --max-unpacked SIZE"
    )
    with open_source(path, max_unpacked=4 << 20) as source:
        assert source.extents == [(0, 4 << 20)]
    monkeypatch.setattr(compressed, ratio, (4 << 20) // len(packed) + 1)
    open_source(path).close()


def test_half_of_the_disk_is_left(saved, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(compressed, "_IN_MEMORY", 1 << 20)
    monkeypatch.setattr(compressed.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    open_source(saved(lzma.compress(b"x" * (3 << 20)))).close()
    path = saved(lzma.compress(b"x" * (4 << 20)))
    with pytest.raises(MachineError, match=r"it would fill half of it$"):
        open_source(path)


def test_compressed_twice(saved) -> None:
    path = saved(lzma.compress(gzip.compress(IMAGE)))
    with pytest.raises(FormatError) as error:
        open_source(path)
    assert str(error.value) == f"{path} is compressed twice (gzip inside xz); unpack it once first"


def test_nothing_inside(saved) -> None:
    with pytest.raises(FormatError, match=r"guest unpacks to nothing$"):
        open_source(saved(gzip.compress(b"")))


def test_large_ones_go_to_a_file_without_a_name(saved, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(compressed, "_IN_MEMORY", 1 << 16)
    monkeypatch.setattr(compressed.tempfile, "tempdir", str(tmp_path / "spill"))
    (tmp_path / "spill").mkdir()
    with open_source(saved(lzma.compress(IMAGE))) as source:
        assert source.memory.read(PhysAddr(0), len(IMAGE)) == IMAGE
        assert list((tmp_path / "spill").iterdir()) == []


def test_zstd_inside_or_what_to_install(saved) -> None:
    if ZSTD:
        zstandard = importlib.import_module("zstandard")
        with open_source(saved(zstandard.compress(IMAGE))) as source:
            assert source.memory.read(PhysAddr(0), len(IMAGE)) == IMAGE
            assert source.format == "raw image in zstd"
        return
    with pytest.raises(MachineError, match=r"^zstd data needs the package zstandard: pip install zstandard$"):
        open_source(saved(b"\x28\xb5\x2f\xfd" + bytes(100)))


@pytest.mark.parametrize(
    ("packed", "size", "written"),
    [
        (0, 4 << 30, 1 << 30),
        (8 << 20, 4 << 30, 1 << 30),
        ((8 << 20) + 1, (4 << 30) + 512, 1 << 30),
        (17 << 20, 17 << 29, 17 << 26),
        (128 << 20, 64 << 30, 8 << 30),
        (1 << 40, 64 << 30, 64 << 40),
    ],
)
def test_what_a_file_has_cause_for(packed: int, size: int, written: int) -> None:
    """Four gibibytes, or 512 times its size up to 64 GiB; of what is not zeros one, or 64 times its size."""
    assert compressed._Limits.of(packed) == (size, written)


@pytest.mark.parametrize("size", [(1 << 16) - 1, 1 << 16, (1 << 16) + 1, 1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("tail", [b"", b"x", bytes(5)])
def test_any_size_in_memory_or_in_a_file(saved, monkeypatch: pytest.MonkeyPatch, size: int, tail: bytes) -> None:
    monkeypatch.setattr(compressed, "_IN_MEMORY", 1 << 16)
    data = b"a" + bytes(size - 1 - len(tail)) + tail
    with compressed.unpack(compressed.FileBytes.open(saved(gzip.compress(data)))) as file:
        assert (file.size, file.read_at(0, size)) == (size, data)
        assert file.on_disk == min(len(gzip.compress(data)), size)


def test_what_is_packed_by_no_way_that_is_known(saved) -> None:
    file = compressed.FileBytes.open(saved(b"plain"))
    with pytest.raises(FormatError, match="guest is not compressed with xz, gzip or zstd"):
        compressed.unpack(file)


def test_zeros_are_not_counted_as_written(saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "LEAST_WRITTEN", 1 << 20)
    path = saved(lzma.compress(bytes(3 << 20) + b"x" * (1 << 20)))
    open_source(path).close()
    monkeypatch.setattr(compressed, "LEAST_WRITTEN", (1 << 20) - 1)
    with pytest.raises(FormatError, match="to more than 1048575 bytes that are not zeros"):
        open_source(path)


def test_zeros_take_no_room(saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "_IN_MEMORY", 1 << 16)
    with compressed.unpack(compressed.FileBytes.open(saved(gzip.compress(bytes(32 << 20) + b"x", 1)))) as file:
        assert file.size == (32 << 20) + 1
        assert os.fstat(file._fd).st_blocks * 512 < 4 << 20
