"""From a stream of bytes to blocks: a line that means something, and the lines that belong to it.

A log may be a gibibyte of which a kilobyte matters. Lines are read one at a time, looked at
once with one expression, and kept only while their block is short; whoever folds the blocks keeps a few.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

MAX_LINE: Final = 4096
"""Bytes of a line that are looked at; the rest of a longer one is read as further lines."""

MAX_BLOCK_LINES: Final = 96
"""Lines kept after the line that opened a block: a register dump is 25, an oops about 60."""

MARK: Final = re.compile(
    rb"(?P<check>check_exception old:)"
    rb"|(?P<struck>\bv=[0-9a-f]{2} e=[0-9a-f]+ i=)"
    rb"|(?P<triple>Triple fault)"
    rb"|(?P<interrupt>Servicing hardware INT=)"
    rb"|(?P<events>triple fault: #)"
    rb"|(?P<reset>CPU Reset \(CPU)"
    rb"|(?P<smm>SMM: (?:enter|after))"
    rb"|(?P<kvm>KVM internal error|KVM: entry failed|kvm run failed)"
    rb"|(?P<oops>BUG: |Oops: |Oops\[|PANIC: |general protection fault|double fault: |stack segment: "
    rb"|invalid opcode: |divide error: |segfault at |unable to handle kernel|kernel stack overflow"
    rb"|Corrupted page table at|traps: |: [0-9a-f]{4} \[#\d+\])"
    rb"|(?P<bochs>exception\(\): 3rd|exception\(0x[0-9a-f]+\): |page fault for address )"
    rb"|(?P<registers>(?:^|[^A-Za-z0-9])[RE]AX ?= ?[0-9a-f]{8})"
    rb"|(?P<cpu>^CPU#\d+)"
)

_HINT: Final = re.compile(
    rb"check_exception|v=[0-9a-f]{2} e|riple fault|Servicing|CPU |SMM: |KVM|kvm run|BUG: |Oops|PANIC|fault"
    rb"|segment: |opcode: |error: |table|traps: |int3: |present: |check: |TSS: |exception: |overflow"
    rb"|exception\(|AX ?=|CPU#"
)
"""Every line that `MARK` finds something in has one of these. Each begins with a letter and there are no
groups: that is what lets the engine skip quickly, and most lines of a large log are skipped."""

_ESCAPES: Final = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
_CONTINUES: Final = frozenset({"oops"})


@dataclass(slots=True)
class Block:
    """A marked line and those after it, up to the next mark; *kind* names the mark.

    *number* counts lines from 1. The text has neither escape codes nor line ends.
    """

    kind: str
    number: int
    raw: list[bytes] = field(default_factory=list)
    has_registers: bool = False

    @property
    def head(self) -> str:
        """The marked line."""
        return self.raw[0].decode("utf-8", "replace")

    @property
    def text(self) -> str:
        """All lines that were kept."""
        return b"\n".join(self.raw).decode("utf-8", "replace")

    @property
    def body(self) -> str:
        """The lines after the marked one."""
        return b"\n".join(self.raw[1:]).decode("utf-8", "replace")


def read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of *stream* without line ends, escape codes and NULs; UTF-16 with a mark is recoded."""
    head = stream.readline(MAX_LINE)
    decoder = None
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        decoder = codecs.getincrementaldecoder("utf-16")("replace")
    while head:
        if decoder is None:
            yield _clean(head)
        else:
            for line in decoder.decode(head).split("\n"):
                yield _clean(line.encode())
        head = stream.readline(MAX_LINE)


def _clean(line: bytes) -> bytes:
    if b"\x1b" in line:
        line = _ESCAPES.sub(b"", line)
    return line.rstrip(b"\r\n\0 ")


def split(lines: Iterator[bytes]) -> Iterator[Block]:
    """The blocks among *lines*. What comes before the first mark belongs to none."""
    block: Block | None = None
    for number, line in enumerate(lines, 1):
        mark = MARK.search(line) if _HINT.search(line) else None
        kind = mark.lastgroup if mark else None
        if kind is not None and _opens(kind, block):
            if block is not None:
                yield block
            block = Block(kind, number)
        if block is not None and len(block.raw) < MAX_BLOCK_LINES:
            block.raw.append(line)
            block.has_registers |= kind == "registers"
    if block is not None:
        yield block


def _opens(kind: str, block: Block | None) -> bool:
    """Whether a mark of *kind* opens a block of its own after *block*."""
    if block is None:
        return True
    if kind == "registers":
        # A dump belongs to the exception before it; a second one does not.
        return block.has_registers
    # One oops prints several lines that each could be the first.
    return not (kind == block.kind and kind in _CONTINUES and not _is_over(block))


def _is_over(block: Block) -> bool:
    return any(b"end trace" in line for line in block.raw[-3:]) or len(block.raw) >= MAX_BLOCK_LINES
