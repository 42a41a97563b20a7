"""What the compiler makes of one function, stage by stage: `stages`. To look at; nothing is built from it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, Final

from fivefold.metal.check.check import check
from fivefold.metal.check.tree import Function
from fivefold.metal.emit.elf import read_object
from fivefold.metal.emit.intrinsics import Target
from fivefold.metal.emit.llvm import write
from fivefold.metal.emit.objects import emit
from fivefold.metal.program import Program

_PLACES: Final = ("line", "kind")
"""Fields of a node that are no children: the line would change with what stands above the function."""


@dataclass(frozen=True, slots=True)
class Stages:
    """One function on its way from source to bytes."""

    source: str
    tree: tuple[str, ...]
    """The checked tree, a node a line, two blanks for each step down; expressions end in their kind."""
    llvm: str
    code: bytes
    names: Mapping[int, str]
    """Offsets in `code` of the places that the linker fills, with the symbol that goes there."""


def stages(module: str, function: str, bindings: Mapping[str, int]) -> Stages:
    """Compile *function* of *module* alone, with *bindings* of the module's own variables as constants.

    Raises `CompileError` for what is outside the subset.
    """
    bound = {f"{module}.{name}": value for name, value in bindings.items()}
    unit = check(Program((module,), roots=(f"{module}.{function}",), bindings=bound))
    target = Target("x86_64", host=True)
    text = write(unit, target)
    begin = text.index(f'define internal i64 @"{module.rpartition(".")[2]}.{function}()"')
    code, names = _code(emit(text, target))
    checked = unit.functions[f"{module}.{function}"]
    return Stages(
        source=inspect.getsource(getattr(importlib.import_module(module), function)),
        tree=tuple(_function_lines(checked)),
        llvm=text[begin : text.index("}", begin) + 1],
        code=code,
        names=names,
    )


def _code(made: bytes) -> tuple[bytes, dict[int, str]]:
    """The one function that is left of the object, since all that it calls is inlined, and what its places refer to."""
    found = read_object(made)
    text = next(one for one in found.sections if one.executable and one.size)
    here = [one for one in found.relocations if one.section == text.number]
    return text.data, {one.offset: found.symbols[one.symbol].name for one in here}


def _function_lines(function: Function) -> Iterator[str]:
    signature = function.signature
    parameters = ", ".join(f"{name}: {kind.value}" for name, kind in signature.parameters)
    yield f"Function {signature.name}({parameters}) -> {signature.returns.value}, {signature.mark or 'not inlined'}"
    for statement in function.body:
        yield from _lines(statement, 1)


def _lines(node: Any, depth: int) -> Iterator[str]:
    """*node* with its plain fields on its line, and its children below it."""
    values = [(one.name, getattr(node, one.name)) for one in fields(node) if one.name not in _PLACES]
    plain = [_short(value) for _, value in values if isinstance(value, str | int)]
    kind = getattr(node, "kind", None)
    ending = f": {kind.value}" if isinstance(kind, Enum) else ""
    yield f"{'  ' * depth}{' '.join([type(node).__name__, *plain])}{ending}"
    for _, value in values:
        for child in value if isinstance(value, tuple) else (value,):
            if is_dataclass(child):
                yield from _lines(child, depth + 1)


def _short(value: str | int) -> str:
    """A full name by its last two parts."""
    return ".".join(value.split(".")[-2:]) if isinstance(value, str) else str(value)
