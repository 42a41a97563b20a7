"""A mapped file that shrinks, or a disk that fails, is noted and reads as zeros; by itself it would end the process.

The kernel sends SIGBUS at the access, which native code and numpy make without a look at the file's size. The handler
is some thirty instructions of machine code, because nothing else may run at such a moment: it looks the address up
among the mappings that are guarded, marks the mapping as broken, puts zero pages in place of its rest, and lets the
access happen again. Code that guards a mapping asks afterwards. A bus error anywhere else ends the process as ever.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import threading
import weakref
from typing import Any, Final

_PAGE: Final = mmap.PAGESIZE
_ENTRY: Final = struct.Struct("<QQQ")
_HEAD: Final = 16
_MOST: Final = (_PAGE - _HEAD) // _ENTRY.size
_SA_SIGINFO: Final = 4
_SA_ONSTACK: Final = 0x0800_0000

# The table of guarded mappings is the page after the code: their number, then from offset 16 on start, end, broken.
HANDLER: Final = bytes.fromhex(
    "488b4610"          # mov   rax, [rsi + 0x10]       the address: siginfo.si_addr
    "4c8d05f50f0000"    # lea   r8, [rip + 0xff5]       the table
    "498b08"            # mov   rcx, [r8]
    "4983c010"          # add   r8, 0x10
    "48ffc9"            # dec   rcx                     next:
    "784f"              # js    other
    "493b00"            # cmp   rax, [r8]
    "7206"              # jb    skip
    "493b4008"          # cmp   rax, [r8 + 8]
    "7206"              # jb    found
    "4983c018"          # add   r8, 0x18                skip:
    "ebea"              # jmp   next
    "49c7401001000000"  # mov   qword [r8 + 0x10], 1    found:
    "4889c7"            # mov   rdi, rax                mmap(page, rest, PROT_READ,
    "4881e700f0ffff"    # and   rdi, -0x1000
    "498b7008"          # mov   rsi, [r8 + 8]
    "4829fe"            # sub   rsi, rdi
    "ba01000000"        # mov   edx, 1
    "41ba32000000"      # mov   r10d, 0x32              MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS,
    "49c7c0ffffffff"    # mov   r8, -1                  -1, 0)
    "4531c9"            # xor   r9d, r9d
    "b809000000"        # mov   eax, 9
    "0f05"              # syscall
    "483d00f0ffff"      # cmp   rax, -0x1000
    "7701"              # ja    other
    "c3"                # ret
    "6a006a006a006a00"  # push  0 (four times)          other: rt_sigaction(SIGBUS, SIG_DFL, 0, 8)
    "bf07000000"        # mov   edi, 7
    "4889e6"            # mov   rsi, rsp
    "31d2"              # xor   edx, edx
    "41ba08000000"      # mov   r10d, 8
    "b80d000000"        # mov   eax, 13
    "0f05"              # syscall
    "4883c420"          # add   rsp, 0x20
    "c3"                # ret
)  # fmt: skip


class _Action(ctypes.Structure):
    """``struct sigaction`` of libc on x86-64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class _Buffer(ctypes.Structure):
    """``Py_buffer``, which has the address of memory that must not be written."""

    _fields_ = (("at", ctypes.c_void_p), ("object", ctypes.py_object), ("rest", ctypes.c_ubyte * 64))


class _Table:
    """The page of code and the page of guarded mappings."""

    def __init__(self) -> None:
        """Install the handler; `OSError` where memory cannot be made executable."""
        # Taken again by the same thread where a collection ends a mapping in the middle of `add`.
        self.lock = threading.RLock()
        self.pages = mmap.mmap(-1, 2 * _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.pages[: len(HANDLER)] = HANDLER
        at = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        libc = ctypes.CDLL(None, use_errno=True)
        read_execute = 1 | 4
        if libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(_PAGE), read_execute):
            raise OSError(ctypes.get_errno(), "cannot make a page executable")
        action = _Action(handler=at, flags=_SA_SIGINFO | _SA_ONSTACK)
        if libc.sigaction(int(signal.SIGBUS), ctypes.byref(action), None):
            raise OSError(ctypes.get_errno(), "cannot handle SIGBUS")

    def add(self, start: int, end: int) -> int | None:
        """Guard these addresses; the number of the entry, None where there is no room."""
        with self.lock:
            count = self._count()
            free = next((number for number in range(count) if self.entry(number) == (0, 0, 0)), count)
            if free == _MOST:
                return None
            self._set(free, start, end, 0)
            if free == count:
                self.pages[_PAGE : _PAGE + 8] = (count + 1).to_bytes(8, "little")
            return free

    def remove(self, number: int) -> None:
        """Let go of an entry."""
        with self.lock:
            self._set(number, 0, 0, 0)

    def entry(self, number: int) -> tuple[int, ...]:
        """Start, end, broken."""
        return _ENTRY.unpack_from(self.pages, _PAGE + _HEAD + number * _ENTRY.size)

    def _set(self, number: int, *values: int) -> None:
        _ENTRY.pack_into(self.pages, _PAGE + _HEAD + number * _ENTRY.size, *values)

    def _count(self) -> int:
        return int.from_bytes(self.pages[_PAGE : _PAGE + 8], "little")


_table: _Table | None = None


class BusGuard:
    """Guards one mapping for as long as it is there, where this machine allows it."""

    def __init__(self, mapped: mmap.mmap) -> None:
        """From now on *mapped* may lose pages."""
        self._number: int | None = None
        self._was_broken = False
        table = _installed()
        if table is None:
            return
        start = _address(mapped)
        self._number = table.add(start, start + len(mapped))
        if self._number is not None:
            # Views keep a mapping alive that everybody else has let go of.
            weakref.finalize(mapped, self._let_go, table, self._number).atexit = False

    @property
    def broken(self) -> bool:
        """Whether an access met a page that was gone, also when the mapping itself is gone by now."""
        if _table is None or self._number is None:
            return self._was_broken
        return bool(_table.entry(self._number)[2])

    def _let_go(self, table: _Table, number: int) -> None:
        self._was_broken = self.broken
        self._number = None
        table.remove(number)


def _installed() -> _Table | None:
    global _table
    if _table is None and os.uname().machine == "x86_64" and _PAGE == 4096:
        try:
            _table = _Table()
        except OSError:  # a hardened system: a file that shrinks ends the process there, as it ever did
            return None
    return _table


def _address(mapped: mmap.mmap) -> int:
    buffer: Any = _Buffer()
    if ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(mapped), ctypes.byref(buffer), 0):
        raise BufferError("the mapping has no address")
    try:
        return int(buffer.at)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
