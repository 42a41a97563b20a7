"""How objects print in a notebook: plain tables, every cell escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

SHOWN: Final = 100
"""Rows of a table that a notebook shows."""

_STYLE: Final = "font-family:monospace"
_CELL: Final = "text-align:left;white-space:nowrap"


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], *, left_out: str = "") -> str:
    """A table that stands by itself; None makes an empty cell, *left_out* is a last line across all columns."""
    parts = [f'<table style="{_STYLE}">', f"<caption>{escape(caption)}</caption>"]
    parts += ["<thead>", _row("th", head), "</thead>", "<tbody>", *(_row("td", row) for row in rows)]
    if left_out:
        parts.append(f'<tr><td colspan="{len(head)}">{escape(left_out)}</td></tr>')
    return "".join((*parts, "</tbody>", "</table>"))


def _row(tag: str, cells: Sequence[object]) -> str:
    told = ("" if cell is None else escape(str(cell)) for cell in cells)
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{cell}</{tag}>' for cell in told) + "</tr>"
