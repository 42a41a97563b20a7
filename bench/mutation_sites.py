"""Every place of a source where a token can be changed so that a good test notices: what `mutants.py` draws from.

Changed are operators, constants by one, branches (off), and statements (removed). Left alone is what no test should
hold: annotations, docstrings, messages (f-strings, what an exception is raised with), imports, `__all__`, decorators.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

COMPARED: Final[dict[type[ast.cmpop], tuple[str, tuple[str, ...]]]] = {
    ast.Lt: ("<", ("<=", ">=")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
COMPUTED: Final[dict[type[ast.operator], tuple[str, tuple[str, ...]]]] = {
    ast.Add: ("+", ("-",)),
    ast.Sub: ("-", ("+",)),
    ast.Mult: ("*", ("//",)),
    ast.Div: ("/", ("*",)),
    ast.FloorDiv: ("//", ("*",)),
    ast.Mod: ("%", ("*",)),
    ast.LShift: ("<<", (">>",)),
    ast.RShift: (">>", ("<<",)),
    ast.BitAnd: ("&", ("|",)),
    ast.BitOr: ("|", ("&",)),
    ast.BitXor: ("^", ("|",)),
    ast.Pow: ("**", ("*",)),
}
TYPE_NAMES: Final = frozenset({"Annotated", "Callable", "Literal", "NewType", "TypeVar", "cast"})
SHOWN: Final = 90


@dataclass(frozen=True)
class Mutant:
    """*file*'s bytes *start* to *end* replaced by *new*; *shown* and *becomes* are the smallest whole expression.

    Who executes one of *lines* executes the place. *names* are what its statement gives a value to.
    """

    file: str
    line: int
    scope: str
    text: str
    start: int
    end: int
    new: str
    shown: str
    becomes: str
    lines: range
    names: tuple[str, ...]

    def of(self, source: bytes) -> bytes:
        """*source*, that of the file, with the change in it."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    @property
    def change(self) -> str:
        """What is changed into what, on one line."""
        return f"{self.shown} -> {self.becomes}"

    def rank(self, seed: int, nth: int) -> bytes:
        """Where a draw with *seed* puts it: edits elsewhere in the project leave the order as it is."""
        parts = (str(seed), self.file, self.scope, self.text, self.change, str(nth))
        return hashlib.sha256("\0".join(parts).encode()).digest()


def mutants_of(file: str, source: str) -> Iterator[Mutant]:
    """Every mutant of *source*, which is that of *file*."""
    return _Finder(file, source).below(ast.parse(source), "")


