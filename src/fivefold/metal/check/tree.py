"""The checked program: every name resolved, every expression with its kind.

The checker makes it, the LLVM writer and the plain writer consume it; neither
meets Python's own tree. Functions, variables and buffers are known by full
dotted names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar


class ValueKind(Enum):
    """What a value is; ``str`` is the address of NUL-terminated bytes."""

    U64 = "u64"
    BOOL = "bool"
    STR = "str"
    NONE = "None"


@dataclass(frozen=True, slots=True)
class Number:
    """A constant from 0 to 2^64-1."""

    value: int
    kind: ClassVar[ValueKind] = ValueKind.U64


@dataclass(frozen=True, slots=True)
class Boolean:
    """A constant bool."""

    value: bool
    kind: ClassVar[ValueKind] = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class Text:
    """A literal; *data* without its final NUL."""

    data: bytes
    kind: ClassVar[ValueKind] = ValueKind.STR


@dataclass(frozen=True, slots=True)
class Local:
    """A parameter or local that is read."""

    name: str
    kind: ValueKind


@dataclass(frozen=True, slots=True)
class Load:
    """A module variable that is read."""

    variable: str
    kind: ValueKind


@dataclass(frozen=True, slots=True)
class Storage:
    """The address of a buffer."""

    buffer: str
    kind: ClassVar[ValueKind] = ValueKind.U64


@dataclass(frozen=True, slots=True)
class Binary:
    """Arithmetic; *op* as Python spells it."""

    op: str
    left: Expression
    right: Expression
    kind: ClassVar[ValueKind] = ValueKind.U64


@dataclass(frozen=True, slots=True)
class Compare:
    """A chain of comparisons; it stops at the first that fails."""

    first: Expression
    rest: tuple[tuple[str, Expression], ...]
    kind: ClassVar[ValueKind] = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class Logic:
    """``and`` or ``or`` of two or more bools, short-circuit."""

    op: str
    values: tuple[Expression, ...]
    kind: ClassVar[ValueKind] = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class Not:
    """The other bool."""

    value: Expression
    kind: ClassVar[ValueKind] = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class Choice:
    """``yes if test else no``; only one of them is evaluated."""

    test: Expression
    yes: Expression
    no: Expression
    kind: ValueKind


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a subset function or of an extern one."""

    function: str
    args: tuple[Expression, ...]
    kind: ValueKind


@dataclass(frozen=True, slots=True)
class Intrinsic:
    """A word of `fivefold.metal.lang`, or ``min`` or ``max``."""

    name: str
    args: tuple[Expression, ...]
    kind: ValueKind


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a constant table; 0 outside it."""

    table: tuple[int, ...]
    index: Expression
    kind: ClassVar[ValueKind] = ValueKind.U64


@dataclass(frozen=True, slots=True)
class AsNumber:
    """A bool as 0 or 1."""

    value: Expression
    kind: ClassVar[ValueKind] = ValueKind.U64


@dataclass(frozen=True, slots=True)
class SymbolAddress:
    """The address of a symbol that assembly defines."""

    name: str
    kind: ClassVar[ValueKind] = ValueKind.U64


@dataclass(frozen=True, slots=True)
class FunctionAddress:
    """The address of a function of the same build."""

    function: str
    kind: ClassVar[ValueKind] = ValueKind.U64


Expression = (
    Number
    | Boolean
    | Text
    | Local
    | Load
    | Storage
    | Binary
    | Compare
    | Logic
    | Not
    | Choice
    | Call
    | Intrinsic
    | Element
    | AsNumber
    | SymbolAddress
    | FunctionAddress
)


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a local a value."""

    line: int
    name: str
    value: Expression


@dataclass(frozen=True, slots=True)
class Store:
    """Give a module variable a value."""

    line: int
    variable: str
    value: Expression


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate for the effect; a load really happens."""

    line: int
    value: Expression


@dataclass(frozen=True, slots=True)
class If:
    """One of two bodies."""

    line: int
    test: Expression
    body: tuple[Statement, ...]
    otherwise: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class While:
    """Repeat while *test* holds."""

    line: int
    test: Expression
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """``for name in range(start, stop, step)``; the counter never wraps."""

    line: int
    name: str
    start: Expression
    stop: Expression
    step: int
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Unrolled:
    """One body for each item of a constant; break and continue keep their meaning."""

    line: int
    bodies: tuple[tuple[Statement, ...], ...]


@dataclass(frozen=True, slots=True)
class Break:
    """Leave the innermost loop."""

    line: int


@dataclass(frozen=True, slots=True)
class Continue:
    """Go to the next round of the innermost loop."""

    line: int


@dataclass(frozen=True, slots=True)
class Return:
    """Leave the function."""

    line: int
    value: Expression | None


Statement = Assign | Store | Evaluate | If | While | Count | Unrolled | Break | Continue | Return


@dataclass(frozen=True, slots=True)
class Signature:
    """What a caller needs to know of a function; *mark* is its decorator, or empty."""

    full: str
    name: str
    parameters: tuple[tuple[str, ValueKind], ...]
    returns: ValueKind
    mark: str
    file: str
    line: int


@dataclass(slots=True)
class Function:
    """A checked function; *locals* include the parameters, in order of appearance."""

    signature: Signature
    locals: dict[str, ValueKind]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """Storage for one value; a *bound* one keeps the value that the build gave it."""

    full: str
    kind: ValueKind
    initial: int
    bound: bool


@dataclass(frozen=True, slots=True)
class ReservedBytes:
    """Zeroed storage."""

    full: str
    size: int
    align: int


@dataclass(frozen=True, slots=True)
class Site:
    """Where a machine intrinsic, symbol or extern was first used, for refusals."""

    file: str
    line: int


@dataclass
class Unit:
    """All that the roots reach, in an order that depends on the sources alone."""

    functions: dict[str, Function] = field(default_factory=dict)
    externs: dict[str, Signature] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    buffers: dict[str, ReservedBytes] = field(default_factory=dict)
    exports: dict[str, str] = field(default_factory=dict)
    """Symbol to full name."""
    uses: dict[str, Site] = field(default_factory=dict)
    """First use of each intrinsic; of ``symbol NAME``, ``extern NAME``, ``variable NAME`` and the like."""
    labels: dict[str, str] = field(default_factory=dict)
    """Full module name to the short one that symbols and instances use."""
    dependencies: tuple[str, ...] = ()
    """Full names of every module whose text the result depends on."""

    def short(self, full: str) -> str:
        """Return ``module.name`` with the module's last part, or all of it where that is ambiguous."""
        module, _, name = full.rpartition(".")
        return f"{self.labels[module]}.{name}"
