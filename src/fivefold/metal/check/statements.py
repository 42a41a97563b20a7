"""Check statements: kinds of locals, and that each is assigned before it is read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fivefold.metal.check.context import CheckContext
from fivefold.metal.check.expressions import OPERATORS, Expressions
from fivefold.metal.check.names import Scope
from fivefold.metal.check.source import Constant, ModuleName, SourceModule, VariableName, Word
from fivefold.metal.check.tree import (
    Assign,
    Break,
    Call,
    Continue,
    Count,
    Evaluate,
    Expression,
    Function,
    If,
    Intrinsic,
    Number,
    Return,
    Signature,
    Statement,
    Store,
    Unrolled,
    ValueKind,
    While,
)

_REMEDIES: Final[dict[type[ast.stmt], tuple[str, str]]] = {
    ast.Try: ("try", "return a value that says what went wrong"),
    ast.Raise: ("raise", "return a value that says what went wrong"),
    ast.With: ("with", "write the steps one by one"),
    ast.Assert: ("assert", "write if and return"),
    ast.Delete: ("del", "leave it out"),
    ast.ClassDef: ("a class inside a function", "define a frozen dataclass in the module"),
    ast.FunctionDef: ("a function inside a function", "define it in the module"),
    ast.Import: ("import inside a function", "import at the top of the module"),
    ast.ImportFrom: ("import inside a function", "import at the top of the module"),
    ast.Nonlocal: ("nonlocal", "use a module variable"),
    ast.Match: ("match", "write if and elif"),
}


@dataclass
class _Loop:
    """Which locals are assigned where the loop is left by break."""

    breaks: list[set[str]] = field(default_factory=list)
    continues: list[set[str]] = field(default_factory=list)


def check_function(
    context: CheckContext, module: SourceModule, node: ast.FunctionDef, signature: Signature
) -> Function:
    """Check one function; raises `CompileError` at the first construct outside the subset."""
    return _Statements(context, module, node, signature).function()


def _join(*states: set[str] | None) -> set[str] | None:
    """Return what is assigned where several paths meet; None stands for no path."""
    reached = [state for state in states if state is not None]
    return set.intersection(*reached) if reached else None


def _inner_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield every statement of the subset in *body*, outermost first."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.While | ast.For):
            yield from _inner_statements(statement.body)
            yield from _inner_statements(statement.orelse)


def _assigned_names(body: list[ast.stmt]) -> tuple[set[str], set[str]]:
    """Return the names that *body* assigns, and those that it declares global."""
    stored: set[str] = set()
    declared: set[str] = set()
    for node in _inner_statements(body):
        match node:
            case ast.Assign(targets=targets):
                stored |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.AugAssign(target=ast.Name(id=name)):
                stored.add(name)
            case ast.For(target=ast.Name(id=name)):
                stored.add(name)
            case ast.Global(names=names):
                declared |= set(names)
    return stored - declared, declared


class _Statements:
    """The checker of one function."""

    def __init__(
        self, context: CheckContext, module: SourceModule, node: ast.FunctionDef, signature: Signature
    ) -> None:
        self._context = context
        self._module = module
        self._node = node
        self._signature = signature
        stored, self._globals = _assigned_names(node.body)
        parameters = dict(signature.parameters)
        names = frozenset(stored | set(parameters))
        self._scope = Scope(names, dict(parameters), set(parameters))
        self._values = Expressions(context, module, self._scope)
        self._error = self._values.error
        self._loops: list[_Loop] = []

    def function(self) -> Function:
        """Check the whole body."""
        body = self._without_docstring(self._node.body)
        statements = self._block(body)
        if self._scope.assigned is not None and self._signature.returns is not ValueKind.NONE:
            construct = f"{self._node.name} may end without a return"
            raise self._error(self._node, construct, f"return a {self._signature.returns.value} on every path")
        return Function(self._signature, dict(self._scope.kinds), statements)

    @staticmethod
    def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
        first = body[0]
        is_doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        return body[1:] if is_doc and isinstance(first.value.value, str) else body  # type: ignore[attr-defined]

    def _block(self, body: list[ast.stmt]) -> tuple[Statement, ...]:
        return tuple(statement for node in body for statement in self._statement(node))

    def _statement(self, node: ast.stmt) -> tuple[Statement, ...]:
        match node:
            case ast.Pass():
                return ()
            case ast.Global():
                return self._global(node)
            case ast.Assign():
                return (self._assign(node),)
            case ast.AnnAssign():
                return (self._annotated(node),)
            case ast.AugAssign():
                return (self._augmented(node),)
            case ast.Expr(value=value):
                return (Evaluate(node.lineno, self._effect(value)),)
            case ast.If():
                return (self._if(node),)
            case ast.While():
                return (self._while(node),)
            case ast.For():
                return (self._for(node),)
            case ast.Return():
                return (self._return(node),)
            case ast.Break() | ast.Continue():
                return (self._leave(node),)
        construct, remedy = _REMEDIES.get(type(node), (f"the statement {ast.unparse(node)}", "see docs/metal.md"))
        raise self._error(node, construct, remedy)

    def _global(self, node: ast.Global) -> tuple[Statement, ...]:
        for name in node.names:
            if name not in self._module.variables:
                raise self._error(node, f"global {name} names no variable of this module", f"define {name}: u64 = …")
        return ()

    def _effect(self, node: ast.expr) -> Expression:
        found = self._values.any(node)
        if not isinstance(found, Call | Intrinsic):
            raise self._error(
                node, f"the expression {ast.unparse(node)} as a statement", "use its value or leave it out"
            )
        return found

    def _assign(self, node: ast.Assign) -> Statement:
        if len(node.targets) > 1 or isinstance(node.targets[0], ast.Tuple | ast.List):
            raise self._error(node, "an assignment to several targets", "write one assignment for each")
        return self._store(node, node.targets[0], self._values.any(node.value))

    def _annotated(self, node: ast.AnnAssign) -> Statement:
        if node.value is None:
            raise self._error(node, f"the declaration {ast.unparse(node)}", "give it a value")
        if not isinstance(node.target, ast.Name) or node.target.id in self._globals:
            raise self._error(node, "an annotation on what is no local", "annotate it where it is defined")
        kind = self._context.library.kind(self._module, node.annotation)
        if kind not in (ValueKind.U64, ValueKind.BOOL):
            construct = f"the local {node.target.id} has the type {ast.unparse(node.annotation)}"
            raise self._error(node, construct, "write u64 or bool")
        return self._store(node, node.target, self._values.of_kind(node.value, kind))

    def _augmented(self, node: ast.AugAssign) -> Statement:
        if type(node.op) not in OPERATORS:
            raise self._error(node, f"the statement {ast.unparse(node)}", "write //, a shift or a loop")
        before = self._values.number(_as_read(node.target))
        value = self._values.binary(OPERATORS[type(node.op)], before, self._values.number(node.value), node)
        return self._store(node, node.target, value)

    def _store(self, node: ast.stmt, target: ast.expr, value: Expression) -> Statement:
        match target:
            case ast.Name(id=name) if name not in self._globals:
                return self._store_local(node, name, value)
            case ast.Name(id=name):
                kind = self._context.library.variable_kind(self._module, name)
                return self._store_variable(node, name, f"{self._module.name}.{name}", kind, value)
            case ast.Attribute(value=owner):
                if isinstance(self._values.meaning(owner), ModuleName):
                    return self._store_attribute(node, target, value)
        raise self._error(node, f"an assignment to {ast.unparse(target)}", "use a local, a module variable or store64")

    def _store_local(self, node: ast.stmt, name: str, value: Expression) -> Statement:
        if name in self._module.variables or name in self._module.finals:
            what = "variable" if name in self._module.variables else "constant"
            remedy = f"write global {name}" if what == "variable" else "choose another name"
            raise self._error(node, f"an assignment to the module {what} {name}", remedy)
        if value.kind in (ValueKind.STR, ValueKind.NONE):
            raise self._error(node, f"the local {name} is {value.kind.value}", "keep integers and bools in locals")
        if name in self._scope.items:
            raise self._error(node, f"an assignment to the loop constant {name}", "choose another name")
        known = self._scope.kinds.setdefault(name, value.kind)
        if known is not value.kind:
            construct = f"{name} is {known.value} and is assigned {value.kind.value}"
            raise self._error(node, construct, "use another name or convert")
        if self._scope.assigned is not None:
            self._scope.assigned.add(name)
        return Assign(node.lineno, name, value)

    def _store_attribute(self, node: ast.stmt, target: ast.Attribute, value: Expression) -> Statement:
        found = self._values.meaning(target)
        if not isinstance(found, VariableName) or found.imported:
            raise self._error(node, f"an assignment to {ast.unparse(target)}", "assign to a variable of that module")
        return self._store_variable(node, ast.unparse(target), found.full, found.kind, value)

    def _store_variable(self, node: ast.stmt, name: str, full: str, kind: ValueKind, value: Expression) -> Statement:
        if kind is not value.kind:
            construct = f"{name} is {kind.value} and is assigned {value.kind.value}"
            raise self._error(node, construct, "convert: u64(flag) or x != 0")
        if self._context.variable(full, kind).bound:
            return Evaluate(node.lineno, value)
        self._context.use("variable", self._module, node)
        return Store(node.lineno, full, value)

    def _if(self, node: ast.If) -> Statement:
        test = self._values.flag(node.test)
        before = self._copy()
        body = self._block(node.body)
        after, self._scope.assigned = self._scope.assigned, before
        otherwise = self._block(node.orelse)
        self._scope.assigned = _join(after, self._scope.assigned)
        return If(node.lineno, test, body, otherwise)

    def _copy(self) -> set[str] | None:
        assigned = self._scope.assigned
        return None if assigned is None else set(assigned)

    def _no_else(self, node: ast.While | ast.For) -> None:
        if node.orelse:
            raise self._error(node.orelse[0], "else on a loop", "set a bool before break")

    def _while(self, node: ast.While) -> Statement:
        self._no_else(node)
        test = self._values.flag(node.test)
        forever = isinstance(node.test, ast.Constant) and node.test.value is True
        before = None if forever else self._copy()
        loop = _Loop()
        body = self._body(loop, node.body)
        self._scope.assigned = _join(before, *loop.breaks)
        return While(node.lineno, test, body)

    def _body(self, loop: _Loop, body: list[ast.stmt]) -> tuple[Statement, ...]:
        self._loops.append(loop)
        statements = self._block(body)
        self._loops.pop()
        return statements

    def _leave(self, node: ast.Break | ast.Continue) -> Statement:
        state = self._copy()
        if state is not None:
            loop = self._loops[-1]
            (loop.breaks if isinstance(node, ast.Break) else loop.continues).append(state)
        self._scope.assigned = None
        return Break(node.lineno) if isinstance(node, ast.Break) else Continue(node.lineno)

    def _for(self, node: ast.For) -> Statement:
        self._no_else(node)
        if not isinstance(node.target, ast.Name) or node.target.id in self._globals:
            raise self._error(node, f"the loop target {ast.unparse(node.target)}", "use a local name")
        constant = self._values.constant(node.iter)
        if constant is not None:
            return self._unrolled(node, node.target.id, constant)
        if isinstance(node.iter, ast.Call) and self._values.meaning(node.iter.func) == Word("range"):
            return self._count(node, node.target.id, node.iter)
        raise self._error(node, f"a loop over {ast.unparse(node.iter)}", "loop over range(…) or a constant tuple")

    def _count(self, node: ast.For, name: str, call: ast.Call) -> Statement:
        if call.keywords or not 1 <= len(call.args) <= 3:
            raise self._error(call, f"{ast.unparse(call)}", "pass one to three arguments")
        numbers = [self._values.number(arg) for arg in call.args]
        start, stop = (Number(0), numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
        step = numbers[2] if len(numbers) == 3 else Number(1)
        # A negative step has wrapped by now; none of a kernel's loops counts by half the address space.
        if not isinstance(step, Number) or not 0 < step.value < 1 << 63:
            raise self._error(call, f"the step of {ast.unparse(call)}", "write a positive constant")
        before = self._copy()
        self._store_local(node, name, Number(0))
        runs = isinstance(start, Number) and isinstance(stop, Number) and start.value < stop.value
        entered = self._copy() if runs else None
        loop = _Loop()
        body = self._body(loop, node.body)
        normal = _join(entered, before if not runs else None)
        self._scope.assigned = _join(normal, *loop.breaks)
        return Count(node.lineno, name, start, stop, step.value, body)

    def _unrolled(self, node: ast.For, name: str, constant: Constant) -> Statement:
        if not isinstance(constant.value, tuple):
            raise self._error(node, f"a loop over {ast.unparse(node.iter)}", "loop over range(…) or a constant tuple")
        if name in self._scope.kinds or name in self._scope.items:
            raise self._error(node, f"the loop constant {name} is also a local", "choose another name")
        loop = _Loop()
        bodies = []
        for item in constant.value:
            self._scope.items[name] = item
            loop.continues.clear()
            bodies.append(self._body(loop, node.body))
            self._scope.assigned = _join(self._scope.assigned, *loop.continues)
        self._scope.items.pop(name, None)
        self._scope.assigned = _join(self._scope.assigned, *loop.breaks)
        return Unrolled(node.lineno, tuple(bodies))

    def _return(self, node: ast.Return) -> Statement:
        wanted = self._signature.returns
        if node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None):
            if wanted is not ValueKind.NONE:
                raise self._error(node, "a return without a value", f"return a {wanted.value}")
            self._scope.assigned = None
            return Return(node.lineno, None)
        if wanted is ValueKind.NONE:
            raise self._error(node, "a return with a value in a function -> None", "annotate what it returns")
        value = self._values.of_kind(node.value, wanted)
        self._scope.assigned = None
        return Return(node.lineno, value)


def _as_read(target: ast.expr) -> ast.expr:
    """Return the target of an augmented assignment as the expression that it reads first."""
    match target:
        case ast.Name(id=name):
            return ast.copy_location(ast.Name(name, ast.Load()), target)
        case ast.Attribute(value=value, attr=attr):
            return ast.copy_location(ast.Attribute(value, attr, ast.Load()), target)
    return target
