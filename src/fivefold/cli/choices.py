"""Words that options of several commands take."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

SYMBOLS_HELP: Final = (
    "Take names from System.map, vmlinux or a copy of /proc/kallsyms (.gz, .xz), not from the kernel in memory."
)
"""Of ``--symbols``, the same for all commands."""


class ColorChoice(StrEnum):
    """When to print colours."""

    auto = "auto"
    always = "always"
    never = "never"


class TableFormat(StrEnum):
    """How to print a table."""

    text = "text"
    json = "json"
    csv = "csv"


class BitsChoice(StrEnum):
    """Which bits of a leaf count."""

    few = "few"
    all = "all"


class CaseModeChoice(StrEnum):
    """Which modes cases are of."""

    both = "both"
    la48 = "la48"
    la57 = "la57"
