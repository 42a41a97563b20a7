"""Native memory of this process: code that runs, and Python buffers by address. Linux on x86-64 and AArch64."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from fivefold.errors import MachineError
from fivefold.units import PAGE

CPUS: Final = ("x86_64", "aarch64")
"""What native code is made for, by the kernel's names."""

_PROT_READ: Final = 1
_PROT_EXEC: Final = 4


def this_cpu() -> str:
    """Return what native code for this process is made for; `MachineError` on a CPU that there is none for."""
    found = os.uname().machine
    if found in CPUS and sys.maxsize > 1 << 32:
        return found
    bits = "" if sys.maxsize > 1 << 32 else ", with a 32-bit Python"
    raise MachineError(
        f"no prebuilt code fits this CPU ({found}{bits}), and fivefold[compile] compiles for {' and '.join(CPUS)}"
    )


class _PyBuffer(ctypes.Structure):
    """CPython's ``Py_buffer``; Source: Python/C API Reference, "Buffer structure"."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


class PinnedBuffer:
    """A Python buffer that stays where it is until `release`."""

    def __init__(self, data: Any) -> None:
        self._view = _PyBuffer()
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(data), ctypes.byref(self._view), 0)
        self.address = int(self._view.buf or 0)
        self.size = int(self._view.len)
        self.writable = not self._view.readonly

    def release(self) -> None:
        """Let the buffer be resized and freed again."""
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(self._view))


class CodeImage:
    """A linked image in memory of its own: *code* bytes executable, then read-only, then writable.

    AArch64 fetches instructions past its data cache. Linux makes the two agree for a page that becomes executable,
    so it is written before, and never after.
    """

    def __init__(self, groups: Sequence[tuple[int, bytes]], code: int, read_only: int, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._mapping = mmap.mmap(-1, max(size, PAGE), flags, mmap.PROT_READ | mmap.PROT_WRITE)
        for offset, data in groups:
            self._mapping[offset : offset + len(data)] = data
        # Keeps the mapping from being closed while code may run in it.
        self._anchor = ctypes.c_char.from_buffer(self._mapping)
        self.base = ctypes.addressof(self._anchor)
        self._protect(0, code, _PROT_READ | _PROT_EXEC)
        self._protect(code, read_only - code, _PROT_READ)

    def _protect(self, offset: int, size: int, protection: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p(self.base + offset)
        if size and libc.mprotect(address, ctypes.c_size_t(size), protection):
            raise MachineError(f"cannot protect native code: {os.strerror(ctypes.get_errno())}")
