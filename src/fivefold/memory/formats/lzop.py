"""Files of lzop: blocks of LZO1X, each with its sizes and checksums. Source: lzop's ``lzop.1`` and ``conf.h``."""

from __future__ import annotations

import importlib
import io
import zlib
from collections.abc import Iterator
from typing import Any, Final

from fivefold.errors import MachineError, said_by
from fivefold.units import MIB

MAGIC: Final = b"\x89LZO\x00\r\n\x1a\n"
MOST_BLOCK: Final = 64 * MIB

_ADLER_OUT, _ADLER_IN, _EXTRA, _CRC_OUT, _CRC_IN, _FILTER = 0x1, 0x2, 0x40, 0x100, 0x200, 0x800


class LzopError(Exception):
    """The data is no such file, or broken."""


class LzopFile:
    """Reads blocks one after the other; each call of `read` gives one, and nothing at the end."""

    def __init__(self, packed: io.BufferedReader) -> None:
        """`MachineError` where the package lzallright is missing."""
        try:
            self._lzo: Any = importlib.import_module("lzallright")
        except ImportError as error:
            raise MachineError("lzop data needs the package lzallright: pip install lzallright") from error
        self._packed = packed
        self._blocks = self._unpacked()

    def read(self, size: int) -> bytes:
        """The next block, whatever *size* is; `LzopError` or `EOFError`."""
        del size
        return next(self._blocks, b"")

    def __enter__(self) -> LzopFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._packed.close()

    def _unpacked(self) -> Iterator[bytes]:
        flags = self._header()
        before = sum(4 for bit in (_ADLER_OUT, _CRC_OUT) if flags & bit)
        packed_too = sum(4 for bit in (_ADLER_IN, _CRC_IN) if flags & bit)
        while (size := self._number()) != 0:
            length = self._number()
            if not 0 < length <= size <= MOST_BLOCK:
                raise LzopError(f"a block of {length} bytes for {size}")
            sums = self._take(before)
            self._take(packed_too if length < size else 0)
            block = self._block(self._take(length), size)
            if flags & _ADLER_OUT and zlib.adler32(block) != int.from_bytes(sums[:4], "big"):
                raise LzopError("a block's checksum does not fit")
            yield block

    def _block(self, raw: bytes, size: int) -> bytes:
        if len(raw) == size:
            return raw
        try:
            block = bytes(self._lzo.LZOCompressor.decompress(raw, size))
        except Exception as error:  # the package's own, of no common class
            raise LzopError(f"broken LZO data: {said_by(error)}") from error
        if len(block) != size:
            raise LzopError(f"a block unpacks to {len(block)} bytes, expected {size}")
        return block

    def _header(self) -> int:
        if self._take(len(MAGIC)) != MAGIC:
            raise LzopError("no header of lzop")
        self._take(4)  # who wrote it
        if self._number(2) > 0x1040:
            raise LzopError("written for a later lzop than 1.04")
        method, _ = self._take(2)
        flags = self._number()
        if method not in (1, 2, 3) or flags & (_EXTRA | _FILTER):
            raise LzopError(f"method {method} with flags {flags:#x}")
        self._take(12)  # mode and time
        self._take(self._number(1) + 4)  # name and checksum
        return flags

    def _number(self, size: int = 4) -> int:
        return int.from_bytes(self._take(size), "big")

    def _take(self, size: int) -> bytes:
        data = self._packed.read(size)
        if len(data) < size:
            raise EOFError
        return data
