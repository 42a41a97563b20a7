"""Roots that were found, for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final, TextIO

from fivefold.memory import Source
from fivefold.survey.guest.roots import Root
from fivefold.units import hex64

SCHEMA: Final = "fivefold.roots/1"


def write_roots(roots: Sequence[Root], out: TextIO) -> None:
    """A line for each root under a heading for each group of them."""
    for group, members in groupby(sorted(roots, key=lambda root: (root.group, root.root)), key=lambda root: root.group):
        out.write(f"group {group}\n")
        for root in members:
            what = f"{root.levels} levels  {root.confidence.name.lower():6}"
            out.write(f"  {hex64(root.root)}  {what}  {'; '.join(root.reasons)}\n")


def roots_json(source: Source, roots: Sequence[Root]) -> dict[str, Any]:
    """The schema ``fivefold.roots/1``: roots with the surest first, and the groups that they form."""
    groups = sorted({root.group for root in roots})
    return {
        "schema": SCHEMA,
        "source": source.name,
        "roots": [_root_json(root) for root in roots],
        "groups": [
            {"group": group, "roots": sorted(hex64(root.root) for root in roots if root.group == group)}
            for group in groups
        ],
    }


def _root_json(root: Root) -> dict[str, Any]:
    return {
        "root": hex64(root.root),
        "levels": root.levels,
        "confidence": root.confidence.name.lower(),
        "reasons": list(root.reasons),
        "group": root.group,
        "pair": None if root.pair is None else hex64(root.pair),
        "half": None if root.pair is None else "user" if root.is_user_half else "kernel",
        "cpus": list(root.cpus),
    }
