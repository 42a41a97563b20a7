"""`fivefold gdb`: the line that brings the `ff` commands into a gdb session."""

from __future__ import annotations


def gdb() -> int:
    """Print the line to type in gdb, or to add to .gdbinit, for `ff info`, `ff walk` and the others.

    gdb lends its target's physical memory, and a `fivefold` process does the work: gdb's Python needs no package.
    """
    from fivefold.integrations.gdb_line import gdb_line

    print(gdb_line())
    return 0
