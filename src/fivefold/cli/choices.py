"""Words that options of several commands take."""

from __future__ import annotations

from enum import StrEnum


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