class _Finder:
    """Goes through one module."""

    def __init__(self, file: str, source: str) -> None:
        self.file = file
        self.lines = source.splitlines(keepends=True)
        self.bytes = source.encode()
        self.statement: ast.AST = ast.Pass()
        self.needless: list[ast.stmt] = []
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line.encode()))

    def below(self, node: ast.AST, scope: str) -> Iterator[Mutant]:
        """The mutants of *node* and of everything in it that may be changed."""
        around = self.statement
        if isinstance(node, ast.stmt):
            self.statement = node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            scope = f"{scope}.{node.name}".lstrip(".")
        yield from self._here(node, scope)
        for child in _children(node):
            yield from self.below(child, scope)
        self.statement = around

    def _here(self, node: ast.AST, scope: str) -> Iterator[Mutant]:
        match node:
            case ast.Compare(left, ops, comparators):
                for before, op, after in zip([left, *comparators], ops, comparators, strict=False):
                    yield from self._operator(node, before, after, *COMPARED[type(op)], scope)
            case ast.BinOp(left, op, right) if type(op) in COMPUTED and not _is_text(left):
                yield from self._operator(node, left, right, *COMPUTED[type(op)], scope)
            case ast.AugAssign(target, op, value) if type(op) in COMPUTED:
                old, new = COMPUTED[type(op)]
                yield from self._operator(node, target, value, f"{old}=", tuple(f"{each}=" for each in new), scope)
            case ast.BoolOp(op, values):
                old, new = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                for before, after in pairwise(values):
                    yield from self._operator(node, before, after, old, (new,), scope)
            case ast.UnaryOp(ast.Not(), operand):
                yield self._mutant(node, *self._span(node), self._code(operand), scope)
            case ast.Constant(bool() as value):
                yield self._mutant(node, *self._span(node), str(not value), scope)
            case ast.Constant(int() as value):
                low, high = self._span(node)
                spell = hex if self.bytes[low:high].lower().startswith(b"0x") else str
                for near in (value + 1, value - 1):
                    yield self._mutant(node, low, high, spell(near), scope)
            case ast.If(ast.Name("TYPE_CHECKING")):
                pass
            case ast.If(test) | ast.IfExp(test) | ast.While(test):
                for value in ("True", "False") if not isinstance(node, ast.While) else ("False",):
                    yield self._mutant(test, *self._span(test), value, scope)
        self.needless += _ends_anyway(node)
        if isinstance(node, ast.stmt) and scope and _can_go(node) and node not in self.needless:
            yield self._mutant(node, *self._span(node), "pass", scope)

    def _operator(
        self, node: ast.AST, before: ast.AST, after: ast.AST, old: str, new: tuple[str, ...], scope: str
    ) -> Iterator[Mutant]:
        first, last = self._span(before)[1], self._span(after)[0]
        between = self.bytes[first:last].decode()
        pattern = r"\s+".join(map(re.escape, old.split()))
        # Comments can stand between the two, and hold anything.
        found = re.search(pattern, re.sub(r"#[^\n]*", lambda hit: " " * len(hit[0]), between))
        if found is None:
            return
        start = first + len(between[: found.start()].encode())
        end = first + len(between[: found.end()].encode())
        for each in new:
            yield self._mutant(node, start, end, each, scope)

    def _mutant(self, node: ast.AST, start: int, end: int, new: str, scope: str) -> Mutant:
        low, high = self._span(node)
        shown = self.bytes[low:high].decode()
        becomes = (self.bytes[low:start].decode() + new) + self.bytes[end:high].decode()
        line = self.bytes[:start].count(b"\n") + 1
        text = self.lines[line - 1].strip()
        shortened = _shortened(shown, becomes)
        lines, names = _executed(self.statement, node), _given(self.statement)
        return Mutant(self.file, line, scope, text, start, end, new, *shortened, lines, names)

    def _span(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.expr | ast.stmt), node
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def _code(self, node: ast.AST) -> str:
        low, high = self._span(node)
        return f"({self.bytes[low:high].decode()})"


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of *node* that a test can be asked to hold."""
    skipped: list[ast.AST | None] = []
    match node:
        case ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.Assert():
            return
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            skipped = [node.returns, *node.decorator_list]
        case ast.ClassDef():
            skipped = list(node.decorator_list)
        case ast.arg() | ast.AnnAssign():
            skipped = [node.annotation]
        case ast.Raise():
            return
        case ast.If(ast.Name("TYPE_CHECKING")):
            return
        case ast.Assign([ast.Name("__all__" | "__doc__")]):
            return
        case ast.Subscript(ast.Name(name)) | ast.Call(ast.Name(name)) if name in TYPE_NAMES:
            return
    for child in ast.iter_child_nodes(node):
        if not any(child is one for one in skipped):
            yield child


def _ends_anyway(function: ast.AST) -> Iterator[ast.stmt]:
    """The ``return None`` that a function ends with: without it, it ends in the same way."""
    if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        match function.body[-1]:
            case ast.Return(None | ast.Constant(None)) as last:
                yield last


def _can_go(node: ast.stmt) -> bool:
    """Whether *node* is a statement that says something when it is missing, and not a docstring."""
    if isinstance(node, ast.Expr):
        return not (isinstance(node.value, ast.Constant) and isinstance(node.value.value, str | type(...)))
    if isinstance(node, ast.AnnAssign):
        return False
    return isinstance(node, ast.Assign | ast.AugAssign | ast.Return | ast.Raise | ast.Continue | ast.Break | ast.Delete)


def _executed(statement: ast.AST, node: ast.AST) -> range:
    """The lines of *node*, which is in *statement*: all of that where it is in no block."""
    place = node if hasattr(statement, "body") or hasattr(statement, "cases") else statement
    assert isinstance(place, ast.expr | ast.stmt) and place.end_lineno is not None, place
    return range(place.lineno, place.end_lineno + 1)


def _given(statement: ast.AST) -> tuple[str, ...]:
    """The names that *statement* gives a value to."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return (statement.name,)
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", ast.Pass())]
    below = [each for target in targets for each in ast.walk(target)]
    return tuple(each.id for each in below if isinstance(each, ast.Name))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _shortened(old: str, new: str) -> tuple[str, str]:
    """Both on one line each; of long ones the part where they differ."""
    old, new = " ".join(old.split()), " ".join(new.split())
    if max(len(old), len(new)) <= SHOWN:
        return old, new
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    low = max(0, same - SHOWN // 3)
    return tuple(
        ("…" if low else "") + text[low : low + SHOWN] + ("…" if len(text) > low + SHOWN else "") for text in (old, new)
    )  # type: ignore[return-value]
