"""Pages of a kdump file as they are packed: by zlib, LZO, snappy or zstd, each by the package of its format."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Final

from fivefold.errors import FormatError, MachineError, said_by
from fivefold.units import PAGE

ZLIB: Final = 1
LZO: Final = 2
SNAPPY: Final = 4
ZSTD: Final = 0x20
PACKED: Final = ZLIB | LZO | SNAPPY | ZSTD
"""The flags of a page descriptor that say how its page is packed."""

_SNAPPY_PAGE: Final = b"\x80\x20"  # 4096 as snappy spells lengths


def unpacked(packed: bytes, flags: int, where: str) -> bytes:
    """*packed* as *flags* say; `FormatError` where it is broken, `MachineError` without the package it needs."""
    kind = flags & PACKED
    if kind == 0:
        return packed
    if kind == ZLIB:
        return inflate(packed, where)
    if kind not in _OPTIONAL:
        raise FormatError(f"{where} has flags {flags:#x}, expected one way of compression at most")
    package, unpack = _OPTIONAL[kind]
    try:
        return unpack(packed)
    except ImportError as error:
        raise MachineError(f"{where} is packed with {package}: pip install {package}") from error
    except Exception as error:  # each package has an error class of its own; readers see one
        raise FormatError(f"{where} has broken {package} data: {said_by(error)}") from error


def inflate(packed: bytes, where: str, most: int = PAGE + 1) -> bytes:
    """The first *most* bytes of the zlib stream *packed*; `FormatError` where it is broken."""
    try:
        return zlib.decompressobj().decompress(packed, most)
    except zlib.error as error:
        raise FormatError(f"{where} has broken zlib data: {error}") from error


def _unlzo(packed: bytes) -> bytes:
    lzo = importlib.import_module("lzallright")
    return bytes(lzo.LZOCompressor.decompress(packed, PAGE))


def _unsnappy(packed: bytes) -> bytes:
    snappy = importlib.import_module("snappy")
    # The unpacker believes the length in front and allocates it: look before it does.
    if not packed.startswith(_SNAPPY_PAGE):
        raise ValueError("length in front is not that of a page")
    return bytes(snappy.uncompress(packed))


def _unzstd(packed: bytes) -> bytes:
    zstandard = importlib.import_module("zstandard")
    # The size in front is allocated as well, whatever the limit says; not every frame has one.
    claimed = zstandard.frame_content_size(packed)
    if claimed > PAGE:
        raise ValueError(f"claims {claimed} bytes, expected {PAGE}")
    return bytes(zstandard.ZstdDecompressor().decompress(packed, max_output_size=PAGE))


_OPTIONAL: Final[dict[int, tuple[str, Callable[[bytes], bytes]]]] = {
    LZO: ("lzallright", _unlzo),
    SNAPPY: ("python-snappy", _unsnappy),
    ZSTD: ("zstandard", _unzstd),
}
