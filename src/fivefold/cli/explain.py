"""`fivefold explain`: why did it fault, fault twice, fault three times?"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fivefold.cli import values
from fivefold.cli.choices import SYMBOLS_HELP
from fivefold.cli.source_options import EptOption, LegendOption, NptOption, VtdOption, behind, second_level

if TYPE_CHECKING:
    from fivefold.memory import Source

_PANEL: Final = "Plain numbers"
_REGISTERS: Final = ("error_code", "cr0", "cr2", "cr3", "cr4", "efer", "rip", "rsp", "rflags", "pkru")
_RANGES: Final = {"vector": (0, 255), "cpl": (0, 3), "phys_bits": (32, 52), "levels": (4, 5)}
_HELP: Final = {
    "error_code": "The page fault's error code.",
    "cr2": "The address that was refused.",
    "vector": "The exception, 14 for a page fault.",
    "cpl": "The privilege level that it happened at.",
    "phys_bits": "Physical address width (MAXPHYADDR).",
    "levels": "Levels of page tables.",
}
_METAVARS: Final = {"vector": "N", "cpl": "0..3", "phys_bits": "BITS", "levels": "4|5"}


def _options() -> Iterator[inspect.Parameter]:
    """The options for what a caller may say instead of a log: the fields of `fivefold.explain.GivenState`."""
    options: dict[str, Any] = {
        name: typer.Option(parser=values.address, metavar="HEX", help=_HELP.get(name), rich_help_panel=_PANEL)
        for name in _REGISTERS
    }
    for name, (least, most) in _RANGES.items():
        options[name] = typer.Option(
            parser=values.count(least, most), metavar=_METAVARS[name], help=_HELP[name], rich_help_panel=_PANEL
        )
    for name, option in options.items():
        annotation = Annotated[int | None, option]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with_numbers(command: Callable[..., int]) -> Callable[..., int]:
    """Give *command* an option for each plain number; it gets them as one mapping, its first argument."""
    numbers = list(_options())
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shown = [*(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own), *numbers]

    @functools.wraps(command)
    def run(**values: Any) -> int:
        said = {parameter.name: values.pop(parameter.name) for parameter in numbers}
        return command(said, **values)

    # What reads the signature is to see the spliced one, and not the wrapped command's.
    del run.__wrapped__
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


@_with_numbers
def explain(
    numbers: Mapping[str, int | None],
    log: Annotated[
        str | None,
        typer.Argument(
            metavar="[LOG|SOURCE]",
            help="A log (Linux, QEMU -d int or `info registers`, KVM, Bochs, …; - is stdin), a core, or qmp:SOCKET.",
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="The guest's memory: a core, qmp:SOCKET, …")
    ] = None,
    ram_map: Annotated[
        str | None,
        typer.Option(
            metavar="RANGES", help="Where a raw memory image lies: START-END[=OFFSET],… (see `fivefold info`)."
        ),
    ] = None,
    ept: EptOption = None,
    npt: NptOption = None,
    vtd: VtdOption = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Stop a live guest while it is read.")] = False,
    address: Annotated[
        list[int] | None,
        typer.Option("--address", "-a", parser=values.address, metavar="HEX", help="Also say what this is."),
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(metavar="CHANGE", help="Ask again under a change: user, write, cpl=0, cr0.wp=0, mode=la48, …"),
    ] = None,
    symbols: Annotated[
        str | None,
        typer.Option(metavar="FILE", help=SYMBOLS_HELP),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait for a log that grows, until its first fatal exception.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every entry of every walk.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the schema fivefold.explain/1.")] = False,
    legend: LegendOption = False,
) -> int:
    """Explain a fault: what was accessed, which rule refused it, why no handler ran, what would be legal.

    Exit status 0 when there is an explanation, whatever it says; 2 when there is nothing to explain.
    """
    from fivefold.cli.source_options import ProgressLine
    from fivefold.explain import GivenState
    from fivefold.explain import explain as run_explain

    try:
        second = second_level(ept, npt, vtd)
        with _opened(memory, ram_map, freeze, numbers, log, address, second) as (log, source):
            explanation = run_explain(
                log,
                source,
                given=GivenState(**numbers),
                addresses=address or [],
                what_if=what_if or [],
                symbols=symbols,
                follow=follow,
                progress=ProgressLine(),
            )
    except ValueError as error:  # a change or a source's name that makes no sense
        raise typer.BadParameter(str(error)) from error
    if as_json:
        json.dump(explanation.to_json(), sys.stdout, indent=2)
        print()
    else:
        from fivefold.report.console import report_console
        from fivefold.report.text.explain import WIDTH, print_explanation

        print_explanation(explanation, report_console(piped=WIDTH), verbose)
    return 0


@contextmanager
def _opened(
    memory: str | None,
    ram_map: str | None,
    freeze: bool,
    numbers: Mapping[str, int | None],
    log: str | None,
    address: list[int] | None,
    second: tuple[str, int, int | None] | None,
) -> Iterator[tuple[str | None, Source | None]]:
    """The log and the source of memory, which is opened here for its map of RAM, and closed again."""
    from fivefold.errors import FormatError
    from fivefold.explain.answer import is_source
    from fivefold.memory import LIVE, open_source

    if memory is None and log is not None and log.startswith(LIVE):
        log, memory = None, log  # it is opened here, as options say
    if second is not None and memory is None and log is not None and is_source(log):
        log, memory = None, log
    if second is not None and memory is None:
        raise typer.BadParameter(f"--{second[0]} is about the memory of a host: name it with --memory")
    if log is None and memory is None and not address and all(value is None for value in numbers.values()):
        raise FormatError("nothing to explain: expected a log, a source of memory, or numbers such as --cr2")
    with open_source(memory, ram_map=ram_map, freeze=freeze) if memory is not None else nullcontext() as source:
        if source is not None and source.format.startswith("raw image") and ram_map is None:
            # A log that is given as memory is raw memory, too.
            for note in source.notes:
                print(f"fivefold: {source.name}: {note}", file=sys.stderr)
        if source is not None:
            source = behind(source, second)
            _refuse_ept(source, numbers)
        yield log, source


def _refuse_ept(source: Source, numbers: Mapping[str, int | None]) -> None:
    """Raise `NotKnownError` where the CR3 that was given leads to EPT tables in *source*."""
    from fivefold.arch import FRAME_BITS, Cr4
    from fivefold.survey.second_level.sources import refuse_ept
    from fivefold.units import PhysAddr

    if (cr3 := numbers["cr3"]) is not None:
        levels = numbers["levels"] or (5 if (numbers["cr4"] or 0) & Cr4.LA57 else 4)
        refuse_ept(source.memory, PhysAddr(cr3 & FRAME_BITS), levels)
