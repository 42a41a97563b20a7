"""The line that gives a gdb session the `ff` commands."""

from __future__ import annotations

import sys
from pathlib import Path


def gdb_line(python: str = sys.executable) -> str:
    """Return the line for a session or .gdbinit; *python* is the interpreter that the commands start `fivefold` with.

    The line needs both files to stay where they are: it is printed anew after a move of the environment.
    """
    commands = Path(__file__).with_name("gdb_commands.py")
    given = f"{{'__name__': 'fivefold_gdb', 'PYTHON': {python!r}}}"
    return f"python exec(compile(open({str(commands)!r}, encoding='utf-8').read(), 'fivefold_gdb', 'exec'), {given})"
