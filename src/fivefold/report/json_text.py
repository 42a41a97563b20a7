"""JSON with a schema, whole or as a stream: one document, its long list a line an item."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from fivefold.survey.guest.cpu.controls import Controls
from fivefold.units import hex64


def write_document(document: Mapping[str, Any], out: TextIO) -> None:
    """One document, indented, with a newline at its end."""
    json.dump(document, out, indent=2)
    out.write("\n")


def write_stream(
    head: Mapping[str, Any], key: str, items: Iterable[Mapping[str, Any]], out: TextIO, tail: Iterable[tuple[str, Any]]
) -> None:
    """One document: *head*, then *items* under *key* as they come, then *tail*, which is asked for after them."""
    out.write("{\n")
    for name, value in head.items():
        out.write(f"  {json.dumps(name)}: {json.dumps(value)},\n")
    out.write(f"  {json.dumps(key)}: [")
    comma = "\n"
    for item in items:
        out.write(f"{comma}    {json.dumps(item)}")
        comma = ",\n"
    out.write("\n  ]" if comma != "\n" else "]")
    for name, value in tail:
        out.write(f",\n  {json.dumps(name)}: {json.dumps(value)}")
    out.write("\n}\n")


def hex_or_null(value: int | None) -> str | None:
    """A 64-bit number as the project prints it, or null."""
    return None if value is None else hex64(value)


def controls_json(controls: Controls) -> dict[str, dict[str, Any]]:
    """The controls of the CPU, by their names in the manual."""
    return {name: {"value": one.value, "known_from": one.how} for name, one in controls.named().items()}
