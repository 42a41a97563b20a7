"""From a checked function back to Python, with arithmetic that wraps at 64 bits."""

from __future__ import annotations

import ast
from collections.abc import Callable
from types import CodeType
from typing import Final

from fivefold.metal.check.tree import (
    AsNumber,
    Assign,
    Binary,
    Boolean,
    Break,
    Call,
    Choice,
    Compare,
    Continue,
    Count,
    Element,
    Evaluate,
    Expression,
    Function,
    FunctionAddress,
    If,
    Intrinsic,
    Load,
    Local,
    Logic,
    Not,
    Number,
    Return,
    Statement,
    Storage,
    Store,
    SymbolAddress,
    Text,
    Unit,
    Unrolled,
    While,
)
from fivefold.metal.run.arena import Arena
from fivefold.units import MASK64

_OPERATORS: Final[dict[str, ast.operator]] = {
    "+": ast.Add(),
    "-": ast.Sub(),
    "*": ast.Mult(),
    "&": ast.BitAnd(),
    "|": ast.BitOr(),
    "^": ast.BitXor(),
    "<<": ast.LShift(),
    ">>": ast.RShift(),
}
_COMPARISONS: Final[dict[str, ast.cmpop]] = {
    "==": ast.Eq(),
    "!=": ast.NotEq(),
    "<": ast.Lt(),
    "<=": ast.LtE(),
    ">": ast.Gt(),
    ">=": ast.GtE(),
}


