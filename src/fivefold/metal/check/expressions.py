"""Check expressions: resolve names, give each its kind, refuse what the subset lacks."""

from __future__ import annotations

import ast
from typing import Final

from fivefold.errors import CompileError
from fivefold.metal import lang
from fivefold.metal.check.arith import OPERATIONS
from fivefold.metal.check.context import MARKS
from fivefold.metal.check.names import Meanings
from fivefold.metal.check.source import (
    BUILTINS,
    WORDS,
    BufferName,
    Constant,
    FunctionName,
    Type,
    VariableName,
    Word,
)
from fivefold.metal.check.tree import (
    AsNumber,
    Binary,
    Boolean,
    Call,
    Choice,
    Compare,
    Element,
    Expression,
    FunctionAddress,
    Intrinsic,
    Local,
    Logic,
    Not,
    Number,
    Storage,
    SymbolAddress,
    Text,
    ValueKind,
)
from fivefold.units import MASK64

OPERATORS: Final[dict[type[ast.operator], str]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.FloorDiv: "//",
    ast.Mod: "%",
}
_COMPARISONS: Final[dict[type[ast.cmpop], str]] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_KINDS: Final = {"int": ValueKind.U64, "str": ValueKind.STR, "None": ValueKind.NONE}
_SPECIAL: Final = (*BUILTINS, *MARKS, "buffer", "symbol", "address_of")
INTRINSICS: Final = {
    name: (tuple(_KINDS[a] for k, a in f.__annotations__.items() if k != "return"), _KINDS[f.__annotations__["return"]])
    for f, name in WORDS.items()
    if name not in _SPECIAL
}
"""Kinds of the parameters and of the result of each intrinsic, as `lang` declares them."""

_REMEDIES: Final[dict[type[ast.expr], tuple[str, str]]] = {
    ast.Lambda: ("a lambda", "write a function"),
    ast.List: ("a list", "use a constant tuple or a buffer"),
    ast.Tuple: ("a tuple", "make it a module constant: NAME: Final = (…)"),
    ast.Dict: ("a dict", "use a constant tuple or a buffer"),
    ast.Set: ("a set", "use a constant tuple or a buffer"),
    ast.ListComp: ("a comprehension", "write a loop"),
    ast.SetComp: ("a comprehension", "write a loop"),
    ast.DictComp: ("a comprehension", "write a loop"),
    ast.GeneratorExp: ("a comprehension", "write a loop"),
    ast.JoinedStr: ("a formatted string", "pass the parts one by one"),
    ast.NamedExpr: ("an assignment inside an expression", "write it as a statement of its own"),
    ast.Starred: ("a starred expression", "pass the arguments one by one"),
    ast.Await: ("await", "write a loop that polls"),
    ast.Yield: ("yield", "write to a buffer"),
    ast.YieldFrom: ("yield", "write to a buffer"),
}


