"""How each intrinsic is spelled in LLVM IR, for the four kinds of machine code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class Target:
    """What code is made for. On the *host* externs are called through pointers and loads may be merged."""

    arch: str
    prefix: str = ""
    host: bool = False

    @property
    def register(self) -> str:
        """The integer type that is as wide as a register."""
        return "i32" if self.arch == "i386" else "i64"


class InstructionWriter(Protocol):
    """What a word needs of the function writer."""

    target: Target

    def emit(self, instruction: str) -> str:
        """Append an instruction that has a result; return the name of it."""
        ...

    def do(self, instruction: str) -> None:
        """Append an instruction without a result."""
        ...

    def pointer(self, address: str) -> str:
        """Turn an i64 into a pointer."""
        ...


_CLOBBERS: Final = "~{memory},~{dirflag},~{fpsr},~{flags}"


def _asm(text: str, constraints: str) -> str:
    joined = f"{constraints},{_CLOBBERS}" if constraints else _CLOBBERS
    return f'asm sideeffect "{text}", "{joined}"'


def _load(bits: int) -> Callable[[InstructionWriter, list[str], bool], str]:
    def word(w: InstructionWriter, args: list[str], kept: bool) -> str:
        # On metal a load may fault or watch another CPU: it happens as often as it is written.
        volatile = "volatile " if kept or not w.target.host else ""
        value = w.emit(f"load {volatile}i{bits}, ptr {w.pointer(args[0])}, align 1")
        return value if bits == 64 else w.emit(f"zext i{bits} {value} to i64")

    return word


def _store(bits: int) -> Callable[[InstructionWriter, list[str], bool], str]:
    def word(w: InstructionWriter, args: list[str], kept: bool) -> str:
        volatile = "" if w.target.host else "volatile "
        value = args[1] if bits == 64 else w.emit(f"trunc i64 {args[1]} to i{bits}")
        w.do(f"store {volatile}i{bits} {value}, ptr {w.pointer(args[0])}, align 1")
        return ""

    return word


def _fill64(w: InstructionWriter, args: list[str], kept: bool) -> str:
    if w.target.arch != "x86_64":
        w.do(f"call void @metal.fill64(i64 {args[0]}, i64 {args[1]}, i64 {args[2]})")
    else:
        text = _asm("rep stosq", "={di},={cx},{ax},0,1")
        w.do(f"call {{i64, i64}} {text}(i64 {args[1]}, i64 {args[0]}, i64 {args[2]})")
    return ""


def _copy64(w: InstructionWriter, args: list[str], kept: bool) -> str:
    if w.target.arch != "x86_64":
        w.do(f"call void @metal.copy64(i64 {args[0]}, i64 {args[1]}, i64 {args[2]})")
    else:
        text = _asm("rep movsq", "={di},={si},={cx},0,1,2")
        w.do(f"call {{i64, i64, i64}} {text}(i64 {args[0]}, i64 {args[1]}, i64 {args[2]})")
    return ""


def _byte_at(w: InstructionWriter, args: list[str], kept: bool) -> str:
    return _load(8)(w, [w.emit(f"add i64 {args[0]}, {args[1]}")], kept)


def _bits(name: str, extra: str) -> Callable[[InstructionWriter, list[str], bool], str]:
    def word(w: InstructionWriter, args: list[str], kept: bool) -> str:
        return w.emit(f"call i64 @llvm.{name}.i64(i64 {args[0]}{extra})")

    return word


def _prefetch(w: InstructionWriter, args: list[str], kept: bool) -> str:
    w.do(f"call void @llvm.prefetch.p0(ptr {w.pointer(args[0])}, i32 0, i32 3, i32 1)")
    return ""


def _atomic(op: str) -> Callable[[InstructionWriter, list[str], bool], str]:
    def word(w: InstructionWriter, args: list[str], kept: bool) -> str:
        return w.emit(f"atomicrmw volatile {op} ptr {w.pointer(args[0])}, i64 {args[1]} seq_cst, align 8")

    return word


def _cpuid(w: InstructionWriter, args: list[str], kept: bool) -> str:
    leaf, subleaf = (w.emit(f"trunc i64 {arg} to i32") for arg in args[:2])
    text = _asm("cpuid", "={ax},={bx},={cx},={dx},{ax},{cx}")
    regs = w.emit(f"call {{i32, i32, i32, i32}} {text}(i32 {leaf}, i32 {subleaf})")
    value = w.emit(f"extractvalue {{i32, i32, i32, i32}} {regs}, {args[2]}")
    return w.emit(f"zext i32 {value} to i64")


def _in(bits: int, text: str, register: str) -> Callable[[InstructionWriter, list[str], bool], str]:
    def word(w: InstructionWriter, args: list[str], kept: bool) -> str:
        port = w.emit(f"trunc i64 {args[0]} to i16")
        value = w.emit(f"call i{bits} {_asm(text, f'={{{register}}},{{dx}}')}(i16 {port})")
        return w.emit(f"zext i{bits} {value} to i64")

    return word


def _out(bits: int, text: str, register: str) -> Callable[[InstructionWriter, list[str], bool], str]:
    def word(w: InstructionWriter, args: list[str], kept: bool) -> str:
        port = w.emit(f"trunc i64 {args[0]} to i16")
        value = w.emit(f"trunc i64 {args[1]} to i{bits}")
        w.do(f"call void {_asm(text, f'{{{register}}},{{dx}}')}(i{bits} {value}, i16 {port})")
        return ""

    return word


def _read_register(name: str) -> Callable[[InstructionWriter, list[str], bool], str]:
    def word(w: InstructionWriter, args: list[str], kept: bool) -> str:
        width = w.target.register
        register = name if width == "i64" else name.replace("rsp", "esp")
        value = w.emit(f"call {width} {_asm(f'mov %{register}, $0', '=r')}()")
        return value if width == "i64" else w.emit(f"zext i32 {value} to i64")

    return word


def _read_flags(w: InstructionWriter, args: list[str], kept: bool) -> str:
    width = w.target.register
    text = "pushfq; popq $0" if width == "i64" else "pushfl; popl $0"
    value = w.emit(f"call {width} {_asm(text, '=r')}()")
    return value if width == "i64" else w.emit(f"zext i32 {value} to i64")


def _pair(w: InstructionWriter, call: str) -> str:
    """Join the EDX:EAX that *call* returns."""
    pair = w.emit(call)
    low, high = (w.emit(f"extractvalue {{i32, i32}} {pair}, {i}") for i in (0, 1))
    low, high = (w.emit(f"zext i32 {half} to i64") for half in (low, high))
    return w.emit(f"or i64 {low}, {w.emit(f'shl i64 {high}, 32')}")


def _rdmsr(w: InstructionWriter, args: list[str], kept: bool) -> str:
    index = w.emit(f"trunc i64 {args[0]} to i32")
    return _pair(w, f"call {{i32, i32}} {_asm('rdmsr', '={ax},={dx},{cx}')}(i32 {index})")


def _rdtsc(w: InstructionWriter, args: list[str], kept: bool) -> str:
    return _pair(w, f"call {{i32, i32}} {_asm('rdtsc', '={ax},={dx}')}()")


def _invlpg(w: InstructionWriter, args: list[str], kept: bool) -> str:
    w.do(f"call void {_asm('invlpg ($0)', 'r')}(ptr {w.pointer(args[0])})")
    return ""


def _plain(text: str) -> Callable[[InstructionWriter, list[str], bool], str]:
    def word(w: InstructionWriter, args: list[str], kept: bool) -> str:
        w.do(f"call void {_asm(text, '')}()")
        return ""

    return word


def _extreme(name: str) -> Callable[[InstructionWriter, list[str], bool], str]:
    def word(w: InstructionWriter, args: list[str], kept: bool) -> str:
        return w.emit(f"call i64 @llvm.{name}.i64(i64 {args[0]}, i64 {args[1]})")

    return word


WORDS: Final[dict[str, Callable[[InstructionWriter, list[str], bool], str]]] = {
    **{f"load{bits}": _load(bits) for bits in (8, 16, 32, 64)},
    **{f"store{bits}": _store(bits) for bits in (8, 16, 32, 64)},
    "fill64": _fill64,
    "copy64": _copy64,
    "byte_at": _byte_at,
    "text_address": lambda w, args, kept: args[0],
    "ctz": _bits("cttz", ", i1 false"),
    "clz": _bits("ctlz", ", i1 false"),
    "popcount": _bits("ctpop", ""),
    "prefetch": _prefetch,
    "atomic_add64": _atomic("add"),
    "atomic_exchange64": _atomic("xchg"),
    "cpuid": _cpuid,
    "inb": _in(8, "inb %dx, %al", "al"),
    "inw": _in(16, "inw %dx, %ax", "ax"),
    "inl": _in(32, "inl %dx, %eax", "eax"),
    "outb": _out(8, "outb %al, %dx", "al"),
    "outw": _out(16, "outw %ax, %dx", "ax"),
    "outl": _out(32, "outl %eax, %dx", "eax"),
    **{f"read_{name}": _read_register(name) for name in ("cr0", "cr2", "cr3", "cr4", "rsp")},
    "read_rflags": _read_flags,
    "rdmsr": _rdmsr,
    "rdtsc": _rdtsc,
    "invlpg": _invlpg,
    **{name: _plain(name) for name in ("cli", "sti", "hlt", "pause")},
    "min": _extreme("umin"),
    "max": _extreme("umax"),
}
"""Each takes the writer, its operands and whether the result must be kept though unused; it returns the value."""

DECLARATIONS: Final = """
declare i64 @llvm.cttz.i64(i64, i1)
declare i64 @llvm.ctlz.i64(i64, i1)
declare i64 @llvm.ctpop.i64(i64)
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.umax.i64(i64, i64)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
"""

_LOOP: Final = """
define internal void @metal.{name}(i64 %to, i64 {source}, i64 %count) #0 {{
entry:
  %none = icmp eq i64 %count, 0
  br i1 %none, label %done, label %next
next:
  %i = phi i64 [ 0, %entry ], [ %after, %next ]
  %offset = shl i64 %i, 3
  %at = add i64 %to, %offset
  %ptr = inttoptr i64 %at to ptr
{value}
  store volatile i64 %value, ptr %ptr, align 1
  %after = add i64 %i, 1
  %more = icmp ult i64 %after, %count
  br i1 %more, label %next, label %done
done:
  ret void
}}
"""

FILL64: Final = _LOOP.format(name="fill64", source="%value", value="")
COPY64: Final = _LOOP.format(
    name="copy64",
    source="%from",
    value="""  %read = add i64 %from, %offset
  %source = inttoptr i64 %read to ptr
  %value = load volatile i64, ptr %source, align 1""",
)
"""The two words that a string instruction does in 64-bit x86 code."""
