"""`fivefold explain`: why did it fault, fault twice, fault three times?"""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def _number(text: str) -> int:
    """A number as registers are written: 0x… or bare hexadecimal digits."""
    try:
        return int(text.replace("_", ""), 16)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not a number; expected hexadecimal such as 0xffffffff80000000"
        ) from error


_REGISTER = {"parser": _number, "metavar": "HEX", "rich_help_panel": "Plain numbers"}


def explain(
    log: Annotated[
        str | None,
        typer.Argument(
            metavar="[LOG|SOURCE]",
            help="A log (QEMU -d int or `info registers`, KVM, Linux, Bochs; - is stdin), a core, or qmp:SOCKET.",
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
    address: Annotated[
        list[int] | None, typer.Option("--address", "-a", parser=_number, metavar="HEX", help="Also say what this is.")
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(metavar="CHANGE", help="Ask again under a change: user, write, cpl=0, cr0.wp=0, mode=la48, …"),
    ] = None,
    vector: Annotated[int | None, typer.Option(help="The exception.", rich_help_panel="Plain numbers")] = None,
    error_code: Annotated[int | None, typer.Option(**_REGISTER)] = None,
    cr0: Annotated[int | None, typer.Option(**_REGISTER)] = None,
    cr2: Annotated[int | None, typer.Option(**_REGISTER)] = None,
    cr3: Annotated[int | None, typer.Option(**_REGISTER)] = None,
    cr4: Annotated[int | None, typer.Option(**_REGISTER)] = None,
    efer: Annotated[int | None, typer.Option(**_REGISTER)] = None,
    rip: Annotated[int | None, typer.Option(**_REGISTER)] = None,
    rsp: Annotated[int | None, typer.Option(**_REGISTER)] = None,
    rflags: Annotated[int | None, typer.Option(**_REGISTER)] = None,
    cpl: Annotated[int | None, typer.Option(min=0, max=3, rich_help_panel="Plain numbers")] = None,
    pkru: Annotated[int | None, typer.Option(**_REGISTER)] = None,
    phys_bits: Annotated[int | None, typer.Option(min=32, max=52, rich_help_panel="Plain numbers")] = None,
    levels: Annotated[int | None, typer.Option(min=4, max=5, rich_help_panel="Plain numbers")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every entry of every walk.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the schema fivefold.explain/1.")] = False,
) -> int:
    """Tell the story of a fault: what was touched, which rule refused it, why no handler ran, what would be legal.

    Exit status 0 when the story is told, whatever it says; 2 when there is none to tell.
    """
    from fivefold.errors import FormatError
    from fivefold.explain import Given
    from fivefold.explain import explain as run_explain
    from fivefold.memory import open_source

    given = Given(
        vector=vector, error_code=error_code, cr0=cr0, cr2=cr2, cr3=cr3, cr4=cr4, efer=efer, rip=rip, rsp=rsp,
        rflags=rflags, cpl=cpl, pkru=pkru, phys_bits=phys_bits, levels=levels,
    )  # fmt: skip
    if log is None and memory is None and not given and not address:
        raise FormatError("nothing to explain: expected a log, a source of memory, or numbers such as --cr2")
    source = None
    try:
        source = open_source(memory, ram_map=ram_map) if memory is not None else None
        explanation = run_explain(log, source, given=given, addresses=address or (), what_if=what_if or ())
    except ValueError as error:  # a change or a source's name that makes no sense
        raise typer.BadParameter(str(error)) from error
    finally:
        if source is not None:
            source.close()
    if as_json:
        json.dump(explanation.to_json(), sys.stdout, indent=2)
        print()
    else:
        from fivefold.report.console import ReportConsole
        from fivefold.report.explain_text import print_explanation

        print_explanation(explanation, ReportConsole(highlight=False), verbose)
    return 0
