"""Run a program as native code in this process.

A program is compiled once, linked into a flat image and cached by content. Loading
that image needs no compiler: it is copied into memory of its own, so that every
instance has its own variables and buffers, and called through ctypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fivefold.errors import CompileError, MemoryReadError
from fivefold.metal import prebuilt
from fivefold.metal.build import cached
from fivefold.metal.program import Program
from fivefold.metal.run.instance import MACHINE_WORDS, Callee, Instance, checked, find
from fivefold.metal.run.native import CodeImage, PinnedBuffer, this_cpu
from fivefold.units import MASK64, PAGE

if TYPE_CHECKING:
    from fivefold.metal.check.tree import Unit
    from fivefold.metal.emit.link import Linked

_ALLOWED: Final = {"x86_64": ("cpuid", "rdtsc", "pause"), "aarch64": ()}
"""Machine intrinsics that a process may execute, by the CPU."""

_ALIGN: Final = {"x86_64": 4096, "aarch64": 65536}
"""Where protection may change: the largest page of Linux on that CPU that is no huge one."""

Extern = Callable[..., int | None] | int


class Item(NamedTuple):
    """One line of an image's header: something with a name and an offset."""

    what: str
    name: str
    short: str
    offset: int
    extra: str


def load(program: Program, *, externs: Mapping[str, Extern] | None = None) -> HostInstance:
    """Load *program* as native code, compiled now or before. Raises `CompileError`.

    *externs* as in `interpreter.load`. An exception in one is raised when the native call returns;
    until then the program goes on with 0.
    """
    cpu = this_cpu()
    blob = prebuilt.find(program, cpu) or cached(f"host {cpu}", program, lambda: compile_blob(program, cpu))
    return HostInstance(Blob(blob), dict(externs or {}))


def compile_blob(program: Program, cpu: str) -> bytes:
    """Compile and link *program* for a process on *cpu*: a header of text lines, an empty line, the groups' bytes."""
    from fivefold.metal.check.check import check
    from fivefold.metal.emit.intrinsics import Target
    from fivefold.metal.emit.link import DEFAULT_GROUPS, link
    from fivefold.metal.emit.llvm import write
    from fivefold.metal.emit.objects import emit

    unit = check(program)
    _check_host(unit, cpu)
    target = Target(cpu, host=True)
    groups = [group._replace(align=_ALIGN[cpu]) for group in DEFAULT_GROUPS]
    linked = link({"program": emit(write(unit, target), target)}, base=0, groups=groups)
    return "\n".join(_header(unit, linked)).encode() + b"\n\n" + b"".join(group.data for group in linked.groups)


def _check_host(unit: Unit, cpu: str) -> None:
    for word in MACHINE_WORDS:
        if word in unit.uses and word not in _ALLOWED[cpu]:
            site = unit.uses[word]
            raise CompileError(site.file, site.line, f"{word} on the host", "replace the function that uses it")


def _header(unit: Unit, linked: Linked) -> list[str]:
    """Spell what an instance must know of the image: no name in it holds a tab or a newline."""
    code, data = linked.group(".rodata").address, linked.group(".data").address
    items = [Item("image", "-", "-", linked.end, f"{code} {data}")]
    items += [Item("group", group.name, "-", group.address, str(len(group.data))) for group in linked.groups]
    for name, full in unit.exports.items():
        signature = unit.functions[full].signature
        kinds = " ".join(kind.value for _, kind in signature.parameters)
        items.append(
            Item("function", full, unit.short(full), linked.symbols[name], f"{signature.returns.value} {kinds}")
        )
    for variable in unit.variables.values():
        short = unit.short(variable.full)
        extra = f"{variable.kind.value} {'bound' if variable.bound else 'free'}"
        items.append(Item("variable", variable.full, short, linked.symbols[short], extra))
    for buffer in unit.buffers.values():
        short = unit.short(buffer.full)
        items.append(Item("buffer", buffer.full, short, linked.symbols[short], str(buffer.size)))
    items += [_pointer(unit, linked, key) for key in unit.uses if key.startswith(("extern ", "symbol "))]
    return ["\t".join([i.what, i.name, i.short, str(i.offset), i.extra]) for i in items]


def _pointer(unit: Unit, linked: Linked, key: str) -> Item:
    """Describe a place that the caller fills, with the kinds of an extern and where it is used."""
    site = unit.uses[key]
    kinds = ""
    for signature in unit.externs.values():
        if key == f"extern {signature.name}":
            kinds = " ".join([signature.returns.value, *(kind.value for _, kind in signature.parameters)])
    return Item("pointer", key, f"{site.line} {site.file}", linked.symbols[key], kinds)


class Blob:
    """A compiled image and its header."""

    def __init__(self, data: bytes) -> None:
        header, _, rest = data.partition(b"\n\n")
        self.items = [_read_item(line) for line in header.decode().split("\n")]
        self.size = self.items[0].offset
        self.code, self.data = (int(number) for number in self.items[0].extra.split())
        self.groups: list[tuple[int, bytes]] = []
        for group in self.of("group").values():
            self.groups.append((group.offset, rest[: int(group.extra)]))
            rest = rest[int(group.extra) :]

    def of(self, what: str) -> dict[str, Item]:
        """Return the items of a sort by full name."""
        return {item.name: item for item in self.items if item.what == what}


def _read_item(line: str) -> Item:
    what, name, short, offset, extra = line.split("\t")
    return Item(what, name, short, int(offset), extra)


def _spellings(items: Mapping[str, Item]) -> dict[str, str]:
    return {spelling: item.name for item in items.values() for spelling in (item.name, item.short)}


