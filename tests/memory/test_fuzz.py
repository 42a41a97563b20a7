"""Hostile files: an answer or one clear line, never a crash, never bytes from outside the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.errors import FivefoldError
from fivefold.memory import open_source
from fivefold.units import PhysAddr

FORMATS = ("elf", "elf-extended", "lime", "kdump", "flat")


@pytest.fixture(scope="module")
def seeds(make) -> dict[str, bytes]:
    notes = make.note(b"QEMU", 0, b"\1\0\0\0" + bytes(436)) + make.note(b"CORE", 1, bytes(336))
    segments = [(0x1000, b"\x11" * 4096), (0x9000, b"\x22" * 4096)]
    kdump = make.kdump({3: b"\x33" * 4096, 9: bytes(4096)}, notes=notes)
    return {
        "elf": make.elf_core(segments, notes),
        "elf-extended": make.elf_core(segments, notes, extended=True),
        "lime": make.lime(segments),
        "kdump": kdump,
        "flat": make.flattened(kdump),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "hostile"


def drive(path: Path) -> None:
    """Open and use everything; only the project's own errors may come out, on one line."""
    try:
        with open_source(str(path), max_copy=1 << 20) as source:
            for extent in source.extents[:16]:
                assert extent.start < extent.end <= 1 << 64
                try:
                    assert len(source.memory.read(PhysAddr(extent.start), 8 if extent.end - extent.start >= 8 else 1))
                except FivefoldError as error:
                    assert "\n" not in str(error)
            held = sum(len(bank.data) for bank in source.memory.banks())
            assert held == sum(extent.end - extent.start for extent in source.extents)
    except FivefoldError as error:
        assert "\n" not in str(error)


INTERESTING = st.sampled_from([0, 1, 0x7F, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 52, 1 << 63, (1 << 64) - 1])
WRITES = st.lists(
    st.tuples(st.integers(0, 9000), st.sampled_from([1, 2, 4, 8]), INTERESTING | st.integers(0, (1 << 64) - 1)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=WRITES, keep=st.none() | st.integers(0, 30_000))
def test_damaged_files(name: str, seeds, place: Path, writes, keep: int | None) -> None:
    data = bytearray(seeds[name])
    for at, size, value in writes:
        # Near the front, where the headers are, more often than not.
        at = at % (600 if at % 2 else len(data) - 8)
        data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    place.write_bytes(data[:keep])
    drive(place)


MAGICS = st.sampled_from(
    [
        b"\x7fELF\x02\x01\x01",
        b"EMiL\1\0\0\0",
        b"KDUMP   \6\0\0\0",
        b"makedumpfile\0\0\0\0",
        b"\x1f\x8b\x08",
        b"\xfd7zXZ\0",
    ]
)


@settings(max_examples=150, deadline=None)
@given(magic=MAGICS, rest=st.binary(max_size=300))
def test_a_magic_and_noise(place: Path, magic: bytes, rest: bytes) -> None:
    place.write_bytes(magic + rest)
    drive(place)
