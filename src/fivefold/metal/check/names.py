"""What names and dotted names stand for inside a function, as far as that is known at compile time."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from fivefold.errors import CompileError
from fivefold.metal.check.context import CheckContext
from fivefold.metal.check.source import Constant, Meaning, ModuleName, SourceModule, refusal
from fivefold.metal.check.tree import ValueKind


@dataclass
class Scope:
    """The locals of one function, and which of them surely have a value here."""

    names: frozenset[str]
    kinds: dict[str, ValueKind]
    assigned: set[str] | None
    """None where no path leads."""
    items: dict[str, object] = field(default_factory=dict)
    """Loop variables over a constant, with the constant of this round."""


class Meanings:
    """The names of one function."""

    def __init__(self, context: CheckContext, module: SourceModule, scope: Scope) -> None:
        self._context = context
        self._module = module
        self.scope = scope

    def error(self, node: ast.AST, construct: str, remedy: str) -> CompileError:
        """Make the error for *node*."""
        return refusal(self._module, node, construct, remedy)

    def constant(self, node: ast.expr) -> Constant | None:
        """Return what *node* is at compile time: a literal, a constant or an attribute of one; else None."""
        if isinstance(node, ast.Constant):
            return Constant(node.value)
        found = self.meaning(node) if isinstance(node, ast.Name | ast.Attribute | ast.Subscript) else None
        return found if isinstance(found, Constant) else None

    def meaning(self, node: ast.expr) -> Meaning | None:
        """Return what a name or a dotted name stands for; None for a local or a computed value."""
        match node:
            case ast.Name(id=name):
                if name in self.scope.items:
                    return Constant(self.scope.items[name])
                return None if name in self.scope.names else self._context.library.resolve(self._module, name, node)
            case ast.Attribute(value=value, attr=attr):
                owner = self.meaning(value)
                if isinstance(owner, ModuleName):
                    return self._context.library.attribute(owner, attr, self._module, node)
                return self._field(node, owner, attr)
            case ast.Subscript(value=value, slice=index):
                return self._item(self.meaning(value), self.constant(index))
        return None

    def _field(self, node: ast.expr, owner: Meaning | None, attr: str) -> Constant | None:
        if not isinstance(owner, Constant):
            return None
        if isinstance(owner.value, str | bool | tuple) and not hasattr(type(owner.value), "_fields"):
            return None
        if not hasattr(owner.value, attr):
            raise self.error(node, f"{ast.unparse(node)} does not exist", "name a field of the constant")
        return Constant(getattr(owner.value, attr))

    def _item(self, owner: Meaning | None, index: Constant | None) -> Constant | None:
        """Return an element of a constant tuple at a constant index, where it is not an int of a table."""
        if not isinstance(owner, Constant) or not isinstance(owner.value, tuple) or index is None:
            return None
        if type(index.value) is not int or not 0 <= index.value < len(owner.value):
            return None
        return Constant(owner.value[index.value])
