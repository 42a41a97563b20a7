"""`fivefold drgn`: drgn on memory that it refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fivefold.cli.source_options import SourceChoice, on_source


@on_source
def drgn(
    chosen: SourceChoice,
    code: Annotated[
        str | None,
        typer.Option("--exec", "-e", metavar="CODE", help="Run this with drgn's names (prog, …), and end."),
    ] = None,
    script: Annotated[Path | None, typer.Option("--script", metavar="FILE", help="Run this file so, and end.")] = None,
    vmlinux: Annotated[
        list[Path] | None,
        typer.Option("--vmlinux", metavar="FILE", help="Debug information: the kernel's vmlinux, or a module's file."),
    ] = None,
) -> int:
    """Start drgn on a Linux in SOURCE, with or without a VMCOREINFO note: it is found in memory.

    drgn's own walk reads the guest, of four levels or five; `prog.symbol` knows the guest's kallsyms. What needs types,
    `prog["init_task"]` and helpers as `for_each_task`, needs --vmlinux with debug information (DWARF).
    """
    from fivefold.integrations.drgn_session import run_session

    if code is not None and script is not None:
        raise typer.BadParameter("give one of --exec and --script")
    with chosen.open_space() as space:
        return run_session(space, code=code, script=script, debug_files=vmlinux or [], tell=_tell)


def _tell(note: str) -> None:
    print(f"fivefold: {note}", file=sys.stderr)
