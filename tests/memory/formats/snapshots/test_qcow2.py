"""The state of a machine in a qcow2 image: clusters of every kind, put together by hand."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import pytest

from fivefold.errors import FormatError
from fivefold.memory.files import FileBytes
from fivefold.memory.formats.snapshots.qcow2 import SavedState, saved_states, state_bytes

BITS = 12
CLUSTER, PER_TABLE = 1 << BITS, 1 << BITS - 3
HEADER, SNAPSHOTS, FIRST, SECOND, DATA = 0, 0x200, 0x1000, 0x2000, 0x3000
DISK = 5 * CLUSTER
"""The disk's own clusters take the first table; the state begins with the second."""


class Image:
    """An image of version 2 or 3 with one snapshot, whose state is *clusters*."""

    def __init__(self, version: int = 2, extra: bytes = b"", size: int = 0) -> None:
        self.data = bytearray(DATA)
        struct.pack_into(
            ">4sIQIIQIIQQIIQ", self.data, HEADER, b"QFI\xfb", version, 0, 0, BITS, DISK, 0, 0, 0, 0, 0, 1, SNAPSHOTS
        )
        texts = b"1" + "schnäppchen".encode()
        struct.pack_into(">QIHHIIQII", self.data, SNAPSHOTS, FIRST, 2, 1, 12, 0, 0, 0, size, len(extra))
        self.data[SNAPSHOTS + 40 : SNAPSHOTS + 40 + len(extra) + len(texts)] = extra + texts
        self.entry(FIRST + 8, SECOND)
        self.count = 0

    def entry(self, at: int, value: int) -> None:
        struct.pack_into(">Q", self.data, at, value)

    def add(self, value: int) -> None:
        self.entry(SECOND + 8 * self.count, value)
        self.count += 1

    def plain(self, data: bytes) -> None:
        """A cluster as it is. Bit 63 says that nothing else refers to it."""
        self.data += bytes(-len(self.data) % CLUSTER)
        self.add(len(self.data) | 1 << 63)
        self.data += data

    def packed(self, data: bytes) -> None:
        """A compressed cluster, which begins anywhere and says how many sectors it touches."""
        packer = zlib.compressobj(9, zlib.DEFLATED, -12)
        raw = packer.compress(data) + packer.flush()
        at = len(self.data)
        sectors = (at + len(raw) - 1 >> 9) - (at >> 9)
        self.add(1 << 62 | sectors << 62 - (BITS - 8) | at)
        self.data += raw

    def open(self) -> FileBytes:
        return FileBytes(bytes(self.data), "toy.qcow2")

    def state(self, size: int) -> bytes:
        return b"".join(state_bytes(self.open(), SavedState("toy", FIRST, 2, size)))


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", range(0, CLUSTER + 1, 256))
def test_a_packed_cluster_of_any_number_of_sectors(size: int) -> None:
    image = Image()
    image.data += bytes(300)
    image.packed(noise(size).ljust(CLUSTER, b"\0"))
    assert image.state(CLUSTER) == noise(size).ljust(CLUSTER, b"\0")


def test_clusters_of_each_kind_in_order() -> None:
    image = Image()
    image.plain(noise(CLUSTER))
    image.packed(b"packed" * 600)
    image.add(0)
    image.add(DATA | 1)
    image.plain(noise(CLUSTER + 1)[1:])
    state = image.state(5 * CLUSTER - 1)
    wanted = noise(CLUSTER) + (b"packed" * 600).ljust(CLUSTER, b"\0") + bytes(2 * CLUSTER) + noise(CLUSTER + 1)[1:-1]
    assert state == wanted


def test_the_last_cluster_may_end_with_the_file() -> None:
    image = Image()
    image.plain(b"the end")
    assert image.state(CLUSTER) == b"the end".ljust(CLUSTER, b"\0")
    image.add(len(image.data) + CLUSTER - len(image.data) % CLUSTER)
    with pytest.raises(FormatError):
        image.state(2 * CLUSTER)


def test_a_second_table_that_is_not_there_is_zeros() -> None:
    image = Image()
    image.entry(FIRST + 8, 0)
    assert image.state(3 * CLUSTER) == bytes(3 * CLUSTER)
    assert image.state(PER_TABLE * CLUSTER) == bytes(PER_TABLE * CLUSTER)
    with pytest.raises(FormatError, match=f"claims {PER_TABLE * CLUSTER + 1} bytes of state; its table is too short"):
        image.state(PER_TABLE * CLUSTER + 1)


def test_a_packed_cluster_that_is_broken() -> None:
    image = Image()
    image.add(1 << 62 | DATA)
    image.data += b"\xff" * 512
    with pytest.raises(FormatError, match=r"^toy.qcow2: broken compressed cluster at 0x3000: "):
        image.state(CLUSTER)


@pytest.mark.parametrize(
    ("size", "extra", "wanted"),
    [
        (77, b"", 77),
        (77, bytes(4), 77),
        (77, bytes(8), 77),
        (77, (1 << 33).to_bytes(8, "big"), 1 << 33),
        (0, (5).to_bytes(8, "big") + bytes(8), 5),
        (0, b"", None),
        (0, bytes(16), None),
    ],
)
def test_the_size_of_a_state(size: int, extra: bytes, wanted: int | None) -> None:
    found = saved_states(Image(size=size, extra=extra).open())
    assert found == ([] if wanted is None else [SavedState("schnäppchen", FIRST, 2, wanted)])


def test_versions_and_features() -> None:
    assert len(saved_states(Image(version=3, size=1).open())) == 1
    for version in (1, 4):
        with pytest.raises(FormatError, match=f"qcow2 of version {version} with 1 snapshots; expected version 2 or 3"):
            saved_states(Image(version=version, size=1).open())
    for features, is_known in ((0, True), (1, True), (2, True), (3, True), (4, False), (1 << 63, False)):
        image = Image(version=3)
        image.entry(72, features)
        image.plain(b"x")
        if is_known:
            assert image.state(1) == b"x"
        else:
            with pytest.raises(FormatError, match=f"and features {features:#x}$"):
                image.state(1)
    old = Image(version=2)
    old.entry(72, 4)  # no field of version 2
    old.plain(b"x")
    assert old.state(1) == b"x"


@pytest.mark.parametrize(("bits", "is_known"), [(8, False), (9, True), (21, True), (22, False)])
def test_sizes_of_clusters(bits: int, is_known: bool, tmp_path: Path) -> None:
    image = Image()
    struct.pack_into(">I", image.data, 20, bits)
    struct.pack_into(">Q", image.data, 24, 0)
    if is_known:
        assert image.state(0) == b""
    else:
        with pytest.raises(FormatError, match=rf"clusters of 2\^{bits} bytes"):
            image.state(0)
