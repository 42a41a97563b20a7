"""The change of mode as a picture, from the registers of machines that boot: `mode_pictures`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

from fivefold.boot import BootOptions, build_image
from fivefold.boot.mode_changes import ModeState, mode_changes
from fivefold.explain.rules.instruction import listing
from fivefold.machine.base import EntryPoint
from fivefold.report.page.templating import render
from fivefold.units import MIB

BOX_WIDTH: Final = 410
BOX_HEIGHT: Final = 36
STEP: Final = 22
"""Pixels between two boxes, where the instruction stands that leads from one to the other."""
_GAP: Final = 30
_TOP: Final = 26
_EDGE: Final = 8
_BITS: Final = {
    "CR0": {"PE": 0, "PG": 31, "WP": 16},
    "CR4": {"PAE": 5, "LA57": 12, "PGE": 7, "SMEP": 20, "SMAP": 21},
    "EFER": {"LME": 8, "LMA": 10, "NXE": 11},
}
"""What a box shows of each register, in the order of the names (Intel SDM volume 3, "Control Registers")."""

Boot = tuple[str, EntryPoint, str, str]
"""CPU, entry and command line of a boot, and its title."""
ENTERED: Final[tuple[Boot, ...]] = (
    ("la48", "pvh", "", "32-bit entry, CPU without LA57"),
    ("la57", "pvh", "", "32-bit entry, CPU with LA57"),
)
CHANGED: Final[tuple[Boot, ...]] = (
    ("la57", "long48", "", "entered with four levels, CPU with LA57: up"),
    ("la57", "long57", "no5lvl", "entered with five levels, no5lvl: down"),
)


def mode_pictures() -> dict[str, str]:
    """The pictures by their files' names: each boot is run on Unicorn and watched, which takes half a second each."""
    return {
        "mode_chosen.svg": _picture("The mode is chosen where paging is still off", ENTERED),
        "mode_changed.svg": _picture("The mode is changed where the loader chose another", CHANGED),
    }


def _picture(title: str, boots: tuple[Boot, ...]) -> str:
    columns: list[dict[str, Any]] = []
    for number, (cpu, entry, cmdline, about) in enumerate(boots):
        options = BootOptions(engine="unicorn", entry=entry, cmdline=cmdline, memory=32 * MIB)
        boxes = _boxes(mode_changes(cpu, options, build_image()))
        columns.append({"x": _EDGE + number * (BOX_WIDTH + _GAP), "title": about, "boxes": boxes})
    return render(
        "mode_changes.svg",
        title=title,
        columns=columns,
        box_width=BOX_WIDTH,
        box_height=BOX_HEIGHT,
        step=STEP,
        width=len(columns) * (BOX_WIDTH + _GAP) - _GAP + 2 * _EDGE,
        height=max(column["boxes"][-1]["y"] for column in columns) + BOX_HEIGHT + _EDGE,
    )


def _boxes(states: tuple[ModeState, ...]) -> list[dict[str, Any]]:
    first = states[0]
    boxes = [{**_box(first, first, first.cr3), "step": "", "where": ""}]
    for before, now in pairwise(states):
        step = {"step": next(listing(now.code, before.code_bits))[2], "where": now.label}
        boxes.append({**_box(before, now, first.cr3), **step})
    return [{**box, "y": _TOP + number * (BOX_HEIGHT + STEP)} for number, box in enumerate(boxes)]


def _box(before: ModeState, now: ModeState, entered_with: int) -> dict[str, Any]:
    kind, mode = _mode(now)
    registers = [
        {"text": f"{name} {_named(name, value) or '0'}", "is_new": _named(name, value) != _named(name, old)}
        for name, value, old in zip(_BITS, _values(now), _values(before), strict=True)
    ]
    root = _root(now, entered_with)
    return {"kind": kind, "mode": mode, "root": root, "root_is_new": now.cr3 != before.cr3, "registers": registers}


def _mode(state: ModeState) -> tuple[str, str]:
    """The colour's class and the words."""
    if not state.cr0 >> 31:
        return "none", f"{state.code_bits} bits, paging off"
    kind, levels = ("five", "five levels") if state.cr4 >> 12 & 1 else ("four", "four levels")
    return kind, f"{state.code_bits} bits, {levels}"


def _root(state: ModeState, entered_with: int) -> str:
    if state.root:
        return state.root
    if state.cr3 == entered_with:
        return "the loader's" if state.cr3 else "0"
    return "a borrowed page" if state.cr3 < MIB else "the kernel's own"


def _values(state: ModeState) -> tuple[int, int, int]:
    return state.cr0, state.cr4, state.efer


def _named(register: str, value: int) -> str:
    return " ".join(name for name, bit in _BITS[register].items() if value >> bit & 1)
