"""What to compile: a list of modules, what is bound and what is replaced.

This module is all that a warm start needs to name a program, so it imports
neither the parser nor the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Program:
    """One build of some modules of the subset.

    ``modules`` are full dotted names; what they import joins when it is reached.
    The roots are every ``@export`` of these modules, and ``roots``: full names of
    further functions to keep as if exported (``package.module.*`` for all of a
    module). ``bindings`` maps full names of variables to the constants that they
    are in this build; ``replace`` maps full names of functions to those that stand
    in for them.
    """

    modules: tuple[str, ...]
    bindings: Mapping[str, int] = field(default_factory=dict)
    replace: Mapping[str, str] = field(default_factory=dict)
    roots: tuple[str, ...] = ()

    def describe(self) -> str:
        """Spell the program in one line, the same for equal programs in any process."""
        bound = sorted((name, int(value)) for name, value in self.bindings.items())
        return repr((tuple(self.modules), bound, sorted(self.replace.items()), tuple(self.roots)))
