"""The builds of the scan and of the walks: what a guest is read with, and what a wheel has as prebuilt code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fivefold.kernel.modes import mode_bindings
from fivefold.metal import first_literals
from fivefold.metal.program import Program

LEVELS: Final = (4, 5)
ONE: Final = "fivefold.kernel.scan.translate_one"
_TABLES: Final = "fivefold.kernel.scan.tables"
_EXTENTS: Final = "fivefold.metal.extents"
_STORE: Final = "fivefold.metal.table_store"


def every_program() -> Iterator[Program]:
    """Yield each of them."""
    yield first_literals.PROGRAM
    for levels in LEVELS:
        yield scan_program(levels, prefetch=False, brought=True)
        yield translate_program(levels, scattered=False, brought=True)
        for choice in (False, True):
            yield scan_program(levels, prefetch=choice)
            yield translate_program(levels, scattered=choice)
            yield walk_program(levels, scattered=choice)


def scan_program(levels: int, *, prefetch: bool, brought: bool = False) -> Program:
    """The build of the scan for trees of *levels* tables (4 or 5), reading through `metal.extents`.

    With *brought* it reads through `metal.table_store` and stops for tables that are not there yet.
    """
    _check(levels)
    scan, reached = "fivefold.kernel.scan", _EXTENTS
    modules: tuple[str, ...] = (f"{scan}.scan",)
    replaced = {}
    if brought:
        reached = _STORE
        modules = (*modules, f"{scan}.scan_awaited", reached)
        replaced[f"{_TABLES}.is_awaited"] = f"{reached}.is_awaited"
    return Program(
        modules,
        bindings={**mode_bindings(levels), f"{scan}.scan_runs.prefetching": int(prefetch and not brought)},
        replace={
            f"{_TABLES}.phys_table": f"{reached}.phys_to_page",
            f"{_TABLES}.frame_index": f"{reached}.frame_index",
            **replaced,
        },
    )


def translate_program(levels: int, *, scattered: bool, brought: bool = False) -> Program:
    """The build of the walk for trees of *levels* tables, 4 or 5, in one extent or *scattered* over several.

    With *brought* it reads tables that are brought one by one.
    """
    _check(levels)
    modules: tuple[str, ...] = ("fivefold.kernel.scan.translate",)
    reached = _lookup(scattered)
    if brought:
        reached, modules = f"{_STORE}.phys_to_page", (*modules, _STORE)
    return Program(modules, bindings=mode_bindings(levels), replace={f"{_TABLES}.phys_table": reached})


def walk_program(levels: int, *, scattered: bool) -> Program:
    """The build of the walk of one address, for trees of *levels* tables, in one extent or *scattered* over several."""
    replaced = {f"{_TABLES}.phys_table": _lookup(scattered)}
    return Program((ONE,), bindings=mode_bindings(levels), replace=replaced)


def _lookup(scattered: bool) -> str:
    # The extent that was used last is the right one where there is no other, and next to never among many.
    return f"{_EXTENTS}.{'any_page' if scattered else 'phys_to_page'}"


def _check(levels: int) -> None:
    if levels not in LEVELS:
        raise ValueError(f"{levels} levels of page tables; expected 4 or 5")
