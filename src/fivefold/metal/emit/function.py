"""Write the body of one function as LLVM IR."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
    Signature,
    Statement,
    Storage,
    Store,
    SymbolAddress,
    Text,
    Unit,
    Unrolled,
    ValueKind,
    While,
)
from fivefold.metal.emit.blocks import Blocks
from fivefold.metal.emit.intrinsics import WORDS, Target

_SIMPLE: Final = {"+": "add", "-": "sub", "*": "mul", "&": "and", "|": "or", "^": "xor"}
_SHIFTS: Final = {"<<": "shl", ">>": "lshr"}
_DIVISIONS: Final = {"//": "udiv", "%": "urem"}
_PREDICATES: Final = {"==": "eq", "!=": "ne", "<": "ult", "<=": "ule", ">": "ugt", ">=": "uge"}


def signed(value: int) -> str:
    """Spell a 64-bit constant as LLVM prints it."""
    return str(value - (1 << 64) if value >> 63 else value)


def _type(kind: ValueKind) -> str:
    return "i1" if kind is ValueKind.BOOL else "i64"


def convention(signature: Signature, target: Target) -> str:
    """Return what stands before the result type of a function and of its calls: the two must agree.

    A cold function keeps nearly all registers; a caller that follows the usual convention sees no difference.
    """
    return "preserve_mostcc " if signature.mark == "cold" and target.arch == "x86_64" else ""


class FunctionWriter(Blocks):
    """Writes one function; implements `words.Writer`."""

    def __init__(
        self,
        unit: Unit,
        target: Target,
        tables: dict[str, str],
        signatures: dict[str, Signature],
        inner_name: Callable[[str], str],
    ) -> None:
        super().__init__()
        self.target = target
        self._unit = unit
        self._tables = tables
        self._signatures = signatures
        self._inner_name = inner_name
        self._slots: list[str] = []
        self._loops: list[tuple[str, str]] = []
        self._returns = ValueKind.NONE

    def write(self, function: Function) -> list[str]:
        """Return the lines between the braces."""
        self._returns = function.signature.returns
        for name, kind in function.locals.items():
            self._slots.append(f'  %"v.{name}" = alloca {_type(kind)}')
        for i, (name, kind) in enumerate(function.signature.parameters):
            self._set_local(name, kind, self._entering(f"%a{i}", kind))
        self._statements(function.body)
        if self._open:
            self._end("ret void" if self._returns is ValueKind.NONE else "unreachable")
        return ["entry:", *self._slots, *self._lines]

    def _entering(self, value: str, kind: ValueKind) -> str:
        return self.emit(f"icmp ne i64 {value}, 0") if kind is ValueKind.BOOL else value

    def _leaving(self, value: str, kind: ValueKind) -> str:
        return self.emit(f"zext i1 {value} to i64") if kind is ValueKind.BOOL else value

    def _set_local(self, name: str, kind: ValueKind, value: str) -> None:
        self.do(f'store {_type(kind)} {value}, ptr %"v.{name}"')

    # Statements

    def _statements(self, body: tuple[Statement, ...]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, statement: Statement) -> None:
        match statement:
            case Assign(name=name, value=value):
                self._set_local(name, value.kind, self.value(value))
            case Store(variable=full, value=value):
                number = self._leaving(self.value(value), value.kind)
                self.do(f"store i64 {number}, ptr {self._variable(full)}")
            case Evaluate(value=Intrinsic(name=name, args=args)):
                WORDS[name](self, [self.value(arg) for arg in args], True)
            case Evaluate(value=value):
                self.value(value)
            case If():
                self._if(statement)
            case While():
                self._while(statement)
            case Count():
                self._count_loop(statement)
            case Unrolled(bodies=bodies):
                self._unrolled(bodies)
            case Break():
                self._jump(self._loops[-1][1])
            case Continue():
                self._jump(self._loops[-1][0])
            case Return(value=returned):
                self._return(returned)

    def _variable(self, full: str) -> str:
        return f'@"{self.target.prefix}{self._unit.short(full)}"'

    def _return(self, value: Expression | None) -> None:
        if value is None:
            self._end("ret void")
        else:
            self._end(f"ret i64 {self._leaving(self.value(value), value.kind)}")

    def _if(self, statement: If) -> None:
        yes, no, after = (self._label(what) for what in ("then", "else", "endif"))
        self._branch(self.value(statement.test), yes, no)
        for label, body in ((yes, statement.body), (no, statement.otherwise)):
            self._start(label)
            self._statements(body)
            self._jump(after)
        self._start(after)

    def _while(self, statement: While) -> None:
        test, body, after = (self._label(what) for what in ("while", "do", "done"))
        self._jump(test)
        self._start(test)
        self._branch(self.value(statement.test), body, after)
        self._start(body)
        self._loop(statement.body, test, after)
        self._jump(test)
        self._start(after)

    def _loop(self, body: tuple[Statement, ...], again: str, after: str) -> None:
        self._loops.append((again, after))
        self._statements(body)
        self._loops.pop()

    def _count_loop(self, statement: Count) -> None:
        """Count in a slot of its own: the body may assign the local, as in Python."""
        start, stop = self.value(statement.start), self.value(statement.stop)
        body, again, more, after = (self._label(what) for what in ("for", "next", "more", "done"))
        counter = f"%{self._label('counter')}"
        self._slots.append(f"  {counter} = alloca i64")
        self.do(f"store i64 {start}, ptr {counter}")
        self._branch(self.emit(f"icmp ult i64 {start}, {stop}"), body, after)
        self._start(body)
        current = self.emit(f"load i64, ptr {counter}")
        self.do(f'store i64 {current}, ptr %"v.{statement.name}"')
        self._loop(statement.body, again, after)
        self._jump(again)
        self._start(again)
        # stop - current is at least 1 here, so that nothing wraps at 2^64.
        left = self.emit(f"sub i64 {stop}, {current}")
        self._branch(self.emit(f"icmp ugt i64 {left}, {statement.step}"), more, after)
        self._start(more)
        self.do(f"store i64 {self.emit(f'add i64 {current}, {statement.step}')}, ptr {counter}")
        self._jump(body)
        self._start(after)

    def _unrolled(self, bodies: tuple[tuple[Statement, ...], ...]) -> None:
        after = self._label("done")
        for body in bodies:
            again = self._label("next")
            self._loop(body, again, after)
            self._jump(again)
            self._start(again)
        self._jump(after)
        self._start(after)

    # Expressions

    def value(self, node: Expression) -> str:
        """Append what *node* computes; return the operand: an i1 for a bool, else an i64."""
        match node:
            case Number(value=number):
                return signed(number)
            case Boolean(value=flag):
                return "true" if flag else "false"
            case Text(data=data):
                return self._address(self._table(".rodata", [f"i8 {byte}" for byte in (*data, 0)], "i8"))
            case Local(name=name, kind=kind):
                return self.emit(f'load {_type(kind)}, ptr %"v.{name}"')
            case Load(variable=full, kind=kind):
                return self._entering(self.emit(f"load i64, ptr {self._variable(full)}"), kind)
            case Storage(buffer=full):
                return self._address(f'@"{self.target.prefix}{self._unit.short(full)}"')
            case Not(value=value):
                return self.emit(f"xor i1 {self.value(value)}, true")
            case AsNumber(value=value):
                return self._leaving(self.value(value), ValueKind.BOOL)
            case Intrinsic(name=name, args=args):
                return WORDS[name](self, [self.value(arg) for arg in args], False)
            case SymbolAddress(name=name):
                return self._symbol(name)
            case FunctionAddress(function=full):
                return self._function_address(full)
        return self._compound(node)

    def _compound(self, node: Expression) -> str:
        match node:
            case Binary(op=op, left=left, right=right):
                return self._binary(op, self.value(left), self.value(right))
            case Compare():
                return self._compare(node)
            case Logic(op=op, values=values):
                return self._shortcut([partial(self.value, value) for value in values], stop_at=op == "or")
            case Choice():
                return self._choice(node)
            case Call():
                return self._call(node)
            case Element(table=table, index=index):
                return self._element(table, self.value(index))
        raise AssertionError(f"no code for {node!r}")

    def _address(self, symbol: str) -> str:
        return self.emit(f"ptrtoint ptr {symbol} to i64")

    def _table(self, section: str, items: list[str], kind: str) -> str:
        """Return the name of a read-only constant with these items; equal ones are kept once."""
        value = f"[{len(items)} x {kind}] [{', '.join(items)}]"
        name = f'@"table {len(self._tables)}"'
        align = 1 if kind == "i8" else 8
        known = self._tables.setdefault(
            value, f'{name} = internal constant {value}, section "{section}", align {align}'
        )
        return known.partition(" =")[0]

    def _symbol(self, name: str) -> str:
        if self.target.host:
            return self.emit(f'load i64, ptr @"symbol {name}"')
        return self._address(f'@"{name}"')

    def _function_address(self, full: str) -> str:
        signature = self._signatures[full]
        if signature.mark != "extern":
            return self._address(f'@"{self._inner_name(full)}"')
        if self.target.host:
            return self.emit(f'load i64, ptr @"extern {signature.name}"')
        return self._address(f'@"{signature.name}"')

    def _binary(self, op: str, left: str, right: str) -> str:
        if op in _SIMPLE:
            return self.emit(f"{_SIMPLE[op]} i64 {left}, {right}")
        if op in _SHIFTS:
            return self.emit(f"{_SHIFTS[op]} i64 {left}, {self.emit(f'and i64 {right}, 63')}")
        none = self.emit(f"icmp eq i64 {right}, 0")
        divisor = self.emit(f"select i1 {none}, i64 1, i64 {right}")
        result = self.emit(f"{_DIVISIONS[op]} i64 {left}, {divisor}")
        return self.emit(f"select i1 {none}, i64 {'0' if op == '//' else left}, i64 {result}")

    def _compare(self, node: Compare) -> str:
        """Each value is computed once, and only if all comparisons before it hold."""
        kind = _type(node.first.kind)
        low = self.value(node.first)

        def link(sign: str, right: Expression) -> Callable[[], str]:
            def test() -> str:
                nonlocal low
                high = self.value(right)
                low, result = high, self.emit(f"icmp {_PREDICATES[sign]} {kind} {low}, {high}")
                return result

            return test

        return self._shortcut([link(sign, right) for sign, right in node.rest], stop_at=False)

    def _shortcut(self, tests: list[Callable[[], str]], stop_at: bool) -> str:
        """Evaluate *tests* in order up to the first that is *stop_at*."""
        if len(tests) == 1:
            return tests[0]()
        after = self._label("short")
        edges = []
        for test in tests[:-1]:
            value, more = test(), self._label("more")
            edges.append(f"[ {str(stop_at).lower()}, %{self._current()} ]")
            self._branch(value, *((after, more) if stop_at else (more, after)))
            self._start(more)
        edges.append(f"[ {tests[-1]()}, %{self._current()} ]")
        self._jump(after)
        self._start(after)
        return self.emit(f"phi i1 {', '.join(edges)}")

    def _choice(self, node: Choice) -> str:
        yes, no, after = (self._label(what) for what in ("yes", "no", "chosen"))
        self._branch(self.value(node.test), yes, no)
        edges = []
        for label, side in ((yes, node.yes), (no, node.no)):
            self._start(label)
            edges.append(f"[ {self.value(side)}, %{self._block} ]")
            self._jump(after)
        self._start(after)
        return self.emit(f"phi {_type(node.kind)} {', '.join(edges)}")

    def _call(self, node: Call) -> str:
        args = ", ".join(f"i64 {self._leaving(self.value(arg), arg.kind)}" for arg in node.args)
        returns = "void" if node.kind is ValueKind.NONE else "i64"
        convened = convention(self._signatures[node.function], self.target)
        call = f"call {convened}{returns} {self._callee(node.function)}({args}) #0"
        if node.kind is ValueKind.NONE:
            self.do(call)
            return ""
        return self._entering(self.emit(call), node.kind)

    def _callee(self, full: str) -> str:
        signature = self._signatures[full]
        if signature.mark != "extern":
            return f'@"{self._inner_name(full)}"'
        return self.pointer(self._function_address(full)) if self.target.host else f'@"{signature.name}"'

    def _element(self, table: tuple[int, ...], index: str) -> str:
        if not table:
            return "0"
        name = self._table(".rodata", [f"i64 {signed(item)}" for item in table], "i64")
        inside = self.emit(f"icmp ult i64 {index}, {len(table)}")
        at = self.emit(f"select i1 {inside}, i64 {index}, i64 0")
        pointer = self.emit(f"getelementptr [{len(table)} x i64], ptr {name}, i64 0, i64 {at}")
        found = self.emit(f"load i64, ptr {pointer}, align 8")
        return self.emit(f"select i1 {inside}, i64 {found}, i64 0")
