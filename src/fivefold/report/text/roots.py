"""Roots that were found, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from textwrap import fill
from typing import Any, Final

from fivefold.memory import Source
from fivefold.report.json_text import hex_or_null
from fivefold.report.sheet import Writable
from fivefold.survey.guest.roots import Root
from fivefold.survey.names.processes import Process
from fivefold.survey.names.root_owners import RootOwners
from fivefold.units import hex64

WIDTH: Final = 110
SCHEMA: Final = "fivefold.roots/1"


def write_roots(roots: Sequence[Root], owners: RootOwners, out: Writable) -> None:
    """A line for each root under a heading for each group of them, and whose it is; then who has no root."""
    shown = [root for root in roots if not root.is_user_half]
    order = list(dict.fromkeys(root.group for root in shown))
    for group, members in groupby(sorted(shown, key=lambda root: order.index(root.group)), key=lambda root: root.group):
        out.write(f"group {group}\n")
        for root in members:
            what = f"{root.levels} levels  {root.confidence.name.lower():6}"
            out.write(f"  {hex64(root.root)}  {what}  {'; '.join(filter(None, (_label(root), *root.reasons)))}\n")
            for owner in _owners(root, owners):
                out.write(f"      {owner}\n")
    without = [process for process in owners.processes if process.root is None]
    if without:
        out.write(f"without a root of their own, {len(without)}:\n")
        told = ", ".join(f"{process.pid} {process.name}" for process in without)
        out.write(fill(told, WIDTH, initial_indent="      ", subsequent_indent="      ") + "\n")
    if roots:
        out.write(f"# symbols: {owners.symbols_known_from or 'none'}\n# processes: {owners.how}\n")


def _label(root: Root) -> str | None:
    """What it is for; of an isolated pair, which is one row, where the user half lies."""
    return root.label if root.pair is None else f"{root.label}, user half {hex64(root.pair)}"


def _owners(root: Root, owners: RootOwners) -> Iterator[str]:
    if (label := owners.labels.get(root.root)) is not None:
        yield f"{label}, of the kernel's own"
    for process in owners.of(root):
        yield _process(process)


def _process(process: Process) -> str:
    borrowed = ", a kernel thread that borrows it" if process.borrowed else ""
    return f"pid {process.pid:<7} {process.name}{borrowed}"


def roots_json(source: Source, roots: Sequence[Root], owners: RootOwners) -> dict[str, Any]:
    """The schema ``fivefold.roots/1``: roots, those of most use first, the groups that they form, and all processes."""
    groups = sorted({root.group for root in roots})
    return {
        "schema": SCHEMA,
        "source": source.name,
        "symbols_known_from": owners.symbols_known_from,
        "processes_known_from": owners.how if owners.processes else None,
        "processes_missing": None if owners.processes else owners.how,
        "roots": [_root_json(root, owners) for root in roots],
        "groups": [
            {"group": group, "roots": sorted(hex64(root.root) for root in roots if root.group == group)}
            for group in groups
        ],
        "processes": [
            {**_process_json(one), "root": hex_or_null(one.root), "kernel_thread": one.is_kernel}
            for one in owners.processes
        ],
    }


def _process_json(process: Process) -> dict[str, Any]:
    return {"pid": process.pid, "name": process.name, "borrowed": process.borrowed}


def _root_json(root: Root, owners: RootOwners) -> dict[str, Any]:
    return {
        "root": hex64(root.root),
        "levels": root.levels,
        "confidence": root.confidence.name.lower(),
        "reasons": list(root.reasons),
        "group": root.group,
        "pair": None if root.pair is None else hex64(root.pair),
        "half": None if root.pair is None else "user" if root.is_user_half else "kernel",
        "cpus": list(root.cpus),
        "label": owners.labels.get(root.root) or root.label,
        "label_known_from": "the kernel's symbols" if root.root in owners.labels else root.label_known_from,
        "names": [process.name for process in owners.of(root)],
        "processes": [_process_json(process) for process in owners.of(root)],
    }
