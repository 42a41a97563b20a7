"""Native memory of this process: code that runs, and Python buffers by address. Linux on x86-64 only."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any, Final

from fivefold.errors import MachineError
from fivefold.units import PAGE

_PROT_READ: Final = 1
_PROT_EXEC: Final = 4


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
    """A linked image in memory of its own: *code* bytes executable, then read-only, then writable."""

    def __init__(self, image: bytes, code: int, read_only: int, size: int) -> None:
        if os.uname().machine != "x86_64":
            raise MachineError(f"native code needs an x86-64 processor; this one is {os.uname().machine}")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._mapping = mmap.mmap(-1, max(size, PAGE), flags, mmap.PROT_READ | mmap.PROT_WRITE)
        self._mapping[: len(image)] = image
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
