"""Count a guest's instructions at nearly full speed: a hook of thirty bytes of machine code.

Unicorn calls a hook before every instruction. In Python that is 2 million a second; as
machine code it does not show. Hosts without x86-64, or that forbid new code, do not count.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from typing import Final

_LIMIT: Final = 8
NO_LIMIT: Final = (1 << 63) - 1


class Counter:
    """A hook at `address`: counts up to the limit, and calls *stop* (a C function of the engine's
    handle) instead of the instruction after it."""

    def __init__(self, stop: int) -> None:
        self._state = mmap.mmap(-1, mmap.PAGESIZE)
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(_machine_code(_address(self._state), stop))
        self.address = _address(self._code)
        self.limit_to(None)

    @property
    def count(self) -> int:
        """Instructions so far."""
        value: int = struct.unpack_from("<Q", self._state)[0]
        return value

    def limit_to(self, more: int | None) -> None:
        """Stop after *more* instructions from now; None is never."""
        struct.pack_into("<Q", self._state, _LIMIT, NO_LIMIT if more is None else self.count + more)

    @property
    def reached(self) -> bool:
        """Whether the limit is used up."""
        limit: int = struct.unpack_from("<Q", self._state, _LIMIT)[0]
        return self.count >= limit


def try_counter(stop: int | None) -> Counter | None:
    """A counter, or None where this host cannot have one."""
    if stop is None or platform.machine() not in ("x86_64", "AMD64"):
        return None
    try:
        return Counter(stop)
    except OSError:
        # Hardened hosts refuse memory that is writable and executable.
        return None


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _machine_code(state: int, stop: int) -> bytes:
    """System V calling convention: RDI is the engine's handle, as *stop* wants it.

    mov rax, state; mov rdx, [rax]; cmp rdx, [rax+8]; jae +4; inc qword [rax]; ret; mov rax, stop; jmp rax
    """
    count = bytes.fromhex("48b8") + struct.pack("<Q", state) + bytes.fromhex("488b10483b5008730448ff00c3")
    return count + bytes.fromhex("48b8") + struct.pack("<Q", stop) + bytes.fromhex("ffe0")
