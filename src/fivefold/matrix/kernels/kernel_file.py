"""A kernel to be booted: which kind of file, which release, and its bytes.

Source: Linux Documentation, *The Linux/x86 Boot Protocol*, sections "The Real-Mode Kernel Header" and "Details of
Header Fields".
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from fivefold.errors import FormatError, ImageError
from fivefold.machine.loading.elf import pvh_entry
from fivefold.matrix.kernels.package import is_package, kernel_in_package
from fivefold.matrix.kernels.unified import linux_section
from fivefold.matrix.kernels.unpack import unpack_payload
from fivefold.opening import open_to_read

KernelKind = Literal["bzImage", "vmlinux"]

MOST_BYTES: Final = 1 << 30
_MAGIC_AT: Final = 0x202
_VERSION_AT: Final = 0x20E
_SETUP_SECTORS_AT: Final = 0x1F1
_PROTOCOL_AT: Final = 0x206
_XLOADFLAGS_AT: Final = 0x236
_PAYLOAD_AT: Final = 0x248
_LEAST_PROTOCOL: Final = 0x208
"""Since 2.08 the header says where the payload lies."""
_XLF_5LEVEL: Final = 1 << 5
_BANNER: Final = re.compile(rb"Linux version (\d[!-~]{2,63})")


@dataclass(frozen=True)
class KernelFile:
    """A kernel and where it came from. *inside* names it within a package or a unified image."""

    path: str
    kind: KernelKind
    data: bytes = field(repr=False)
    inside: str | None = None

    @cached_property
    def sha256(self) -> str:
        """Of the kernel itself, not of what it was packed in."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def release(self) -> str | None:
        """Such as ``6.1.0-57-cloud-amd64``; None where the file does not say."""
        if self.kind == "bzImage":
            at = _u16(self.data, _VERSION_AT) + 0x200
            text = self.data[at : at + 256].split(b"\0", 1)[0] if at > 0x200 else b""
            return text.decode("ascii", "replace").split(" ")[0] or None
        found = _BANNER.search(self.data)
        return found[1].decode() if found else None

    @cached_property
    def knows_five_levels(self) -> bool | None:
        """Whether the header says that it can boot with five levels; None where no header says."""
        if self.kind != "bzImage":
            return None
        return bool(_u16(self.data, _XLOADFLAGS_AT) & _XLF_5LEVEL)

    @cached_property
    def vmlinux(self) -> bytes:
        """The kernel as an ELF file, unpacked if need be. `FormatError` says why it cannot be."""
        if self.kind == "vmlinux":
            return self.data
        setup = self.data[_SETUP_SECTORS_AT] or 4
        at, size = struct.unpack_from("<II", self.data, _PAYLOAD_AT)
        start = 512 * (setup + 1) + at
        if not size or start + size > len(self.data):
            raise FormatError(f"{self.path}: its header puts the payload outside the file")
        found = unpack_payload(self.data[start : start + size])
        if found[:4] != b"\x7fELF":
            raise FormatError(f"{self.path}: its payload unpacks to something that is no ELF file")
        return found

    def pvh_refusal(self) -> str | None:
        """Why it cannot be entered by PVH, or None."""
        try:
            pvh_entry(self.vmlinux)
        except (FormatError, ImageError) as error:
            return str(error)
        return None


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def open_kernel(path: str) -> KernelFile:
    """The kernel in the file *path*. `OSError` where it cannot be read, `FormatError` where it is no kernel."""
    with open_to_read(path) as opened:
        data = opened.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise FormatError(f"{path}: larger than a kernel can be")
    return kernel_of(path, data)


def kernel_of(path: str, data: bytes, inside: str | None = None) -> KernelFile:
    """The kernel in *data*, named by *path*. `FormatError` says what it is not."""
    if is_package(data) and inside is None:
        name, found = kernel_in_package(path, data)
        return kernel_of(path, found, name)
    if data[:4] == b"\x7fELF":
        _check_elf(path, data)
        return KernelFile(path, "vmlinux", data, inside)
    if data[_MAGIC_AT : _MAGIC_AT + 4] == b"HdrS":
        if _u16(data, _PROTOCOL_AT) < _LEAST_PROTOCOL:
            raise FormatError(f"{path}: boot protocol {_u16(data, _PROTOCOL_AT):#x}, expected 0x208 or later")
        if not data[0x211] & 1:
            raise FormatError(f"{path}: a zImage, which loads below 640 KiB; expected a bzImage")
        return KernelFile(path, "bzImage", data, inside)
    if data[:2] == b"MZ" and (found_section := linux_section(data)) is not None and inside != ".linux":
        return kernel_of(path, found_section, ".linux")
    raise FormatError(f"{path}: not a kernel: {_what(data)}; expected a bzImage, a vmlinux, an EFI image or a .deb")


def _check_elf(path: str, data: bytes) -> None:
    if len(data) < 64 or data[4] != 2 or _u16(data, 18) != 62:
        raise FormatError(f"{path}: an ELF file, but not for x86-64")
    if _u16(data, 16) != 2 or _BANNER.search(data) is None:
        raise FormatError(f"{path}: an ELF file without the words 'Linux version'; expected a vmlinux")


def _what(data: bytes) -> str:
    if not data:
        return "the file is empty"
    if data[:2] == b"MZ":
        return "an EFI or DOS program without a Linux in it"
    return f"it begins with {data[:8].hex(' ')}"
