"""What letters and words in the reports mean, for those who meet them for the first time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from fivefold.arch import Level
from fivefold.report.page.entry_bits import bit_fields
from fivefold.report.sheet import Writable, width_of

_WIDE: Final = 100
_INDENT: Final = 11
_RIGHTS: Final = (
    (
        "r w x u",
        "read, write, execute, user mode: what all levels allow together; a dash for what they do not",
    ),
    ("so far", "the rights down to this entry"),
    ("effective", "the rights of the whole path, of the least privileged mode that reaches the page; CR0.WP counts"),
)
_MORE_FLAGS: Final = (
    ("PS", "a page of 2M or 1G, not a table"),
    ("SW9", "software bit 9: free for the system"),
    ("PK5", "protection key 5"),
    ("C", "the bit that is about encryption"),
)
_WORDS: Final = (
    ("scattered", "mapped, and physically not in one piece"),
    ("again", "the same table as before is mapped at these addresses, too"),
    ("malformed", "a present entry with a reserved bit set: the CPU faults"),
    ("not in memory", "the source lacks this table: nothing is known of what it maps"),
    ("la48, la57", "four levels, five levels"),
)
_LEVELS: Final = (
    ("PML5", "the root with five levels, an entry for 256T; with four levels it is folded"),
    ("PML4", "the root with four levels, an entry for 512G; Linux calls it P4D, or PGD where it is the root"),
    ("PDPT", "an entry for 1G, a page or a table; PUD in Linux"),
    ("PD", "an entry for 2M, a page or a table; PMD in Linux"),
    ("PT", "an entry for a page of 4K; PTE in Linux"),
)


def write_legend(out: Writable) -> None:
    """The rights, the levels, the flags of entries, and some words, one a line."""
    width = min(width_of(out) or _WIDE, _WIDE)
    flags = [(one.name, one.one) for one in bit_fields(Level.PT, leaf=True) if one.low == one.high]
    flags += [
        ("PS", "a page of 2M or 1G, not a table"),
        ("SW9", "software bit 9: free for the system"),
        ("PK5", "protection key 5"),
    ]
    for heading, rows in (("rights", _RIGHTS), ("levels", _LEVELS), ("flags", flags), ("words", _WORDS)):
        out.write(heading + "\n")
        for line in _lines(rows, width):
            out.write(line + "\n")


def _lines(rows: tuple[tuple[str, str], ...] | list[tuple[str, str]], width: int) -> Iterator[str]:
    column = max(len(name) for name, _ in rows) + 4
    for name, meaning in rows:
        first, *more = textwrap.wrap(meaning, max(width - column, _INDENT))
        yield f"  {name:{column - 2}}{first}"
        yield from (" " * column + line for line in more)
