"""Modules of a kernel that is put together in memory: their symbols must be the ones that were written."""

from __future__ import annotations

from typing import Any

import pytest

from fivefold.arch import LA48, LA57, PagingMode
from fivefold.survey.names import modules
from fivefold.survey.names.btf import Btf
from fivefold.survey.names.modules import module_spans
from fivefold.symbols import Symbols, SymbolSpan

AREA = 0xFFFF_FFFF_C000_0000
NOWHERE = 0xFFFF_FFFF_9B00_0000
NAME_OF_56 = "a_name_that_takes_all_of_the_56_bytes_of_struct_module_x"


def spans_of(kernel: Any, btf: Btf | None = None) -> Any:
    memory, symbols, own = kernel.parts(kernel.finish())
    return module_spans(memory, symbols, btf or own)


def told(spans: Any) -> list[tuple[str, int, int, list[tuple[int, str, str]]]]:
    """Module, first address, end and symbols of each span."""
    return [(span.module, span.start, span.end, [one[:3] for one in span]) for span in spans]


@pytest.mark.parametrize("mode", [LA48, LA57], ids=["la48", "la57"])
@pytest.mark.parametrize(
    ("layout", "typed", "last"), [("6.4", True, 6), ("6.2", True, 1), ("4.20", False, 1)], ids=["6.4", "5.2", "4.20"]
)
def test_symbols_of_modules(kernel_in_memory: Any, mode: PagingMode, layout: str, typed: bool, last: int) -> None:
    """By parts: those of the end of one belong to none, and those without a section are another module's."""
    kernel = kernel_in_memory(mode, layout, typed=typed)
    code, data = (AREA, 0x2000), (AREA + 0x3000, 0x800)
    parts = [code, *[(0, 0)] * (last - 1), data]
    # What was freed after loading lies in a part without a base.
    mine = [
        (AREA + 0x10, "t", "local", 1),
        (AREA, "T", "exported", 1),
        (0, "U", "printk", 0),
        (AREA + 0x1FFF, "t", "last_byte", 1),
        (AREA + 0x2000, "t", "behind", 1),
        (AREA + 0x37FF, "d", "last_data", 2),
        (AREA + 0x3800, "d", "behind_data", 2),
        (AREA + 0x3000, "D", "x" * 500, 0xFFF1),
        (0x20, "r", "of_a_freed_part", 3),
        (AREA + 0x30, "t", "\x1b[1m", 1),
    ]
    other = [(AREA + 0x8000, "b", "lone", 1)]
    kernel.loaded(
        kernel.module("toy", parts, mine),
        kernel.module(NAME_OF_56 + "cut", [(AREA + 0x8000, 0x1000)], other),
        kernel.module("empty", [(AREA + 0x9000, 0x1000)], []),
        kernel.module("elsewhere", [(AREA + 0xA000, 0x1000)], [(AREA + 0xB000, "t", "there", 1)]),
    )
    spans, why = spans_of(kernel)
    assert why is None
    assert told(spans) == [
        (
            "toy",
            AREA,
            AREA + 0x2000,
            [
                (AREA, "T", "exported"),
                (AREA + 0x10, "t", "local"),
                (AREA + 0x30, "t", r"\x1b[1m"),
                (AREA + 0x1FFF, "t", "last_byte"),
            ],
        ),
        ("toy", AREA + 0x3000, AREA + 0x3800, [(AREA + 0x3000, "D", "x" * 500), (AREA + 0x37FF, "d", "last_data")]),
        (NAME_OF_56, AREA + 0x8000, AREA + 0x9000, [(AREA + 0x8000, "b", "lone")]),
    ]


def test_a_module_without_a_table(kernel_in_memory: Any) -> None:
    """One that is being loaded has none yet; those behind it are still read."""
    kernel = kernel_in_memory(LA48)
    first = kernel.module("loading", [(AREA, 0x1000)], [(AREA, "t", "one", 1)])
    kernel.word(first + 0x1A8, 0)
    kernel.loaded(first, kernel.module("loaded", [(AREA + 0x1000, 0x1000)], [(AREA + 0x1000, "t", "two", 1)]))
    assert [span.module for span in spans_of(kernel)[0]] == ["loaded"]


