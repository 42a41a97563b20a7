"""Helpers of these tests: test programs, modules from text, and metal code on an emulated CPU."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import unicorn
from hypothesis import strategies as st
from unicorn import x86_const as uc

from fivefold.metal.emit.link import link
from fivefold.metal.emit.objects import compile_object
from fivefold.metal.program import Program

PROGRAMS = Path(__file__).with_name("programs")
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def programs() -> Iterator[None]:
    """Make the modules under ``programs`` importable."""
    sys.path.insert(0, str(PROGRAMS))
    yield
    sys.path.remove(str(PROGRAMS))


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what these tests compile out of the user's cache."""
    place = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIVEFOLD_CACHE", str(place))
        yield place


HEAD = """from __future__ import annotations
from typing import Final
from fivefold.metal import lang
from fivefold.metal.lang import *
from fivefold.metal.lang import u64
"""


class ModuleMaker:
    """Writes modules of the subset and makes them importable."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __call__(self, text: str, name: str = "") -> str:
        """Write a module; the vocabulary is imported on its first `HEAD` lines. Return its name."""
        name = name or f"made{next(_NUMBERS)}"
        path = self.place / f"{name}.py"
        path.write_text(HEAD + text, encoding="utf-8")
        # Old, or the cache would not trust it; and never the same twice, or Python would trust its own.
        os.utime(path, (1_000_000_000 + next(_NUMBERS),) * 2)
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
        return name


@pytest.fixture(scope="session")
def make_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleMaker]:
    """A function that turns text into an importable module and returns its name."""
    place = tmp_path_factory.mktemp("modules")
    sys.path.insert(0, str(place))
    yield ModuleMaker(place)
    sys.path.remove(str(place))


class Emulated:
    """A metal build on an emulated CPU, with the part of `Instance` that comparing needs."""

    BASE = 0x40_0000
    STACK = 0x7000_0000
    RETURN = 0x1000_0000
    SCRATCH = 0x2000_0000
    _ARGUMENTS = (
        uc.UC_X86_REG_RDI,
        uc.UC_X86_REG_RSI,
        uc.UC_X86_REG_RDX,
        uc.UC_X86_REG_RCX,
        uc.UC_X86_REG_R8,
        uc.UC_X86_REG_R9,
    )

    def __init__(self, program: Program, *, arch: str = "x86_64", asm: str = "", prefix: str = "") -> None:
        self.is64 = arch == "x86_64"
        self.prefix = prefix
        self.linked = link([compile_object(program, arch=arch, asm=asm, prefix=prefix)], base=self.BASE)
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64 if self.is64 else unicorn.UC_MODE_32)
        self.uc.mem_map(self.BASE, (self.linked.end - self.BASE + 0x1FFF) & ~0xFFF)
        self.uc.mem_write(self.BASE, self.linked.flat())
        for place in (self.STACK - 0x10000, self.RETURN, self.SCRATCH):
            self.uc.mem_map(place, 0x10000)
        self._text = self.SCRATCH + 0x1000

    def call(self, name: str, *args: int | str) -> int:
        """Call an export, as in `Instance.call`; a function of kind None leaves 0."""
        words = [self._word(arg) for arg in args]
        entry = self.linked.symbols[self.prefix + name.rpartition(".")[2]]
        stack = self.STACK - 0x1000
        if self.is64:
            self._push(stack, self.RETURN.to_bytes(8, "little"), uc.UC_X86_REG_RSP)
            for register, word in zip(self._ARGUMENTS, words, strict=False):
                self.uc.reg_write(register, word)
        else:
            frame = self.RETURN.to_bytes(4, "little") + b"".join(word.to_bytes(8, "little") for word in words)
            self._push(stack, frame, uc.UC_X86_REG_ESP)
        self.uc.emu_start(entry, self.RETURN)
        if self.is64:
            return self.uc.reg_read(uc.UC_X86_REG_RAX)
        return self.uc.reg_read(uc.UC_X86_REG_EAX) | self.uc.reg_read(uc.UC_X86_REG_EDX) << 32

    def _push(self, stack: int, frame: bytes, register: int) -> None:
        self.uc.mem_write(stack, frame)
        self.uc.reg_write(register, stack)

    def _word(self, arg: int | str) -> int:
        if not isinstance(arg, str):
            return int(arg)
        self.uc.mem_write(self._text, arg.encode() + b"\0")
        return self._text

    def get(self, variable: str) -> int:
        return int.from_bytes(self.read(self.linked.symbols[self.prefix + variable], 8), "little")

    def set(self, variable: str, value: int) -> None:
        self.write(self.linked.symbols[self.prefix + variable], value.to_bytes(8, "little"))

    def address(self, buffer: str) -> int:
        return self.linked.symbols[self.prefix + buffer]

    def read(self, addr: int, size: int) -> bytes:
        return bytes(self.uc.mem_read(addr, size))

    def write(self, addr: int, data: bytes) -> None:
        self.uc.mem_write(addr, data)


@pytest.fixture(scope="session")
def emulated() -> Callable[..., Emulated]:
    """The class `Emulated`: a fixture, since tests cannot import this file."""
    return Emulated


class RandomPrograms:
    """Hypothesis strategies for sources: functions of two integers that always end."""

    operators = st.sampled_from(["+", "-", "*", "&", "|", "^", "<<", ">>", "//", "%"])
    relations = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
    literals = st.one_of(st.integers(0, 70), st.sampled_from([1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1])).map(str)
    names = st.sampled_from(["a", "b", "x", "y", "state"])

    @classmethod
    def integers(cls, depth: int = 3) -> st.SearchStrategy[str]:
        """Expressions that are integers."""
        leaf = st.one_of(cls.names, cls.literals)
        if depth == 0:
            return leaf
        inner, test = cls.integers(depth - 1), cls.bools(depth - 1)
        return st.one_of(
            leaf,
            st.tuples(inner, cls.operators, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            st.tuples(st.sampled_from("-~"), inner).map(lambda t: f"({t[0]}{t[1]})"),
            st.tuples(inner, test, inner).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
            st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
            st.tuples(st.sampled_from(["ctz", "clz", "popcount"]), inner).map(lambda t: f"{t[0]}({t[1]})"),
            test.map(lambda t: f"u64({t})"),
            inner.map(lambda t: f"bump({t})"),
        )

    @classmethod
    def bools(cls, depth: int) -> st.SearchStrategy[str]:
        """Expressions that are bools."""
        inner = cls.integers(max(0, depth - 1))
        comparison = st.tuples(inner, cls.relations, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        if depth == 0:
            return comparison
        test = cls.bools(depth - 1)
        return st.one_of(
            comparison,
            st.tuples(inner, cls.relations, inner, cls.relations, inner).map(lambda t: f"({' '.join(t)})"),
            st.tuples(test, st.sampled_from(["and", "or"]), test).map(lambda t: f"({' '.join(t)})"),
            test.map(lambda t: f"(not {t})"),
        )

    @classmethod
    def blocks(cls, depth: int = 2) -> st.SearchStrategy[list[str]]:
        """Lists of lines."""
        statement = cls.statements(depth)
        return st.lists(statement, min_size=1, max_size=3).map(lambda parts: [line for part in parts for line in part])

    @classmethod
    def statements(cls, depth: int) -> st.SearchStrategy[list[str]]:
        """One statement, as lines."""
        target = st.sampled_from(["x", "y", "state"])
        simple = st.one_of(
            st.tuples(target, cls.integers()).map(lambda t: [f"{t[0]} = {t[1]}"]),
            st.tuples(target, cls.operators, cls.integers(2)).map(lambda t: [f"{t[0]} {t[1]}= {t[2]}"]),
            cls.bools(2).map(lambda t: [f"if {t}:", "    return x ^ y"]),
        )
        if depth == 0:
            return simple
        inner = cls.blocks(depth - 1).map(lambda lines: [f"    {line}" for line in lines])
        test = cls.bools(2)
        leave = st.tuples(test, st.sampled_from(["break", "continue"])).map(
            lambda t: [f"    if {t[0]}:", f"        {t[1]}"]
        )
        counter = f"i{depth}"
        rounds = st.tuples(cls.integers(1), st.integers(1, 3)).map(lambda t: f"range({t[0]} % 7, 9, {t[1]})")
        return st.one_of(
            simple,
            st.tuples(test, inner, inner).map(lambda t: [f"if {t[0]}:", *t[1], "else:", *t[2]]),
            st.tuples(rounds, leave, inner).map(lambda t: [f"for {counter} in {t[0]}:", *t[1], *t[2]]),
            st.tuples(leave, inner).map(
                lambda t: [f"for item{depth} in (ROWS):", *t[0], *t[1], f"    x ^= item{depth}"]
            ),
            st.tuples(test, leave, inner).map(
                lambda t: [f"w{depth} = 0", f"while w{depth} < 4 and {t[0]}:", f"    w{depth} += 1", *t[1], *t[2]]
            ),
        )

    @classmethod
    def modules(cls, functions: int) -> st.SearchStrategy[str]:
        """A module with exports ``f0``, ``f1``, …"""
        return st.lists(cls.blocks(), min_size=functions, max_size=functions).map(_module_text)


def _module_text(bodies: list[list[str]]) -> str:
    head = """
ROWS: Final = (3, 1 << 63, 70)
state: u64 = 1

def bump(value: u64) -> u64:
    global state
    state += value
    return value ^ state
"""
    parts = [head]
    for number, lines in enumerate(bodies):
        body = "\n".join(f"    {line}" for line in ["global state", "x = a", "y = b", *lines, "return x + y"])
        parts.append(f"@export\ndef f{number}(a: u64, b: u64) -> u64:\n{body}\n")
    return "\n".join(parts)


@pytest.fixture(scope="session")
def random_programs() -> type[RandomPrograms]:
    """The strategies for sources."""
    return RandomPrograms
