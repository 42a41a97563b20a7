"""Modules as the front end sees them: their text as a tree, their constants as values.

A module is imported as ordinary Python, so a constant may be any expression; its
functions and variables are read from its source. Names are resolved across modules
to the place that defines them.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
import typing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Final

from fivefold.errors import CompileError
from fivefold.metal import lang
from fivefold.metal.check.tree import ValueKind

WORDS: Final = {
    value: name
    for name, value in vars(lang).items()
    if isinstance(value, FunctionType) and value.__module__ == lang.__name__ and not name.startswith("_")
}
"""Intrinsics and decorators by identity, so that a renamed import is still recognised."""

_TYPES: Final = {int: ValueKind.U64, bool: ValueKind.BOOL, str: ValueKind.STR}

BUILTINS: Final = ("range", "len", "min", "max")


@dataclass(frozen=True, slots=True)
class VariableName:
    """A module variable; *imported* by name it cannot be used, as in Python."""

    full: str
    kind: ValueKind
    imported: bool = False


@dataclass(frozen=True, slots=True)
class FunctionName:
    """A function of some module."""

    full: str


@dataclass(frozen=True, slots=True)
class BufferName:
    """A buffer of some module."""

    full: str
    buffer: lang.Buffer


@dataclass(frozen=True, slots=True)
class Constant:
    """A compile-time value; what may be done with it depends on its Python type."""

    value: object


@dataclass(frozen=True, slots=True)
class ModuleName:
    """A module, to be followed by an attribute."""

    full: str


@dataclass(frozen=True, slots=True)
class Word:
    """An intrinsic, or a builtin that the subset has."""

    name: str


@dataclass(frozen=True, slots=True)
class Type:
    """A name that stands for a kind: ``u64``, ``PhysAddr``, ``bool``, ``str``."""

    kind: ValueKind


Meaning = VariableName | FunctionName | BufferName | Constant | ModuleName | Word | Type


@dataclass
class SourceModule:
    """One module: *namespace* is that of the imported module, the rest is read from its text."""

    name: str
    file: str
    namespace: dict[str, object]
    tree: ast.Module
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    variables: dict[str, ast.AnnAssign] = field(default_factory=dict)
    finals: set[str] = field(default_factory=set)
    origins: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Names that ``from … import`` brought, with module and name there."""
    stars: list[str] = field(default_factory=list)
    """Modules of ``from … import *``."""


def refusal(module: SourceModule, node: ast.AST, construct: str, remedy: str) -> CompileError:
    """Make the error for *node*; its line is that of the node."""
    return CompileError(module.file, getattr(node, "lineno", 1), construct, remedy)


def _annotation(node: ast.AnnAssign) -> str:
    """Return the last name of an annotation, without what stands in brackets: ``Final`` of ``Final[int]``."""
    found = node.annotation.value if isinstance(node.annotation, ast.Subscript) else node.annotation
    return found.attr if isinstance(found, ast.Attribute) else getattr(found, "id", "")


def _index(module: SourceModule) -> None:
    """Sort the top-level statements of *module* into what they define."""
    for node in module.tree.body:
        match node:
            case ast.FunctionDef():
                module.functions[node.name] = node
            case ast.AnnAssign(target=ast.Name(id=name)):
                if _annotation(node) == "Final":
                    module.finals.add(name)
                elif _annotation(node) != "TypeAlias":
                    module.variables[name] = node
            case ast.ImportFrom():
                origin = _origin(module, node)
                module.origins |= {a.asname or a.name: (origin, a.name) for a in node.names if a.name != "*"}
                module.stars += [origin for a in node.names if a.name == "*"]


def _origin(module: SourceModule, node: ast.ImportFrom) -> str:
    """Return the full name of the module that a ``from … import`` names."""
    if not node.level:
        return node.module or ""
    package = str(module.namespace.get("__package__") or "").split(".")
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