def test_names_beyond_all_text_are_none(kernel_in_memory: Any) -> None:
    """An offset of 8 MiB and more is damage, and no reason to give up the other symbols."""
    kernel = kernel_in_memory(LA48)
    rows = [(AREA, "t", "one", 1), (AREA + 8, "t", "two", 1)]
    kernel.loaded(kernel.module("toy", [(AREA, 0x1000)], rows))
    memory, symbols, btf = kernel.parts(kernel.finish())
    place = memory.word(memory.word(memory.word(kernel.modules) - 8 + 0x1A8))
    found = []
    for at in (8 << 20, (8 << 20) - 1):
        kernel.write(place, at.to_bytes(4, "little"))
        memory, symbols, btf = kernel.parts(kernel.finish())
        spans, why = module_spans(memory, symbols, btf)
        found.append(([one.name for span in spans for one in span], "breaks off" in (why or "")))
    assert found == [(["two"], False), ([], True)]  # the second is not in this memory


def test_so_many_symbols_of_one_module_are_read(kernel_in_memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_in_memory(LA48)
    kernel.loaded(kernel.module("toy", [(AREA, 0x1000)], [(AREA + n, "t", f"n{n}", 1) for n in range(5)]))
    monkeypatch.setattr(modules, "MOST_SYMBOLS", 3)
    assert [one.name for one in spans_of(kernel)[0][0]] == ["n0", "n1", "n2"]


@pytest.mark.parametrize("layout", ["6.4", "6.2"])
def test_types_that_lack_a_member(kernel_in_memory: Any, layout: str) -> None:
    kernel = kernel_in_memory(LA48, layout)
    kernel.loaded(kernel.module("toy", [(AREA, 0x1000)], [(AREA, "t", "one", 1)]))
    needed = [("module", name) for name in ("list", "name", "kallsyms")]
    needed += [("mod_kallsyms", name) for name in ("symtab", "num_symtab", "strtab")]
    of = {"6.4": "module_memory", "6.2": "module_layout"}[layout]
    needed += [(of, "base"), (of, "size")]
    for lacking in [*needed, ("module", "mem")] if layout == "6.4" else needed:
        assert spans_of(kernel, Btf(kernel.types(lacking))) == ([], "modules have no names here: BTF has other members")
    if layout == "6.2":
        without = spans_of(kernel, Btf(kernel.types(("module", "init_layout"))))
        assert told(without[0]) == [("toy", AREA, AREA + 0x1000, [(AREA, "t", "one")])]
        assert spans_of(kernel, Btf(kernel.types(("module", "core_layout")))) == ([], None)


def test_without_the_list(kernel_in_memory: Any) -> None:
    memory, symbols, btf = kernel_in_memory(LA48).parts(kernel_in_memory(LA48).finish())
    symbols = Symbols([SymbolSpan.of(one[:3] for one in symbols.spans[0] if one.name != "modules")], "test")
    assert module_spans(memory, symbols, btf) == ([], "modules have no names here: no symbol 'modules'")


def test_lists_that_break_off(kernel_in_memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before stays, and why there is no more is told."""
    kernel = kernel_in_memory(LA48)
    made = [
        kernel.module(name, [(AREA + 0x1000 * n, 0x1000)], [(AREA + 0x1000 * n, "t", "one", 1)])
        for n, name in enumerate(("first", "second", "third"))
    ]
    kernel.loaded(*made)
    monkeypatch.setattr(modules, "MOST_MODULES", 3)
    assert [span.module for span in spans_of(kernel)[0]] == ["first", "second", "third"]
    monkeypatch.setattr(modules, "MOST_MODULES", 2)
    spans, why = spans_of(kernel)
    assert [span.module for span in spans] == ["first", "second"]
    assert why == (
        f"the list of modules breaks off: the list at {kernel.modules:#x} leads to {made[2] + 8:#x} "
        "after 2 members; expected its head"
    )
    kernel.word(made[1] + 8, made[0] + 8)
    assert [span.module for span in spans_of(kernel)[0]] == ["first", "second"]
    monkeypatch.setattr(modules, "MOST_MODULES", 3)
    kernel.word(made[1] + 8, NOWHERE)
    spans, why = spans_of(kernel)
    assert [span.module for span in spans] == ["first", "second"] and "no memory at 0xffffffff9b000000" in (why or "")
