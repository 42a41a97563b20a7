"""`fivefold volatility`: what volatility3 needs on its command line for a guest."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from fivefold.cli.source_options import SourceChoice, on_optional_source

_PLAIN: Final = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


@on_optional_source
def volatility(
    chosen: SourceChoice | None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write the symbols here; in your cache folder otherwise."),
    ] = None,
) -> int:
    """Print `-p DIR -s DIR` for volatility3: our layers, and symbols made from the guest's own BTF and kallsyms.

    Then run it so: vol -f FILE $(fivefold volatility FILE) linux.pslist. Without SOURCE only -p DIR is printed. For a
    running guest, -f is printed too: vol $(fivefold volatility qmp:SOCKET) linux.pslist.
    """
    from fivefold.integrations.volatility.folders import plugin_folder, symbol_folder, write_pointer, write_symbols
    from fivefold.integrations.volatility.isf import SymbolFile
    from fivefold.memory import LIVE

    words = ["-p", str(plugin_folder())]
    if chosen is not None:
        folder = (symbol_folder() if output is None else output).absolute()
        with chosen.open_space() as space:
            write_symbols(SymbolFile(space), folder)
        words += ["-s", str(folder)]
        if chosen.name.startswith(LIVE) or Path(chosen.name).is_dir():
            words = ["-f", str(write_pointer(chosen.name, folder)), *words]
    if not all(_PLAIN.fullmatch(word) for word in words):
        print("fivefold: a shell takes these folders apart inside $(…): copy the line instead", file=sys.stderr)
    print(shlex.join(words))
    return 0