def _name(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def _and(value: ast.expr, mask: int) -> ast.expr:
    return ast.BinOp(value, ast.BitAnd(), ast.Constant(mask))


def _call(function: str, *args: ast.expr) -> ast.expr:
    return ast.Call(_name(function), list(args), [])


class PythonWriter:
    """Writes one function; *texts* and *addresses* are what its code expects in its globals."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self.texts: list[bytes] = []
        self.addresses: list[str] = []
        self._stored: set[str] = set()
        self._flags = 0
        self._loops: list[str] = []
        """For each loop around: the flag that ends an unrolled one, or nothing."""

    @staticmethod
    def text_name(data: bytes) -> str:
        """Return the global that holds the address of a literal."""
        return f"metal.text.{data.hex()}"

    @staticmethod
    def address_name(full: str) -> str:
        """Return the global that holds the address of a function."""
        return f"metal.address.{full}"

    def compile(self, function: Function) -> CodeType:
        """Return code that, executed, defines the function under its full name."""
        signature = function.signature
        body = self._block(function.body, signature.line)
        if self._stored:
            body.insert(0, self._at(signature.line, ast.Global(sorted(self._stored))))
        args = [ast.arg(name) for name, _ in signature.parameters]
        parameters = ast.arguments(posonlyargs=[], args=args, kwonlyargs=[], kw_defaults=[], defaults=[])
        made = ast.FunctionDef(signature.full, parameters, body, [])
        module = ast.Module([self._at(signature.line, made)], [])
        return compile(ast.fix_missing_locations(module), signature.file, "exec")

    def _block(self, body: tuple[Statement, ...], line: int) -> list[ast.stmt]:
        made = [self._at(statement.line, part) for statement in body for part in self._statement(statement)]
        return made or [self._at(line, ast.Pass())]

    @staticmethod
    def _at(line: int, node: ast.stmt) -> ast.stmt:
        node.lineno, node.col_offset, node.end_lineno, node.end_col_offset = line, 0, line, 0
        return node

    def _statement(self, statement: Statement) -> list[ast.stmt]:
        match statement:
            case Assign(name=name, value=value):
                return [self._set(name, self.value(value))]
            case Store(variable=full, value=value):
                self._stored.add(full)
                return [self._set(full, self.value(value))]
            case Evaluate(value=value):
                return [ast.Expr(self.value(value))]
            case If(line=line, test=test, body=body, otherwise=otherwise):
                no = self._block(otherwise, line) if otherwise else []
                return [ast.If(self.value(test), self._block(body, line), no)]
            case While(line=line, test=test, body=body):
                return [ast.While(self.value(test), self._loop(body, line), [])]
            case Count():
                return [self._count(statement)]
            case Unrolled():
                return self._unrolled(statement)
            case Break():
                return self._break()
            case Continue():
                # One round of an unrolled loop is a loop that runs once.
                return [ast.Break() if self._loops[-1] else ast.Continue()]
            case Return(value=returned):
                return [ast.Return(self.value(returned) if returned else None)]

    @staticmethod
    def _set(name: str, value: ast.expr) -> ast.stmt:
        return ast.Assign([ast.Name(name, ast.Store())], value)

    def _loop(self, body: tuple[Statement, ...], line: int, flag: str = "") -> list[ast.stmt]:
        self._loops.append(flag)
        made = self._block(body, line)
        self._loops.pop()
        return made

    def _count(self, node: Count) -> ast.stmt:
        counter = _call("metal.range", self.value(node.start), self.value(node.stop), ast.Constant(node.step))
        return ast.For(ast.Name(node.name, ast.Store()), counter, self._loop(node.body, node.line), [])

    def _break(self) -> list[ast.stmt]:
        flag = self._loops[-1]
        return [*([self._set(flag, ast.Constant(True))] if flag else []), ast.Break()]

    def _unrolled(self, node: Unrolled) -> list[ast.stmt]:
        """Make each round a loop that runs once; a flag set by ``break`` skips the rounds after it."""
        self._flags += 1
        flag = f"metal.left{self._flags}"
        made: list[ast.stmt] = [self._set(flag, ast.Constant(False))]
        for body in node.bodies:
            once = [*self._loop(body, node.line, flag), self._at(node.line, ast.Break())]
            made.append(ast.While(ast.UnaryOp(ast.Not(), _name(flag)), once, []))
        return made

    def value(self, node: Expression) -> ast.expr:
        """Return the Python expression for *node*."""
        match node:
            case Number(value=number) | Boolean(value=number):
                return ast.Constant(number)
            case Text(data=data):
                self.texts.append(data)
                return _name(self.text_name(data))
            case Local(name=name) | Load(variable=name) | Storage(buffer=name):
                return _name(name)
            case Binary(op=op, left=left, right=right):
                return self._binary(op, self.value(left), self.value(right))
            case Compare(first=first, rest=rest):
                signs = [_COMPARISONS[sign] for sign, _ in rest]
                return ast.Compare(self.value(first), signs, [self.value(item) for _, item in rest])
            case Logic(op=op, values=values):
                word = ast.And() if op == "and" else ast.Or()
                return ast.BoolOp(word, [self.value(value) for value in values])
            case Not(value=value):
                return ast.UnaryOp(ast.Not(), self.value(value))
            case AsNumber(value=value):
                return _call("metal.int", self.value(value))
            case Choice(test=test, yes=yes, no=no):
                return ast.IfExp(self.value(test), self.value(yes), self.value(no))
        return self._reference(node)

    def _reference(self, node: Expression) -> ast.expr:
        match node:
            case Call(function=full, args=args):
                return _call(full, *(self.value(arg) for arg in args))
            case Intrinsic(name="text_address", args=args):
                return self.value(args[0])
            case Intrinsic(name=name, args=args):
                return _call(f"metal.{name}", *(self.value(arg) for arg in args))
            case Element(table=table, index=index):
                return _call(
                    "metal.element", ast.Tuple([ast.Constant(item) for item in table], ast.Load()), self.value(index)
                )
            case SymbolAddress(name=name):
                return _name(f"metal.symbol {name}")
            case FunctionAddress(function=full):
                self.addresses.append(full)
                return _name(self.address_name(full))
        raise AssertionError(f"no Python for {node!r}")

    def _binary(self, op: str, left: ast.expr, right: ast.expr) -> ast.expr:
        if op in ("//", "%"):
            return _call("metal.divide" if op == "//" else "metal.modulo", left, right)
        if op in ("<<", ">>"):
            right = right if isinstance(right, ast.Constant) and right.value < 64 else _and(right, 63)  # type: ignore[operator]
        made = ast.BinOp(left, _OPERATORS[op], right)
        return _and(made, MASK64) if op in ("+", "-", "*", "<<") else made


def machinery(memory: Arena) -> dict[str, Callable[..., object]]:
    """Return the intrinsics that touch memory, and what stands behind other forms."""
    words: dict[str, Callable[..., object]] = {}
    for bits in (8, 16, 32, 64):
        words[f"load{bits}"] = _load(memory, bits // 8)
        words[f"store{bits}"] = _store(memory, bits // 8)
    load64, store64, load8 = words["load64"], words["store64"], words["load8"]

    def fill64(addr: int, value: int, count: int) -> None:
        if count:
            memory.check(addr, 8 * count)
            memory.write(addr, value.to_bytes(8, "little") * count)

    def copy64(to: int, source: int, count: int) -> None:
        if count:
            memory.check(to, 8 * count)
            memory.write(to, memory.read(source, 8 * count))

    def atomic_add64(addr: int, value: int) -> object:
        before = load64(addr)
        store64(addr, before + value & MASK64)  # type: ignore[operator]
        return before

    def atomic_exchange64(addr: int, value: int) -> object:
        before = load64(addr)
        store64(addr, value)
        return before

    def byte_at(text: int, index: int) -> object:
        return load8(text + index & MASK64)

    def element(table: tuple[int, ...], index: int) -> int:
        return table[index] if index < len(table) else 0

    def prefetch(addr: int) -> None:
        """Plain code has no cache."""

    named = (fill64, copy64, atomic_add64, atomic_exchange64, byte_at, element, prefetch)
    return words | {function.__name__: function for function in named}


def _load(memory: Arena, size: int) -> Callable[[int], int]:
    return lambda addr: int.from_bytes(memory.read(addr, size), "little")


def _store(memory: Arena, size: int) -> Callable[[int, int], None]:
    mask = (1 << 8 * size) - 1
    return lambda addr, value: memory.write(addr, (value & mask).to_bytes(size, "little"))
