"""One way in for text: any log, in any of the formats that are known, by what is in it."""

from __future__ import annotations

import io
import lzma
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Final, cast

from fivefold.errors import FormatError, MachineError, cannot
from fivefold.explain.logs.bochs_log import read_bochs
from fivefold.explain.logs.event_line import read_events
from fivefold.explain.logs.foreign.bugcheck import other_bugcheck, read_bugcheck
from fivefold.explain.logs.foreign.crash_utility import read_crash
from fivefold.explain.logs.foreign.debugger import read_debugger
from fivefold.explain.logs.foreign.firmware import read_firmware
from fivefold.explain.logs.foreign.hypervisor_log import read_hypervisor
from fivefold.explain.logs.foreign.kvm_events import read_kvm_events
from fivefold.explain.logs.foreign.other_machines import other_machine
from fivefold.explain.logs.foreign.plain_report import read_plain
from fivefold.explain.logs.foreign.traps import read_trap
from fivefold.explain.logs.foreign.xen import read_xen
from fivefold.explain.logs.linux.linux_log import read_linux
from fivefold.explain.logs.qemu_log import read_qemu
from fivefold.explain.logs.text.decoding import is_binary
from fivefold.explain.logs.text.excerpts import Progress, excerpts
from fivefold.explain.logs.text.lines import GAP, Line, lines_of, without_doubles
from fivefold.explain.logs.trace import Trace
from fivefold.opening import open_to_read

_MACHINE_CHECK: Final = re.compile(r"Machine Check Exception|mce: \[Hardware Error\]|MACHINE_CHECK_EXCEPTION", re.I)
_PACKED: Final = (
    (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"), (b"PK\x03\x04", "zip"),
    (b"\x28\xb5\x2f\xfd", "zstd"), (b"7z\xbc\xaf\x27\x1c", "7z"), (b"\x04\x22\x4d\x18", "lz4"),
)  # fmt: skip
"""What a pipe may have, and what `open_log` does not unpack."""
PEEK: Final = 4096
EXPECTED: Final = (
    "expected a report of an x86-64 exception by Linux, QEMU (-d int, `info registers`), KVM, Bochs, Xen, FreeBSD, "
    "UEFI, gdb, crash or Windows"
)
_READERS: Final[tuple[Callable[[Sequence[Line], str], Trace | None], ...]] = (
    read_qemu,
    read_bochs,
    read_events,
    read_crash,
    read_linux,
    read_xen,
    read_firmware,
    read_trap,
    read_bugcheck,
    read_hypervisor,
    read_kvm_events,
    read_debugger,
)
"""In the order of what counts where a log has several: what the machine did goes before what its guest says of it."""


def read_log(stream: BinaryIO, name: str, *, follow: bool = False, progress: Progress | None = None) -> Trace:
    """The exceptions in *stream*, read once from start to end in bounded memory.

    A file is read to the size that it has now; with *follow* until its first fatal exception. `FormatError` if
    it is empty, binary, of another machine, or holds neither an exception nor registers.
    """
    head, stream = _peek(stream)
    if not head and not follow:
        raise FormatError(f"{name} is empty; {EXPECTED}")
    if (kind := next((kind for magic, kind in _PACKED if head.startswith(magic)), None)) is not None:
        raise FormatError(f"{name} is packed ({kind}); unpack it first, expected text")
    if is_binary(head):
        raise FormatError(f"{name} is binary data, not a log; {EXPECTED}")
    lines: list[Line] = []
    for part in excerpts(stream, follow=follow, progress=progress):
        if lines:
            lines.append(GAP)
        lines.extend(lines_of(part.data, part.is_start))
    return choose(without_doubles(lines), name)


def choose(lines: Sequence[Line], name: str) -> Trace:
    """What *lines* are about: exceptions that ended something, else others, else bare registers."""
    traces = [trace for read in _READERS if (trace := read(lines, name)) is not None]
    for trace in traces:
        if trace.outcome not in ("handled", "unknown") and (trace.exceptions or trace.says):
            return trace
    if traces:
        return max(traces, key=lambda trace: len(trace.exceptions))
    if (what := other_machine(lines)) is not None:
        raise FormatError(f"{name} is {what}; {EXPECTED}")
    if (plain := read_plain(lines, name)) is not None:
        return plain
    if (code := other_bugcheck(lines)) is not None:
        raise FormatError(f"{name} has bug check {code:#x} of Windows, which is about no exception; {EXPECTED}")
    if any(_MACHINE_CHECK.search(line.text) for line in lines):
        raise FormatError(f"{name} reports a machine check, an error of the hardware; {EXPECTED}")
    if any("RAX" in line.text or "RIP:" in line.text for line in lines):
        raise FormatError(f"{name} has registers, but no report of an exception that they belong to; {EXPECTED}")
    raise FormatError(f"{name} holds no exception and no registers; {EXPECTED}")


@contextmanager
def open_log(path: str) -> Iterator[BinaryIO]:
    """The bytes of the log at *path*, unpacked if it is gzip or xz; ``-`` is standard input."""
    if path == "-":
        import sys

        yield sys.stdin.buffer
        return
    try:
        with open_to_read(path) as file:
            yield _unpacked(file)
    except OSError as error:
        raise cannot("read", path, error) from error
    except (EOFError, lzma.LZMAError) as error:
        raise MachineError(f"cannot read {path}: {error}") from error


def _unpacked(file: io.BufferedReader) -> BinaryIO:
    magic = file.peek(6)[:6]
    if magic.startswith(b"\x1f\x8b"):
        import gzip

        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if magic.startswith(b"BZh"):
        import bz2

        return cast(BinaryIO, bz2.BZ2File(file))
    if magic == b"\xfd7zXZ\0":
        return cast(BinaryIO, lzma.LZMAFile(file))
    return file


def _peek(stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """The first bytes, and a stream that still has them."""
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, stream))
    return buffered.peek(PEEK)[:PEEK], cast(BinaryIO, buffered)
