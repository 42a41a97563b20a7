"""The line that gives a gdb session the `ff` commands."""

from __future__ import annotations

import sys
from pathlib import Path


def gdb_line(python: str = sys.executable) -> str:
    """Return the line for a session or .gdbinit; *python* is the interpreter that the commands start `fivefold` with.

    The line needs both files to stay where they are: it is printed anew after a move of the environment.
    """
    commands = str(Path(__file__).with_name("gdb_commands.py"))
    names = f"{{'__name__': 'fivefold_gdb', 'PYTHON': {python!r}}}"
    run = f"exec(compile(open({commands!r}, encoding='utf-8').read(), 'fivefold_gdb', 'exec'), {names})"
    gone = f"fivefold: {commands} is gone: no ff commands; `fivefold gdb` prints the line to use"
    return f"python {run} if __import__('os').path.exists({commands!r}) else print({gone!r})"
