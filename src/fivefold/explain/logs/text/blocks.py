"""From lines to blocks: a line that means something to an emulator's log, and the lines that belong to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from fivefold.explain.logs.text.lines import Line

MAX_BLOCK_LINES: Final = 96
"""Lines kept after the line that opened a block: a register dump is 25."""

MARK: Final = re.compile(
    r"(?P<check>check_exception old:)"
    r"|(?P<delivered>\bv=[0-9a-f]{2} e=[0-9a-f]+ i=)"
    r"|(?P<triple>Triple fault(?!:))"
    r"|(?P<interrupt>Servicing hardware INT=)"
    r"|(?P<events>triple fault: #)"
    r"|(?P<reset>CPU Reset \(CPU)"
    r"|(?P<smm>SMM: (?:enter|after))"
    r"|(?P<kvm>KVM internal error|KVM: (?:entry failed|unknown exit)|kvm run failed|KVM_EXIT_)"
    r"|(?P<registers>(?:^|[^A-Za-z0-9])[RE]AX ?= ?[0-9a-f]{8})"
    r"|(?P<cpu>^CPU#\d+)",
    re.I,
)


@dataclass(slots=True)
class Block:
    """A marked line and those after it, up to the next mark; *kind* names the mark, *number* its line."""

    kind: str
    number: int
    lines: list[str] = field(default_factory=list)
    has_registers: bool = False

    @property
    def head(self) -> str:
        """The marked line."""
        return self.lines[0]

    @property
    def text(self) -> str:
        """All lines that were kept."""
        return "\n".join(self.lines)

    @property
    def body(self) -> str:
        """The lines after the marked one."""
        return "\n".join(self.lines[1:])


def blocks(lines: Iterable[Line]) -> Iterator[Block]:
    """The blocks among *lines*. What comes before the first mark belongs to none."""
    block: Block | None = None
    for line in lines:
        if line.number < 0 and block is not None:
            yield block
            block = None
        mark = MARK.search(line.text)
        kind = mark.lastgroup if mark else None
        if kind is not None and _opens(kind, block):
            if block is not None:
                yield block
            block = Block(kind, line.number)
        if block is not None and len(block.lines) < MAX_BLOCK_LINES:
            block.lines.append(line.text)
            block.has_registers |= kind == "registers"
    if block is not None:
        yield block


def _opens(kind: str, block: Block | None) -> bool:
    """Whether a mark of *kind* opens a block of its own after *block*."""
    # A dump belongs to the exception before it; a second one does not.
    return block is None or kind != "registers" or block.has_registers
