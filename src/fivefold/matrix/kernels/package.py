"""The kernel inside a Debian package, read without any of its tools.

Source: deb(5): an archive of ar(5) with ``control.tar`` and ``data.tar``, each packed or not.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from typing import Final

from fivefold.errors import FivefoldError, FormatError
from fivefold.matrix.kernels.unpack import unzstd

_MAGIC: Final = b"!<arch>\n"
_KERNEL: Final = re.compile(r"(?:\./)?(?:boot/vmlinuz-[^/]+|(?:usr/)?lib/modules/[^/]+/vmlinuz)")
_LIKELY: Final = re.compile(r"\blinux-(?:image|binary|kernel)-[a-z0-9][a-z0-9.+~-]*")
_MOST_UNPACKED: Final = 2 << 30


def is_package(data: bytes) -> bool:
    """Whether *data* begins as a Debian package does."""
    return data.startswith(_MAGIC + b"debian-binary")


def kernel_in_package(path: str, data: bytes) -> tuple[str, bytes]:
    """Name and bytes of the kernel in it. `FormatError` where there is none, and which package may have it."""
    try:
        members = dict(_members(data))
        with _tar(members, "data.tar") as tar:
            for item in tar:
                if item.isreg() and _KERNEL.fullmatch(item.name) and (file := tar.extractfile(item)) is not None:
                    return item.name.removeprefix("./"), file.read()
        raise FormatError(f"{path}: a package without a kernel; {_where(members)}")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise FormatError(f"{path}: a broken package: {error}") from error


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = len(_MAGIC)
    while at + 60 <= len(data):
        head = data[at : at + 60]
        if head[58:] != b"`\n":
            raise ValueError(f"no header of a member at {at:#x}")
        size = int(head[48:58])
        yield head[:16].decode("ascii", "replace").strip().rstrip("/"), data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def _tar(members: dict[str, bytes], name: str) -> tarfile.TarFile:
    for member, data in members.items():
        if member == f"{name}.zst":
            return tarfile.open(fileobj=io.BytesIO(unzstd(data, _MOST_UNPACKED)))
        if member.startswith(name):
            return tarfile.open(fileobj=io.BytesIO(data))
    raise ValueError(f"it has no {name}")


def _where(members: dict[str, bytes]) -> str:
    """Which packages of its dependencies sound like one with a kernel."""
    try:
        with _tar(members, "control.tar") as tar:
            control = next((tar.extractfile(item) for item in tar if item.name.removeprefix("./") == "control"), None)
            text = control.read().decode("utf-8", "replace") if control else ""
    except (tarfile.TarError, EOFError, OSError, ValueError, FivefoldError):
        text = ""
    rows = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith(" "))
    found = _LIKELY.findall(f"{rows.get('Depends', '')} {rows.get('Pre-Depends', '')} {rows.get('Recommends', '')}")
    others = [name for name in dict.fromkeys(found) if name != rows.get("Package")]
    if others:
        return f"{others[0]}, on which it depends, should have it"
    return "it names no package that would have one"
