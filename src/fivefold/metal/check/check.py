"""From a program to a checked unit: start at the roots, check what they reach."""

from __future__ import annotations

import ast

from fivefold.errors import CompileError
from fivefold.metal.check.context import CheckContext
from fivefold.metal.check.source import Library, SourceModule, refusal
from fivefold.metal.check.statements import check_function
from fivefold.metal.check.tree import Signature, Unit
from fivefold.metal.program import Program


def check(program: Program) -> Unit:
    """Check everything that the roots of *program* reach; raises `CompileError`."""
    return start(program).unit


def start(program: Program) -> CheckContext:
    """Do what `check` does, and keep what a later `reach` needs."""
    context = CheckContext(program)
    _roots(context)
    _drain(context)
    return context


def reach(context: CheckContext, full: str) -> None:
    """Add one more root, a full name, to a checked program, and check what it reaches."""
    module, _ = context.split(full)
    context.signature(full, module, module.tree)
    _drain(context)


def _drain(context: CheckContext) -> None:
    while context.queue:
        _check_one(context, context.queue.pop(0))
    _finish(context)


def _roots(context: CheckContext) -> None:
    """Queue the exports of the program's modules, then the further roots, in source order."""
    program = context.program
    _check_names(context)
    for name in program.modules:
        module = context.library.module(name)
        _check_module(module)
        for node in module.functions.values():
            if _is_marked(context, module, node, "export"):
                _root(context, f"{name}.{node.name}")
    for root in program.roots:
        for full in _expand(context, root):
            _root(context, full)


def _check_module(module: SourceModule) -> None:
    """Refuse functions that the front end would pass over in silence."""
    for node in module.tree.body:
        if isinstance(node, ast.AsyncFunctionDef):
            raise refusal(module, node, "async def", "write def")
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            for inner in ast.walk(node):
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    raise refusal(
                        module, inner, f"the definition of {inner.name} inside a block", "define it at the top"
                    )


def _expand(context: CheckContext, root: str) -> list[str]:
    """Turn ``module.*`` into the functions of that module: those with kinds of the subset, but for externs.

    Others compute constants while the module is imported.
    """
    module_name, _, name = root.rpartition(".")
    if name != "*":
        return [root]
    module = context.library.module(module_name)
    nodes = [node for node in module.functions.values() if _has_kinds(context, module, node)]
    return [f"{module_name}.{n.name}" for n in nodes if not _is_marked(context, module, n, "extern")]


def _has_kinds(context: CheckContext, module: SourceModule, node: ast.FunctionDef) -> bool:
    annotations = [arg.annotation for arg in node.args.args] + [node.returns]
    return all(a is None or context.library.kind(module, a) is not None for a in annotations)


def _is_marked(context: CheckContext, module: SourceModule, node: ast.FunctionDef, mark: str) -> bool:
    names = [item.id for item in node.decorator_list if isinstance(item, ast.Name)]
    return mark in names and context.signature_of(module, node).mark == mark


def _root(context: CheckContext, full: str) -> None:
    module, _ = context.split(full)
    signature = context.signature(full, module, module.tree)
    known = context.unit.exports.setdefault(signature.name, signature.full)
    if known != signature.full:
        construct = f"{signature.full} has the same exported name as {known}"
        raise CompileError(signature.file, signature.line, construct, "rename one of them")


def _check_names(context: CheckContext) -> None:
    """Refuse bindings and replacements that name nothing: a typing error must not pass in silence."""
    for full in context.program.bindings:
        module, name = context.split(full)
        if name not in module.variables:
            raise CompileError(module.file, 0, f"the binding {full} names no variable", "bind a module variable")
    for pair in context.program.replace.items():
        for full in pair:
            module, name = context.split(full)
            if name not in module.functions:
                raise CompileError(module.file, 0, f"the replacement {full} names no function", "name a function")


def _check_one(context: CheckContext, full: str) -> None:
    if full in context.unit.functions:
        return
    module, name = context.split(full)
    node = module.functions[name]
    signature = context.signature_of(module, node)
    context.unit.functions[full] = check_function(context, module, node, signature)


def _finish(context: CheckContext) -> None:
    """Name the modules shortly where that is not ambiguous; reach all variables of those that take part."""
    unit, program = context.unit, context.program
    names = {full.rpartition(".")[0] for full in (*unit.functions, *unit.variables, *unit.buffers, *unit.externs)}
    names |= set(program.modules)
    lasts = [name.rpartition(".")[2] for name in names]
    unit.labels = {
        name: name if lasts.count(name.rpartition(".")[2]) > 1 else name.rpartition(".")[2] for name in sorted(names)
    }
    for name in sorted(names):
        context.all_variables(name)


def dependencies(program: Program) -> tuple[str, ...]:
    """Return the modules, sorted, whose text the result for *program* depends on."""
    library = Library()
    named = (*program.bindings, *program.replace, *program.replace.values(), *program.roots)
    modules = (*program.modules, *(full.rpartition(".")[0] for full in named))
    for name in modules:
        library.module(name)
    return library.dependencies(modules)


def signature_table(unit: Unit) -> dict[str, Signature]:
    """Return the signatures of all functions and externs of *unit* by full name."""
    return {full: f.signature for full, f in unit.functions.items()} | unit.externs
