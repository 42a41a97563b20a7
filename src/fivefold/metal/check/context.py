"""What one build reaches, collected while its functions are checked."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Final

from fivefold.errors import CompileError
from fivefold.metal.check.source import BufferName, Library, Meaning, SourceModule, Word, refusal
from fivefold.metal.check.tree import (
    Boolean,
    Expression,
    Load,
    Number,
    ReservedBytes,
    Signature,
    Site,
    Unit,
    ValueKind,
    Variable,
)
from fivefold.metal.program import Program
from fivefold.units import MASK64

MARKS: Final = ("inline", "noinline", "cold", "export", "extern")


@dataclass
class CheckContext:
    """The program, its modules, and the unit as far as it is known."""

    program: Program
    library: Library = field(default_factory=Library)
    unit: Unit = field(default_factory=Unit)
    queue: list[str] = field(default_factory=list)
    """Full names of functions that are reached and not checked yet."""
    _signatures: dict[str, Signature] = field(default_factory=dict)

    def split(self, full: str) -> tuple[SourceModule, str]:
        """Return the module that a full name lies in, and the name there."""
        module, _, name = full.rpartition(".")
        return self.library.module(module), name

    def signature(self, full: str, module: SourceModule, node: ast.AST) -> Signature:
        """Return the signature of function *full*, or of the one that replaces it, and reach it."""
        signature = self._signature(full, module, node)
        if full in self.program.replace:
            stand_in = self._signature(self.program.replace[full], module, node)
            _check_stand_in(signature, stand_in)
            signature = stand_in
        if signature.mark == "extern":
            self.unit.externs.setdefault(signature.full, signature)
            self.use(f"extern {signature.name}", module, node)
        elif signature.full not in self.unit.functions and signature.full not in self.queue:
            self.queue.append(signature.full)
        return signature

    def signature_of(self, module: SourceModule, node: ast.FunctionDef) -> Signature:
        """Return the signature of a definition as it stands, without reaching it."""
        return self._signature(f"{module.name}.{node.name}", module, node)

    def _signature(self, full: str, module: SourceModule, node: ast.AST) -> Signature:
        if full not in self._signatures:
            there, name = self.split(full)
            if name not in there.functions:
                raise refusal(module, node, f"{full} is not a function of the subset", "call one defined by def")
            self._signatures[full] = read_signature(self.library, there, there.functions[name])
        return self._signatures[full]

    def variable(self, full: str, kind: ValueKind) -> Variable:
        """Return the variable *full* and reach it."""
        if full not in self.unit.variables:
            module, name = self.split(full)
            self.unit.variables[full] = self._variable(module, name, full, kind)
        return self.unit.variables[full]

    def _variable(self, module: SourceModule, name: str, full: str, kind: ValueKind) -> Variable:
        bound = full in self.program.bindings
        value = self.program.bindings[full] if bound else module.namespace[name]
        limit = MASK64 if kind is ValueKind.U64 else 1
        # A flag in an integer variable is refused like a flag in arithmetic; a binding may spell a bool 0 or 1.
        wrong = isinstance(value, bool) is not (kind is ValueKind.BOOL) and not bound
        if not isinstance(value, int) or wrong or not 0 <= value <= limit:
            node = module.variables[name]
            construct = f"variable {name} of type {kind.value} {'is bound to' if bound else 'starts as'} {value!r}"
            remedy = "give it a number from 0 to 2**64 - 1" if kind is ValueKind.U64 else "give it False or True"
            raise refusal(module, node, construct, remedy)
        return Variable(full, kind, int(value), bound)

    def all_variables(self, name: str) -> None:
        """Reach every variable of module *name*, so that a reader of the running program finds it by name."""
        module = self.library.module(name)
        for variable, node in module.variables.items():
            kind = self.library.kind(module, node.annotation)
            if kind in (ValueKind.U64, ValueKind.BOOL):
                self.variable(f"{name}.{variable}", kind)

    def read(self, full: str, kind: ValueKind, node: ast.AST, module: SourceModule) -> Expression:
        """Return the expression that reads a variable: a constant where the build binds it."""
        variable = self.variable(full, kind)
        if not variable.bound:
            self.use("variable", module, node)
            return Load(full, kind)
        return Number(variable.initial) if kind is ValueKind.U64 else Boolean(bool(variable.initial))

    def buffer(self, found: BufferName, node: ast.AST, module: SourceModule) -> str:
        """Reach a buffer; return its full name."""
        self.use("buffer", module, node)
        size, align = found.buffer.size, found.buffer.align
        self.unit.buffers.setdefault(found.full, ReservedBytes(found.full, size, align))
        return found.full

    def use(self, key: str, module: SourceModule, node: ast.AST) -> None:
        """Note the first place that uses *key*, for a target that must refuse it."""
        self.unit.uses.setdefault(key, Site(module.file, getattr(node, "lineno", 1)))


def read_signature(library: Library, module: SourceModule, node: ast.FunctionDef) -> Signature:
    """Read the parameters, kinds and decorator of a function definition."""
    args = node.args
    if args.vararg or args.kwarg or args.kwonlyargs or args.posonlyargs or args.defaults:
        raise refusal(
            module, node, f"{node.name} has parameters other than plain ones", "write only name: type, without defaults"
        )
    parameters = tuple((arg.arg, _parameter_kind(library, module, arg)) for arg in args.args)
    if node.returns is None:
        raise refusal(module, node, f"{node.name} has no return annotation", "write -> u64, -> bool or -> None")
    returns = library.kind(module, node.returns)
    if returns in (None, ValueKind.STR):
        construct = f"{node.name} returns {ast.unparse(node.returns)}"
        raise refusal(module, node, construct, "return u64, bool or None")
    assert returns is not None
    mark = _mark(library, module, node)
    return Signature(f"{module.name}.{node.name}", node.name, parameters, returns, mark, module.file, node.lineno)


def _parameter_kind(library: Library, module: SourceModule, arg: ast.arg) -> ValueKind:
    if arg.annotation is None:
        raise refusal(module, arg, f"parameter {arg.arg} has no annotation", f"write {arg.arg}: u64 or {arg.arg}: bool")
    kind = library.kind(module, arg.annotation)
    if kind in (None, ValueKind.NONE):
        construct = f"parameter {arg.arg} has the type {ast.unparse(arg.annotation)}"
        raise refusal(module, arg, construct, "write u64, bool or str")
    assert kind is not None
    return kind


def _mark(library: Library, module: SourceModule, node: ast.FunctionDef) -> str:
    """Return the one decorator of the subset that *node* has, or nothing."""
    marks = [_decorator(library, module, item) for item in node.decorator_list]
    if len(marks) > 1:
        raise refusal(module, node, f"{node.name} has {len(marks)} decorators", "keep one")
    return marks[0] if marks else ""


def _decorator(library: Library, module: SourceModule, item: ast.expr) -> str:
    found: Meaning | None = None
    if isinstance(item, ast.Name):
        found = library.resolve(module, item.id, item)
    if isinstance(found, Word) and found.name in MARKS:
        return found.name
    raise refusal(module, item, f"the decorator {ast.unparse(item)}", "use inline, noinline, cold, export or extern")


def _check_stand_in(original: Signature, stand_in: Signature) -> None:
    wanted = [kind for _, kind in original.parameters]
    if wanted != [kind for _, kind in stand_in.parameters] or original.returns is not stand_in.returns:
        construct = f"{stand_in.full} replaces {original.full} with another signature"
        raise CompileError(stand_in.file, stand_in.line, construct, "take and return the same kinds")
