"""How a function becomes machine code, as a picture, from what the compiler makes at each stage: `code_picture`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fivefold.explain.rules.instruction import listing
from fivefold.metal.stages import Stages, stages
from fivefold.report.page.templating import render

MODULE: Final = "fivefold.kernel.paging.pgtable"
FUNCTION: Final = "p4d_offset"
BUILDS: Final[dict[str, dict[str, int]]] = {
    "the mode is a variable": {},
    "four levels, as constants": {"l5_enabled": 0, "pgdir_shift": 39, "ptrs_per_p4d": 1},
    "five levels, as constants": {"l5_enabled": 1, "pgdir_shift": 48, "ptrs_per_p4d": 512},
}
"""How the kernel is built: the boot code, and the kernel proper of each mode."""
_KINDS: Final = ("none", "four", "five")

LINE: Final = 15
CHARACTER: Final = 7
"""Pixels that a character takes at most."""
_EDGE, _GAP, _TOP = 8, 24, 8
_HEAD: Final = 24
"""Pixels above a box, where its title stands."""


def builds() -> dict[str, Stages]:
    """The stages of the function in each build, by the build's title."""
    return {title: stages(MODULE, FUNCTION, bindings) for title, bindings in BUILDS.items()}


def code_lines(made: Stages) -> Iterator[str]:
    """Offset, bytes and text of each instruction, and the symbol that the linker puts in."""
    for at, code, text in listing(made.code):
        names = [f"  ; {name}" for offset, name in made.names.items() if at <= offset < at + len(code)]
        yield f"{at:4x}  {code.hex(' '):30}  {text}{''.join(names)}"


def code_picture() -> str:
    """Source, checked tree and LLVM's text, which are the same for every build, and the instructions of each."""
    made = builds()
    variable, four, five = made.values()
    assert variable.llvm == four.llvm == five.llvm and variable.tree == four.tree == five.tree
    codes = [
        (f"4. bytes: {title}", kind, list(code_lines(one)))
        for kind, (title, one) in zip(_KINDS, made.items(), strict=True)
    ]
    left = _column(
        _EDGE,
        ("1. source, in the subset of Python", "source", variable.source.splitlines()),
        ("2. checked: names resolved, a kind for each expression", "source", list(variable.tree)),
    )
    beside = _EDGE + _width(*left, {"lines": codes[0][2]}) + _GAP
    right = _column(beside, ("3. text for LLVM", "text", variable.llvm.splitlines()))
    below = max(box["y"] + box["height"] for box in (*left, *right))
    left += _column(_EDGE, codes[0], top=below)
    right += _column(beside, *codes[1:], top=below)
    for column in (left, right):
        for box in column:
            box["width"] = _width(*column)
    boxes = [*left, *right]
    return render(
        "code.svg",
        title=f"{FUNCTION} on its way from source to machine code, for each build of the kernel",
        boxes=boxes,
        line=LINE,
        width=beside + _width(*right) + _EDGE,
        height=max(box["y"] + box["height"] for box in boxes) + _EDGE,
    )


def _column(x: int, *parts: tuple[str, str, list[str]], top: int = _TOP) -> list[dict[str, Any]]:
    """Boxes below each other from *top* on: title, class and lines of each."""
    boxes: list[dict[str, Any]] = []
    for title, kind, lines in parts:
        y, height = top + _HEAD, LINE * len(lines) + 10
        about = {"title": title, "kind": kind, "lines": lines, "x": x}
        boxes.append({**about, "y": y, "height": height})
        top = y + height
    return boxes


def _width(*boxes: dict[str, Any]) -> int:
    """What the longest line of *boxes* needs."""
    return 12 + CHARACTER * max(len(line) for box in boxes for line in box["lines"])
