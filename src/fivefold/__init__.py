"""x86-64 paging with four and five levels, chosen at boot.

    >>> import fivefold as ff
    >>> ff.LA57.va_bits, ff.LA48.is_canonical(0xff11_0000_0000_0000)
    (57, False)

Names are loaded when they are first used, so importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

_PUBLIC: Final = {
    "LA48": "fivefold.arch",
    "LA57": "fivefold.arch",
    "AddressSpace": "fivefold.arch",
    "BootOptions": "fivefold.boot",
    "Cpu": "fivefold.arch",
    "FivefoldError": "fivefold.errors",
    "Ram": "fivefold.memory",
    "Region": "fivefold.survey.scan.regions",
    "Space": "fivefold.survey.space",
    "access": "fivefold.arch",
    "boot": "fivefold.boot",
    "build_image": "fivefold.boot",
    "explain": "fivefold.explain",
    "open": "fivefold.survey.space",
    "regions": "fivefold.arch",
    "translate": "fivefold.arch",
    "walk": "fivefold.arch",
}
_RENAMED: Final = {"open": "open_space"}

__all__ = sorted(_PUBLIC)  # noqa: PLE0605 - the names are in the table above


def __getattr__(name: str) -> object:
    """Load a public name from the module that has it."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fivefold' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
