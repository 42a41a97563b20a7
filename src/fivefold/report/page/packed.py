"""Columns of 64-bit numbers as text: differences, byte planes, deflate, base64.

A script of the page (``columns.js``) undoes it. Rows of a scan ascend and repeat themselves, so their differences have
few bytes that are not zero, and bytes of one place in a row of numbers are more alike than those of one number.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


class Packed(NamedTuple):
    """Columns of *rows* numbers each under *names*, in *text*; each begins anew every *restart* rows (0: never)."""

    names: list[str]
    rows: int
    restart: int
    text: str

    def described(self) -> dict[str, object]:
        """What a script needs to know beside the text."""
        return {"names": self.names, "rows": self.rows, "restart": self.restart}


def pack(columns: Mapping[str, Words], *, restart: int = 0) -> Packed:
    """Pack *columns* of equal length, each as differences modulo 2**64; *restart* divides their length."""
    rows = len(next(iter(columns.values())))
    planes = b"".join(_planes(_differences(column, restart or rows)) for column in columns.values())
    return Packed(list(columns), rows, restart, base64.b64encode(zlib.compress(planes)).decode())


def _differences(column: Words, restart: int) -> Words:
    if not len(column):
        return column
    runs = column.reshape(-1, restart)
    out = runs.copy()
    out[:, 1:] -= runs[:, :-1]
    return out.reshape(-1)


def _planes(column: Words) -> bytes:
    """All lowest bytes, then all second ones, and so on."""
    return np.ascontiguousarray(column.astype("<u8").view(np.uint8).reshape(-1, 8).T).tobytes()
