"""Which functions have no loop: most of a kernel, which sets up, checks and reports.

How well their instructions are chosen can hardly be measured, what the choice costs can.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fivefold.metal.llvm import inner_name
from fivefold.metal.tree import Call, Count, Unit, While


def straight(unit: Unit) -> frozenset[str]:
    """Return the symbols of functions with no loop, neither of their own nor in what is inlined into them."""
    inlined = {full for full, function in unit.functions.items() if function.signature.mark == "inline"}
    parts = {full: list(_loops_and_calls(function.body)) for full, function in unit.functions.items()}
    looping = {full for full, found in parts.items() if "" in found}
    grown = True
    while grown:
        more = {full for full, found in parts.items() if not looping.isdisjoint(inlined.intersection(found))}
        grown = not more <= looping
        looping |= more
    return frozenset(inner_name(unit, full) for full in parts.keys() - looping - inlined)


def _loops_and_calls(node: Any) -> Iterator[str]:
    """Yield the full name of each function that a node calls, and nothing but "" for a loop."""
    if isinstance(node, tuple):
        for part in node:
            yield from _loops_and_calls(part)
    elif isinstance(node, While | Count):
        yield ""
    else:
        if isinstance(node, Call):
            yield node.function
        for name in getattr(node, "__dataclass_fields__", ()):
            yield from _loops_and_calls(getattr(node, name))
