"""Kernel files: what they are, what they are in, how they are packed, and hostile ones."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from fivefold.errors import FormatError
from fivefold.matrix.kernels.kernel_file import kernel_of, open_kernel
from fivefold.matrix.kernels.lz4_blocks import unpack_block
from fivefold.matrix.kernels.unpack import unpack_payload

BANNER = b"Linux version 6.9.1-test (someone@somewhere)"


def vmlinux() -> bytes:
    """An ELF file with a banner and a PVH note."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", 0x100_0000)
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1" + bytes(9), 2, 62, 1, 0x100_0000, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    row = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4)
    return head + row + note + BANNER + bytes(range(256)) * 40


def lz4(data: bytes) -> bytes:
    """LZ4's legacy frame, all of it literals."""
    blocks = b""
    for at in range(0, len(data), 8 << 20):
        part = data[at : at + (8 << 20)]
        more = len(part) - 15
        length = bytes([0xF0]) + b"\xff" * (more // 255) + bytes([more % 255])
        blocks += struct.pack("<I", len(length) + len(part)) + length + part
    return b"\x02\x21\x4c\x18" + blocks + struct.pack("<I", len(data))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "lz4": lz4,
}


def bzimage(payload: bytes, flags: int = 0x3F, protocol: int = 0x20F) -> bytes:
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<H", setup, 0x20E, 0x300 - 0x200)
    setup[0x211] = 1
    struct.pack_into("<H", setup, 0x236, flags)
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    release = b"6.9.1-test (someone) #1\0"
    setup[0x300 : 0x300 + len(release)] = release
    return bytes(setup) + bytes(16) + payload


def package(files: dict[str, bytes], depends: str = "", packing: str = "xz") -> bytes:
    def tar(members: dict[str, bytes]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as file:
            for name, data in members.items():
                item = tarfile.TarInfo(name)
                item.size = len(data)
                file.addfile(item, io.BytesIO(data))
        return out.getvalue()

    pack = {"xz": lzma.compress, "gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}[packing]
    control = tar({"./control": f"Package: linux-image-amd64\nDepends: {depends}\n".encode()})
    out = b"!<arch>\n"
    for name, data in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", lzma.compress(control)),
        (f"data.tar.{packing}", pack(tar(files))),
    ):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


@pytest.mark.parametrize("packing", PACKERS)
def test_a_bzimage_of_every_packing(packing: str) -> None:
    kernel = kernel_of("k", bzimage(PACKERS[packing](vmlinux())))
    assert (kernel.kind, kernel.release, kernel.knows_five_levels) == ("bzImage", "6.9.1-test", True)
    assert kernel.vmlinux == vmlinux()
    assert kernel.pvh_refusal() is None


def test_a_kernel_built_without_five_levels_says_so() -> None:
    assert kernel_of("k", bzimage(gzip.compress(vmlinux()), flags=0x1F)).knows_five_levels is False


def test_a_vmlinux_and_its_release() -> None:
    kernel = kernel_of("k", vmlinux())
    assert (kernel.kind, kernel.release, kernel.vmlinux) == ("vmlinux", "6.9.1-test", vmlinux())


@pytest.mark.parametrize("packing", ["xz", "gz", "zst"])
@pytest.mark.parametrize("name", ["./boot/vmlinuz-6.9", "./usr/lib/modules/6.9/vmlinuz", "lib/modules/6.9/vmlinuz"])
def test_a_kernel_in_a_package(packing: str, name: str) -> None:
    data = bzimage(gzip.compress(vmlinux()))
    kernel = kernel_of("k.deb", package({"./boot/config-6.9": b"x", name: data}, packing=packing))
    assert kernel.data == data and kernel.inside == name.removeprefix("./")


def test_a_package_without_a_kernel_says_which_has_it() -> None:
    data = package({"./usr/share/doc/x": b"x"}, "linux-binary-7.2-amd64 (= 7.2), kmod")
    with pytest.raises(
        FormatError, match=r"^k.deb: a package without a kernel; linux-binary-7.2-amd64, on which it depends"
    ):
        kernel_of("k.deb", data)


def test_the_kernel_in_a_unified_image() -> None:
    linux = bzimage(gzip.compress(vmlinux()))
    head = bytearray(0x400)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 0x3C, 0x80)
    head[0x80:0x84] = b"PE\0\0"
    struct.pack_into("<HH", head, 0x86, 1, 0)
    struct.pack_into("<H", head, 0x94, 0xF0)
    struct.pack_into("<8sIIII", head, 0x98 + 0xF0, b".linux", len(linux), 0x1000, len(linux), len(head))
    kernel = kernel_of("uki.efi", bytes(head) + linux)
    assert kernel.kind == "bzImage" and kernel.data == linux and kernel.inside == ".linux"


NOT_KERNELS = (
    (b"", "the file is empty"),
    (b"#!/bin/sh\n", "it begins with 23 21 2f 62"),
    (b"MZ" + bytes(100), "an EFI or DOS program without a Linux in it"),
    (b"\x7fELF\1\1\1" + bytes(100), "an ELF file, but not for x86-64"),
    (vmlinux().replace(b"Linux version", b"Lynux version"), "an ELF file without the words 'Linux version'"),
    (bzimage(b"", protocol=0x204), "boot protocol 0x204, expected 0x208 or later"),
    (b"!<arch>\ndebian-binary   ", "a broken package"),
)


@pytest.mark.parametrize(("data", "reason"), NOT_KERNELS)
def test_what_is_no_kernel(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        kernel_of("k", data)


def test_a_payload_that_cannot_be_unpacked_has_a_reason() -> None:
    assert "a payload packed in a way" in (kernel_of("k", bzimage(b"unknown!")).pvh_refusal() or "")
    assert "broken gzip payload" in (kernel_of("k", bzimage(b"\x1f\x8b" + bytes(40))).pvh_refusal() or "")
    whole = bytearray(bzimage(gzip.compress(vmlinux())))
    struct.pack_into("<I", whole, 0x24C, 1 << 30)
    assert "outside the file" in (kernel_of("k", bytes(whole)).pvh_refusal() or "")


def test_lz4_with_matches_of_every_distance() -> None:
    """'abc', then seven bytes from three before, which overlap what is written; then two literals."""
    assert unpack_block(bytes([0x33]) + b"abc" + b"\3\0" + bytes([0x20]) + b"yz", 100) == b"abcabcabcayz"
    assert (
        unpack_block(bytes([0x8F]) + b"abcdefgh" + b"\x08\0" + bytes([3, 0x10]) + b"!", 100)
        == (b"abcdefgh" * 4)[:30] + b"!"
    )


def test_a_broken_lz4_block_is_refused_and_reads_nothing_outside() -> None:
    draw = random.Random(3)
    for _ in range(300):
        data = draw.randbytes(draw.randrange(1, 60))
        try:
            assert len(unpack_block(data, 500)) <= 500
        except ValueError as error:
            assert str(error) == "an LZ4 block points outside itself"
    with pytest.raises(FormatError, match="broken LZ4 payload"):
        unpack_payload(b"\x02\x21\x4c\x18" + struct.pack("<I", 3) + b"\xf0\xff\xff" + bytes(4))


def test_a_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(gzip.compress(vmlinux())))
    assert open_kernel(str(path)).sha256 == open_kernel(str(path)).sha256
