"""Start a kernel again where the command line asks for it: by kexec with other words, or out of hibernation.

``fivefold.kexec=WORDS/WORDS/…`` starts the kernel that the initramfs carries, with the first WORDS (split by commas,
``-`` for none) in place of ``no5lvl``, and hands the rest on. ``fivefold.hibernate`` saves the machine to its NVMe
disk, or resumes it where the disk holds a saved one.
"""

from __future__ import annotations

from typing import Final

from fivefold.matrix.init import facts, lines
from fivefold.matrix.init.calls import (
    KEXEC_FILE_LOAD,
    LSEEK,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    REBOOT,
    REBOOT_KEXEC,
    REBOOT_MAGIC_1,
    REBOOT_MAGIC_2,
    SWAPON,
    SYNC,
    close_file,
    failed,
    linux,
    open_file,
    read_file,
    write_all,
)
from fivefold.metal.lang import buffer, byte_at, fill64, load8, store8, store32, text_address, u64

NOTHING: Final = (1 << 64) - 1
next_line: Final = buffer(8192, 16)
page: Final = buffer(4096, 4096)
PAGE: Final = 4096
VERSION_AT: Final = 1024
LAST_PAGE_AT: Final = 1028
SIGNATURE_AT: Final = 4086
"""Offsets in the first page of a swap area. Source: swapon(8), and *linux/swap.h*, union swap_header."""


def as_asked() -> bool:
    """Do what the command line asks for; returns where it asks for nothing, or where it failed, which it says.

    True where this is a machine that was saved, and goes on.
    """
    at = word_at("fivefold.kexec=")
    if at != NOTHING:
        say_failure("kexec", start_again(at))
    if word_at("fivefold.hibernate") != NOTHING:
        return hibernate()
    return False


def word_at(word: str) -> u64:
    """Where on the command line what follows *word* begins, or `NOTHING`."""
    at = 0
    while at < facts.cmdline_size:
        i = 0
        while (
            byte_at(word, i) != 0 and at + i < facts.cmdline_size and load8(facts.cmdline + at + i) == byte_at(word, i)
        ):
            i += 1
        if byte_at(word, i) == 0:
            return at + i
        at = word_end(at) + 1
    return NOTHING


def word_end(at: u64) -> u64:
    """Where the word that holds index *at* of the command line ends."""
    while at < facts.cmdline_size and load8(facts.cmdline + at) != 32:
        at += 1
    return at


def say_failure(what: str, result: u64) -> None:
    """A line ``failed WHAT ERROR``."""
    lines.begin("failed")
    lines.put_byte(32)
    lines.put(what)
    lines.put_hex(result)
    lines.end()


def start_again(words: u64) -> u64:
    """Start the carried kernel with the words at index *words* of the command line; the error if that fails."""
    size = new_command_line(words)
    kernel = open_file("/kernel", O_RDONLY)
    initramfs = open_file("/initramfs", O_RDONLY)
    result = linux(KEXEC_FILE_LOAD, kernel, initramfs, size, next_line, 0)
    if failed(result):
        return result
    return linux(REBOOT, REBOOT_MAGIC_1, REBOOT_MAGIC_2, REBOOT_KEXEC, 0, 0)


def new_command_line(words: u64) -> u64:
    """Write the next kernel's command line, NUL included, and return its size.

    It is this one's without ``no5lvl`` and without the request, then the new words, then what is left of the request.
    """
    size = 0
    at = 0
    while at < facts.cmdline_size:
        stop = word_end(at)
        if not is_word(at, stop, "no5lvl") and not (at < words and words <= stop):
            size = append(size, at, stop)
        at = stop + 1
    stop = word_end(words)
    first_end = words
    while first_end < stop and load8(facts.cmdline + first_end) != 47:
        first_end += 1
    at = words
    while at < first_end:
        end = at
        while end < first_end and load8(facts.cmdline + end) != 44:
            end += 1
        if not is_word(at, end, "-"):
            size = append(size, at, end)
        at = end + 1
    if first_end < stop:
        size = append_text(size, "fivefold.kexec=")
        size = append(size - 1, first_end + 1, stop)
    store8(next_line + size, 0)
    return size + 1


def is_word(at: u64, stop: u64, word: str) -> bool:
    """Whether the command line from *at* to *stop* is *word*."""
    i = 0
    while byte_at(word, i) != 0:
        if at + i >= stop or load8(facts.cmdline + at + i) != byte_at(word, i):
            return False
        i += 1
    return at + i == stop


def append(size: u64, at: u64, stop: u64) -> u64:
    """Add a word of this command line and a blank to the next one; its new size."""
    while at < stop:
        store8(next_line + size, load8(facts.cmdline + at))
        size += 1
        at += 1
    store8(next_line + size, 32)
    return size + 1


def append_text(size: u64, text: str) -> u64:
    """Add *text* and a blank."""
    i = 0
    while byte_at(text, i) != 0:
        store8(next_line + size, byte_at(text, i))
        size += 1
        i += 1
    store8(next_line + size, 32)
    return size + 1


def hibernate() -> bool:
    """Save this machine to its disk and turn it off, or go on as the one that is saved there.

    True in the machine that goes on; False where it failed.
    """
    disk = open_file("/dev/nvme0n1", O_RDWR)
    if failed(disk):
        say_failure("disk", disk)
        return False
    read_file(disk, page, PAGE)
    number_size = facts.read_whole("/sys/class/block/nvme0n1/dev", facts.text, facts.SIZE)
    if load8(page + SIGNATURE_AT) == 83 and load8(page + SIGNATURE_AT + 1) == 49:  # "S1SUSPEND"
        close_file(disk)
        say_failure("resume", write_bytes("/sys/power/resume", facts.text, number_size))
        return False
    make_swap_area(disk)
    close_file(disk)
    result = linux(SWAPON, text_address("/dev/nvme0n1"), 0, 0, 0, 0)
    if failed(result):
        say_failure("swapon", result)
        return False
    write_bytes("/sys/power/resume", facts.text, number_size)
    write_text("/sys/power/image_size", "0")
    write_text("/sys/power/disk", "shutdown")
    result = write_text("/sys/power/state", "disk")
    if failed(result):
        say_failure("hibernate", result)
        return False
    # Here the machine goes on that was resumed.
    lines.begin("resumed")
    lines.end()
    return True


def make_swap_area(disk: u64) -> None:
    """Write the first page of a swap area as large as the disk."""
    size = linux(LSEEK, disk, 0, 2, 0, 0)
    linux(LSEEK, disk, 0, 0, 0, 0)
    fill64(page, 0, PAGE // 8)
    store32(page + VERSION_AT, 1)
    store32(page + LAST_PAGE_AT, size // PAGE - 1)
    copy_text(page + SIGNATURE_AT, "SWAPSPACE2")
    write_all(disk, page, PAGE)
    linux(SYNC, 0, 0, 0, 0, 0)


def copy_text(to: u64, text: str) -> None:
    """Copy *text* without its end."""
    i = 0
    while byte_at(text, i) != 0:
        store8(to + i, byte_at(text, i))
        i += 1


def write_bytes(path: str, at: u64, size: u64) -> u64:
    """Write to a file in one go; 0, or the error."""
    file = open_file(path, O_WRONLY)
    if failed(file):
        return file
    result = linux(1, file, at, size, 0, 0)
    close_file(file)
    return result if failed(result) else 0


def write_text(path: str, text: str) -> u64:
    """Write *text* to a file."""
    i = 0
    while byte_at(text, i) != 0:
        i += 1
    return write_bytes(path, text_address(text), i)
