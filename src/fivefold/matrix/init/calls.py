"""System calls of Linux on x86-64, by their names in the manual pages; a result from -4095 up is an error."""

from __future__ import annotations

from typing import Final

from fivefold.metal.lang import extern, inline, text_address, u64

READ: Final = 0
WRITE: Final = 1
OPEN: Final = 2
MUNMAP: Final = 11
CLOSE: Final = 3
PAUSE: Final = 34
GETPID: Final = 39
EXIT: Final = 60
SYSLOG: Final = 103
SYNC: Final = 162
MOUNT: Final = 165
SWAPON: Final = 167
REBOOT: Final = 169
LSEEK: Final = 8
KEXEC_FILE_LOAD: Final = 320

O_RDONLY: Final = 0
O_WRONLY: Final = 1
O_RDWR: Final = 2

REBOOT_MAGIC_1: Final = 0xFEE1_DEAD
REBOOT_MAGIC_2: Final = 672274793
REBOOT_KEXEC: Final = 0x4558_4543

CONSOLE_OFF: Final = 6
CONSOLE_ON: Final = 7
"""Actions of syslog(2): keep the kernel's messages off the console, or let them through."""

LOWEST_ERROR: Final = (1 << 64) - 4095


@extern
def linux(number: u64, a: u64, b: u64, c: u64, d: u64, e: u64) -> u64:
    """The system call *number*."""


@extern
def map_pages(address: u64, length: u64, flags: u64) -> u64:
    """What mmap(2) answers for private, writable memory."""


@extern
def probe(address: u64) -> u64:
    """Write a byte at *address*; 0, or the signal that came of it."""


@extern
def signal_code() -> u64:
    """``si_code`` of the last signal."""


@extern
def signal_address() -> u64:
    """``si_addr`` of the last signal."""


@extern
def handle_signal(number: u64) -> u64:
    """Have signal *number* noted, and the access that raised it passed over."""


@inline
def failed(result: u64) -> bool:
    """Whether a system call's *result* is an error."""
    return result >= LOWEST_ERROR


def open_file(path: str, flags: u64) -> u64:
    """A file descriptor, or an error."""
    return linux(OPEN, text_address(path), flags, 0, 0, 0)


def read_file(file: u64, to: u64, size: u64) -> u64:
    """How many bytes came, 0 at the end; an error counts as the end."""
    got = linux(READ, file, to, size, 0, 0)
    return 0 if failed(got) else got


def close_file(file: u64) -> None:
    """Close it."""
    linux(CLOSE, file, 0, 0, 0, 0)


def write_all(file: u64, at: u64, size: u64) -> bool:
    """Write *size* bytes; whether all of them went out."""
    done = 0
    while done < size:
        went = linux(WRITE, file, at + done, size - done, 0, 0)
        if failed(went) or went == 0:
            return False
        done += went
    return True


def mount(source: str, target: str, kind: str) -> u64:
    """Mount a file system of *kind*."""
    return linux(MOUNT, text_address(source), text_address(target), text_address(kind), 0, 0)
