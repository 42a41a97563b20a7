"""Pictures of the docs, drawn from the code's own tables: `write_pictures`; `.ci/pictures` calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fivefold.layout import Area, linux_areas
from fivefold.report.page.code_picture import code_picture
from fivefold.report.page.mode_picture import mode_pictures
from fivefold.report.page.templating import about_size, render

RELEASE: Final = "6.1"
BOX_WIDTH: Final = 400
_GAP: Final = 30
_TOP: Final = 26
_EDGE: Final = 8
_LEAST: Final = 18
_A_BIT: Final = 1.2
"""Pixels for each bit of an area's size above 2 MiB."""


def write_pictures(folder: Path) -> None:
    """Write every picture into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pictures().items():
        (folder / name).write_text(text, "utf-8")


def pictures() -> dict[str, str]:
    """The pictures by their files' names, as SVG that is dark where the reader's system is."""
    return {"address_maps.svg": address_maps(), "from_source_to_bytes.svg": code_picture(), **mode_pictures()}


def address_maps() -> str:
    """The documented maps of Linux with four and with five levels, beside each other, the highest address on top."""
    columns: list[dict[str, Any]] = [
        {"x": _EDGE + index * (BOX_WIDTH + _GAP), "title": title, "boxes": _boxes(linux_areas(RELEASE, levels))}
        for index, (levels, title) in enumerate(((4, "four levels"), (5, "five levels")))
    ]
    bottom = max(box["y"] + box["height"] for column in columns for box in column["boxes"])
    return render(
        "address_maps.svg",
        title=f"The address space of Linux {RELEASE} with four and with five levels, bases not randomised",
        columns=columns,
        box_width=BOX_WIDTH,
        width=2 * BOX_WIDTH + _GAP + 2 * _EDGE,
        height=bottom + _EDGE,
    )


def _boxes(areas: tuple[Area, ...]) -> list[dict[str, Any]]:
    boxes: list[dict[str, Any]] = []
    y = _TOP
    for area in reversed(areas):
        height = _LEAST + round(_A_BIT * max(area.size.bit_length() - 22, 0))
        about = {"name": area.name, "kind": area.kind, "size": about_size(area.size), "start": area.start}
        boxes.append({**about, "y": y, "height": height})
        y += height
    return boxes