class _Entry(NamedTuple):
    """A function that can be called: its native entry takes and returns 64-bit words."""

    callee: Callee
    function: Callable[..., int]


class HostInstance(Instance):
    """A program as native code. Only the roots can be called: what they do not reach is not there."""

    def __init__(self, blob: Blob, externs: dict[str, Extern]) -> None:
        size = (blob.size + PAGE - 1) // PAGE * PAGE
        self._code = CodeImage(blob.groups, blob.code, blob.data, size)
        self._functions, self._variables, self._buffers = (blob.of(what) for what in ("function", "variable", "buffer"))
        self._names = {
            what: _spellings(items)
            for what, items in (
                ("function", self._functions),
                ("variable", self._variables),
                ("buffer", self._buffers),
            )
        }
        self._entries: dict[str, _Entry] = {}
        self._texts: dict[bytes, int] = {}
        self._kept: list[object] = []
        self._failure: BaseException | None = None
        self._regions: list[tuple[int, int, bool]] = [(self._code.base + blob.data, size - blob.data, True)]
        self._mapped: dict[int, list[PinnedBuffer]] = {}
        for item in blob.of("pointer").values():
            self._fill(item, externs)

    def _fill(self, item: Item, externs: dict[str, Extern]) -> None:
        """Store the address of an extern or the value of a symbol where the code looks for it."""
        sort, _, name = item.name.partition(" ")
        given = externs.get(name)
        if given is None or isinstance(given, int) is not (sort == "symbol"):
            line, _, file = item.short.partition(" ")
            raise CompileError(file, int(line), f"{item.name} is not given", f"pass externs={{{name!r}: …}}")
        value = given if isinstance(given, int) else self._callback(given, item.extra.split())
        self._word(item.offset).value = value

    def _callback(self, function: Callable[..., int | None], kinds: list[str]) -> int:
        returns, parameters = kinds[0], kinds[1:]

        def entered(*words: int) -> int:
            args = [bool(w) if kind == "bool" else w for w, kind in zip(words, parameters, strict=True)]
            try:
                result = int(function(*args) or 0)
            # Through native code nothing can be raised: ctypes would print it and drop it; call() raises it.
            except BaseException as error:  # noqa: BLE001
                self._failure = self._failure or error
                return 0
            return int(result != 0) if returns == "bool" else result & MASK64

        prototype = ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * len(parameters))
        native = prototype(entered)
        self._kept.append(native)
        return ctypes.cast(native, ctypes.c_void_p).value or 0

    def _word(self, offset: int) -> ctypes.c_uint64:
        return ctypes.c_uint64.from_address(self._code.base + offset)

    def call(self, name: str, /, *args: int | str | bytes) -> int:
        entry = self._entries.get(name) or self._entry(name)
        result = entry.function(*self.convert(name, entry.callee, args))
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return result if entry.callee.returns != "None" else 0

    def direct(self, name: str) -> Callable[..., int]:
        """A function of words to be called without checks, with the interpreter's lock held: for short ones, often."""
        item = self._functions[find(self._names["function"], name, "root function")]
        _, *kinds = item.extra.split()
        prototype = ctypes.PYFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * len(kinds))
        return prototype(self._code.base + item.offset)

    def _entry(self, name: str) -> _Entry:
        item = self._functions[find(self._names["function"], name, "root function")]
        returns, *kinds = item.extra.split()
        prototype = ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * len(kinds))
        entry = _Entry(Callee(tuple(kinds), returns), prototype(self._code.base + item.offset))
        self._entries[name] = entry
        return entry

    def get(self, variable: str) -> int:
        return self._word(self._variable(variable).offset).value

    def set(self, variable: str, value: int) -> None:
        item = self._variable(variable)
        kind, freedom = item.extra.split()
        if freedom == "bound":
            raise ValueError(f"{variable} is bound in this build")
        self._word(item.offset).value = checked(variable, kind, value)

    def _variable(self, name: str) -> Item:
        return self._variables[find(self._names["variable"], name, "variable")]

    def address(self, buffer: str) -> int:
        return self._code.base + self._buffers[find(self._names["buffer"], buffer, "buffer")].offset

    def read(self, addr: int, size: int) -> bytes:
        self._check(addr, size, for_write=False)
        return ctypes.string_at(addr, size)

    def write(self, addr: int, data: bytes) -> None:
        self._check(addr, len(data), for_write=True)
        ctypes.memmove(addr, data, len(data))

    def _check(self, addr: int, size: int, *, for_write: bool) -> None:
        for start, length, writable in self._regions:
            if start <= addr and addr + size <= start + length:
                if for_write and not writable:
                    raise TypeError(f"the memory at {addr:#x} is read-only")
                return
        raise MemoryReadError(addr, size, "native memory")

    def map(self, buffer: Any, /) -> int:
        """Make a Python buffer native memory. If it is read-only, a program that stores there crashes."""
        pinned = PinnedBuffer(buffer)
        if not pinned.size:
            pinned.release()
            raise ValueError("cannot map an empty buffer")
        self._regions.append((pinned.address, pinned.size, pinned.writable))
        self._mapped.setdefault(pinned.address, []).append(pinned)
        return pinned.address

    def unmap(self, addr: int) -> None:
        pinned = self._mapped.get(addr, [])
        if not pinned:
            raise ValueError(f"nothing is mapped at {addr:#018x}")
        last = pinned.pop()
        self._regions.remove((last.address, last.size, last.writable))
        last.release()

    def text(self, data: bytes) -> int:
        if data not in self._texts:
            stored = ctypes.create_string_buffer(data)
            self._kept.append(stored)
            self._texts[data] = ctypes.addressof(stored)
            self._regions.append((self._texts[data], len(data) + 1, False))
        return self._texts[data]
