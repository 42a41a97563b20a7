"""A package that can be called as the function it is named after.

`fivefold.explain` has to be two things: the package that ``from fivefold.explain import …``
finds, and the function of the public API. The import system binds a package to its name in the
parent, so a function of the same name in the parent lasts only until the package is
imported. Here there is one object for both, whatever is imported first.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A module whose call is the call of its member of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function that the package is named after."""
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(name: str) -> None:
    """Make the module *name*, which is being imported, a `CallablePackage`.

    Assigning ``__class__`` is the way that the language reference gives ("Customizing module
    attribute access").
    """
    sys.modules[name].__class__ = CallablePackage
