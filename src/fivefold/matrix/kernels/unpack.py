"""Unpack the payload of a bzImage, by the first bytes of what is packed.

Source: Linux, *scripts/Makefile.lib* (what follows the packed bytes: the size in four bytes) and the formats' own
documents; LZ4's legacy frame: *LZ4 Frame Format Description*, "Legacy frame".
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

from fivefold.errors import FormatError
from fivefold.matrix.kernels import lz4_blocks

MOST: Final = 1 << 30
"""No kernel is larger."""
_LEGACY_LZ4: Final = b"\x02\x21\x4c\x18"
_LEGACY_BLOCK: Final = 8 << 20


def unpack_payload(packed: bytes) -> bytes:
    """What *packed* unpacks to; `FormatError` for a format that is not known, broken data, or a missing package."""
    for magic, name, unpacker in _FORMATS:
        if packed.startswith(magic):
            try:
                return unpacker(packed)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                raise FormatError(f"broken {name} payload: {error}") from error
    raise FormatError(f"a payload packed in a way that is not known here: it begins with {packed[:6].hex(' ')}")


def _limited(data: bytes) -> bytes:
    if len(data) > MOST:
        raise FormatError("the payload unpacks to more than a gibibyte")
    return data


def _gzip(packed: bytes) -> bytes:
    return _limited(zlib.decompressobj(wbits=31).decompress(packed, MOST + 1))


def _xz(packed: bytes) -> bytes:
    return _limited(lzma.LZMADecompressor().decompress(packed, MOST + 1))


def _bzip2(packed: bytes) -> bytes:
    return _limited(bz2.BZ2Decompressor().decompress(packed, MOST + 1))


def unzstd(packed: bytes, most: int = MOST) -> bytes:
    """Unpacked zstd data; `FormatError` without the package zstandard."""
    try:
        zstandard: Any = importlib.import_module("zstandard")
    except ImportError as error:
        raise FormatError("zstd data needs the package zstandard: pip install zstandard") from error
    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            found: bytes = reader.read(most + 1)
    except zstandard.ZstdError as error:
        raise FormatError(f"broken zstd data: {error}") from error
    if len(found) > most:
        raise FormatError("zstd data that unpacks to more than it may")
    return found


def _lz4(packed: bytes) -> bytes:
    """Blocks of 8 MiB behind their packed sizes; the size of the whole, in four bytes, ends it."""
    out = []
    at = len(_LEGACY_LZ4)
    while at + 8 <= len(packed):
        (size,) = struct.unpack_from("<I", packed, at)
        if size == 0 or at + 4 + size > len(packed):
            break
        out.append(lz4_blocks.unpack_block(packed[at + 4 : at + 4 + size], _LEGACY_BLOCK))
        at += 4 + size
    return _limited(b"".join(out))


_FORMATS: Final[tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...]] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x5d\0\0", "lzma", _xz),
    (b"BZh", "bzip2", _bzip2),
    (b"\x28\xb5\x2f\xfd", "zstd", unzstd),
    (_LEGACY_LZ4, "LZ4", _lz4),
)
