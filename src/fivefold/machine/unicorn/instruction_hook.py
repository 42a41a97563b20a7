"""Look at every instruction of a guest at nearly full speed: a hook of eighty bytes of machine code.

Unicorn can call a function before each instruction. In Python that is some hundred thousand
a second; as machine code, tens of millions. The hook counts, stops after a given number, and
stops before instructions that are watched. Nothing else ever stops a running guest: Unicorn
loses its place when another thread stops it while a hook is set.

A guest's address is watched if its lower 24 bits are those of a watched one, or if it lies
below 1 MiB, where trampolines are copied to. The caller then looks closer, and says with
`allow_next` that the instruction may go ahead.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from fivefold.units import MIB

_COUNT, _LIMIT, _ALLOW, _STOPPED = 0, 8, 16, 24
_MAP: Final = 0x1000
_MAP_SIZE: Final = 1 << 24
LOW_END: Final = MIB
"""Below this every instruction is watched."""


class InstructionHook(Protocol):
    """What is called before each instruction, and what it has seen."""

    @property
    def count(self) -> int:
        """Instructions that went ahead."""
        ...

    def watch(self, addresses: Iterable[int]) -> None:
        """Stop before instructions at these addresses, and at some others."""
        ...

    def arm(self, limit: int, allow_next: bool) -> None:
        """Stop after *limit* more instructions; *allow_next*: not before the next one, watched or not."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether it was this hook that stopped the guest since `arm`."""
        ...

    @property
    def spent(self) -> bool:
        """Whether the limit has been used up."""
        ...


class NativeHook:
    """The hook as machine code at `address`, for hosts with x86-64 and the System V convention."""

    def __init__(self, stop: int) -> None:
        """*stop* is the address of the function that stops the engine. Raises `OSError`."""
        # A byte for each address; only the pages that code runs in are ever touched.
        self._state = mmap.mmap(-1, _MAP + _MAP_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(_machine_code(_address(self._state), stop))
        self.address = _address(self._code)

    @property
    def count(self) -> int:
        """Instructions that went ahead."""
        return self._get(_COUNT)

    def watch(self, addresses: Iterable[int]) -> None:
        """See `InstructionHook`."""
        for address in addresses:
            self._state[_MAP + address % _MAP_SIZE] = 1

    def arm(self, limit: int, allow_next: bool) -> None:
        """See `InstructionHook`."""
        struct.pack_into("<QQQ", self._state, _LIMIT, self.count + limit, allow_next, 0)

    @property
    def stopped(self) -> bool:
        """See `InstructionHook`."""
        return bool(self._get(_STOPPED))

    @property
    def spent(self) -> bool:
        """See `InstructionHook`."""
        return self.count >= self._get(_LIMIT)

    def _get(self, offset: int) -> int:
        value: int = struct.unpack_from("<Q", self._state, offset)[0]
        return value


class PlainHook:
    """The same in Python: call it with the address of each instruction."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self.count = 0
        self.stopped = False
        self._stop = stop
        self._limit = 0
        self._allow = False
        self._watched: set[int] = set()

    def __call__(self, address: int) -> None:
        """Count the instruction at *address*, or stop before it."""
        watched = address < LOW_END or address % _MAP_SIZE in self._watched
        if self.spent or (watched and not self._allow):
            self.stopped = True
            self._stop()
            return
        self._allow = False
        self.count += 1

    def watch(self, addresses: Iterable[int]) -> None:
        """See `InstructionHook`."""
        self._watched.update(address % _MAP_SIZE for address in addresses)

    def arm(self, limit: int, allow_next: bool) -> None:
        """See `InstructionHook`."""
        self._limit, self._allow, self.stopped = self.count + limit, allow_next, False

    @property
    def spent(self) -> bool:
        """See `InstructionHook`."""
        return self.count >= self._limit


def native_hook(stop: int | None) -> NativeHook | None:
    """The fast hook, or None where this host cannot have it."""
    if stop is None or platform.machine() != "x86_64" or platform.system() == "Windows":
        return None
    try:
        return NativeHook(stop)
    except OSError:
        # Hardened hosts refuse memory that is writable and executable.
        return None


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _machine_code(state: int, stop: int) -> bytes:
    """``hook(rdi = engine, rsi = address)``; the engine's handle is what *stop* wants in RDI, too."""
    return b"".join(
        (
            b"\x48\xb8" + struct.pack("<Q", state),  # mov rax, state
            b"\x48\x8b\x10",  # mov rdx, [rax + COUNT]
            b"\x48\x3b\x50\x08",  # cmp rdx, [rax + LIMIT]
            b"\x73\x30",  # jae stop
            b"\x48\x83\x78\x10\x00",  # cmp qword [rax + ALLOW], 0
            b"\x75\x1f",  # jne allowed
            b"\x48\x81\xfe" + struct.pack("<I", LOW_END),  # cmp rsi, LOW_END
            b"\x72\x20",  # jb stop
            b"\x89\xf1",  # mov ecx, esi
            b"\x81\xe1" + struct.pack("<I", _MAP_SIZE - 1),  # and ecx, MAP_SIZE - 1
            b"\x80\xbc\x08" + struct.pack("<IB", _MAP, 0),  # cmp byte [rax + rcx + MAP], 0
            b"\x75\x0e",  # jne stop
            b"\x48\xff\x00",  # count: inc qword [rax + COUNT]
            b"\xc3",  # ret
            b"\x48\xc7\x40\x10\0\0\0\0",  # allowed: mov qword [rax + ALLOW], 0
            b"\xeb\xf2",  # jmp count
            b"\x48\xc7\x40\x18\1\0\0\0",  # stop: mov qword [rax + STOPPED], 1
            b"\x48\xb8" + struct.pack("<Q", stop),  # mov rax, stop
            b"\xff\xe0",  # jmp rax
        )
    )
