"""From a checked unit to LLVM IR, as text.

All functions take and return i64: a bool is 0 or 1 in a register, a str is its
address. So assembly, ctypes and an emulator call them alike; what that costs
inside vanishes with inlining. Locals are slots on the stack that LLVM's passes
turn into registers.
"""

from __future__ import annotations

from typing import Final

from fivefold.metal.check.check import signature_table
from fivefold.metal.check.tree import Function, Signature, Unit, ValueKind
from fivefold.metal.emit.function import FunctionWriter, convention, signed
from fivefold.metal.emit.intrinsics import COPY64, DECLARATIONS, FILL64, Target

TRIPLES: Final = {cpu: f"{cpu}-unknown-none-elf" for cpu in ("x86_64", "i386", "aarch64")}
_ATTRIBUTES: Final = 'noredzone nounwind null_pointer_is_valid "no-builtins" "no-jump-tables"="true"'
_MARKS: Final = {"inline": " alwaysinline", "noinline": " noinline", "cold": " noinline cold"}


def write(unit: Unit, target: Target, asm: str = "") -> str:
    """Spell *unit* for *target* with *asm* as module assembly; equal input gives equal text."""
    tables: dict[str, str] = {}
    signatures = signature_table(unit)
    functions = [_function(unit, function, target, tables, signatures) for function in unit.functions.values()]
    used = "".join(functions)
    parts = [
        f'target triple = "{TRIPLES[target.arch]}"',
        *(f'module asm "{_escape(line.encode())}"' for line in asm.splitlines()),
        *_storage(unit, target),
        *tables.values(),
        *_outside(unit, target),
        DECLARATIONS,
        *(text for name, text in (("fill64", FILL64), ("copy64", COPY64)) if f"@metal.{name}(" in used),
        *functions,
        *_exports(unit, target),
        f"attributes #0 = {{ {_ATTRIBUTES} }}",
    ]
    return "\n".join(parts) + "\n"


def _storage(unit: Unit, target: Target) -> list[str]:
    """Spell variables and buffers. Those of 32-bit code would need absolute addresses and are left out.

    They are sorted by the name of their symbol: where a module lies and who imports it first moves no byte.
    """
    if target.arch == "i386":
        return []
    lines = []
    for variable in sorted(unit.variables.values(), key=lambda found: unit.short(found.full)):
        name = f"{target.prefix}{unit.short(variable.full)}"
        lines.append(f'@"{name}" = hidden global i64 {signed(variable.initial)}, section ".data", align 8')
    for buffer in sorted(unit.buffers.values(), key=lambda found: unit.short(found.full)):
        name = f"{target.prefix}{unit.short(buffer.full)}"
        kind = f"[{buffer.size} x i8] zeroinitializer"
        lines.append(f'@"{name}" = hidden global {kind}, section ".bss", align {buffer.align}')
    return lines


def _outside(unit: Unit, target: Target) -> list[str]:
    """Declare what others define: a symbol each, or on the host a pointer that the instance fills."""
    if target.host:
        keys = [key for key in unit.uses if key.startswith(("extern ", "symbol "))]
        return [f'@"{key}" = hidden global i64 0, section ".data", align 8' for key in keys]
    lines = [_declaration(signature) for signature in unit.externs.values()]
    known = {signature.name for signature in unit.externs.values()}
    known |= {target.prefix + name for name in unit.exports}
    names = [key.removeprefix("symbol ") for key in unit.uses if key.startswith("symbol ")]
    return lines + [f'@"{name}" = external hidden global i8' for name in names if name not in known]


def _declaration(signature: Signature) -> str:
    args = ", ".join(["i64"] * len(signature.parameters))
    returns = "void" if signature.returns is ValueKind.NONE else "i64"
    return f'declare hidden {returns} @"{signature.name}"({args}) #0'


def _exports(unit: Unit, target: Target) -> list[str]:
    """Give each root a hidden symbol beside its internal one, so that calls inside need no relocation."""
    lines = []
    for name, full in unit.exports.items():
        signature = unit.functions[full].signature
        args = ", ".join(["i64"] * len(signature.parameters))
        returns = "void" if signature.returns is ValueKind.NONE else "i64"
        lines.append(f'@"{target.prefix}{name}" = hidden alias {returns} ({args}), ptr @"{inner_name(unit, full)}"')
    return lines


def inner_name(unit: Unit, full: str) -> str:
    """Return the internal symbol of a function; no exported one can be equal to it."""
    return f"{unit.short(full)}()"


def _function(
    unit: Unit, function: Function, target: Target, tables: dict[str, str], signatures: dict[str, Signature]
) -> str:
    signature = function.signature
    writer = FunctionWriter(unit, target, tables, signatures, lambda full: inner_name(unit, full))
    lines = writer.write(function)
    args = ", ".join(f"i64 %a{i}" for i in range(len(signature.parameters)))
    returns = "void" if signature.returns is ValueKind.NONE else "i64"
    mark = _MARKS.get(signature.mark, "")
    convened = convention(signature, target)
    head = f'define internal {convened}{returns} @"{inner_name(unit, signature.full)}"({args}){mark} #0 {{'
    return "\n".join([head, *lines, "}\n"])


def _escape(data: bytes) -> str:
    return "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:02X}" for b in data)
