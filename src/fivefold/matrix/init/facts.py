"""What the kernel says of itself: its release, its command line, the CPU's flags, where our stack is."""

from __future__ import annotations

from typing import Final

from fivefold.matrix.init import lines
from fivefold.matrix.init.calls import O_RDONLY, close_file, failed, open_file, read_file, write_all
from fivefold.metal.lang import buffer, byte_at, cpuid, load8, u64

SIZE: Final = 1 << 16
text: Final = buffer(SIZE, 16)
"""The file that was read last, as far as it fits."""

cmdline: Final = buffer(8192, 16)
cmdline_size: u64 = 0

FLAGS: Final = ("la57", "smep", "smap", "pti", "umip", "nx", "hypervisor")


def read_whole(path: str, to: u64, room: u64) -> u64:
    """How many bytes of the file there are now at *to*; 0 where it cannot be read."""
    file = open_file(path, O_RDONLY)
    if failed(file):
        return 0
    size = 0
    while size < room:
        got = read_file(file, to + size, room - size)
        if got == 0:
            break
        size += got
    close_file(file)
    return size


def line_end(start: u64, size: u64) -> u64:
    """Index in `text` where the line that holds *start* ends."""
    at = start
    while at < size and load8(text + at) != 10:
        at += 1
    return at


def stands_at(at: u64, size: u64, word: str) -> bool:
    """Whether *word* stands at index *at* of `text`."""
    i = 0
    while byte_at(word, i) != 0:
        if at + i >= size or load8(text + at + i) != byte_at(word, i):
            return False
        i += 1
    return True


def report_file(word: str, path: str) -> None:
    """A line with the first line of a file, where it can be read."""
    size = read_whole(path, text, SIZE)
    if size == 0:
        return
    lines.begin(word)
    lines.put_bytes(text, line_end(0, size))
    lines.end()


def report_cmdline() -> None:
    """A line with the kernel's command line, which is kept."""
    global cmdline_size
    cmdline_size = read_whole("/proc/cmdline", cmdline, 4096)
    if cmdline_size != 0 and load8(cmdline + cmdline_size - 1) == 10:
        cmdline_size -= 1
    lines.begin("cmdline")
    lines.put_bytes(cmdline, cmdline_size)
    lines.end()


def report_cpu() -> None:
    """What CPUID says of LA57, how many CPUs there are, and the flags of the first as the kernel has them."""
    lines.begin("cpuid_la57")
    lines.put_hex(cpuid(7, 0, 2) >> 16 & 1)
    lines.end()
    size = read_whole("/proc/cpuinfo", text, SIZE)
    at = 0
    count = 0
    while at < size:
        if stands_at(at, size, "processor\t"):
            count += 1
        if count == 1 and stands_at(at, size, "flags\t"):
            report_flags(at, line_end(at, size))
        at = line_end(at, size) + 1
    lines.begin("cpus")
    lines.put_hex(count)
    lines.end()


def report_flags(start: u64, stop: u64) -> None:
    """A line with the flags among those that matter here."""
    lines.begin("flags")
    report_flag(start, stop, " la57", "la57")
    report_flag(start, stop, " smep", "smep")
    report_flag(start, stop, " smap", "smap")
    report_flag(start, stop, " pti", "pti")
    report_flag(start, stop, " umip", "umip")
    report_flag(start, stop, " nx", "nx")
    lines.end()


def report_flag(start: u64, stop: u64, spelled: str, name: str) -> None:
    """Add *name* to the line if *spelled*, a blank and the name, is a whole word there."""
    at = start
    while at < stop:
        if stands_at(at, stop, spelled):
            after = at
            i = 0
            while byte_at(spelled, i) != 0:
                i += 1
            after = at + i
            if after == stop or load8(text + after) == 32:
                lines.put_byte(32)
                lines.put(name)
                return
        at += 1


def report_stack() -> None:
    """A line with the end of our stack, as the kernel's list of our mappings has it."""
    size = read_whole("/proc/self/maps", text, SIZE)
    at = 0
    while at < size:
        stop = line_end(at, size)
        if stop >= 7 and stands_at(stop - 7, size, "[stack]"):
            lines.begin("stack")
            lines.put_hex(second_address(at, stop))
            lines.end()
        at = stop + 1


def second_address(at: u64, stop: u64) -> u64:
    """The number behind the first dash of a line."""
    while at < stop and load8(text + at) != 45:
        at += 1
    value = 0
    at += 1
    while at < stop and load8(text + at) != 32:
        byte = load8(text + at)
        value = value << 4 | ((byte & 15) + (9 if byte > 57 else 0))
        at += 1
    return value


def report_kernel_tables() -> None:
    """The kernel's own text of its page tables, where it has one: ``text SIZE`` and then the bytes as they are.

    The numbers of bytes come behind, in ``text_end SIZE HASH``: the file is made while it is read.
    """
    file = open_file("/sys/kernel/debug/page_tables/kernel", O_RDONLY)
    if failed(file):
        return
    lines.begin("text")
    lines.end()
    total = 0
    found = lines.HASH_START
    while True:
        got = read_file(file, text, SIZE)
        if got == 0:
            break
        for i in range(got):
            found = (found ^ load8(text + i)) * lines.HASH_FACTOR & 0xFFFF_FFFF
        write_all(lines.STDOUT, text, got)
        total += got
    close_file(file)
    lines.begin("text_end")
    lines.put_hex(total)
    lines.put_hex(found)
    lines.end()
