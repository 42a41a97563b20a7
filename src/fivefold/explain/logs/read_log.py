"""One way in for text: any log, in any of the dialects, by what is in it."""

from __future__ import annotations

import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol, cast

from fivefold.errors import FormatError, MachineError, cannot
from fivefold.explain.logs.lines import Block, read_lines, split
from fivefold.explain.logs.linux_text import LinuxText
from fivefold.explain.logs.other_logs import BochsLog, EventLine
from fivefold.explain.logs.qemu_log import QemuLog
from fivefold.explain.logs.trace import Trace

PEEK: Final = 4096
_EXPECTED: Final = "expected QEMU's -d int log or `info registers`, a KVM error, a Linux oops or a Bochs log"
_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")


class _Folder(Protocol):
    """What every dialect has."""

    def feed(self, block: Block) -> None: ...

    def trace(self) -> Trace | None: ...


def read_log(stream: BinaryIO, name: str) -> Trace:
    """The exceptions in *stream*, read once from start to end in bounded memory.

    `FormatError` if it is empty, binary, or holds neither an exception nor registers.
    """
    head, stream = _peek(stream)
    if not head:
        raise FormatError(f"{name} is empty; {_EXPECTED}")
    if b"\0" in head and not head.startswith(_BOMS):
        raise FormatError(f"{name} is binary data, not a log; {_EXPECTED}")
    # An exception with its context tells more than bare registers, so those come last.
    folders: tuple[_Folder, ...] = (QemuLog(name), BochsLog(name), EventLine(name), LinuxText(name))
    for block in split(read_lines(stream)):
        for folder in folders:
            folder.feed(block)
    traces = [trace for folder in folders if (trace := folder.trace()) is not None]
    for trace in traces:
        if trace.outcome != "handled" and trace.exceptions:
            return trace
    if traces:
        return max(traces, key=lambda trace: len(trace.exceptions))
    raise FormatError(f"{name} holds no exception and no registers; {_EXPECTED}")


@contextmanager
def open_log(path: str) -> Iterator[BinaryIO]:
    """The bytes of the log at *path*, unpacked if it is gzip or xz; ``-`` is standard input."""
    if path == "-":
        import sys

        yield sys.stdin.buffer
        return
    try:
        with Path(path).open("rb") as file:
            yield _unpacked(file)
    except OSError as error:
        raise cannot("read", path, error) from error
    except (EOFError, lzma.LZMAError) as error:
        raise MachineError(f"cannot read {path}: {error}") from error


def _unpacked(file: BinaryIO) -> BinaryIO:
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        import gzip

        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if magic == b"\xfd7zXZ\0":
        return cast(BinaryIO, lzma.LZMAFile(file))
    return file


def _peek(stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """The first bytes, and a stream that still has them."""
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, stream))
    return buffered.peek(PEEK)[:PEEK], cast(BinaryIO, buffered)