class Library:
    """The modules of one build, loaded when first asked for."""

    def __init__(self) -> None:
        self._modules: dict[str, SourceModule] = {}

    def module(self, name: str) -> SourceModule:
        """Import and read module *name*; raises `CompileError` if there is no such source."""
        if name not in self._modules:
            self._modules[name] = _load(name)
        return self._modules[name]

    def resolve(self, module: SourceModule, name: str, node: ast.AST) -> Meaning:
        """Say what global *name* means in *module*, following imports to the definition."""
        if name in module.functions:
            return FunctionName(f"{module.name}.{name}")
        if name in module.variables:
            return VariableName(f"{module.name}.{name}", self.variable_kind(module, name))
        if name not in module.namespace:
            if name in BUILTINS:
                return Word(name)
            if hasattr(builtins, name):
                return _meaning(getattr(builtins, name))
            raise refusal(module, node, f"the name {name} is not defined", "define or import it")
        return self._of_namespace(module, name, node)

    def _of_namespace(self, module: SourceModule, name: str, node: ast.AST) -> Meaning:
        value = module.namespace[name]
        found = _meaning(value)
        if not isinstance(found, Constant):
            return found
        if name in module.origins:
            return self._imported(module, *module.origins[name], name, node)
        for origin in module.stars:
            if name in vars(sys.modules[origin]) and name not in module.finals:
                return self._imported(module, origin, name, name, node)
        if isinstance(value, lang.Buffer):
            if name not in module.finals:
                raise refusal(module, node, f"the buffer {name} is not Final", f"write {name}: Final = buffer(…)")
            return BufferName(f"{module.name}.{name}", value)
        if name not in module.finals and not isinstance(value, type):
            raise refusal(
                module,
                node,
                f"{name} is neither a constant nor a variable",
                f"write {name}: Final = … or {name}: u64 = …",
            )
        return found

    def _imported(self, module: SourceModule, origin: str, there: str, name: str, node: ast.AST) -> Meaning:
        """Follow ``from origin import there as name``; what has no Python source is a constant."""
        source = sys.modules.get(origin)
        if source is None or not str(getattr(source, "__file__", "")).endswith(".py"):
            return Constant(module.namespace[name])
        found = self.resolve(self.module(origin), there, node)
        if isinstance(found, VariableName):
            return VariableName(found.full, found.kind, imported=True)
        return found

    def attribute(self, owner: ModuleName, name: str, module: SourceModule, node: ast.AST) -> Meaning:
        """Say what ``owner.name`` means where *owner* is a module."""
        source = sys.modules[owner.full]
        if str(getattr(source, "__file__", "")).endswith(".py"):
            there = self.module(owner.full)
            if name in there.namespace or name in there.functions or name in there.variables:
                return self.resolve(there, name, node)
        elif hasattr(source, name):
            return _meaning(getattr(source, name))
        raise refusal(module, node, f"module {owner.full} has no {name}", "name something that it defines")

    def kind(self, module: SourceModule, annotation: ast.expr) -> ValueKind | None:
        """Return the kind that an annotation stands for, or None if it is not one of the subset's."""
        match annotation:
            case ast.Constant(value=None):
                return ValueKind.NONE
            case ast.Constant(value=str(text)):
                return self.kind(module, ast.parse(text, mode="eval").body)
            case ast.Name(id=name):
                found = self.resolve(module, name, annotation)
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                base = self.resolve(module, owner, annotation)
                if not isinstance(base, ModuleName):
                    return None
                found = self.attribute(base, name, module, annotation)
            case _:
                return None
        return found.kind if isinstance(found, Type) else None

    def variable_kind(self, module: SourceModule, name: str) -> ValueKind:
        """Return the kind of a module variable; raises `CompileError` if it cannot be one."""
        node = module.variables[name]
        kind = self.kind(module, node.annotation)
        if kind not in (ValueKind.U64, ValueKind.BOOL):
            raise refusal(
                module,
                node,
                f"variable {name} has the type {ast.unparse(node.annotation)}",
                "write u64 or bool, or Final for a constant",
            )
        if node.value is None:
            raise refusal(module, node, f"variable {name} has no initial value", f"write {name}: … = 0")
        return kind

    def dependencies(self, roots: tuple[str, ...]) -> tuple[str, ...]:
        """Return every module, sorted, that the values and functions of *roots* may depend on.

        Follows imports; other people's packages and the standard library are taken as fixed.
        """
        tops = {name.partition(".")[0] for name in roots} | {__name__.partition(".")[0]}
        found: set[str] = set()
        queue = list(roots)
        while queue:
            name = queue.pop()
            if name in found or not _is_ours(name, tops):
                continue
            found.add(name)
            queue += [parent for parent in [name.rpartition(".")[0]] if parent]
            queue += _imports(self.module(name))
        return tuple(sorted(found))


def _is_ours(name: str, tops: set[str]) -> bool:
    """Tell whether a module is Python source of the packages *tops*, or not installed for good."""
    file = str(getattr(sys.modules.get(name), "__file__", ""))
    if not file.endswith(".py"):
        return False
    top = name.partition(".")[0]
    installed = top in sys.stdlib_module_names or "site-packages" in file or "dist-packages" in file
    return top in tops or not installed


def _load(name: str) -> SourceModule:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CompileError(name, 0, f"there is no module {error.name}", "name an importable module") from error
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py"):
        raise CompileError(name, 0, f"module {name} has no Python source", "name a module of the subset")
    loaded = SourceModule(name, file, vars(module), _parse(Path(file).read_text(encoding="utf-8"), file))
    _index(loaded)
    return loaded


@lru_cache(maxsize=256)
def _parse(text: str, file: str) -> ast.Module:
    """Parse once what several builds, and the search for their dependencies, read; trees are never changed."""
    return ast.parse(text, file)


def _meaning(value: object) -> Meaning:
    """Classify a Python value that a name stands for."""
    if isinstance(value, ModuleType):
        return ModuleName(value.__name__)
    if isinstance(value, FunctionType):
        if value in WORDS:
            return Word(WORDS[value])
        return FunctionName(f"{value.__module__}.{value.__name__}")
    kind = _kind_of_type(value)
    return Type(kind) if kind else Constant(value)


def _kind_of_type(value: object) -> ValueKind | None:
    if isinstance(value, typing.NewType):
        return _kind_of_type(value.__supertype__)
    if isinstance(value, type):
        return _TYPES.get(value)
    return None


def _imports(module: SourceModule) -> list[str]:
    """Return the full names of all modules that *module* names in an import, anywhere."""
    names: list[str] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(module, node)
            names += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return names