class Expressions(Meanings):
    """The checker of expressions of one function."""

    def number(self, node: ast.expr) -> Expression:
        """Check an expression that must be an integer."""
        found = self.any(node)
        match found.kind:
            case ValueKind.U64:
                return found
            case ValueKind.BOOL:
                raise self.error(node, f"the bool {ast.unparse(node)} where an integer is needed", "write u64(…)")
            case kind:
                raise self.error(node, f"{ast.unparse(node)} is {kind.value}, not an integer", "use a u64")

    def flag(self, node: ast.expr) -> Expression:
        """Check an expression that must be a bool."""
        found = self.any(node)
        if found.kind is not ValueKind.BOOL:
            raise self.error(
                node, f"{ast.unparse(node)} is {found.kind.value}, not a bool", "write a comparison: x != 0"
            )
        return found

    def of_kind(self, node: ast.expr, kind: ValueKind) -> Expression:
        """Check an expression that must be of *kind*."""
        if kind is ValueKind.U64:
            return self.number(node)
        if kind is ValueKind.BOOL:
            return self.flag(node)
        found = self.any(node)
        if found.kind is not ValueKind.STR:
            raise self.error(node, f"{ast.unparse(node)} is {found.kind.value}, not a str", "pass a literal")
        return found

    def any(self, node: ast.expr) -> Expression:
        """Check an expression of any kind; a call may be of kind NONE."""
        match node:
            case ast.Constant(value=value):
                return self._constant(node, value)
            case ast.Name() | ast.Attribute() | ast.Subscript():
                return self._named(node)
            case ast.BinOp():
                return self._binary(node)
            case ast.UnaryOp():
                return self._unary(node)
            case ast.Compare():
                return self._compare(node)
            case ast.BoolOp(op=op, values=values):
                word = "and" if isinstance(op, ast.And) else "or"
                return Logic(word, tuple(self.flag(value) for value in values))
            case ast.IfExp():
                return self._choice(node)
            case ast.Call():
                return self._call(node)
        construct, remedy = _REMEDIES.get(type(node), (f"the expression {ast.unparse(node)}", "see docs/metal.md"))
        raise self.error(node, construct, remedy)

    def _named(self, node: ast.expr) -> Expression:
        if isinstance(node, ast.Name) and node.id in self.scope.names and node.id not in self.scope.items:
            return self._local(node)
        found = self.meaning(node)
        match found:
            case Constant(value):
                return self._constant(node, value)
            case VariableName(full, kind, imported):
                if imported:
                    short = ".".join(full.split(".")[-2:])
                    raise self.error(node, f"the variable {ast.unparse(node)} is imported by name", f"write {short}")
                return self._context.read(full, kind, node, self._module)
            case BufferName():
                return Storage(self._context.buffer(found, node, self._module))
            case None if isinstance(node, ast.Subscript):
                return self._element(node)
        raise self.error(node, f"{ast.unparse(node)} is not a value", "use a constant, a variable or a local")

    def _local(self, node: ast.Name) -> Expression:
        assigned = self.scope.assigned
        if assigned is not None and node.id not in assigned:
            raise self.error(node, f"{node.id} may be read before it has a value", "assign it on every path first")
        # Where no path leads the kind may be unknown; nothing is ever read there.
        return Local(node.id, self.scope.kinds.get(node.id, ValueKind.U64))

    def _constant(self, node: ast.expr, value: object) -> Expression:
        match value:
            case bool():
                return Boolean(value)
            case lang.Buffer():
                raise self.error(node, f"the buffer {ast.unparse(node)} inside a constant", "name the buffer itself")
            case int():
                if not 0 <= value <= MASK64:
                    what = "the literal" if isinstance(node, ast.Constant) else f"{ast.unparse(node)} is"
                    raise self.error(node, f"{what} {int(value)}", "write a number from 0 to 2**64 - 1")
                return Number(int(value))
            case str():
                return self._text(node, value)
            case float() | complex():
                raise self.error(node, f"the number {value!r}", "use integers")
            case bytes():
                raise self.error(node, f"the bytes {value!r}", "use a str or a constant tuple")
            case tuple():
                raise self.error(node, f"the tuple {ast.unparse(node)} as a value", "loop over it or index it")
        raise self.error(node, f"{ast.unparse(node)} is a {type(value).__name__}", "use an int, a bool or a str")

    def _text(self, node: ast.expr, value: str) -> Text:
        if "\0" in value:
            raise self.error(node, "a NUL inside a string", "end the string there")
        self._context.use("string", self._module, node)
        try:
            return Text(value.encode())
        except UnicodeEncodeError as error:
            raise self.error(node, "a lone surrogate inside a string", "write text that has a UTF-8 form") from error

    def _element(self, node: ast.Subscript) -> Expression:
        table = self._table(node.value)
        if isinstance(node.slice, ast.Slice):
            raise self.error(node, f"the slice {ast.unparse(node)}", "loop over indexes")
        index = self.number(node.slice)
        if isinstance(index, Number):
            return Number(table[index.value] if index.value < len(table) else 0)
        self._context.use("table", self._module, node)
        return Element(table, index)

    def _table(self, node: ast.expr) -> tuple[int, ...]:
        found = self.meaning(node)
        if not isinstance(found, Constant) or not isinstance(found.value, tuple):
            raise self.error(node, f"{ast.unparse(node)} is indexed and no constant tuple", "use load64 on an address")
        if any(isinstance(item, bool | lang.Buffer) or not isinstance(item, int) for item in found.value):
            raise self.error(node, f"{ast.unparse(node)} does not hold integers only", "loop over it with for")
        if any(not 0 <= item <= MASK64 for item in found.value):
            raise self.error(node, f"{ast.unparse(node)} holds numbers out of range", "use numbers from 0 to 2**64 - 1")
        return tuple(int(item) for item in found.value)

    def _binary(self, node: ast.BinOp) -> Expression:
        op = OPERATORS.get(type(node.op))
        if op is None:
            names = {ast.Div: ("/", "write //"), ast.Pow: ("**", "write a shift"), ast.MatMult: ("@", "write a loop")}
            sign, remedy = names[type(node.op)]
            raise self.error(node, f"the operator {sign}", remedy)
        return self.binary(op, self.number(node.left), self.number(node.right), node)

    def binary(self, op: str, left: Expression, right: Expression, node: ast.AST) -> Expression:
        """Make an operation, folded where both sides are constants."""
        if isinstance(left, Number) and isinstance(right, Number):
            return Number(OPERATIONS[op](left.value, right.value))
        if op in ("//", "%") and not (isinstance(right, Number) and right.value.bit_count() == 1):
            self._context.use("division", self._module, node)
        return Binary(op, left, right)

    def _unary(self, node: ast.UnaryOp) -> Expression:
        match node.op:
            case ast.Not():
                return Not(self.flag(node.operand))
            case ast.USub():
                return self.binary("-", Number(0), self.number(node.operand), node)
            case ast.Invert():
                return self.binary("^", self.number(node.operand), Number(MASK64), node)
        raise self.error(node, "the operator unary +", "leave it out")

    def _compare(self, node: ast.Compare) -> Expression:
        signs = []
        for op in node.ops:
            if type(op) not in _COMPARISONS:
                word = {ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not"}[type(op)]
                raise self.error(node, f"the comparison {word}", "compare numbers with == or !=")
            signs.append(_COMPARISONS[type(op)])
        values = [self.any(item) for item in (node.left, *node.comparators)]
        for sign, low, high in zip(signs, values, values[1:], strict=False):
            self._check_compared(node, sign, low.kind, high.kind)
        return Compare(values[0], tuple(zip(signs, values[1:], strict=True)))

    def _check_compared(self, node: ast.Compare, sign: str, left: ValueKind, right: ValueKind) -> None:
        """Integers compare with integers; bools with bools, for equality only."""
        if left is not right or left in (ValueKind.STR, ValueKind.NONE):
            construct = f"{left.value} {sign} {right.value} in {ast.unparse(node)}"
            raise self.error(node, construct, "compare integers with integers; u64(flag) makes one")
        if left is ValueKind.BOOL and sign not in ("==", "!="):
            raise self.error(node, f"bool {sign} bool in {ast.unparse(node)}", "write and, or, not")

    def _choice(self, node: ast.IfExp) -> Expression:
        test, yes, no = self.flag(node.test), self.any(node.body), self.any(node.orelse)
        if yes.kind is not no.kind or yes.kind in (ValueKind.STR, ValueKind.NONE):
            construct = f"{yes.kind.value} or {no.kind.value} in {ast.unparse(node)}"
            raise self.error(node, construct, "choose between two integers or two bools")
        return Choice(test, yes, no, yes.kind)

    def _call(self, node: ast.Call) -> Expression:
        if node.keywords:
            raise self.error(node, f"keyword arguments in {ast.unparse(node)}", "pass them by position")
        for arg in node.args:
            if isinstance(arg, ast.Starred):
                raise self.error(arg, *_REMEDIES[ast.Starred])
        match self.meaning(node.func):
            case FunctionName(full):
                return self._call_function(node, full)
            case Word(name):
                return self._call_word(node, name)
            case Type(kind):
                return self._cast(node, kind)
        raise self.error(node, f"a call of {ast.unparse(node.func)}", "call a function of the subset or an intrinsic")

    def _call_function(self, node: ast.Call, full: str) -> Expression:
        try:
            signature = self._context.signature(full, self._module, node)
        except CompileError as error:
            if error.line:
                raise
            remedy = "call a function of the subset or an intrinsic"
            raise self.error(node, f"a call of {ast.unparse(node.func)}", remedy) from error
        self._count(node, len(signature.parameters))
        kinds = (kind for _, kind in signature.parameters)
        args = tuple(self.of_kind(arg, kind) for arg, kind in zip(node.args, kinds, strict=True))
        return Call(signature.full, args, signature.returns)

    def _count(self, node: ast.Call, wanted: int) -> None:
        if len(node.args) != wanted:
            noun = "argument" if wanted == 1 else "arguments"
            raise self.error(node, f"{len(node.args)} given in {ast.unparse(node)}", f"pass {wanted} {noun}")

    def _call_word(self, node: ast.Call, name: str) -> Expression:
        match name:
            case "min" | "max":
                self._count(node, 2)
                return Intrinsic(name, tuple(self.number(arg) for arg in node.args), ValueKind.U64)
            case "len":
                self._count(node, 1)
                return self._length(node.args[0])
            case "symbol":
                self._count(node, 1)
                return self._symbol(node)
            case "address_of":
                self._count(node, 1)
                return self._address_of(node)
        if name not in INTRINSICS:
            raise self.error(node, f"a call of {name}", "see docs/metal.md for where it may stand")
        return self._intrinsic(node, name)

    def _intrinsic(self, node: ast.Call, name: str) -> Expression:
        parameters, returns = INTRINSICS[name]
        self._count(node, len(parameters))
        args = tuple(self.of_kind(arg, kind) for arg, kind in zip(node.args, parameters, strict=True))
        if name == "cpuid" and not (isinstance(args[2], Number) and args[2].value < 4):
            raise self.error(node, f"the register of {ast.unparse(node)}", "write a constant from 0 to 3")
        self._context.use(name, self._module, node)
        return Intrinsic(name, args, returns)

    def _length(self, node: ast.expr) -> Expression:
        found = self.constant(node)
        if found is None or not isinstance(found.value, tuple):
            raise self.error(node, f"len of {ast.unparse(node)}", "take the length of a constant tuple")
        return Number(len(found.value))

    def _symbol(self, node: ast.Call) -> Expression:
        found = self.constant(node.args[0])
        if found is None or not isinstance(found.value, str) or not found.value:
            raise self.error(node, f"the name in {ast.unparse(node)}", "write it as a literal")
        self._context.use(f"symbol {found.value}", self._module, node)
        return SymbolAddress(found.value)

    def _address_of(self, node: ast.Call) -> Expression:
        found = self.meaning(node.args[0])
        if not isinstance(found, FunctionName):
            raise self.error(node, f"{ast.unparse(node)}", "name a function of the subset")
        self._context.use("address_of", self._module, node)
        return FunctionAddress(self._context.signature(found.full, self._module, node).full)

    def _cast(self, node: ast.Call, kind: ValueKind) -> Expression:
        """``u64(flag)`` is 0 or 1; ``PhysAddr(x)`` and ``u64(x)`` are *x*."""
        self._count(node, 1)
        if kind is not ValueKind.U64:
            raise self.error(
                node, f"a call of {ast.unparse(node.func)}", "write x != 0 for a bool, a literal for a str"
            )
        found = self.any(node.args[0])
        if found.kind is ValueKind.U64:
            return found
        if found.kind is not ValueKind.BOOL:
            raise self.error(node, f"{found.kind.value} in {ast.unparse(node)}", "convert a bool")
        return Number(int(found.value)) if isinstance(found, Boolean) else AsNumber(found)
